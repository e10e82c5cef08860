//! How many rows break a rule in each group of rows that have equal values in some columns.
//!
//! A group is told by the hash of its values, as rows are in [`super::unique`]; what it is called is kept only once a row of
//! it fails, and shortened, so that a group has a bound in bytes and all of them have one, too.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use tidegate_registry::model::{GROUPS_MAX, Tolerance};
use xxhash_rust::xxh3::xxh3_128;

use super::history::percent;
use super::rows::{Unjudgeable, column};
use super::unique::{Already, hash_row};
use crate::text::TextColumn;

/// What stands in a message before values of groups; only they come after it.
pub const BEFORE_GROUPS: &str = "; worst: ";

/// How many groups a message names.
pub(super) const NAMED_MAX: usize = 3;
/// How long the name of a group may be, in bytes.
const NAME_BYTES_MAX: usize = 80;
/// What a group needs, at most: its place among the others (see [`super::unique::BYTES_PER_HASH`]) and its name.
const BYTES_PER_GROUP: usize = 256;
/// How many more groups the pool is asked for at once; the first so many (1 MiB) are held without asking.
const GRANTED_AT_ONCE: usize = 4_096;

/// Memory for groups.
pub(super) struct Room {
    of: String,
    bytes_per_group: usize,
    /// How many groups may be held before the pool is asked for more.
    granted: usize,
    reservation: MemoryReservation,
}

impl Room {
    /// For groups of `columns` that need `bytes_per_group` each, at most.
    pub(super) fn new(columns: &[String], bytes_per_group: usize, runtime: &RuntimeEnv) -> Self {
        let of = columns.join(", ");
        let reservation = MemoryConsumer::new(format!("groups of {of}")).register(&runtime.memory_pool);
        Self { of, bytes_per_group, granted: GRANTED_AT_ONCE, reservation }
    }

    /// Sees to it that there may be one group more than the `known` ones.
    pub(super) fn make(&mut self, known: usize) -> Result<(), Unjudgeable> {
        let of = &self.of;
        if known >= GROUPS_MAX {
            return Err(Unjudgeable(format!("there are more than {GROUPS_MAX} groups of {of}")));
        }
        if known >= self.granted {
            let granted = self.reservation.try_grow(GRANTED_AT_ONCE * self.bytes_per_group);
            granted.map_err(|_| Unjudgeable(format!("more than {known} groups of {of} do not fit into `memory:`")))?;
            self.granted += GRANTED_AT_ONCE;
        }
        Ok(())
    }
}

/// The groups of one check.
pub(super) struct Groups {
    columns: Vec<String>,
    found: HashMap<u128, Group, BuildHasherDefault<Already>>,
    room: Room,
    row: Vec<u8>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups")
            .field("columns", &self.columns)
            .field("found", &self.found.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Group {
    rows: u64,
    failing: u64,
    /// Known once a row fails.
    name: Option<Box<str>>,
}

impl Group {
    /// Orders groups by the share of their rows that fail, exactly.
    fn by_share(&self, other: &Self) -> Ordering {
        let times = |failing: u64, rows: u64| u128::from(failing) * u128::from(rows);
        times(self.failing, other.rows).cmp(&times(other.failing, self.rows))
    }
}

impl Groups {
    pub(super) fn new(columns: &[String], runtime: &RuntimeEnv) -> Self {
        let room = Room::new(columns, BYTES_PER_GROUP, runtime);
        Self { columns: columns.to_vec(), found: HashMap::default(), room, row: Vec::new() }
    }

    /// Counts the rows of `batch`, of which those at `failing` (ascending) break the rule.
    pub(super) fn count(&mut self, batch: &RecordBatch, failing: &[usize]) -> Result<(), Unjudgeable> {
        let texts = texts(batch, &self.columns)?;
        let mut failing = failing.iter().copied().peekable();
        for row in 0..batch.num_rows() {
            hash_row(&texts, row, &mut self.row);
            let hash = xxh3_128(&self.row);
            if !self.found.contains_key(&hash) {
                self.room.make(self.found.len())?;
            }
            let group = self.found.entry(hash).or_default();
            group.rows += 1;
            if failing.next_if_eq(&row).is_some() {
                group.failing += 1;
                group.name.get_or_insert_with(|| name(&texts, row));
            }
        }
        Ok(())
    }

    /// Whether the tolerance holds in every group, and what is to be said of them. Only when a row fails.
    pub(super) fn finish(&self, tolerance: Option<Tolerance>) -> (bool, String) {
        let within = |group: &Group| match tolerance {
            None => group.failing == 0,
            Some(tolerance) => tolerance.covers(group.failing, group.rows),
        };
        let beyond = self.found.values().filter(|group| !within(group)).count();
        let failing = self.found.iter().filter(|(_, group)| group.failing > 0);
        let mut worst: Vec<(&u128, &Group)> = failing.collect();
        // So those beyond the tolerance come first; the rest makes the order the same every time.
        worst.sort_unstable_by(|(a_hash, a), (b_hash, b)| {
            let by_rows = a.failing.cmp(&b.failing);
            let order = match tolerance {
                Some(Tolerance::Ratio(_)) => a.by_share(b).then(by_rows),
                None | Some(Tolerance::Rows(_)) => by_rows.then_with(|| a.by_share(b)),
            };
            order.reverse().then_with(|| (&a.name, a_hash).cmp(&(&b.name, b_hash)))
        });
        let named = worst.iter().take(NAMED_MAX).map(|(_, group)| {
            let name = group.name.as_deref().unwrap_or_default();
            format!("{name} {} of {}", group.failing, group.rows)
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let (all, of) = (self.found.len(), self.columns.join(", "));
        let groups = if all == 1 { "group" } else { "groups" };
        let said = match tolerance {
            None => format!("in {beyond} of {all} {groups} of {of}"),
            Some(tolerance) => {
                let most = match tolerance {
                    Tolerance::Rows(1) => "1 row".to_owned(),
                    Tolerance::Rows(most) => format!("{most} rows"),
                    Tolerance::Ratio(most) => percent(most),
                };
                let have = if beyond > 1 { "have" } else { "has" };
                let beyond = if beyond == 0 { "none".to_owned() } else { beyond.to_string() };
                format!("{beyond} of {all} {groups} of {of} {have} more than the tolerated {most}")
            }
        };
        (beyond == 0, format!("; {said}{BEFORE_GROUPS}{named}"))
    }
}

/// The values of `columns` as text.
pub(super) fn texts(batch: &RecordBatch, columns: &[String]) -> Result<Vec<TextColumn>, Unjudgeable> {
    let text = |name: &String| TextColumn::new(column(batch, name)?).map_err(|error| Unjudgeable(error.to_string()));
    columns.iter().map(text).collect()
}

/// What the group of `row` is called: its values as JSON, in parentheses when they are several.
pub(super) fn name(texts: &[TextColumn], row: usize) -> Box<str> {
    let values: Vec<String> = texts.iter().map(|text| text.json(row).to_string()).collect();
    let mut name = if let [value] = values.as_slice() { value.clone() } else { format!("({})", values.join(", ")) };
    if name.len() > NAME_BYTES_MAX {
        let fits = (0..=NAME_BYTES_MAX - '…'.len_utf8()).rev().find(|&at| name.is_char_boundary(at));
        name.truncate(fits.unwrap_or(0));
        name.push('…');
    }
    name.into_boxed_str()
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
