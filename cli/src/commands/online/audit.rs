//! `tidegate online audit`.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::ViewId;
use tidegate_worker::serving::AuditOptions;

use super::{chosen, serving};
use crate::context::{Context, Registry};
use crate::error::Exit;
use crate::output::{Row, percent};
use crate::progress::note;

#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) view: String,
    store: String,
    snapshot: Option<String>,
    entities: u64,
    compared: u64,
    missing: u64,
    different: u64,
    extra: u64,
    /// Per cent of the entities, and of their values, that were online as in the lake; `null` when there are none.
    entity_agreement: Option<f64>,
    value_agreement: Option<f64>,
    repaired: bool,
    examples: Vec<String>,
}

impl Line {
    /// Whether something differs still.
    pub(super) fn differs(&self) -> bool {
        self.missing + self.different + self.extra > 0 && !self.repaired
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["VIEW", "STORE", "ENTITIES", "COMPARED", "MISSING", "DIFFERENT", "EXTRA", "VALUES AGREE", "REPAIRED"];

    fn cells(&self) -> Vec<String> {
        let numbers = [self.entities, self.compared, self.missing, self.different, self.extra];
        let mut cells = vec![self.view.clone(), self.store.clone()];
        cells.extend(numbers.map(|number| number.to_string()));
        cells.push(percent(self.value_agreement));
        cells.push(if self.repaired { "yes".to_owned() } else { String::new() });
        cells
    }
}

/// Compares, and repairs when asked to.
///
/// # Errors
/// As [`super::run`], and when something else is live than was recorded.
pub(super) async fn run(
    views: &[String],
    sample: Option<u64>,
    repair: bool,
    context: &Context,
) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let views = chosen(&registry, views)?;
    let lines = compare(&views, AuditOptions { sample, repair }, &context.actor(), &registry, context).await?;
    if lines.is_empty() {
        note("no view is published online");
    }
    for line in &lines {
        for example in &line.examples {
            note(format!("{}: {example}", line.view));
        }
    }
    context.output.list(&lines)?;
    if lines.iter().any(Line::differs) {
        note("online and lake differ: `--repair` puts it right");
        return Ok(Exit::Wrong);
    }
    Ok(Exit::Done)
}

/// Compares in every store that the project keeps alike. What differs is written to the audit trail.
pub(super) async fn compare(
    views: &[ViewId],
    options: AuditOptions,
    actor: &str,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for serving in serving(context, registry).await? {
        for view in views {
            let begun = std::time::Instant::now();
            let audit = serving.audit(view, options).await.with_context(|| format!("auditing `{view}`"))?;
            if audit.differing() > 0 {
                let action = if audit.repaired { "online_repair" } else { "online_differ" };
                let event = NewAuditEvent::new(registry.clock.now(), actor, action, view.to_string());
                let (missing, different, extra) = (audit.missing, audit.different, audit.extra);
                let detail = json!({
                    "store": serving.online.to_string(), "missing": missing, "different": different, "extra": extra,
                });
                let noting = "noting what differs between online and lake";
                registry.store.audit(event.took(begun.elapsed()).with(detail)).await.context(noting)?;
            }
            lines.push(Line {
                view: view.to_string(),
                store: serving.online.to_string(),
                snapshot: audit.snapshot.map(|snapshot| snapshot.to_string()),
                entities: audit.entities,
                compared: audit.compared,
                missing: audit.missing,
                different: audit.different,
                extra: audit.extra,
                entity_agreement: audit.entity_agreement(),
                value_agreement: audit.value_agreement(),
                repaired: audit.repaired,
                examples: audit.examples,
            });
        }
        serving.online.close().await;
    }
    Ok(lines)
}
