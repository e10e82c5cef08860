//! What two sides agree in, counted as joined rows stream by. Nothing is kept of them but counts and a few examples, and
//! these are the same however rows are dealt out: the farthest apart, then the first by key.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{OwnedRow, RowConverter, Rows, SortField};
use serde_json::{Map, Value};

use super::values::{Pair, Tolerance, Verdict};
use crate::text::TextColumn;

/// How joined rows are laid out: keys, whether each side has the row, then per feature our value and theirs.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// The keys, as they are called here.
    pub(super) keys: Vec<String>,
    /// How many features.
    pub(super) features: usize,
    pub(super) tolerance: Tolerance,
    /// Examples of each kind.
    pub(super) examples: usize,
}

/// One feature so far.
#[derive(Debug, Default)]
pub(super) struct FeatureTally {
    pub(super) equal: u64,
    pub(super) different: u64,
    pub(super) null_ours: u64,
    pub(super) null_theirs: u64,
    /// Rows in which both are finite numbers.
    pub(super) measured: u64,
    pub(super) farthest: f64,
    pub(super) sum: Sum,
    pub(super) examples: BTreeSet<Example>,
}

impl FeatureTally {
    /// Counts the rows `matched`, which both sides have, and notes which of them do not agree.
    fn add(
        &mut self,
        layout: &Layout,
        ours: &ArrayRef,
        theirs: &ArrayRef,
        matched: &[usize],
        whole: &mut [bool],
        keys: &mut Keys<'_>,
    ) -> Result<()> {
        let pair = Pair::new(ours, theirs, layout.tolerance)?;
        let most = layout.examples;
        let mut texts = None;
        for (row, whole) in matched.iter().copied().zip(whole) {
            let (verdict, distance) = pair.judge(row);
            if let Some(distance) = distance {
                self.measured += 1;
                self.farthest = self.farthest.max(distance);
                self.sum.add(distance);
            }
            match verdict {
                Verdict::Equal => {
                    self.equal += 1;
                    continue;
                }
                Verdict::NullOurs => self.null_ours += 1,
                Verdict::NullTheirs => self.null_theirs += 1,
                Verdict::Different => self.different += 1,
            }
            *whole = false;
            let distance = distance.unwrap_or_default();
            // Most rows are refused by their distance alone, without a look at their keys.
            if most == 0 || !has_room(&self.examples, most, |last| distance >= last.distance) {
                continue;
            }
            let key = keys.row(row)?;
            let is_better = |last: &Example| distance > last.distance || key < last.key;
            if has_room(&self.examples, most, is_better) {
                let (our_text, their_text) = match &texts {
                    Some(texts) => texts,
                    None => texts.insert((shown(ours)?, shown(theirs)?)),
                };
                let (ours, theirs) = (our_text.json(row), their_text.json(row));
                self.examples.insert(Example { distance, key, entity: keys.entity(row)?, ours, theirs });
                trim(&mut self.examples, most);
            }
        }
        Ok(())
    }
}

/// A sum that does not depend on the order of what is added, but in its very last digits.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    fn add(&mut self, number: f64) {
        // What rounding takes from the sum is kept beside it (Knuth).
        let sum = self.high + number;
        let back = sum - self.high;
        self.low += (self.high - (sum - back)) + (number - back);
        self.high = sum;
    }

    pub(super) fn value(self) -> f64 {
        self.high + self.low
    }
}

/// Two values that do not agree.
#[derive(Debug, Clone)]
pub(super) struct Example {
    distance: f64,
    key: OwnedRow,
    pub(super) entity: Map<String, Value>,
    pub(super) ours: Value,
    pub(super) theirs: Value,
}

impl Ord for Example {
    /// The best examples first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.distance.total_cmp(&self.distance).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Example {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Example {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Example {}

/// A row that one side lacks.
#[derive(Debug, Clone)]
pub(super) struct Lonely {
    key: OwnedRow,
    pub(super) entity: Map<String, Value>,
}

impl PartialEq for Lonely {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Lonely {}

impl PartialOrd for Lonely {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Lonely {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

/// All that is known so far.
#[derive(Debug)]
pub(super) struct Tally {
    layout: Layout,
    pub(super) both: u64,
    /// Of these the rows that agree in every feature.
    pub(super) whole: u64,
    pub(super) only_ours: u64,
    pub(super) only_theirs: u64,
    pub(super) lonely_ours: BTreeSet<Lonely>,
    pub(super) lonely_theirs: BTreeSet<Lonely>,
    pub(super) features: Vec<FeatureTally>,
}

impl Tally {
    pub(super) fn new(layout: Layout) -> Self {
        let features = (0..layout.features).map(|_| FeatureTally::default()).collect();
        Self {
            layout,
            both: 0,
            whole: 0,
            only_ours: 0,
            only_theirs: 0,
            lonely_ours: BTreeSet::new(),
            lonely_theirs: BTreeSet::new(),
            features,
        }
    }

    /// Counts the rows of `batch`.
    ///
    /// # Errors
    /// When it is not laid out as was said.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let width = self.layout.keys.len();
        let column = |at: usize| batch.columns().get(at).context("a column is missing");
        let (ours, theirs) = (column(width)?.as_boolean(), column(width + 1)?.as_boolean());
        let mut keys = Keys::new(&self.layout.keys, &batch.columns()[..width]);
        let mut matched = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let (lonely, count) = match (ours.value(row), theirs.value(row)) {
                (true, true) => {
                    matched.push(row);
                    continue;
                }
                (true, false) => (&mut self.lonely_ours, &mut self.only_ours),
                (false, _) => (&mut self.lonely_theirs, &mut self.only_theirs),
            };
            *count += 1;
            let most = self.layout.examples;
            if most > 0 {
                let key = keys.row(row)?;
                if has_room(lonely, most, |last| key < last.key) {
                    lonely.insert(Lonely { key, entity: keys.entity(row)? });
                    trim(lonely, most);
                }
            }
        }
        self.both += matched.len() as u64;
        let mut whole = vec![true; matched.len()];
        for (at, feature) in self.features.iter_mut().enumerate() {
            let (ours, theirs) = (column(width + 2 + 2 * at)?, column(width + 3 + 2 * at)?);
            feature.add(&self.layout, ours, theirs, &matched, &mut whole, &mut keys)?;
        }
        self.whole += whole.into_iter().filter(|whole| *whole).count() as u64;
        Ok(())
    }

    /// Adds what was counted of other rows.
    pub(super) fn merge(&mut self, other: Self) {
        let most = self.layout.examples;
        self.both += other.both;
        self.whole += other.whole;
        self.only_ours += other.only_ours;
        self.only_theirs += other.only_theirs;
        for (mine, more) in [(&mut self.lonely_ours, other.lonely_ours), (&mut self.lonely_theirs, other.lonely_theirs)]
        {
            mine.extend(more);
            trim(mine, most);
        }
        for (mine, more) in self.features.iter_mut().zip(other.features) {
            mine.equal += more.equal;
            mine.different += more.different;
            mine.null_ours += more.null_ours;
            mine.null_theirs += more.null_theirs;
            mine.measured += more.measured;
            mine.farthest = mine.farthest.max(more.farthest);
            mine.sum.add(more.sum.high);
            mine.sum.add(more.sum.low);
            mine.examples.extend(more.examples);
            trim(&mut mine.examples, most);
        }
    }
}

fn has_room<T: Ord>(kept: &BTreeSet<T>, most: usize, is_better: impl FnOnce(&T) -> bool) -> bool {
    kept.len() < most || kept.last().is_some_and(is_better)
}

fn trim<T: Ord>(kept: &mut BTreeSet<T>, most: usize) {
    while kept.len() > most {
        kept.pop_last();
    }
}

/// The values of a column as they are shown; those without a text of their own as the engine writes them.
fn shown(values: &ArrayRef) -> Result<TextColumn> {
    if let Ok(texts) = TextColumn::new(values) {
        return Ok(texts);
    }
    let texts = cast(values, &DataType::Utf8).context("writing an example")?;
    TextColumn::new(&texts).context("writing an example")
}

/// The keys of a batch, read when an example needs them.
struct Keys<'a> {
    names: &'a [String],
    columns: &'a [ArrayRef],
    rows: Option<Rows>,
    texts: Option<Vec<TextColumn>>,
}

impl<'a> Keys<'a> {
    fn new(names: &'a [String], columns: &'a [ArrayRef]) -> Self {
        Self { names, columns, rows: None, texts: None }
    }

    fn row(&mut self, row: usize) -> Result<OwnedRow> {
        let rows = match &self.rows {
            Some(rows) => rows,
            None => {
                let fields = self.columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
                let converter = RowConverter::new(fields).context("ordering keys")?;
                self.rows.insert(converter.convert_columns(self.columns).context("ordering keys")?)
            }
        };
        Ok(rows.row(row).owned())
    }

    fn entity(&mut self, row: usize) -> Result<Map<String, Value>> {
        let texts = match &self.texts {
            Some(texts) => texts,
            None => self.texts.insert(self.columns.iter().map(shown).collect::<Result<_>>()?),
        };
        Ok(self.names.iter().cloned().zip(texts.iter().map(|text| text.json(row))).collect())
    }
}
