//! `tidegate notices`: who was told what, and trying a webhook.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tidegate_registry::ids::NoticeId;
use tidegate_registry::notice::{Delivery, DeliveryState, NewNotice, Notice, NoticeEvent, NoticeFilter};
use tidegate_registry::store::Store;
use tidegate_registry::time::{Clock as _, SystemClock, format_instant};
use tokio_util::sync::CancellationToken;

use crate::commands::backfill::counted;
use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::notices;
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// List notices and how far each is on its way to the webhooks, try one again, or try a webhook
///
/// A process with a scheduler delivers them by itself. Whom: `notify:` in tidegate.yaml.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List notices, the newest first
    List {
        /// Only those with a delivery in this state: due, sent or given_up
        #[arg(long)]
        state: Option<DeliveryState>,
        /// Only these events, as in run.blocked or restore.*
        #[arg(long, value_name = "EVENT")]
        event: Option<String>,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// Have deliveries that were given up tried again
    Retry {
        /// The notice's id, or its beginning
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        notice: Option<String>,
        /// Those of all notices
        #[arg(long)]
        all: bool,
    },
    /// Deliver what is due now, without waiting for a scheduler
    Send {},
    /// Send a notice to a webhook, and say what came of it
    Test {
        /// Its name in `notify:`
        webhook: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or written, there is no such notice or webhook, or a secret is not set.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    match arguments.action {
        Action::List { state, event, limit } => {
            let filter = NoticeFilter { state, event, limit };
            let registry = context.registry().await?;
            let found = registry.store.notices(&filter).await.context("listing the notices")?;
            if found.is_empty() && !context.output.is_json() {
                note("no notice matches");
                return Ok(Exit::Done);
            }
            context.output.list(&found.into_iter().map(Told::from).collect::<Vec<_>>())?;
            Ok(Exit::Done)
        }
        Action::Retry { notice, all: _ } => {
            let registry = context.registry().await?;
            let id = match notice {
                Some(asked) => Some(find(&*registry.store, &asked).await?),
                None => None,
            };
            let again = registry.store.deliveries_retry(id, &context.actor(), registry.clock.now()).await;
            let again = usize::try_from(again.context("trying again")?)?;
            let deliveries = if again == 1 { "delivery is".to_owned() } else { "deliveries are".to_owned() };
            note(format!(
                "{again} {deliveries} due again; a process with a scheduler sends, or `tidegate notices send`"
            ));
            Ok(Exit::Done)
        }
        Action::Send {} => {
            let settings = context.settings()?;
            let registry = context.registry().await?;
            let attempts = notices::sender(&settings, &registry)?.step(&CancellationToken::new()).await;
            let attempts = usize::try_from(attempts.context("delivering notices")?)?;
            note(format!("{} made; `tidegate notices list` shows what came of it", counted(attempts, "attempt")));
            Ok(Exit::Done)
        }
        Action::Test { webhook } => test(&webhook, context).await,
    }
}

/// Goes straight to the receiver: what is in the outbox stays as it is.
async fn test(name: &str, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let webhooks = &settings.notify.webhooks;
    let found = webhooks.iter().find(|webhook| webhook.name == name);
    let known = webhooks.iter().map(|webhook| webhook.name.as_str());
    let webhook = select::named("webhook", name, found, known)?;
    let now = SystemClock.now();
    let message = format!("a test by {}", context.actor());
    let what = NewNotice::new(NoticeEvent::Test, settings.project.as_str(), now, message).by(context.actor());
    let notice = Notice { id: NoticeId::generate(), what, created_at: now };
    match notices::client(&settings)?.send(&notices::webhook(webhook)?, &notice, 1, now).await {
        Ok(()) => {
            note(format!("`{name}` at {} took the notice {}", webhook.host, notice.id));
            Ok(Exit::Done)
        }
        Err(error) => Err(UserError::new(format!("`{name}` did not take a notice: {error}")).into()),
    }
}

async fn find(store: &dyn Store, asked: &str) -> anyhow::Result<NoticeId> {
    if let Ok(id) = asked.parse() {
        return Ok(id);
    }
    let asked = asked.to_ascii_lowercase();
    let mut found = store.notices(&NoticeFilter::default()).await.context("listing the notices")?;
    found.retain(|(notice, _)| !asked.is_empty() && notice.id.to_string().starts_with(&asked));
    match found.as_slice() {
        [(notice, _)] => Ok(notice.id),
        [] => Err(UserError::new(format!("there is no notice `{asked}`"))
            .hint("`tidegate notices list` lists them")
            .into()),
        several => Err(UserError::new(format!("`{asked}` begins the ids of {} notices", several.len()))
            .hint("say more of it")
            .into()),
    }
}

#[derive(Debug, Serialize)]
struct Told {
    id: String,
    event: NoticeEvent,
    at: String,
    written_at: String,
    subject: String,
    message: String,
    actor: Option<String>,
    detail: Value,
    deliveries: Vec<Way>,
}

#[derive(Debug, Serialize)]
struct Way {
    webhook: String,
    state: DeliveryState,
    attempts: u32,
    due_at: Option<String>,
    error: Option<String>,
}

impl From<(Notice, Vec<Delivery>)> for Told {
    fn from((notice, deliveries): (Notice, Vec<Delivery>)) -> Self {
        let what = notice.what;
        let way = |delivery: Delivery| Way {
            webhook: delivery.webhook,
            state: delivery.state,
            attempts: delivery.attempts,
            due_at: delivery.due_at.map(format_instant),
            error: delivery.error,
        };
        Self {
            id: notice.id.to_string(),
            event: what.event,
            at: format_instant(what.at),
            written_at: format_instant(notice.created_at),
            subject: what.subject,
            message: what.message,
            actor: what.actor,
            detail: what.detail,
            deliveries: deliveries.into_iter().map(way).collect(),
        }
    }
}

impl Row for Told {
    const HEADINGS: &'static [&'static str] = &["NOTICE", "AT", "EVENT", "DELIVERIES", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        let way = |way: &Way| match &way.error {
            Some(error) if way.state != DeliveryState::Sent => format!("{} {}: {error}", way.webhook, way.state),
            _ => format!("{} {}", way.webhook, way.state),
        };
        let deliveries: Vec<String> = self.deliveries.iter().map(way).collect();
        vec![
            self.id.clone(),
            self.at.clone(),
            self.event.to_string(),
            if deliveries.is_empty() { "-".to_owned() } else { deliveries.join("\n") },
            self.message.clone(),
        ]
    }
}
