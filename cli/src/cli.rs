//! The tree of commands and the options that all of them share.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::context::Context;
use crate::error::Exit;
use crate::logging::LogFormat;
use crate::output::Format;

/// Turns feature definitions into tables and online values, on a schedule, and lets through only what passes its checks
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 110, after_help = EXITS)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXITS: &str = "Exit codes: 0 done; 1 the input or the data is wrong; 2 we failed. Data is on standard output, \
all else on standard error.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Shared {
    /// The project's folder [default: the nearest folder upwards with a tidegate.yaml]
    #[arg(long, global = true, value_name = "DIR", env = "TIDEGATE_PROJECT_DIR", hide_env_values = true)]
    pub project: Option<PathBuf>,
    /// The section of `profiles:` in tidegate.yaml to lay over the settings [env: TIDEGATE_PROFILE=]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub format: Format,
    /// What is logged: off, error, warn, info, debug, trace, or a filter [default: info for up, scheduler and worker, else warn]
    #[arg(long, global = true, value_name = "LEVEL", env = "TIDEGATE_LOG", hide_env_values = true)]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident => $module:ident,)+) => {
        /// Everything that can be asked for.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$attribute])* #[expect(missing_docs, reason = "a comment here would replace the one of the arguments in the help")] $variant(commands::$module::Arguments),)+
        }

        impl Command {
            /// Does it.
            ///
            /// # Errors
            /// Whatever the command's own `run` says.
            pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
                match self {
                    $(Self::$variant(arguments) => Box::pin(commands::$module::run(arguments, context)).await,)+
                }
            }
        }
    };
}

commands! {
    Init => init,
    Demo => demo,
    Validate => validate,
    Test => test,
    Schema => schema,
    Preview => preview,
    Plan => plan,
    Apply => apply,
    Definitions => definitions,
    Views => views,
    Features => features,
    Sources => sources,
    Entities => entities,
    Dags => dags,
    Owners => owners,
    Services => services,
    Consumers => consumers,
    Up => up,
    Scheduler => scheduler,
    Worker => worker,
    Run => run,
    Backfill => backfill,
    Runs => runs,
    Wait => wait,
    Snapshots => snapshots,
    Restore => restore,
    Restores => restores,
    Hold => hold,
    Holds => holds,
    Resume => resume,
    Recipe => recipe,
    Incident => incident,
    Drill => drill,
    Drills => drills,
    Approve => approve,
    Approvals => approvals,
    Feature => feature,
    #[command(visible_alias = "datasets")]
    Dataset => dataset,
    Compare => compare,
    Status => status,
    Checks => checks,
    AuditLog => audit_log,
    Notices => notices,
    Profile => profile,
    Quarantine => quarantine,
    Online => online,
    Workers => workers,
    Pools => pools,
    Queue => queue,
    Janitor => janitor,
    Registry => registry,
}

impl Command {
    /// Whether the command listens for being stopped; all others are simply dropped.
    pub fn stops_gently(&self) -> bool {
        matches!(
            self,
            Self::Up(_)
                | Self::Scheduler(_)
                | Self::Worker(_)
                | Self::Run(_)
                | Self::Backfill(_)
                | Self::Restore(_)
                | Self::Recipe(_)
                | Self::Drill(_)
                | Self::Dataset(_)
                | Self::Demo(_)
        )
    }

    /// What is logged when nobody says.
    pub fn log_level(&self) -> &'static str {
        match self {
            Self::Up(_) | Self::Scheduler(_) | Self::Worker(_) => "info",
            _ => "warn",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_tree_of_commands_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
