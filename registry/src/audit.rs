//! The audit trail: who did what, when and why, as a chain in which every event vouches for all before it.
//!
//! Begin with [`NewAuditEvent`]. An event's hash covers the hash of the event before it and every field of its own
//! ([`AuditLine::hash`]), so whoever changes, removes or reorders an event has to compute all later ones anew, and then
//! the newest hash (the *head*) is another than the one that somebody has noted elsewhere. `docs/audit-log.md` says what
//! that proves and what it does not.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::time::Instant;

/// The head of a trail without events, which the first event's hash covers.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What every encoding begins with: another way to encode an event would name itself otherwise.
const ENCODING: &str = "tidegate-audit-1";

/// Something that a person or a process did, about to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAuditEvent {
    /// When, in project time.
    pub at: Instant,
    /// Who.
    pub actor: String,
    /// What, as in `run_cancel`: the thing, then the verb.
    pub action: String,
    /// What it was done to: a run, a snapshot, a view, a DAG, or the project.
    pub subject: String,
    /// Why, as they said.
    pub reason: Option<String>,
    /// What was so before.
    pub before: Option<Value>,
    /// What is so since.
    pub after: Option<Value>,
    /// How long it took, to the microsecond.
    pub duration: Option<Duration>,
    /// Whatever else is worth knowing; an object.
    pub detail: Value,
}

impl NewAuditEvent {
    /// `actor` did `action` to `subject`.
    pub fn new(at: Instant, actor: impl Into<String>, action: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            at,
            actor: actor.into(),
            action: action.into(),
            subject: subject.into(),
            reason: None,
            before: None,
            after: None,
            duration: None,
            detail: Value::Object(serde_json::Map::new()),
        }
    }

    /// Why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// What was so before, and what is so since.
    #[must_use]
    pub fn change(mut self, before: Value, after: Value) -> Self {
        (self.before, self.after) = (Some(before), Some(after));
        self
    }

    /// How long it took.
    #[must_use]
    pub fn took(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Whatever else is worth knowing; an object.
    #[must_use]
    pub fn with(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// An event of the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEvent {
    /// Its place: grows from event to event.
    pub number: i64,
    /// When it was written, by the database's clock; `None` of events that are older than the chain.
    pub recorded_at: Option<Instant>,
    /// What was written.
    pub what: NewAuditEvent,
    /// Covers this event and all before it; 64 hexadecimal digits.
    pub hash: String,
}

/// Which events to list. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// At or after this instant of project time.
    pub since: Option<Instant>,
    /// Before this instant of project time.
    pub until: Option<Instant>,
    /// By this actor; without an `@`, by this person on whatever machine.
    pub actor: Option<String>,
    /// Whose action begins so: `run` finds `run_cancel` and `run_retry`.
    pub action: Option<String>,
    /// Whose subject begins so, or that name it as a whole: a run's id or its beginning, a DAG, a view with or without its
    /// version.
    pub subject: Option<String>,
    /// At most so many; 0 for all.
    pub limit: u32,
    /// The oldest first; else the newest.
    pub oldest_first: bool,
}

/// What looking at the whole trail has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditVerdict {
    /// How many events there are.
    pub events: u64,
    /// The place of the newest one; 0 when there is none.
    pub number: i64,
    /// Its hash, to be noted elsewhere; [`GENESIS`] when there is none.
    pub head: String,
    /// The first place where the chain is broken.
    pub broken: Option<AuditBreak>,
}

/// How a trail is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum AuditBreak {
    /// The event at this place is not the one that was written there: it was changed, moved, or put in.
    Changed {
        /// The place.
        number: i64,
    },
    /// Events from one place to another are gone.
    Removed {
        /// The first place without its event.
        from: i64,
        /// The last one.
        to: i64,
    },
    /// The newest events are gone.
    Truncated {
        /// The newest event that is left; 0 for none.
        at: i64,
        /// The place up to which events were written.
        written: i64,
    },
    /// The head that was noted elsewhere is the hash of no event: events were taken off the end, or the whole chain was
    /// made anew.
    HeadUnknown {
        /// What was noted.
        head: String,
    },
}

impl fmt::Display for AuditBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { number } => {
                write!(f, "event {number} is not what was written there: it was changed, moved or put in")
            }
            Self::Removed { from, to } if from == to => write!(f, "event {from} was removed"),
            Self::Removed { from, to } => write!(f, "events {from} to {to} were removed"),
            Self::Truncated { at, written } => {
                write!(f, "the trail ends at event {at}, and {written} were written: the newest were removed")
            }
            Self::HeadUnknown { head } => {
                write!(f, "no event has the hash {head}: events were taken off the end, or the trail was made anew")
            }
        }
    }
}

/// An event exactly as a database holds it, which is what its hash covers: instants and durations in microseconds, values
/// as the text of their JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `AuditEvent`")]
pub struct AuditLine<'a> {
    pub number: i64,
    pub at: i64,
    pub recorded_at: Option<i64>,
    pub actor: &'a str,
    pub action: &'a str,
    pub subject: &'a str,
    pub reason: Option<&'a str>,
    pub before: Option<&'a str>,
    pub after: Option<&'a str>,
    pub duration: Option<i64>,
    pub detail: &'a str,
}

impl AuditLine<'_> {
    /// SHA-256, in hexadecimal, of the encoding of this event after one whose hash is `previous`.
    pub fn hash(&self, previous: &str) -> String {
        Sha256::digest(self.encoding(previous)).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Each field as its length in bytes, a colon, its bytes and a comma; one that is absent as `-,`. No field can be
    /// mistaken for two or for a part of another, whatever it holds: the length says where it ends.
    fn encoding(&self, previous: &str) -> Vec<u8> {
        let number = |value: Option<i64>| value.map(|value| value.to_string());
        let fields = [
            Some(ENCODING.to_owned()),
            Some(previous.to_owned()),
            Some(self.number.to_string()),
            Some(self.at.to_string()),
            number(self.recorded_at),
            Some(self.actor.to_owned()),
            Some(self.action.to_owned()),
            Some(self.subject.to_owned()),
            self.reason.map(str::to_owned),
            self.before.map(str::to_owned),
            self.after.map(str::to_owned),
            number(self.duration),
            Some(self.detail.to_owned()),
        ];
        let mut bytes = Vec::new();
        for field in fields {
            match field {
                Some(text) => {
                    bytes.extend_from_slice(text.len().to_string().as_bytes());
                    bytes.push(b':');
                    bytes.extend_from_slice(text.as_bytes());
                }
                None => bytes.push(b'-'),
            }
            bytes.push(b',');
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Owned {
        numbers: (i64, i64, Option<i64>, Option<i64>),
        texts: (String, String, String, String),
        options: (Option<String>, Option<String>, Option<String>),
    }

    impl Owned {
        fn line(&self) -> AuditLine<'_> {
            AuditLine {
                number: self.numbers.0,
                at: self.numbers.1,
                recorded_at: self.numbers.2,
                actor: &self.texts.0,
                action: &self.texts.1,
                subject: &self.texts.2,
                reason: self.options.0.as_deref(),
                before: self.options.1.as_deref(),
                after: self.options.2.as_deref(),
                duration: self.numbers.3,
                detail: &self.texts.3,
            }
        }
    }

    /// Made of what the encoding itself is made of, so that two events nearly meet as often as possible.
    fn text() -> impl Strategy<Value = String> {
        "[0-9:,\\-é]{0,4}"
    }

    fn event() -> impl Strategy<Value = Owned> {
        let small = || -2_i64..12;
        let maybe = || proptest::option::of(text());
        (
            (small(), small(), proptest::option::of(small()), proptest::option::of(small())),
            (text(), text(), text(), text()),
            (maybe(), maybe(), maybe()),
        )
            .prop_map(|(numbers, texts, options)| Owned { numbers, texts, options })
    }

    /// Reads an encoding back: what can be read in one way only encodes one event.
    fn decoded(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
        let (mut fields, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(b"-,") {
                fields.push(None);
                rest = after;
                continue;
            }
            let colon = rest.iter().position(|byte| *byte == b':').unwrap();
            let length: usize = std::str::from_utf8(&rest[..colon]).unwrap().parse().unwrap();
            let (field, after) = rest[colon + 1..].split_at(length);
            fields.push(Some(field.to_vec()));
            rest = after.strip_prefix(b",").unwrap();
        }
        fields
    }

    proptest! {
        #[test]
        fn an_encoding_tells_every_field(event in event()) {
            let line = event.line();
            let bytes = |text: &str| Some(text.as_bytes().to_vec());
            let number = |value: Option<i64>| value.and_then(|value| bytes(&value.to_string()));
            prop_assert_eq!(decoded(&line.encoding(GENESIS)), vec![
                bytes(ENCODING), bytes(GENESIS), number(Some(line.number)), number(Some(line.at)),
                number(line.recorded_at), bytes(line.actor), bytes(line.action), bytes(line.subject),
                line.reason.and_then(bytes), line.before.and_then(bytes), line.after.and_then(bytes),
                number(line.duration), bytes(line.detail),
            ]);
        }

        #[test]
        fn no_two_events_encode_the_same(left in event(), right in event()) {
            let (one, other) = (left.line(), right.line());
            prop_assert_eq!(one.encoding(GENESIS) == other.encoding(GENESIS), left == right);
            prop_assert_eq!(one.hash(GENESIS) == other.hash(GENESIS), left == right);
            prop_assert_ne!(one.hash(GENESIS), one.hash(&"1".repeat(64)));
        }
    }

    /// Chains that exist must stay provable: this hash was computed with the five lines of `docs/audit-log.md`.
    #[test]
    fn the_encoding_stays_as_it_is() {
        let line = AuditLine {
            number: 1,
            at: 1_356_998_400_000_000,
            recorded_at: None,
            actor: "ana@host",
            action: "apply",
            subject: "flights",
            reason: Some("größer"),
            before: None,
            after: Some("{}"),
            duration: Some(1_500),
            detail: "{\"revision\":1}",
        };
        assert_eq!(line.hash(GENESIS), "17a2c5c972b6bd0fe791ea68dfadd05b50a3b17ef6e51950a563967c60b7321b");
    }
}
