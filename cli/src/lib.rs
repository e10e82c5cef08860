//! The `tidegate` command: it knows all other parts and joins them; none of them knows it.
//!
//! Begin with [`cli`] (what can be asked for) and [`context`] (what a command works with); each command is one file below
//! [`commands`]. Data goes to standard output through [`output`] alone, all else to standard error through [`progress`]
//! and [`logging`]. [`error`] says how a command ends.

pub mod checked;
pub mod cli;
pub mod commands;
pub mod context;
pub mod decision;
pub mod drills;
pub mod engine;
pub mod error;
pub mod example;
pub mod firing;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod notices;
pub mod output;
pub mod policy;
pub mod process;
pub mod progress;
pub mod report;
pub mod roles;
pub mod select;
pub mod shutdown;
pub mod suggest;
pub mod times;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::cli::Cli;
use crate::context::Context;
use crate::error::Exit;
use crate::shutdown::Shutdown;

/// Parses `arguments` (the program's name first), does what they say and tells how it ended.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are data (0); anything else is wrong input (1). A reader who left is no failure.
            let exit = if message.use_stderr() { Exit::Wrong } else { Exit::Done };
            let _ = message.print();
            return ExitCode::from(exit.code());
        }
    };
    let exit = match start(cli) {
        Ok(exit) => exit,
        Err(error) => {
            let story = error::explain(&error);
            if !story.is_empty() {
                progress::note(story);
            }
            error::exit_of(&error)
        }
    };
    ExitCode::from(exit.code())
}

fn start(cli: Cli) -> anyhow::Result<Exit> {
    let level = cli.shared.log_level.as_deref().unwrap_or(cli.command.log_level());
    logging::start(level, cli.shared.log_format, context::colour())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(until_stopped(cli));
    // Whatever still runs belongs to a command that was left at once: its leases run out, or are released by the next start.
    runtime.shutdown_background();
    ended
}

/// Runs the command until it ends or is stopped.
async fn until_stopped(cli: Cli) -> anyhow::Result<Exit> {
    let shutdown = Shutdown::default();
    let gentle = cli.command.stops_gently();
    let context = Context::new(cli.shared, shutdown.clone());
    tokio::select! {
        // A command that has just ended has ended, whatever was signalled meanwhile.
        biased;
        ended = cli.command.run(&context) => ended,
        why = shutdown.watch_signals(gentle) => Err(why),
    }
}
