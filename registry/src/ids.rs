//! Names and ids. Each kind is its own type, so that swapped arguments do not compile.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that does not fit the pattern of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {kind}: {expected}")]
pub struct InvalidName {
    /// What was being named.
    pub kind: &'static str,
    /// The text as written.
    pub value: String,
    /// What would be accepted.
    pub expected: &'static str,
}

/// What every name looks like. Names become folders, SQL identifiers and Redis keys, so the pattern is narrow: none of
/// those ever needs quoting or escaping.
pub const NAME_PATTERN: &str = "a lower-case letter, then up to 62 lower-case letters, digits or underscores";

/// Whether `text` fits [`NAME_PATTERN`].
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// When `text` does not fit [`NAME_PATTERN`].
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let value = text.into();
                if is_name(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidName { kind: $kind, value, expected: NAME_PATTERN })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`{}`", self.0)
            }
        }
    };
}

name!(
    /// A project: the namespace of everything else.
    ProjectName,
    "project name"
);
name!(
    /// An owner: who is told, and who decides.
    OwnerName,
    "owner name"
);
name!(
    /// An entity: named join keys.
    EntityName,
    "entity name"
);
name!(
    /// A source: a table Tidegate reads and does not own.
    SourceName,
    "source name"
);
name!(
    /// A test of definitions.
    TestName,
    "test name"
);
name!(
    /// A pool: so many tasks of its kind at once, whoever computes them.
    PoolName,
    "pool name"
);
name!(
    /// A rule of the restore policy.
    RuleName,
    "restore rule name"
);
name!(
    /// A recipe: a named way back.
    RecipeName,
    "recipe name"
);
name!(
    /// A drill that is scheduled.
    DrillName,
    "drill name"
);
name!(
    /// A feature service: a named set of features.
    ServiceName,
    "feature service name"
);
name!(
    /// A consumer: a model, application or report that reads features.
    ConsumerName,
    "consumer name"
);
name!(
    /// A queue: tasks for workers that say they serve it.
    QueueName,
    "queue name"
);

impl QueueName {
    /// The queue of every task that asks for none.
    pub const DEFAULT: &str = "default";
}

name!(
    /// A feature view, whatever its version.
    ViewName,
    "feature view name"
);
name!(
    /// A DAG: a schedule and the views it runs.
    DagName,
    "DAG name"
);

/// One version of a feature view, written `carrier_delays@v2`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ViewId {
    /// The view's name.
    pub name: ViewName,
    /// The version, from 1.
    pub version: u32,
}

impl ViewId {
    /// The given version of `name`.
    pub fn new(name: ViewName, version: u32) -> Self {
        Self { name, version }
    }
}

impl FromStr for ViewId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            kind: "feature view version",
            value: text.to_owned(),
            expected: "a view's name, `@v` and a number, as in `carrier_delays@v2`",
        };
        let (name, version) = text.split_once("@v").ok_or_else(invalid)?;
        let version: u32 = version.parse().map_err(|_| invalid())?;
        if version == 0 {
            return Err(invalid());
        }
        Ok(Self { name: ViewName::new(name)?, version })
    }
}

impl TryFrom<String> for ViewId {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<ViewId> for String {
    fn from(id: ViewId) -> String {
        id.to_string()
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@v{}", self.name, self.version))
    }
}

impl fmt::Debug for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub Uuid);

        impl $type {
            /// A new id; later ones sort after earlier ones.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.to_string())
            }
        }

        impl FromStr for $type {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// A run: one DAG, one interval, a list of views and a cause.
    RunId
);
id!(
    /// A snapshot: what a run left behind.
    SnapshotId
);
id!(
    /// A backfill: one request to compute a range of intervals.
    BackfillId
);
id!(
    /// A notice: something that happened, told to whoever asked for it.
    NoticeId
);
id!(
    /// A request for a second person's approval.
    ApprovalId
);
id!(
    /// A drill: a restore rehearsed on a copy.
    DrillId
);
id!(
    /// A dataset: a training or scoring set as it was built.
    DatasetId
);
id!(
    /// A recipe that was triggered once.
    FiringId
);
id!(
    /// A lease token: proves to the registry that the caller still holds what it claimed.
    LeaseToken
);
id!(
    /// A registry: written into the lake and the online store, so that a second registry cannot write there.
    RegistryId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_narrow_enough_to_be_folders_identifiers_and_keys() {
        for good in ["a", "carrier_delays", "x9"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "9a", "A", "a-b", "a.b", "../a", "a/b", "a b", "é", "_a", long.as_str()] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_view_version_reads_back_as_it_prints() {
        let id: ViewId = "carrier_delays@v12".parse().unwrap();
        assert_eq!((id.name.as_str(), id.version), ("carrier_delays", 12));
        assert_eq!(id.to_string(), "carrier_delays@v12");
        for bad in ["carrier_delays", "carrier_delays@2", "carrier_delays@v0", "carrier_delays@v", "A@v1"] {
            assert!(bad.parse::<ViewId>().is_err(), "{bad}");
        }
    }
}
