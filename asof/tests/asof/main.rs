//! Tests of the point-in-time join as a session runs it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod ends;
mod memory;
mod plans;
mod properties;
mod world;
