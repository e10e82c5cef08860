//! `tidegate online rebuild`.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_worker::serving::Rebuilt;

use super::{chosen, serving};
use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;

#[derive(Debug, Serialize)]
struct Line {
    view: String,
    store: String,
    state: &'static str,
    entities: Option<u64>,
    lost: Option<String>,
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["VIEW", "STORE", "STATE", "ENTITIES", "LOST"];

    fn cells(&self) -> Vec<String> {
        let entities = self.entities.map(|entities| entities.to_string()).unwrap_or_default();
        let lost = self.lost.clone().unwrap_or_default();
        vec![self.view.clone(), self.store.clone(), self.state.to_owned(), entities, lost]
    }
}

/// Fills what was lost.
///
/// # Errors
/// As [`super::run`].
pub(super) async fn run(views: &[String], context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let views = chosen(&registry, views)?;
    let mut lines = Vec::new();
    for serving in serving(context, &registry).await? {
        for view in &views {
            let begun = std::time::Instant::now();
            let rebuilt = serving.rebuild(view).await.with_context(|| format!("rebuilding `{view}`"))?;
            if let Rebuilt::Filled { lost, rows } = &rebuilt {
                let event = context.event(&registry, "online_rebuild", view.to_string()).took(begun.elapsed());
                let detail = json!({ "store": serving.online.to_string(), "lost": lost, "entities": rows });
                registry.store.audit(event.with(detail)).await.context("noting what was filled")?;
            }
            let (state, entities, lost) = match rebuilt {
                Rebuilt::Filled { lost, rows } => ("filled", Some(rows), Some(lost)),
                Rebuilt::Whole => ("whole", None, None),
                Rebuilt::NeverPublished => ("never published", None, None),
                Rebuilt::Ahead => ("being published", None, None),
                Rebuilt::Busy => ("being filled", None, None),
            };
            lines.push(Line { view: view.to_string(), store: serving.online.to_string(), state, entities, lost });
        }
        serving.online.close().await;
    }
    if lines.is_empty() {
        note("no view is published online");
    }
    context.output.list(&lines)?;
    Ok(Exit::Done)
}
