//! How: the engine, the lake, checks and online stores.

pub mod checks;
pub mod digest;
pub mod engine;
pub mod entity_key;
pub mod lake;
pub mod online;
pub mod preview;
pub mod reads;
pub mod session;
pub mod sources;
pub mod stage;
pub mod text;
pub mod types;
