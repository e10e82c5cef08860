//! Taking rows out of the stream that break a rule whose author would rather miss them than everything.
//!
//! All rules with a `quarantine` look at every computed row, whatever the others say of it, so that a row that is set aside
//! names each rule that it broke and verdicts do not depend on the order of checks. Which rows are taken out follows from
//! the rows alone: computing them again takes out the same, in the same order.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::execution::session_state::SessionState;
use tidegate_registry::model::{FeatureView, Key};
use tidegate_registry::run::CheckResult;
use tidegate_registry::time::Interval;
use xxhash_rust::xxh3::xxh3_128;

use super::{Judge, identity};
use crate::text::TextColumn;
use crate::types::{REASON, RULE};

/// What joins the names and the reasons of several rules.
const AND: &str = "; ";

/// Judges the checks of one view that set rows aside, and takes out what they name.
#[derive(Debug)]
pub struct Diverter {
    judges: Vec<Judge>,
    identity: Vec<String>,
    readmitted: Readmitted,
    rows: u64,
}

/// A batch in two parts.
#[derive(Debug)]
pub struct Split {
    /// What goes on.
    pub kept: RecordBatch,
    /// What is set aside, with the columns `_rule` and `_reason`; `None` when nothing is.
    pub aside: Option<RecordBatch>,
}

/// Rows that are let through although they break rules, by what identifies them.
#[derive(Debug, Clone, Default)]
pub struct Readmitted(HashSet<u128>);

impl Readmitted {
    /// Adds the rows of `batch`, in which `identity` are the columns that identify a row.
    ///
    /// # Errors
    /// When a column is missing or cannot be compared.
    pub fn add(&mut self, batch: &RecordBatch, identity: &[String]) -> Result<(), ArrowError> {
        let columns = columns(batch, identity)?;
        self.0.extend((0..batch.num_rows()).map(|row| hash(&columns, row)));
        Ok(())
    }
}

fn columns(batch: &RecordBatch, identity: &[String]) -> Result<Vec<TextColumn>, ArrowError> {
    let column = |name: &String| {
        let array = batch.column_by_name(name);
        let array = array.ok_or_else(|| ArrowError::SchemaError(format!("the rows have no column `{name}`")))?;
        TextColumn::new(array).map_err(|error| ArrowError::ComputeError(error.to_string()))
    };
    identity.iter().map(column).collect()
}

fn hash(columns: &[TextColumn], row: usize) -> u128 {
    let mut bytes = Vec::new();
    for column in columns {
        // Bytes that are in no text: null is a value of its own, and values do not run together.
        if column.is_null(row) {
            bytes.push(0xFE);
        } else {
            column.write(row, &mut bytes);
        }
        bytes.push(0xFF);
    }
    xxh3_128(&bytes)
}

impl Diverter {
    /// For the checks of `view`; `None` when none of them sets rows aside. See [`super::CheckRunner::new`].
    pub fn new(view: &FeatureView, keys: &[Key], interval: Interval, state: &SessionState) -> Option<Self> {
        let keys: Vec<String> = keys.iter().map(|key| key.name.clone()).collect();
        let checks = view.checks.iter().filter(|check| check.quarantine.is_some());
        let judges: Vec<Judge> = checks.filter_map(|check| Judge::of(check, &keys, interval, state)).collect();
        let identity = identity(view, keys);
        (!judges.is_empty()).then(|| Self { judges, identity, readmitted: Readmitted::default(), rows: 0 })
    }

    /// Lets `rows` through.
    pub fn readmit(&mut self, rows: Readmitted) {
        self.readmitted = rows;
    }

    /// The columns that identify a row.
    pub fn identity(&self) -> &[String] {
        &self.identity
    }

    /// Takes out of the next batch what breaks a rule.
    ///
    /// # Errors
    /// When rows cannot be taken apart; a rule that cannot be judged is a verdict.
    pub fn split(&mut self, batch: &RecordBatch) -> Result<Split, ArrowError> {
        self.rows += batch.num_rows() as u64;
        // By row: the positions of the rules that it breaks.
        let mut broken: Vec<Vec<usize>> = Vec::new();
        for (position, judge) in self.judges.iter_mut().enumerate() {
            let mut rows = judge.broken(batch);
            if !rows.is_empty() && !self.readmitted.0.is_empty() {
                let columns = columns(batch, &self.identity)?;
                rows.retain(|row| !self.readmitted.0.contains(&hash(&columns, *row)));
            }
            judge.note(batch, &rows, &self.identity);
            if !rows.is_empty() {
                broken.resize(batch.num_rows(), Vec::new());
            }
            rows.into_iter().for_each(|row| broken[row].push(position));
        }
        if broken.is_empty() {
            return Ok(Split { kept: batch.clone(), aside: None });
        }
        let keep: BooleanArray = broken.iter().map(|rules| Some(rules.is_empty())).collect();
        let aside: BooleanArray = broken.iter().map(|rules| Some(!rules.is_empty())).collect();
        let why: Vec<_> = broken.iter().filter(|rules| !rules.is_empty()).collect();
        let kept = filter_record_batch(batch, &keep)?;
        let aside = self.explained(&filter_record_batch(batch, &aside)?, &why)?;
        Ok(Split { kept, aside: Some(aside) })
    }

    /// `rows` with the names of the rules that each breaks, and the reasons.
    fn explained(&self, rows: &RecordBatch, why: &[&Vec<usize>]) -> Result<RecordBatch, ArrowError> {
        let joined = |of: &dyn Fn(&Judge) -> String| -> ArrayRef {
            let texts: Vec<String> = self.judges.iter().map(of).collect();
            let text =
                |rules: &Vec<usize>| rules.iter().map(|rule| texts[*rule].as_str()).collect::<Vec<_>>().join(AND);
            Arc::new(why.iter().map(|rules| Some(text(rules))).collect::<StringArray>())
        };
        let (names, reasons) = (joined(&|judge| judge.name.clone()), joined(&|judge| judge.rule.complaint()));
        let schema = rows.schema();
        let more = [RULE, REASON].map(|name| Arc::new(Field::new(name, DataType::Utf8, false)));
        let fields: Vec<_> = schema.fields().iter().cloned().chain(more).collect();
        let columns = rows.columns().iter().cloned().chain([names, reasons]).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }

    /// The verdicts, in declared order.
    pub fn finish(self) -> Vec<CheckResult> {
        self.judges.into_iter().map(|judge| judge.finish(self.rows)).collect()
    }
}

#[cfg(test)]
#[path = "divert_tests.rs"]
mod tests;
