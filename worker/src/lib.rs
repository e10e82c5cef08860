//! How: the engine, the lake, checks and online stores.

pub mod checks;
pub mod compare;
pub mod dataset;
pub mod definition_test;
pub mod digest;
pub mod drill;
pub mod engine;
pub mod entity_key;
mod execute;
mod executor;
#[cfg(test)]
mod fault_tests;
pub mod janitor;
pub mod lake;
#[cfg(test)]
mod nth_fault_tests;
pub mod objects;
pub mod online;
pub mod preview;
mod publish;
pub mod quarantine;
pub mod reads;
pub mod rebuild;
pub mod restore;
pub mod serving;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod sources;
pub mod sqlcheck;
pub mod stage;
#[cfg(test)]
mod tests;
pub mod text;
mod timing;
pub mod types;
mod worker;

pub use executor::{Executor, Outcome};
pub use worker::{Hands, Worker, WorkerOptions, WorkerParts};
