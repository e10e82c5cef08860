//! `tidegate approve`: say yes, as a second person, to what somebody asked for.

use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::progress::note;

/// Approve what somebody else asked for (`tidegate approvals` lists it)
///
/// Whoever asked then repeats their command, within a day: an approval holds for exactly what was asked, once.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The request's id, or its beginning
    id: String,
}

/// Runs the command.
///
/// # Errors
/// When there is no such request, somebody approved it already, or the policy does not let this person.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let known = registry.store.approvals(0).await?;
    let found: Vec<_> =
        known.iter().filter(|approval| approval.id.to_string().starts_with(&arguments.id.to_lowercase())).collect();
    let approval = match found.as_slice() {
        [only] => *only,
        [] => {
            return Err(UserError::new(format!("there is no request `{}`", arguments.id))
                .hint("`tidegate approvals` lists what waits")
                .into());
        }
        _ => return Err(UserError::new(format!("`{}` begins the ids of several requests", arguments.id)).into()),
    };
    let actor = context.actor();
    if let Some(why) = approval.refuses(&actor, &registry.project) {
        return Err(UserError::new(format!("nothing was approved: {why}")).into());
    }
    registry.store.approve(approval.id, &actor, registry.clock.now()).await?;
    note(format!("approved: {}; {} can go ahead by repeating the command", approval.summary, approval.requester));
    Ok(Exit::Done)
}
