//! `tidegate online audit`.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_worker::serving::AuditOptions;

use super::{chosen, serving};
use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;

#[derive(Debug, Serialize)]
struct Line {
    view: String,
    store: String,
    snapshot: Option<String>,
    entities: u64,
    compared: u64,
    missing: u64,
    different: u64,
    extra: u64,
    repaired: bool,
    examples: Vec<String>,
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["VIEW", "STORE", "ENTITIES", "COMPARED", "MISSING", "DIFFERENT", "EXTRA", "REPAIRED"];

    fn cells(&self) -> Vec<String> {
        let numbers = [self.entities, self.compared, self.missing, self.different, self.extra];
        let mut cells = vec![self.view.clone(), self.store.clone()];
        cells.extend(numbers.map(|number| number.to_string()));
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
    let mut lines = Vec::new();
    let mut exit = Exit::Done;
    for serving in serving(context, &registry).await? {
        for view in &views {
            let options = AuditOptions { sample, repair };
            let begun = std::time::Instant::now();
            let audit = serving.audit(view, options).await.with_context(|| format!("auditing `{view}`"))?;
            if audit.repaired {
                let event = context.event(&registry, "online_repair", view.to_string()).took(begun.elapsed());
                let (missing, different, extra) = (audit.missing, audit.different, audit.extra);
                let detail = json!({
                    "store": serving.online.to_string(), "missing": missing, "different": different, "extra": extra,
                });
                registry.store.audit(event.with(detail)).await.context("noting what was repaired")?;
            }
            if audit.differing() > 0 && !audit.repaired {
                exit = Exit::Wrong;
            }
            for example in &audit.examples {
                note(format!("{view}: {example}"));
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
                repaired: audit.repaired,
                examples: audit.examples,
            });
        }
        serving.online.close().await;
    }
    if lines.is_empty() {
        note("no view is published online");
    }
    context.output.list(&lines)?;
    if exit == Exit::Wrong {
        note("online and lake differ: `--repair` puts it right");
    }
    Ok(exit)
}
