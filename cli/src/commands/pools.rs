//! `tidegate pools`: limits on how many tasks of a kind run at once, and who is in them.

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::store::PoolState;

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;

/// List pools with their slots
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List pools: how many slots, how many are taken, how many tasks wait for one
    List {},
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let Action::List {} = arguments.action;
    let pools = context.registry().await?.store.pools().await.context("listing the pools")?;
    let rows: Vec<Pool> = pools.iter().map(Pool::of).collect();
    context.output.list(&rows)?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Pool {
    pool: String,
    slots: u32,
    used: u32,
    waiting: u64,
}

impl Pool {
    fn of(pool: &PoolState) -> Self {
        Self { pool: pool.name.to_string(), slots: pool.slots, used: pool.used, waiting: pool.waiting }
    }
}

impl Row for Pool {
    const HEADINGS: &'static [&'static str] = &["POOL", "SLOTS", "USED", "WAITING"];

    fn cells(&self) -> Vec<String> {
        vec![self.pool.clone(), self.slots.to_string(), self.used.to_string(), self.waiting.to_string()]
    }
}
