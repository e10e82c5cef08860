//! `tidegate audit-log`: who did what, and whether the trail is still what was written.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tidegate_registry::audit::{AuditEvent, AuditFilter, AuditVerdict};
use tidegate_registry::time::format_instant;

use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;
use crate::times::TimeArgument;

/// Show who did what, the newest first, or check that nothing of it was changed
///
/// Every action of a person is an event with what was so before and after, and every event vouches for all before it by a
/// hash. `--verify` computes all hashes anew. Whoever can write to the registry's database can also make the whole chain
/// anew: note its head elsewhere from time to time, and give it as `--head`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only events at or after this (without a zone, in UTC)
    #[arg(long, value_name = "TIME")]
    since: Option<TimeArgument>,
    /// Only events before this
    #[arg(long, value_name = "TIME")]
    until: Option<TimeArgument>,
    /// Only what this person or process did: ana@host, or ana on any machine
    #[arg(long, value_name = "WHO")]
    actor: Option<String>,
    /// Only actions that begin so, as in run or run_cancel
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only what was done to this, or names it: a run's id or its beginning, a view, a DAG
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
    /// The oldest first
    #[arg(long)]
    oldest_first: bool,
    /// Check the whole trail instead; exit code 1 when it is not what was written
    #[arg(long, conflicts_with_all = ["since", "until", "actor", "action", "subject", "oldest_first"])]
    verify: bool,
    /// With `--verify`: a head that was noted earlier, which must still be in the trail
    #[arg(long, value_name = "HASH", requires = "verify")]
    head: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, or `--head` is no hash.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    if arguments.verify {
        let noted = arguments.head.map(hash).transpose()?;
        let verdict = registry.store.audit_verify(noted).await.context("reading the audit trail")?;
        return tell(&verdict, context);
    }
    let zone = chrono_tz::UTC;
    let filter = AuditFilter {
        since: arguments.since.map(|at| at.in_zone(zone)),
        until: arguments.until.map(|at| at.in_zone(zone)),
        actor: arguments.actor,
        action: arguments.action,
        subject: arguments.subject,
        limit: arguments.limit,
        oldest_first: arguments.oldest_first,
    };
    let events = registry.store.audit_events(&filter).await.context("reading the audit trail")?;
    if events.is_empty() && !context.output.is_json() {
        note("no event matches");
        return Ok(Exit::Done);
    }
    context.output.list(&events.into_iter().map(Event::from).collect::<Vec<_>>())?;
    Ok(Exit::Done)
}

fn hash(text: String) -> Result<String, UserError> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text);
    }
    Err(UserError::new(format!("`{text}` is no head of an audit trail"))
        .hint("it has 64 hexadecimal digits, as `tidegate audit-log --verify` prints it"))
}

fn tell(verdict: &AuditVerdict, context: &Context) -> anyhow::Result<Exit> {
    let broken = verdict.broken.as_ref().map(ToString::to_string);
    context.output.one(
        verdict,
        &[
            ("events", verdict.events.to_string()),
            ("newest", verdict.number.to_string()),
            ("head", verdict.head.clone()),
            ("broken", broken.clone().unwrap_or_default()),
        ],
    )?;
    Ok(match broken {
        None => {
            note("every event is as it was written, in its place");
            Exit::Done
        }
        Some(broken) => {
            note(format!("the audit trail is broken: {broken}"));
            Exit::Wrong
        }
    })
}

#[derive(Debug, Serialize)]
struct Event {
    number: i64,
    at: String,
    recorded_at: Option<String>,
    actor: String,
    action: String,
    subject: String,
    reason: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
    duration_seconds: Option<f64>,
    detail: Value,
    hash: String,
}

impl From<AuditEvent> for Event {
    fn from(event: AuditEvent) -> Self {
        let what = event.what;
        Self {
            number: event.number,
            at: format_instant(what.at),
            recorded_at: event.recorded_at.map(format_instant),
            actor: what.actor,
            action: what.action,
            subject: what.subject,
            reason: what.reason,
            before: what.before,
            after: what.after,
            duration_seconds: what.duration.map(|duration| duration.as_secs_f64()),
            detail: what.detail,
            hash: event.hash,
        }
    }
}

impl Row for Event {
    const HEADINGS: &'static [&'static str] = &["NUMBER", "AT", "ACTOR", "ACTION", "SUBJECT", "CHANGE", "REASON"];

    fn cells(&self) -> Vec<String> {
        let change = match (&self.before, &self.after) {
            (None, None) => String::new(),
            (before, after) => format!("{} → {}", short(before.as_ref()), short(after.as_ref())),
        };
        vec![
            self.number.to_string(),
            self.at.clone(),
            self.actor.clone(),
            self.action.clone(),
            self.subject.clone(),
            change,
            self.reason.clone().unwrap_or_default(),
        ]
    }
}

/// Longer texts are cut in a table.
const TEXT_MAX: usize = 40;

/// A small value as people read it: texts without quotes, of an object its values; JSON has the rest.
fn short(value: Option<&Value>) -> String {
    match value {
        None => "-".to_owned(),
        Some(Value::String(text)) if text.chars().count() > TEXT_MAX => text.chars().take(12).chain(['…']).collect(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(fields)) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name} {}", short(Some(value)))).collect();
            fields.join(", ")
        }
        Some(other) => other.to_string(),
    }
}
