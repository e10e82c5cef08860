//! Processes that die, freeze and are watched, against what an undisturbed run leaves behind.
//!
//! The real binary runs a small project; fail points (`FAILPOINTS`) and signals stop it at every step. Whatever happens, the
//! next start must end in the same tables, ledger, snapshots and online values, and readers must never see a run by halves.
//! `world` is the project and the comparison; the other files are the ways to die.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod frozen;
mod kills;
mod lost;
mod points;
mod readers;
mod world;
