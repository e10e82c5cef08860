//! How far a view agrees with what should hold the same: another version of it, or the table of an old pipeline.
//!
//! Both sides are brought to one row per entity (as of one instant), or per entity and time, joined by their keys, and
//! counted feature by feature as the rows stream by. The join sorts, and so spills: how large the sides are makes no
//! difference to how much memory it takes.

mod sides;
mod tally;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use datafusion::common::JoinType;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::cast;
use datafusion::physical_plan::ExecutionPlanProperties as _;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt as _;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use tidegate_registry::ids::{SourceName, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::sides::Side;
use self::tally::{Layout, Tally};
pub use self::values::Tolerance;
use crate::dataset::{DatasetError, DatasetParts, bad_value};
use crate::engine::{Engine, Joins};
use crate::reads::column;
use crate::types::describe_one;

/// What a view is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum With {
    /// Another view, most often another version of the same.
    View(ViewId),
    /// A source of the project.
    Source(SourceName),
    /// A file, a folder of files or a Delta table.
    Place(String),
}

/// Which rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// What is known of every entity at one instant; by itself the newest that both sides have.
    AsOf(Option<Instant>),
    /// All rows whose time is not before the first and before the second: of a view compared with a view the end of their
    /// interval, of one compared with a table their `event_timestamp`.
    History(Option<Instant>, Option<Instant>),
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct CompareRequest {
    /// The definitions.
    pub project: Arc<Project>,
    /// The view.
    pub view: ViewId,
    /// The other side.
    pub with: With,
    /// Which rows.
    pub span: Span,
    /// The features to compare; all that both sides have when empty.
    pub features: Vec<String>,
    /// Names of columns of the other side, each with what it is called in the view.
    pub renamed: Vec<(String, String)>,
    /// The column of a table that says when. One without has one row per entity.
    pub their_time: Option<String>,
    /// How far apart numbers may be and still agree.
    pub tolerance: Tolerance,
    /// Examples of each kind.
    pub examples: usize,
    /// The number of the snapshot as of which views are read.
    pub number: u64,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The request or the data is wrong: whoever asked can mend it.
    #[error("{message}")]
    Wrong {
        /// What is wrong.
        message: String,
        /// What to try.
        hint: String,
    },
    /// Something else failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl CompareError {
    fn wrong(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Wrong { message: message.into(), hint: hint.into() }
    }
}

impl From<DatasetError> for CompareError {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Wrong { message, hint } => Self::Wrong { message, hint },
            DatasetError::Failed(error) => Self::Failed(error),
            // Nobody can stop what is only read.
            stopped @ DatasetError::Stopped => Self::Failed(anyhow!(stopped)),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Which rows were compared; the instant is known now.
    pub span: Span,
    /// Rows that both sides have.
    pub both: u64,
    /// Of these the rows that agree in every feature.
    pub rows_equal: u64,
    /// Rows that only the view has.
    pub only_ours: u64,
    /// Rows that only the other side has.
    pub only_theirs: u64,
    /// Keys of some of them.
    pub examples_only_ours: Vec<Map<String, Value>>,
    /// Keys of some of them.
    pub examples_only_theirs: Vec<Map<String, Value>>,
    /// Feature by feature, in the view's order.
    pub features: Vec<FeatureAgreement>,
    /// Features of the view that the other side has no column for.
    pub features_only_ours: Vec<String>,
    /// Columns of the other side that are no features of the view.
    pub features_only_theirs: Vec<String>,
}

/// How far one feature agrees, over the rows that both sides have.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureAgreement {
    /// The feature.
    pub name: String,
    /// What the other side calls it.
    pub theirs: String,
    /// Rows in which it agrees; those in which both sides have none included.
    pub equal: u64,
    /// Rows in which both sides have a value, and the values do not agree.
    pub different: u64,
    /// Rows in which only the view has none.
    pub null_ours: u64,
    /// Rows in which only the other side has none.
    pub null_theirs: u64,
    /// How far apart numbers are; `None` when in no row both are finite numbers.
    pub distance: Option<Distance>,
    /// Some of the rows in which it does not agree, the farthest apart first.
    pub examples: Vec<ValueExample>,
}

/// How far apart the numbers of two sides are, where both have a finite one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// In so many rows.
    pub rows: u64,
    /// The largest absolute difference.
    pub largest: f64,
    /// The mean absolute difference, those of none included.
    pub mean: f64,
}

/// Two values that do not agree.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueExample {
    /// Whose: keys, and the time in a history.
    pub entity: Map<String, Value>,
    /// The view's value.
    pub ours: Value,
    /// The other side's.
    pub theirs: Value,
}

/// What counts as a disagreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// A row that one side lacks disagrees in every feature.
    #[default]
    Disagrees,
    /// Only rows that both sides have count.
    Ignored,
}

impl Comparison {
    fn rows(&self, missing: Missing) -> u64 {
        match missing {
            Missing::Disagrees => self.both + self.only_ours + self.only_theirs,
            Missing::Ignored => self.both,
        }
    }

    /// Per cent of all values that agree; `None` when there are none.
    pub fn agreement(&self, missing: Missing) -> Option<f64> {
        let equal: u64 = self.features.iter().map(|feature| feature.equal).sum();
        percent(equal, self.rows(missing) * self.features.len() as u64)
    }

    /// Per cent of the rows that agree in every feature; `None` when there are none.
    pub fn entity_agreement(&self, missing: Missing) -> Option<f64> {
        percent(self.rows_equal, self.rows(missing))
    }

    /// Per cent of the rows in which `feature` agrees; `None` when there are none.
    pub fn agreement_of(&self, feature: &FeatureAgreement, missing: Missing) -> Option<f64> {
        percent(feature.equal, self.rows(missing))
    }
}

fn percent(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| 100.0 * part as f64 / of as f64)
}

/// Compares. `on_rows` is told now and then how many rows were.
///
/// # Errors
/// [`CompareError::Wrong`] when the other side cannot be read, nothing can be compared, two columns are of different kinds, or
/// an entity stands in the other side twice.
pub async fn compare(
    engine: &Engine,
    parts: &DatasetParts,
    request: &CompareRequest,
    on_rows: &mut (dyn FnMut(u64) + Send),
) -> Result<Comparison, CompareError> {
    let ctx = context(engine)?;
    let (span, ours, theirs) = sides::open(&ctx, parts, request).await?;
    let pairs = pairs(request, &ours, &theirs)?;
    let joined = joined(&ours, &theirs, &pairs)?;
    let layout = Layout {
        keys: ours.keys.iter().map(|key| key.name.clone()).collect(),
        features: pairs.shared.len(),
        tolerance: request.tolerance,
        examples: request.examples,
    };
    let tally = count(joined, &layout, &theirs.called, on_rows).await?;
    Ok(comparison(span, pairs, tally))
}

/// Every stream of the join sorts both sides: so many bytes a stream should have.
const BYTES_PER_STREAM: usize = 48 << 20;
/// What a sort keeps to merge with at most: the engine's own setting, which is much where there is little.
const MERGE_BYTES_MAX: usize = 10 << 20;

/// A session whose joins spill, with as many streams as there is memory for.
fn context(engine: &Engine) -> anyhow::Result<SessionContext> {
    let ctx = engine.context(Joins::SortMerge)?;
    if let MemoryLimit::Finite(bytes) = engine.runtime().memory_pool.memory_limit() {
        let state = ctx.state_ref();
        let mut state = state.write();
        let settings = &mut state.config_mut().options_mut().execution;
        // With a single stream the engine plans hash joins, which do not spill.
        settings.target_partitions = settings.target_partitions.min(bytes / BYTES_PER_STREAM).max(2);
        settings.sort_spill_reservation_bytes = MERGE_BYTES_MAX.min(bytes / 16);
    }
    Ok(ctx)
}

/// Which columns are compared.
struct Pairs {
    /// A feature and its column in the other side.
    shared: Vec<(String, String)>,
    only_ours: Vec<String>,
    only_theirs: Vec<String>,
}

fn pairs(request: &CompareRequest, ours: &Side, theirs: &Side) -> Result<Pairs, CompareError> {
    let list =
        |names: &mut dyn Iterator<Item = &String>| names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    for feature in &request.features {
        if !ours.features.contains_key(feature) {
            return Err(CompareError::wrong(
                format!("`{}` has no feature `{feature}`", request.view),
                format!("it has {}", list(&mut ours.features.keys())),
            ));
        }
        if !theirs.features.contains_key(feature) {
            return Err(CompareError::wrong(
                format!("{} has no column for the feature `{feature}`", theirs.called),
                format!(
                    "it has {}; `--columns THEIRS={feature}` says which one it is",
                    list(&mut theirs.features.values())
                ),
            ));
        }
    }
    let wanted = |name: &String| request.features.is_empty() || request.features.contains(name);
    let mut pairs = Pairs { shared: Vec::new(), only_ours: Vec::new(), only_theirs: Vec::new() };
    for name in ours.features.keys() {
        match theirs.features.get(name) {
            Some(column) if wanted(name) => pairs.shared.push((name.clone(), column.clone())),
            Some(_) => {}
            None => pairs.only_ours.push(name.clone()),
        }
    }
    let strange = theirs.features.iter().filter(|(name, _)| !ours.features.contains_key(*name));
    pairs.only_theirs = strange.map(|(_, column)| column.clone()).collect();
    if pairs.shared.is_empty() {
        let example = (pairs.only_theirs.first(), pairs.only_ours.first());
        let example = if let (Some(theirs), Some(ours)) = example {
            format!(", as in `--columns {theirs}={ours}`")
        } else {
            String::new()
        };
        return Err(CompareError::wrong(
            format!("`{}` and {} have no feature in common", request.view, theirs.called),
            format!(
                "the view has {}, the other side {}: say which is which{example}",
                list(&mut pairs.only_ours.iter()),
                if pairs.only_theirs.is_empty() { "none".to_owned() } else { list(&mut pairs.only_theirs.iter()) },
            ),
        ));
    }
    Ok(pairs)
}

/// Both sides by their keys, laid out as [`Layout`] says.
fn joined(ours: &Side, theirs: &Side, pairs: &Pairs) -> Result<DataFrame, CompareError> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let (mut our_keys, mut their_keys) = (Vec::new(), Vec::new());
    for (at, (our_key, their_key)) in ours.keys.iter().zip(&theirs.keys).enumerate() {
        let (here, there) = (ours.kind(&our_key.column)?, theirs.kind(&their_key.column)?);
        let Some(kind) = values::common_key(&here, &there) else {
            let hint = "rows are found by it: convert one of them";
            return Err(apart(ours, theirs, &our_key.column, &their_key.column, hint)?);
        };
        our_keys.push(format!("our_key_{at}"));
        their_keys.push(format!("their_key_{at}"));
        left.push(cast(column(&our_key.column), kind.clone()).alias(&our_keys[at]));
        right.push(cast(column(&their_key.column), kind).alias(&their_keys[at]));
    }
    for (at, (feature, of_theirs)) in pairs.shared.iter().enumerate() {
        let (here, there) = (ours.kind(feature)?, theirs.kind(of_theirs)?);
        let Some((here, there)) = values::common(&here, &there) else {
            let hint = "convert one of them, or leave the feature out (`--features`)";
            return Err(apart(ours, theirs, feature, of_theirs, hint)?);
        };
        left.push(cast(column(feature), here).alias(format!("ours_{at}")));
        right.push(cast(column(of_theirs), there).alias(format!("theirs_{at}")));
    }
    let planning = "planning the comparison";
    let left = ours.rows.clone().select(left).context(planning)?;
    let right = theirs.rows.clone().select(right).context(planning)?;
    let names = |keys: &[String]| keys.iter().map(String::clone).collect::<Vec<_>>();
    let (on_left, on_right) = (names(&our_keys), names(&their_keys));
    let on_left: Vec<&str> = on_left.iter().map(String::as_str).collect();
    let on_right: Vec<&str> = on_right.iter().map(String::as_str).collect();
    let rows = left.join(right, JoinType::Full, &on_left, &on_right, None).context(planning)?;
    let mut laid_out: Vec<_> = our_keys
        .iter()
        .zip(&their_keys)
        .enumerate()
        .map(|(at, (ours, theirs))| coalesce(vec![column(ours), column(theirs)]).alias(format!("key_{at}")))
        .collect();
    // Our keys are never null. Theirs may be: such a row has no entity, so it is one that we lack.
    laid_out.push(column(&our_keys[0]).is_not_null().alias("has_ours"));
    laid_out.push(column(&their_keys[0]).is_not_null().alias("has_theirs"));
    for at in 0..pairs.shared.len() {
        laid_out.extend([column(&format!("ours_{at}")), column(&format!("theirs_{at}"))]);
    }
    Ok(rows.select(laid_out).context(planning)?)
}

/// That two columns hold different kinds of things.
fn apart(ours: &Side, theirs: &Side, here: &str, there: &str, hint: &str) -> Result<CompareError, CompareError> {
    Ok(CompareError::wrong(
        format!(
            "`{here}` of {} is {}, and `{there}` of {} is {}: they cannot be compared",
            ours.called,
            describe_one(&ours.kind(here)?),
            theirs.called,
            describe_one(&theirs.kind(there)?),
        ),
        hint,
    ))
}

/// Counts the joined rows, on all cores.
async fn count(
    joined: DataFrame,
    layout: &Layout,
    called: &str,
    on_rows: &mut (dyn FnMut(u64) + Send),
) -> Result<Tally, CompareError> {
    let task = Arc::new(joined.task_ctx());
    let plan = joined.create_physical_plan().await.map_err(|error| failed(called, error))?;
    let (progress, mut counted) = mpsc::channel::<u64>(64);
    let mut counting = JoinSet::new();
    for partition in 0..plan.output_partitioning().partition_count() {
        let mut rows = plan.execute(partition, Arc::clone(&task)).map_err(|error| failed(called, error))?;
        let (mut tally, progress) = (Tally::new(layout.clone()), progress.clone());
        counting.spawn(async move {
            while let Some(batch) = rows.try_next().await? {
                tally.add(&batch).map_err(|error| DataFusionError::External(error.into()))?;
                // Nobody needs to know when the other end is gone.
                let _ = progress.send(batch.num_rows() as u64).await;
            }
            Ok::<_, DataFusionError>((partition, tally))
        });
    }
    drop(progress);
    let mut done = 0;
    while let Some(more) = counted.recv().await {
        done += more;
        on_rows(done);
    }
    let mut tallies = IndexMap::new();
    while let Some(ended) = counting.join_next().await {
        let (partition, tally) = ended.context("counting was stopped")?.map_err(|error| failed(called, error))?;
        tallies.insert(partition, tally);
    }
    tallies.sort_unstable_keys();
    let mut all = Tally::new(layout.clone());
    tallies.into_values().for_each(|tally| all.merge(tally));
    Ok(all)
}

fn comparison(span: Span, pairs: Pairs, tally: Tally) -> Comparison {
    let features = pairs.shared.into_iter().zip(tally.features).map(|((name, theirs), found)| {
        let distance = (found.measured > 0).then(|| Distance {
            rows: found.measured,
            largest: found.farthest,
            mean: found.sum.value() / found.measured as f64,
        });
        let examples = found.examples.into_iter();
        FeatureAgreement {
            name,
            theirs,
            equal: found.equal,
            different: found.different,
            null_ours: found.null_ours,
            null_theirs: found.null_theirs,
            distance,
            examples: examples
                .map(|one| ValueExample { entity: one.entity, ours: one.ours, theirs: one.theirs })
                .collect(),
        }
    });
    let features = features.collect();
    Comparison {
        span,
        both: tally.both,
        rows_equal: tally.whole,
        only_ours: tally.only_ours,
        only_theirs: tally.only_theirs,
        examples_only_ours: tally.lonely_ours.into_iter().map(|one| one.entity).collect(),
        examples_only_theirs: tally.lonely_theirs.into_iter().map(|one| one.entity).collect(),
        features,
        features_only_ours: pairs.only_ours,
        features_only_theirs: pairs.only_theirs,
    }
}

/// An error of the engine: what is wrong with the data of the other side is its owner's.
fn failed(called: &str, error: DataFusionError) -> CompareError {
    match bad_value(&error) {
        Some(cause) => CompareError::wrong(
            format!("{called} cannot be read: {cause}"),
            "mend that value, or leave its column out (`--features`)",
        ),
        None => CompareError::Failed(anyhow!(error).context("comparing")),
    }
}
