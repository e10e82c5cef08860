//! What the restore policy says, told to whoever runs a command.

use anyhow::Context as _;
use tidegate_registry::ids::ApprovalId;
use tidegate_registry::restore::policy::{self, Admission, Approval, Ask};

use crate::context::Registry;
use crate::error::UserError;
use crate::progress::note;

/// Goes on where the policy lets it, with the approval that did, if one was needed.
///
/// # Errors
/// When rules stand against it, with their names, or it waits for a second person: nothing was changed then.
pub async fn admitted(ask: &Ask<'_>, registry: &Registry) -> anyhow::Result<Option<ApprovalId>> {
    settled(policy::admit(&*registry.store, &registry.project, ask).await?)
}

/// The same of a second person alone: one of `approvers`, or anybody else.
///
/// # Errors
/// As [`admitted`].
pub async fn approved(ask: &Ask<'_>, approvers: &[String], registry: &Registry) -> anyhow::Result<Option<ApprovalId>> {
    settled(policy::second_person(&*registry.store, ask, approvers).await?)
}

/// Whether an approval of exactly this has been used for `what`: then it goes on.
///
/// # Errors
/// When the registry cannot be read.
pub async fn used_for(ask: &Ask<'_>, what: &str, registry: &Registry) -> anyhow::Result<bool> {
    let approvals = registry.store.approvals(0).await.context("reading the approvals")?;
    Ok(approvals.iter().any(|approval| approval.ask == ask.ask && approval.used_for.as_deref() == Some(what)))
}

fn settled(admission: Admission) -> anyhow::Result<Option<ApprovalId>> {
    match admission {
        Admission::Go(approval) => Ok(approval),
        Admission::Refused(refusals) => {
            let told: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            Err(UserError::new(format!("nothing was changed: {}", told.join("; ")))
                .hint("somebody whom the rule lets may do it; in an emergency `--break-glass` goes ahead, and tells so")
                .into())
        }
        Admission::Waiting(approval) => Err(waiting(&approval).into()),
    }
}

fn waiting(approval: &Approval) -> UserError {
    UserError::new(format!("nothing was changed: a second person has to approve request {}", approval.id))
        .hint(format!(
            "have somebody else run `tidegate approve {}`, then repeat this command within a day of that",
            approval.id
        ))
        .waits()
}

/// Says what the policy would say, for a dry run.
///
/// # Errors
/// When the registry cannot be read.
pub async fn tell(ask: &Ask<'_>, registry: &Registry) -> anyhow::Result<()> {
    let judgement = policy::preview(&*registry.store, &registry.project, ask).await?;
    for refusal in &judgement.refusals {
        note(format!("policy: {refusal}"));
    }
    for rule in &judgement.approval {
        note(format!("policy: the rule `{rule}` wants a second person to approve"));
    }
    Ok(())
}
