//! `tidegate approvals`: what waits, or waited, for a second person.

use serde::Serialize;
use tidegate_registry::restore::policy::{APPROVAL_LASTS, Approval};
use tidegate_registry::time::{Instant, format_instant};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;

/// List what waits for a second person's approval, the newest first
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Also those that were approved, used or given up
    #[arg(long)]
    all: bool,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let now = registry.clock.now();
    let known = registry.store.approvals(0).await?;
    let wanted = known.iter().filter(|approval| arguments.all || approval.is_waiting());
    let limit = if arguments.limit == 0 { usize::MAX } else { arguments.limit };
    let lines: Vec<Line> = wanted.take(limit).map(|approval| Line::of(approval, now)).collect();
    if lines.is_empty() && !context.output.is_json() {
        note("nothing waits for approval");
        return Ok(Exit::Done);
    }
    context.output.list(&lines)?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Line {
    id: String,
    state: &'static str,
    what: String,
    requester: String,
    reason: String,
    requested_at: String,
    approved_by: Option<String>,
    approved_at: Option<String>,
    used_for: Option<String>,
}

impl Line {
    fn of(approval: &Approval, now: Instant) -> Self {
        let lapsed = approval.approved_at.is_some_and(|at| (now - at).to_std().is_ok_and(|age| age > APPROVAL_LASTS));
        Self {
            id: approval.id.to_string(),
            state: match (&approval.approved_by, &approval.used_for) {
                (_, Some(_)) => "used",
                (Some(_), None) if lapsed => "lapsed",
                (Some(_), None) => "approved",
                (None, None) => "waiting",
            },
            what: approval.summary.clone(),
            requester: approval.requester.clone(),
            reason: approval.reason.clone(),
            requested_at: format_instant(approval.requested_at),
            approved_by: approval.approved_by.clone(),
            approved_at: approval.approved_at.map(format_instant),
            used_for: approval.used_for.clone(),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["ID", "STATE", "WHAT", "ASKED BY", "SINCE", "APPROVED BY", "REASON"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.state.to_owned(),
            self.what.clone(),
            self.requester.clone(),
            self.requested_at.clone(),
            self.approved_by.clone().unwrap_or_else(|| "-".to_owned()),
            self.reason.clone(),
        ]
    }
}
