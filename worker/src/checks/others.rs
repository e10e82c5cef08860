//! Checks that compare a run's rows with another table: the values that must occur there, and totals that must be equal.
//!
//! The other table is read as the run has pinned it before the first row is computed; the run's own rows are then judged in
//! the pass in which they are staged. Of a table that is referred to only the hashes of its values are kept (16 bytes each,
//! see [`super::unique`] on their chance to be wrong), in memory that the pool grants: a set that does not fit is an error
//! of the check, which says so.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{cast, try_cast};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use tidegate_registry::definitions::scalars::format_duration;
use tidegate_registry::model::{Check, FeatureView, Rule, SqlText, TIMEOUT, Table, Total, Within};
use tidegate_registry::run::{CheckResult, Verdict};
use tidegate_registry::time::Interval;
use xxhash_rust::xxh3::xxh3_128;

use super::condition::Condition;
use super::history::percent;
use super::metrics::shown;
use super::result;
use super::rows::{Failing, RowRule, Unjudgeable, column, recast};
use super::unique::{Already, BYTES_PER_HASH, CAPACITY_MIN, hash_row};
use crate::execute::chain;
use crate::session::logical_condition;
use crate::sources::{is_outage, is_pin_violation};
use crate::text::TextColumn;

/// The tables that the checks of a view compare its rows with.
pub type OtherTables = HashMap<Table, Arc<dyn TableProvider>>;

/// What was found in other tables, by the check's name; or why it was not.
#[derive(Debug, Default)]
pub struct Others(HashMap<String, Result<Found, String>>);

impl Others {
    pub(super) fn take(&mut self, check: &str) -> Result<Found, String> {
        self.0.remove(check).unwrap_or_else(|| Err("the other table was not read".to_owned()))
    }
}

#[derive(Debug)]
pub(super) enum Found {
    Keys(Keys),
    Total(Sum),
}

/// Reads what the checks of `view` need of `tables`; `rows` is the schema of the view's own rows.
///
/// # Errors
/// When a table changed meanwhile or its store does not answer: nothing is known then. What else goes wrong is found again
/// in the verdict of the check.
pub async fn read_others(
    ctx: &SessionContext,
    view: &FeatureView,
    rows: &SchemaRef,
    interval: Interval,
    tables: &OtherTables,
) -> Result<Others> {
    let mut others = Others::default();
    for check in &view.checks {
        let Some(table) = check.rule.other_table() else { continue };
        let read = in_time(check.timeout, async {
            let provider = tables.get(table).context("the other table was not opened")?;
            let table = ctx.read_table(Arc::clone(provider))?;
            match &check.rule {
                Rule::Referential { columns, references, .. } => {
                    keys(ctx, table, columns, references, rows).await.map(Found::Keys)
                }
                Rule::Reconciliation { other, other_filter, .. } => {
                    total(ctx, table, other, other_filter.as_ref(), interval).await.map(Found::Total)
                }
                _ => bail!("not a rule about another table"),
            }
        });
        let found = match read.await {
            Ok(found) => Ok(found),
            Err(error) if is_pin_violation(&error) || is_outage(&error) => return Err(error),
            Err(error) => Err(chain(&error)),
        };
        others.0.insert(check.name.clone(), found);
    }
    Ok(others)
}

/// What `work` gives, unless it takes longer than a check with this `timeout:` may.
pub(super) async fn in_time<T>(timeout: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let most = timeout.unwrap_or(TIMEOUT);
    let late = |most: Duration| format!("it took longer than {}, which `timeout:` may set", format_duration(most));
    tokio::time::timeout(most, work).await.unwrap_or_else(|_| Err(anyhow::anyhow!(late(most))))
}

/// What a table is called in messages.
fn called(table: &Table) -> String {
    match table {
        Table::Source(source) => format!("source {source}"),
        Table::State(view) => format!("view {view}"),
        Table::History(view) => format!("history of {view}"),
    }
}

/// Hashes of values that occur.
#[derive(Debug)]
pub(super) struct Keys {
    seen: HashSet<u128, BuildHasherDefault<Already>>,
    reservation: MemoryReservation,
    capacity: usize,
}

impl Keys {
    /// None yet; `what` they are is said when memory runs out.
    pub(super) fn new(what: &str, runtime: &RuntimeEnv) -> Self {
        let reservation = MemoryConsumer::new(what).register(&runtime.memory_pool);
        Self { seen: HashSet::default(), reservation, capacity: CAPACITY_MIN }
    }

    /// Whether `hash` is new.
    pub(super) fn insert(&mut self, hash: u128) -> Result<bool> {
        if self.seen.len() >= self.capacity && !self.seen.contains(&hash) {
            // While the set moves to its new place, both places exist.
            let wanted = 2 * self.capacity * BYTES_PER_HASH;
            self.reservation.try_grow(wanted).map_err(|_| {
                let known = self.seen.len();
                anyhow::anyhow!(
                    "more than {known} different values do not fit into `memory:`; write a `sql` check instead"
                )
            })?;
            self.seen.reserve(2 * self.capacity - self.seen.len());
            self.capacity *= 2;
            self.reservation.resize(self.capacity * BYTES_PER_HASH);
        }
        Ok(self.seen.insert(hash))
    }
}

async fn keys(
    ctx: &SessionContext,
    table: DataFrame,
    columns: &[String],
    references: &[String],
    rows: &SchemaRef,
) -> Result<Keys> {
    let mut wanted = Vec::with_capacity(columns.len());
    for (position, (own, there)) in columns.iter().zip(references).enumerate() {
        let kind = rows.field_with_name(own).with_context(|| format!("the rows have no column `{own}`"))?.data_type();
        // What cannot be a value of ours is none that ours could be.
        wanted.push(try_cast(crate::reads::column(there), kind.clone()).alias(format!("v{position}")));
    }
    let mut keys = Keys::new("values of a referential check", &ctx.runtime_env());
    let mut stream = table.select(wanted)?.execute_stream().await?;
    let mut buffer = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        let texts = batch.columns().iter().map(|array| TextColumn::new(array)).collect::<Result<Vec<_>, _>>()?;
        for row in (0..batch.num_rows()).filter(|&row| texts.iter().all(|text| !text.is_null(row))) {
            hash_row(&texts, row, &mut buffer);
            keys.insert(xxh3_128(&buffer))?;
        }
    }
    Ok(keys)
}

/// The values of columns occur in another table.
#[derive(Debug)]
pub(super) struct Referential {
    columns: Vec<String>,
    there: String,
    keys: Result<Keys, String>,
    row: Vec<u8>,
}

impl Referential {
    pub(super) fn new(columns: &[String], table: &Table, references: &[String]) -> Self {
        let there = format!("{} of {}", references.join(", "), called(table));
        Self { columns: columns.to_vec(), there, keys: Err("the other table was not read".to_owned()), row: Vec::new() }
    }
}

impl RowRule for Referential {
    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn given(&mut self, found: Result<Found, String>) {
        self.keys = match found {
            Ok(Found::Keys(keys)) => Ok(keys),
            Ok(Found::Total(_)) => Err("something else was read".to_owned()),
            Err(reason) => Err(reason),
        };
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let keys = self.keys.as_ref().map_err(|reason| Unjudgeable(reason.clone()))?;
        let mut texts = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            texts.push(TextColumn::new(column(batch, name)?).map_err(|error| Unjudgeable(error.to_string()))?);
        }
        let mut failing = Failing::default();
        for row in (0..batch.num_rows()).filter(|&row| texts.iter().all(|text| !text.is_null(row))) {
            hash_row(&texts, row, &mut self.row);
            if !keys.seen.contains(&xxh3_128(&self.row)) {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn finish(&mut self) -> Result<u64, Unjudgeable> {
        // Without a row nobody asked for the values, and they may not be there.
        self.keys.as_ref().map(|_| 0).map_err(|reason| Unjudgeable(reason.clone()))
    }

    fn complaint(&self) -> String {
        format!("a value in {} that is none in {}", self.columns.join(", "), self.there)
    }
}

/// A sum that does not depend on the order of its numbers: whole ones exactly, others with the error that was rounded away
/// carried along (after Neumaier).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    whole: i128,
    real: f64,
    lost: f64,
}

impl Sum {
    pub(super) fn add_whole(&mut self, number: i64) {
        self.whole += i128::from(number);
    }

    pub(super) fn add(&mut self, number: f64) {
        let sum = self.real + number;
        self.lost +=
            if self.real.abs() >= number.abs() { (self.real - sum) + number } else { (number - sum) + self.real };
        self.real = sum;
    }

    /// Adds what `total` counts in a batch.
    fn update(&mut self, batch: &RecordBatch, total: &Total) -> Result<(), Unjudgeable> {
        let array = match total {
            Total::Count(None) => {
                self.whole += batch.num_rows() as i128;
                return Ok(());
            }
            Total::Count(Some(name)) => {
                let array = column(batch, name)?;
                self.whole += (array.len() - array.logical_null_count()) as i128;
                return Ok(());
            }
            Total::Sum(name) => column(batch, name)?,
        };
        let name = total.column().unwrap_or_default();
        if array.data_type().is_integer() {
            let numbers = recast(array, name, &DataType::Int64)?;
            self.whole += numbers.as_primitive::<Int64Type>().iter().flatten().map(i128::from).sum::<i128>();
        } else {
            let numbers = recast(array, name, &DataType::Float64)?;
            numbers.as_primitive::<Float64Type>().iter().flatten().for_each(|number| self.add(number));
        }
        Ok(())
    }

    pub(super) fn value(self) -> f64 {
        // Infinite numbers make what was lost meaningless.
        let real = if self.real.is_finite() { self.real + self.lost } else { self.real };
        self.whole as f64 + real
    }

    /// How far two sums are apart; exact where both are of whole numbers.
    fn apart(self, other: Self) -> f64 {
        ((self.whole - other.whole) as f64 + (Self { whole: 0, ..self }.value() - Self { whole: 0, ..other }.value()))
            .abs()
    }
}

async fn total(
    ctx: &SessionContext,
    table: DataFrame,
    total: &Total,
    filter: Option<&SqlText>,
    interval: Interval,
) -> Result<Sum> {
    let mut rows = table;
    if let Some(filter) = filter {
        let condition = logical_condition(&ctx.state(), &filter.text, rows.schema(), interval)?;
        rows = rows.filter(condition)?;
    }
    let mut sum = Sum::default();
    let Some(name) = total.column() else {
        sum.whole = rows.count().await? as i128;
        return Ok(sum);
    };
    let kind = rows.schema().inner().field_with_name(name).ok().map(|field| field.data_type().clone());
    let kind = kind.with_context(|| format!("it has no column `{name}`"))?;
    if matches!(total, Total::Sum(_)) && !kind.is_numeric() {
        bail!("its column `{name}` is {}, not a number", crate::types::describe_one(&kind));
    }
    let value = crate::reads::column(name);
    let value = if kind.is_numeric() && !kind.is_integer() { cast(value, DataType::Float64) } else { value };
    let mut stream = rows.select(vec![value.alias(name)])?.execute_stream().await?;
    while let Some(batch) = stream.try_next().await? {
        sum.update(&batch, total)?;
    }
    Ok(sum)
}

/// A total over the run's rows, to be compared with that of another table.
#[derive(Debug)]
pub(super) struct Reconciled {
    check: Check,
    filter: Option<Condition>,
    own: Result<Sum, Unjudgeable>,
    other: Result<Found, String>,
}

impl Reconciled {
    pub(super) fn new(check: &Check, filter: Option<Condition>) -> Self {
        let other = Err("the other table was not read".to_owned());
        Self { check: check.clone(), filter, own: Ok(Sum::default()), other }
    }

    pub(super) fn check(&self) -> &str {
        &self.check.name
    }

    pub(super) fn given(&mut self, found: Result<Found, String>) {
        self.other = found;
    }

    pub(super) fn update(&mut self, batch: &RecordBatch) {
        let Ok(own) = &mut self.own else { return };
        let Rule::Reconciliation { total, .. } = &self.check.rule else { return };
        let added = match &mut self.filter {
            None => own.update(batch, total),
            Some(filter) => filter.evaluate(batch).and_then(|mask| {
                let chosen = filter_record_batch(batch, &mask);
                own.update(&chosen.map_err(|error| Unjudgeable(format!("choosing rows: {error}")))?, total)
            }),
        };
        if let Err(error) = added {
            self.own = Err(error);
        }
    }

    pub(super) fn finish(&self) -> CheckResult {
        let error = |reason: &str| result(&self.check, Verdict::Error, format!("could not be computed: {reason}"));
        let Rule::Reconciliation { total, table, other: other_total, within, .. } = &self.check.rule else {
            return error("not a rule about a total");
        };
        let own = match &self.own {
            Ok(own) => *own,
            Err(reason) => return error(&reason.to_string()),
        };
        let other = match &self.other {
            Ok(Found::Total(other)) => *other,
            Ok(Found::Keys(_)) => return error("something else was read"),
            Err(reason) => return error(reason),
        };
        let apart = own.apart(other);
        let (most, allowed) = match within {
            Within::Value(value) => (*value, shown(*value)),
            Within::Ratio(ratio) => (ratio * other.value().abs(), percent(*ratio)),
        };
        let found = format!(
            "the {total} is {}, the {other_total} of {} is {}",
            shown(own.value()),
            called(table),
            shown(other.value())
        );
        // Not a number is not within anything.
        if apart <= most {
            let message = if apart == 0.0 { found } else { format!("{found}: no more than {allowed} apart") };
            return result(&self.check, Verdict::Passed, message);
        }
        let allowed = match within {
            Within::Ratio(ratio) if *ratio < 1e-6 => "they are not equal".to_owned(),
            _ => format!("more than {allowed} apart"),
        };
        result(&self.check, Verdict::Failed, format!("{found}: {allowed}"))
    }
}
