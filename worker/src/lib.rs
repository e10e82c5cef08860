//! How: the engine, the lake, checks and online stores.

pub mod checks;
pub mod digest;
pub mod entity_key;
pub mod session;
pub mod text;
pub mod types;
