//! What differs between two states of a view, feature by feature, from the lake alone.
//!
//! The two states are merged as an upsert merges them: side by side in the order of their entities. Entities that differ
//! come out of both sides in the same order, so the first that is left of one side belongs to the first of the other, and
//! only what was not paired yet stays in memory.
//!
//! Nothing is read when that is not needed: the same files, or the same digest, hold the same rows; and of a state beside
//! nothing the registry knows how many entities it has.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::{Map, Value};
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Output, Project};
use tidegate_registry::restore::{AsOf, Slice, ViewRestore};
use tidegate_registry::time::Instant;

use super::merging::{Was, merge};
use super::reading::{Order, Reading, named, own_times};
use super::{Unfit, picked};
use crate::engine::Engine;
use crate::lake::Lake;
use crate::serving::content::Content;
use crate::text::TextColumn;
use crate::types::{EVENT_TIMESTAMP, arrow_type, timestamp};

/// A view as it was: the newest published interval, in a version of its table.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewState {
    /// The version.
    pub version: u64,
    /// The interval, with what was recorded of it.
    pub newest: Slice,
}

impl ViewState {
    /// What a view was then; `None` for nothing.
    pub fn of(then: &AsOf) -> Option<Self> {
        Some(Self { version: then.delta_version?, newest: then.ledger.first()?.clone().into() })
    }

    /// What a view will be after a restore; `None` for nothing. An error says that it cannot be told beforehand: it is put
    /// together from several versions.
    ///
    /// # Errors
    /// [`Mixed`].
    pub fn after(restore: &ViewRestore, output: Output) -> Result<Option<Self>, Mixed> {
        let Some(newest) = restore.newest.clone() else { return Ok(None) };
        let slices = &restore.table.slices;
        let version = match slices.iter().find(|(interval, _)| *interval == newest.interval) {
            _ if output != Output::Full && !slices.is_empty() => return Err(Mixed),
            Some((_, version)) => *version,
            None => restore.table.version,
        };
        Ok(version.map(|version| Self { version, newest }))
    }
}

/// A state that no single version of the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state is put together from several versions of the table")]
pub struct Mixed;

/// What differs between two states.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StateDiff {
    /// Entities that only the later state has.
    pub added: u64,
    /// Entities that only the earlier state has.
    pub removed: u64,
    /// Entities of both with another value of a feature, or another time of their own.
    pub changed: u64,
    /// Entities of both with the same values; `None` when that was found without looking at them.
    pub unchanged: Option<u64>,
    /// The features that changed, as the view declares them; the time of the rows comes last.
    pub features: Vec<FeatureDiff>,
    /// Some of the added entities: their keys.
    pub examples_added: Vec<Map<String, Value>>,
    /// Some of the removed entities: their keys.
    pub examples_removed: Vec<Map<String, Value>>,
    /// Whether rows were read to find that out.
    pub was_read: bool,
}

/// How one feature changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeatureDiff {
    /// Its name, or `event_timestamp`.
    pub name: String,
    /// Entities for which it is another.
    pub changed: u64,
    /// Of these, how many have none any more.
    pub to_null: u64,
    /// Of these, how many had none.
    pub from_null: u64,
    /// How far numbers moved; `None` of other types, and when none moved from one finite number to another.
    pub numbers: Option<Moved>,
    /// Some entities for which it changed: of a number those that moved farthest, beginning with what was or became no
    /// number at all.
    pub examples: Vec<Example>,
}

/// How far numbers moved that are finite before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moved {
    /// How many.
    pub count: u64,
    /// The mean of `|after − before|`.
    pub mean_absolute: f64,
    /// The largest `|after − before|`.
    pub max_absolute: f64,
    /// The mean of `|after − before| / |before|` over those that were not 0; `None` when all were.
    pub mean_relative: Option<f64>,
    /// The largest of these.
    pub max_relative: Option<f64>,
}

/// One entity for which a feature changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Its keys.
    pub entity: Map<String, Value>,
    /// What the feature was.
    pub before: Value,
    /// What it is.
    pub after: Value,
}

/// Compares two states of `view`, with up to `examples` entities of each kind.
///
/// # Errors
/// When the view is not defined, or one of the versions cannot be read.
pub async fn compare_states(
    engine: &Arc<Engine>,
    lake: &Lake,
    project: &Arc<Project>,
    view: &ViewId,
    states: [Option<ViewState>; 2],
    examples: usize,
) -> Result<StateDiff> {
    let comparing = Comparing {
        engine: Arc::clone(engine),
        lake: lake.clone(),
        project: Arc::clone(project),
        view: view.clone(),
        examples,
    };
    engine.run(async move { comparing.compare(states).await }).await?
}

struct Comparing {
    engine: Arc<Engine>,
    lake: Lake,
    project: Arc<Project>,
    view: ViewId,
    examples: usize,
}

impl Comparing {
    fn content(&self, state: &ViewState) -> Content {
        Content {
            project: Arc::clone(&self.project),
            view: self.view.clone(),
            version: state.version,
            interval: state.newest.interval,
            at: state.newest.interval.end(),
        }
    }

    fn output(&self) -> Result<Output> {
        let view = self.project.views.get(&self.view);
        Ok(view.with_context(|| format!("`{}` is not defined", self.view))?.output)
    }

    async fn compare(&self, states: [Option<ViewState>; 2]) -> Result<StateDiff> {
        let whole = self.output()? == Output::Full;
        match &states {
            [None, None] => Ok(StateDiff::default()),
            [Some(before), Some(after)] => {
                if whole && is_same_digest(&before.newest, &after.newest) || self.has_same_files(before, after).await? {
                    return Ok(StateDiff::default());
                }
                self.read([Some(self.content(before)), Some(self.content(after))]).await
            }
            // The rows of a full view's interval are its entities.
            [None, Some(only)] if whole => {
                let examples_added = self.some_keys(only).await?;
                Ok(StateDiff { added: only.newest.rows, unchanged: Some(0), examples_added, ..StateDiff::default() })
            }
            [Some(only), None] if whole => {
                let examples_removed = self.some_keys(only).await?;
                Ok(StateDiff {
                    removed: only.newest.rows,
                    unchanged: Some(0),
                    examples_removed,
                    ..StateDiff::default()
                })
            }
            [before, after] => {
                self.read([before, after].map(|state| state.as_ref().map(|state| self.content(state)))).await
            }
        }
    }

    /// Whether two states rest on the same files, so that they cannot differ.
    async fn has_same_files(&self, before: &ViewState, after: &ViewState) -> Result<bool> {
        if before.newest.interval != after.newest.interval {
            return Ok(false);
        }
        if before.version == after.version {
            return Ok(true);
        }
        let (whole, start) = (self.output()? == Output::Full, before.newest.interval.start().timestamp_micros());
        let files = async |state: &ViewState| -> Result<Vec<String>> {
            let table = self.lake.load(&self.view, Some(state.version)).await?;
            let files = Lake::files_of(&table)?.into_iter().filter(|file| !whole || file.slice == start);
            let mut paths: Vec<String> = files.map(|file| file.path).collect();
            paths.sort_unstable();
            Ok(paths)
        };
        Ok(files(before).await? == files(after).await?)
    }

    async fn some_keys(&self, state: &ViewState) -> Result<Vec<Map<String, Value>>> {
        let content = self.content(state);
        let mut found = Vec::new();
        if self.examples > 0 {
            for batch in content.some_rows(&self.engine, &self.lake, self.examples).await? {
                Keys::of(&content, &batch)?.add_to(&mut found, self.examples);
            }
        }
        Ok(found)
    }

    async fn read(&self, contents: [Option<Content>; 2]) -> Result<StateDiff> {
        match self.read_in(&contents, Order::AsStored).await {
            Err(error) if error.is::<Unfit>() => {
                tracing::info!(view = %self.view, "The table of `{}` is sorted to be compared: {error}.", self.view);
                self.read_in(&contents, Order::Sorted).await
            }
            done => done,
        }
    }

    async fn read_in(&self, contents: &[Option<Content>; 2], order: Order) -> Result<StateDiff> {
        let begin = async |content: &Option<Content>| match content {
            Some(content) => Reading::begin(&self.engine, &self.lake, content, order).await.map(Some),
            None => Ok(None),
        };
        let [old_content, new_content] = contents;
        let (mut old, mut new) = (begin(old_content).await?, begin(new_content).await?);
        let (mut before, mut now) = (next(&mut old).await?, next(&mut new).await?);
        let content = old_content.as_ref().or(new_content.as_ref()).context("nothing is compared")?;
        let mut diff = StateDiff { was_read: true, ..StateDiff::default() };
        let ends = [old_content, new_content].map(|of| of.as_ref().unwrap_or(content).interval.end());
        let mut features = Features::new(self, content, ends)?;
        let (mut was, mut is) = (Waiting::default(), Waiting::default());
        let mut unchanged = 0;
        while before.is_some() || now.is_some() {
            merge(before.as_mut(), now.as_mut())?;
            if let Some(done) = before.take_if(|before| before.is_done()) {
                let gone = picked(&done.batch, &done.verdicts, Was::Alone)?;
                diff.removed += gone.num_rows() as u64;
                Keys::of(content, &gone)?.add_to(&mut diff.examples_removed, self.examples);
                was.add(picked(&done.batch, &done.verdicts, Was::Other)?);
                before = next(&mut old).await?;
            }
            if let Some(done) = now.take_if(|now| now.is_done()) {
                let new_ones = picked(&done.batch, &done.verdicts, Was::Alone)?;
                diff.added += new_ones.num_rows() as u64;
                Keys::of(content, &new_ones)?.add_to(&mut diff.examples_added, self.examples);
                unchanged += done.verdicts.iter().filter(|verdict| **verdict == Was::Same).count() as u64;
                is.add(picked(&done.batch, &done.verdicts, Was::Other)?);
                now = next(&mut new).await?;
            }
            let rows = was.rows.min(is.rows);
            if rows > 0 {
                diff.changed += rows as u64;
                features.add(&was.take(rows)?, &is.take(rows)?)?;
            }
        }
        anyhow::ensure!(was.rows == 0 && is.rows == 0, "the states of `{}` were not read to their ends", self.view);
        diff.unchanged = Some(unchanged);
        diff.features = features.finish();
        Ok(diff)
    }
}

fn is_same_digest(one: &Slice, other: &Slice) -> bool {
    !one.digest.is_empty() && one.digest == other.digest && one.rows == other.rows
}

async fn next(reading: &mut Option<Reading>) -> Result<Option<super::merging::Batch>> {
    match reading {
        Some(reading) => reading.next().await,
        None => Ok(None),
    }
}

/// Rows that differ, of one side, whose counterparts have not come yet.
#[derive(Default)]
struct Waiting {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl Waiting {
    fn add(&mut self, batch: RecordBatch) {
        if batch.num_rows() > 0 {
            self.rows += batch.num_rows();
            self.batches.push(batch);
        }
    }

    /// The first `rows`, of as many at least.
    fn take(&mut self, rows: usize) -> Result<RecordBatch> {
        let first = self.batches.first().context("nothing waits")?;
        let all = concat_batches(&first.schema(), &self.batches).context("putting rows that differ together")?;
        self.batches.clear();
        self.rows -= rows;
        if self.rows > 0 {
            self.batches.push(all.slice(rows, self.rows));
        }
        Ok(all.slice(0, rows))
    }
}

/// The keys of a batch's entities.
struct Keys<'a> {
    columns: Vec<(&'a str, TextColumn)>,
    rows: usize,
}

impl<'a> Keys<'a> {
    fn of(content: &'a Content, batch: &RecordBatch) -> Result<Self> {
        let column = |name: &'a str| Ok((name, TextColumn::new(&named(batch, name)?)?));
        let columns = content.keys()?.iter().map(|key| column(key.name.as_str())).collect::<Result<_>>()?;
        Ok(Self { columns, rows: batch.num_rows() })
    }

    fn at(&self, row: usize) -> Map<String, Value> {
        self.columns.iter().map(|(name, column)| ((*name).to_owned(), column.json(row))).collect()
    }

    fn add_to(&self, examples: &mut Vec<Map<String, Value>>, examples_max: usize) {
        let wanted = examples_max.saturating_sub(examples.len()).min(self.rows);
        examples.extend((0..wanted).map(|row| self.at(row)));
    }
}

/// What is known so far of all features.
struct Features<'a> {
    content: &'a Content,
    counts: Vec<Counting>,
    examples: usize,
    /// When the intervals of both sides end: a row of that time has none of its own.
    ends: [Instant; 2],
}

impl<'a> Features<'a> {
    fn new(comparing: &Comparing, content: &'a Content, ends: [Instant; 2]) -> Result<Self> {
        let features =
            content.view()?.features.iter().map(|feature| (feature.name.as_str(), arrow_type(&feature.kind)));
        let all = features.chain([(EVENT_TIMESTAMP, timestamp())]);
        let counts = all.map(|(name, kind)| Counting::new(name, kind)).collect();
        Ok(Self { content, counts, examples: comparing.examples, ends })
    }

    /// Adds entities that differ: each row of one batch with the same row of the other.
    fn add(&mut self, before: &RecordBatch, after: &RecordBatch) -> Result<()> {
        let keys = Keys::of(self.content, after)?;
        for count in &mut self.counts {
            let column = |batch, end| -> Result<ArrayRef> {
                let mut column = named(batch, &count.diff.name)?;
                if count.diff.name == EVENT_TIMESTAMP {
                    column = own_times(&column, end)?;
                }
                cast(&column, &count.kind).with_context(|| format!("comparing `{}`", count.diff.name))
            };
            let (before, after) = (column(before, self.ends[0])?, column(after, self.ends[1])?);
            count.add(&before, &after, &keys, self.examples)?;
        }
        Ok(())
    }

    fn finish(self) -> Vec<FeatureDiff> {
        self.counts.into_iter().map(Counting::finish).filter(|diff| diff.changed > 0).collect()
    }
}

struct Counting {
    kind: DataType,
    diff: FeatureDiff,
    moved: Moved,
    sum_absolute: f64,
    relative: u64,
    sum_relative: f64,
    /// With how far each moved, farthest first.
    examples: Vec<(f64, Example)>,
}

impl Counting {
    fn new(name: &str, kind: DataType) -> Self {
        Self {
            kind,
            diff: FeatureDiff { name: name.to_owned(), ..FeatureDiff::default() },
            moved: Moved::default(),
            sum_absolute: 0.0,
            relative: 0,
            sum_relative: 0.0,
            examples: Vec::new(),
        }
    }

    fn add(&mut self, before: &ArrayRef, after: &ArrayRef, keys: &Keys<'_>, examples_max: usize) -> Result<()> {
        let texts = || Ok::<_, anyhow::Error>((TextColumn::new(before)?, TextColumn::new(after)?));
        let (was, is) = texts().with_context(|| format!("comparing `{}`", self.diff.name))?;
        let pairs = Pairs::of(before, after);
        for row in 0..before.len() {
            let (was_null, is_null) = (before.is_null(row), after.is_null(row));
            let distance = match (was_null, is_null) {
                (true, true) => continue,
                (true, false) => {
                    self.diff.from_null += 1;
                    f64::INFINITY
                }
                (false, true) => {
                    self.diff.to_null += 1;
                    f64::INFINITY
                }
                (false, false) => match pairs.at(row) {
                    Pair::Same => continue,
                    Pair::Moved { before, by } => self.moved_by(before, by),
                    Pair::Other => f64::INFINITY,
                    Pair::Unknown if was.text(row) == is.text(row) => continue,
                    Pair::Unknown => f64::INFINITY,
                },
            };
            self.diff.changed += 1;
            let at = self.examples.partition_point(|(known, _)| *known >= distance);
            if at < examples_max {
                self.examples.truncate(examples_max - 1);
                let example = Example { entity: keys.at(row), before: was.json(row), after: is.json(row) };
                self.examples.insert(at, (distance, example));
            }
        }
        Ok(())
    }

    fn moved_by(&mut self, before: f64, by: f64) -> f64 {
        self.moved.count += 1;
        self.sum_absolute += by;
        self.moved.max_absolute = self.moved.max_absolute.max(by);
        if before != 0.0 {
            let relative = by / before.abs();
            self.relative += 1;
            self.sum_relative += relative;
            self.moved.max_relative = Some(self.moved.max_relative.map_or(relative, |max| max.max(relative)));
        }
        by
    }

    fn finish(self) -> FeatureDiff {
        let Self { mut diff, mut moved, .. } = self;
        if moved.count > 0 {
            moved.mean_absolute = self.sum_absolute / moved.count as f64;
            moved.mean_relative = (self.relative > 0).then(|| self.sum_relative / self.relative as f64);
            diff.numbers = Some(moved);
        }
        diff.examples = self.examples.into_iter().map(|(_, example)| example).collect();
        diff
    }
}

/// Two values of a feature, neither null.
enum Pair {
    Same,
    /// From one finite number to another.
    Moved {
        before: f64,
        by: f64,
    },
    /// One of them is no finite number.
    Other,
    /// Only their texts tell.
    Unknown,
}

/// Two columns of one type.
enum Pairs<'a> {
    Int32(&'a PrimitiveArray<Int32Type>, &'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>, &'a PrimitiveArray<Int64Type>),
    Float32(&'a PrimitiveArray<Float32Type>, &'a PrimitiveArray<Float32Type>),
    Float64(&'a PrimitiveArray<Float64Type>, &'a PrimitiveArray<Float64Type>),
    Instant(&'a PrimitiveArray<TimestampMicrosecondType>, &'a PrimitiveArray<TimestampMicrosecondType>),
    Texts,
}

impl<'a> Pairs<'a> {
    fn of(before: &'a ArrayRef, after: &'a ArrayRef) -> Self {
        match before.data_type() {
            DataType::Int32 => Self::Int32(before.as_primitive(), after.as_primitive()),
            DataType::Int64 => Self::Int64(before.as_primitive(), after.as_primitive()),
            DataType::Float32 => Self::Float32(before.as_primitive(), after.as_primitive()),
            DataType::Float64 => Self::Float64(before.as_primitive(), after.as_primitive()),
            DataType::Timestamp(..) => Self::Instant(before.as_primitive(), after.as_primitive()),
            _ => Self::Texts,
        }
    }

    fn at(&self, row: usize) -> Pair {
        match self {
            Self::Int32(before, after) => integers(i64::from(before.value(row)), i64::from(after.value(row))),
            Self::Int64(before, after) => integers(before.value(row), after.value(row)),
            Self::Float32(before, after) => floats(f64::from(before.value(row)), f64::from(after.value(row))),
            Self::Float64(before, after) => floats(before.value(row), after.value(row)),
            Self::Instant(before, after) if before.value(row) == after.value(row) => Pair::Same,
            Self::Instant(..) => Pair::Other,
            Self::Texts => Pair::Unknown,
        }
    }
}

fn integers(before: i64, after: i64) -> Pair {
    if before == after {
        return Pair::Same;
    }
    // Subtracted as integers: beyond 2^53 two different ones may be the same float.
    Pair::Moved { before: before as f64, by: before.abs_diff(after) as f64 }
}

/// As their texts: every NaN is the same, and -0 is not 0.
fn floats(before: f64, after: f64) -> Pair {
    if before.to_bits() == after.to_bits() || before.is_nan() && after.is_nan() {
        Pair::Same
    } else if before.is_finite() && after.is_finite() {
        Pair::Moved { before, by: (after - before).abs() }
    } else {
        Pair::Other
    }
}
