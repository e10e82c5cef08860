//! `tidegate up`: all roles in one process.

use std::time::Duration;

use tidegate_registry::ids::QueueName;

use crate::context::Context;
use crate::error::Exit;
use crate::health::Listen;
use crate::roles::{self, Roles};

/// Schedule and compute, until stopped
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    slots: Slots,
    #[command(flatten)]
    serving: Serving,
    #[command(flatten)]
    listen: Listen,
}

/// How much is computed at once, and how long a silent worker is believed in.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Slots {
    /// Tasks computed at once by this process [default: one per core, at most 4]
    #[arg(long, value_name = "N", value_parser = slots, env = "TIDEGATE_SLOTS", hide_env_values = true)]
    pub slots: Option<usize>,
    /// How long a task stays with a worker that says nothing, as in `90s`; then another takes it up [default: 60s]
    // Hidden, for nobody needs it: too short costs work done twice, never a wrong result.
    #[arg(long, value_name = "DURATION", value_parser = lease, env = "TIDEGATE_LEASE", hide = true)]
    pub lease: Option<Duration>,
}

/// Which tasks a worker takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Serving {
    /// Take only tasks of these queues, separated by commas; `default` is that of views which name none [default: all]
    #[arg(long, value_name = "QUEUES", value_delimiter = ',', env = "TIDEGATE_QUEUES", hide_env_values = true)]
    pub queues: Vec<QueueName>,
}

/// Short enough to be waited for, long enough for three heartbeats.
fn lease(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    humantime::parse_duration(text)
        .ok()
        .filter(|lease| bounds.contains(lease))
        .ok_or_else(|| "expected a duration from 1s to 1h".to_owned())
}

/// At least one slot, and not more than any machine has use for.
fn slots(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|slots| (1..=256).contains(slots))
        .ok_or_else(|| "expected a number from 1 to 256".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When nothing was applied, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let Arguments { slots, serving, listen } = arguments;
    roles::play(Roles { scheduler: true, worker: Some((slots, serving)) }, listen, context).await?;
    Ok(Exit::Done)
}
