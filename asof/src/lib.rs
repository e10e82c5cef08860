//! The point-in-time join: label rows with the features that were known at each label's time.
//!
//! A training set must not see the future. For every row of a *spine* (labels with an instant and keys) this joins the row of
//! each *history* that the serving side would have read at that instant. DataFusion has no as-of join; joining by inequality
//! and keeping the newest would make a row per pair. This is one operator for all histories of a query:
//!
//! - [`point_in_time`] builds the logical node from a spine and [`History`]s; a [`Rule`] says what a label sees.
//! - [`register`] teaches a session to plan and run it.
//!
//! # How it works
//! The labels of each key are put in order, once. Then a history streams by, in whatever order it is stored, on as many threads
//! as it has streams: each row finds the first label that sees it and replaces that label's candidate if it is newer
//! (`labels.rs`, `candidates.rs`). In the end every label without a row of its own inherits from the label before it. Nothing is
//! sorted but the labels, memory follows the number of labels and not the length of the history, and the span of the labels
//! prunes what a history's scan reads (`prune.rs`).
//!
//! # What holds
//! - Every spine row comes out once, in the order of the spine, whatever the number of threads: equal inputs give equal bytes.
//! - All buffers are accounted in the engine's memory pool. What does not fit goes to disk, divided by key (`partitioned.rs`);
//!   one key with most of the labels is no exception.
//! - Dropping the stream stops all work.

#![warn(missing_docs)]

mod candidates;
mod exec;
mod in_order;
mod join;
mod keys;
mod labels;
mod memory;
mod node;
mod optimize;
mod partitioned;
mod planner;
mod prune;
mod rule;
mod run;
mod spill;
mod spine;
mod ticks;

pub use node::{History, point_in_time};
pub use planner::{extension_planner, register, register_optimizer};
pub use rule::{Period, Rule};
