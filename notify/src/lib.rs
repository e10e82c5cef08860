//! Sends notices to webhooks.
//!
//! What is worth telling waits in the registry's outbox ([`tidegate_registry::notice`]). A [`Sender`] claims what is due,
//! signs it ([`signature`]) and posts it ([`Client`]) to hosts that the operator allowed, never to a private address that
//! the operator did not name, whatever a name resolves to at that moment. Several processes may send: each delivery is
//! claimed by one at a time, and the receiver knows a notice that comes twice by its id.
//!
//! May not know: SQL databases, DataFusion, what a notice is about.

mod client;
mod sender;
pub mod signature;
#[cfg(test)]
mod tests;

pub use client::{Client, SendError, Webhook};
pub use sender::{Pace, Sender};
