//! Processes that die, freeze and are watched, against what an undisturbed run leaves behind.
//!
//! The real binary runs a small project, on embedded parts or on servers (`place`); fail points (`FAILPOINTS`) and signals
//! stop it at every step, and servers go away under it (`outages`). Whatever happens, the next start must end in the same
//! tables, ledger, snapshots and online values, and readers must never see a run by halves. `world` is the project and the
//! comparison, `seen` what the table in `docs/faults.md` is made of; the other files are the ways to die.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that panics says where")]
#![expect(clippy::print_stderr, reason = "what could not be tried, and the numbers of the soak, must be seen")]

mod drill;
mod frozen;
mod janitor;
mod kills;
mod lost;
mod outages;
mod place;
mod points;
mod quarantine;
mod readers;
mod recipe;
mod restore;
mod seen;
mod soak;
mod world;
