//! Notices: telling people and their programs what happened, through an outbox.
//!
//! A notice is written in the same transaction as what it tells of, so neither is ever there without the other. It waits
//! in the registry until a sender has delivered it to every webhook that asked for its event ([`Outbox`]): each delivery
//! is claimed under a lease, tried again with growing pauses, and given up in the end. A receiver may get a notice twice,
//! and knows it by its id.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{LeaseToken, NoticeId};
use crate::store::Result;
use crate::time::Instant;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// What a notice tells of.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum NoticeEvent {
            $($(#[$doc])* $variant,)+
        }

        impl NoticeEvent {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As written, a thing and what became of it: `run.blocked`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

events! {
    /// A run was published: told to the webhooks that its DAG names under `on_published:`, and to no other.
    RunPublished = "run.published",
    /// Checks stopped a run.
    RunBlocked = "run.blocked",
    /// A run failed for good.
    RunFailed = "run.failed",
    /// A restore has begun.
    RestoreStarted = "restore.started",
    /// A restore is done.
    RestoreFinished = "restore.finished",
    /// A restore came to nothing, or its validation failed.
    RestoreFailed = "restore.failed",
    /// A restore makes no progress.
    RestoreStalled = "restore.stalled",
    /// Publishing of views was stopped.
    HoldPlaced = "hold.placed",
    /// Views are published again.
    HoldLifted = "hold.lifted",
    /// A hold is still there.
    HoldNagging = "hold.nagging",
    /// Something waits for a second person.
    ApprovalRequested = "approval.requested",
    /// A second person said yes.
    ApprovalGranted = "approval.granted",
    /// A person went ahead against the restore policy.
    PolicyOverridden = "policy.overridden",
    /// A recipe says so.
    RecipeNotified = "recipe.notified",
    /// A drill did not bring everything back as it was, or could not be carried out.
    DrillFailed = "drill.failed",
    /// A drill took longer than the target of a view.
    DrillSlow = "drill.slow",
    /// Something that happened has triggered a recipe.
    RecipeTriggered = "recipe.triggered",
    /// A recipe that was triggered has done all its steps.
    RecipeFinished = "recipe.finished",
    /// A recipe that was triggered has stopped: a person has to look.
    RecipeFailed = "recipe.failed",
    /// Somebody says that something is wrong.
    IncidentOpened = "incident.opened",
    /// A feature was switched off or on.
    SwitchChanged = "switch.changed",
    /// Somebody tries a webhook.
    Test = "test",
}

impl NoticeEvent {
    /// Whether `pattern` (`*`, `run.*` or the event itself) means this event.
    pub fn matches(self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(begin) => self.as_str().starts_with(begin),
            None => self.as_str() == pattern,
        }
    }
}

impl fmt::Display for NoticeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for NoticeEvent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|event| event.as_str() == text);
        found.ok_or_else(|| format!("there is no event `{text}`"))
    }
}

impl TryFrom<String> for NoticeEvent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NoticeEvent> for String {
    fn from(event: NoticeEvent) -> Self {
        event.as_str().to_owned()
    }
}

/// A notice about to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNotice {
    /// What it tells of.
    pub event: NoticeEvent,
    /// What it happened to: a run, a view, a DAG.
    pub subject: String,
    /// When, in project time.
    pub at: Instant,
    /// A sentence for people.
    pub message: String,
    /// Who did it, when somebody did.
    pub actor: Option<String>,
    /// For programs; an object.
    pub detail: Value,
    /// Tells the same thing once: a second notice with this key is not written. `None` for one that is always written.
    pub key: Option<String>,
}

impl NewNotice {
    /// `event` happened to `subject`; `message` says so in a sentence.
    pub fn new(event: NoticeEvent, subject: impl Into<String>, at: Instant, message: impl Into<String>) -> Self {
        Self {
            event,
            subject: subject.into(),
            at,
            message: message.into(),
            actor: None,
            detail: Value::Object(serde_json::Map::new()),
            key: None,
        }
    }

    /// Who did it.
    #[must_use]
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// For programs; an object.
    #[must_use]
    pub fn with(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// Written only when no notice has this key.
    #[must_use]
    pub fn once(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// A notice for one webhook, whatever events that one asked for. Nobody else gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Addressed {
    /// The webhook's name.
    pub webhook: String,
    /// What it is told; has a key, so that it is told once.
    pub notice: NewNotice,
}

/// A notice as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Its id, by which a receiver knows it again.
    pub id: NoticeId,
    /// What it says.
    pub what: NewNotice,
    /// When it was written, by the database's clock.
    pub created_at: Instant,
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is to be sent, or sent again.
    Due,
    /// The receiver has it.
    Sent,
    /// It was tried for long enough.
    GivenUp,
}

impl DeliveryState {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Sent => "sent",
            Self::GivenUp => "given_up",
        }
    }
}

impl fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DeliveryState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Due, Self::Sent, Self::GivenUp];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no state of a delivery"))
    }
}

/// One notice on its way to one webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The webhook's name.
    pub webhook: String,
    /// How far it is.
    pub state: DeliveryState,
    /// Attempts begun.
    pub attempts: u32,
    /// When it is to be tried next, by the database's clock; `None` when it has ended.
    pub due_at: Option<Instant>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A delivery that was claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryClaim {
    /// Proves the claim.
    pub token: LeaseToken,
    /// What to deliver.
    pub notice: Notice,
    /// To whom.
    pub webhook: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How long ago the notice was written.
    pub age: Duration,
}

/// How an attempt to deliver ended.
#[derive(Debug, Clone, PartialEq)]
pub enum DeliveryEnd {
    /// The receiver has it.
    Sent,
    /// It does not, or nobody knows.
    Failed {
        /// Why; without secrets.
        error: String,
        /// Real time until the next attempt; `None` gives up, with an audit event.
        retry_in: Option<Duration>,
    },
}

/// Who wants to hear what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The webhook's name.
    pub webhook: String,
    /// Patterns as in [`NoticeEvent::matches`]; empty for all events.
    pub events: Vec<String>,
}

impl Subscription {
    /// Whether it asks for `event`.
    pub fn wants(&self, event: NoticeEvent) -> bool {
        self.events.is_empty() || self.events.iter().any(|pattern| event.matches(pattern))
    }
}

/// Which notices to list. Everything is optional; the newest come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoticeFilter {
    /// With a delivery in this state.
    pub state: Option<DeliveryState>,
    /// Of events that match this pattern.
    pub event: Option<String>,
    /// At most so many; 0 for all.
    pub limit: u32,
}

/// Notices on their way out of the registry. Semantics as of [`crate::store::Store`].
#[async_trait]
pub trait Outbox {
    /// Writes a notice by itself. Methods that do something worth telling write theirs in the same transaction.
    async fn notify(&self, notice: NewNotice) -> Result<()>;

    /// Notices with their deliveries.
    async fn notices(&self, filter: &NoticeFilter) -> Result<Vec<(Notice, Vec<Delivery>)>>;

    /// Gives each new notice a delivery for every one of `subscriptions` that wants it; a notice is looked at once, and one
    /// that is older than `age_max` is for nobody any more. An [`Addressed`] one has its delivery from the beginning: it is
    /// given up, with an audit event, when it has waited for `age_max` and its webhook is still none of `subscriptions`.
    /// Returns how many deliveries there are more.
    async fn notices_route(&self, subscriptions: &[Subscription], age_max: Duration, now: Instant) -> Result<u64>;

    /// Claims deliveries to one of `webhooks` that are due, the longest waiting first, or whose lease has run out.
    async fn delivery_claim(&self, webhooks: &[String], lease: Duration, limit: u32) -> Result<Vec<DeliveryClaim>>;

    /// Ends an attempt. Nothing, when the delivery has ended already.
    ///
    /// # Errors
    /// [`crate::store::StoreError::LostLease`] when somebody else has claimed the delivery since.
    async fn delivery_end(&self, token: LeaseToken, end: DeliveryEnd, now: Instant) -> Result<()>;

    /// Makes deliveries that were given up due again, of one notice or of all, with an audit event. Returns how many.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`] when there is no such notice.
    async fn deliveries_retry(&self, notice: Option<NoticeId>, actor: &str, now: Instant) -> Result<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_events() {
        let event = NoticeEvent::RunBlocked;
        for pattern in ["*", "run.*", "run.blocked"] {
            assert!(event.matches(pattern), "{pattern}");
        }
        for pattern in ["", "run", "run.failed", "restore.*", "run.blocked.now"] {
            assert!(!event.matches(pattern), "{pattern}");
        }
        let all = Subscription { webhook: "w".into(), events: Vec::new() };
        assert!(NoticeEvent::ALL.iter().all(|event| all.wants(*event)));
    }

    #[test]
    fn events_and_states_read_back_as_they_print() {
        for event in NoticeEvent::ALL {
            assert_eq!(event.to_string().parse(), Ok(*event));
        }
        for state in [DeliveryState::Due, DeliveryState::Sent, DeliveryState::GivenUp] {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("run.blockd".parse::<NoticeEvent>().is_err());
    }
}
