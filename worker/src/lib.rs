//! How: the engine, the lake, checks and online stores.

pub mod session;
