//! Taking rows out of the stream that break a rule whose author would rather miss them than everything.
//!
//! All rules with a `quarantine` look at every computed row, whatever the others say of it, so that a row that is set aside
//! names each rule that it broke and verdicts do not depend on the order of checks. Which rows are taken out follows from
//! the rows alone: computing them again takes out the same, in the same order, whatever batches they come in.
//!
//! Whether an entity comes twice, the row after it tells. So while a rule asks for that, one batch waits for the next.

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

use super::others::Others;
use super::rows::Failing;
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
    waiting: Option<Judged>,
}

/// A batch that all rules have looked at.
#[derive(Debug)]
struct Judged {
    batch: RecordBatch,
    /// By row the positions of the rules that it breaks; empty when none of them breaks any.
    broken: Vec<Vec<usize>>,
}

impl Judged {
    fn mark(&mut self, row: usize, rule: usize) {
        if self.broken.is_empty() {
            self.broken.resize(self.batch.num_rows(), Vec::new());
        }
        self.broken[row].push(rule);
    }
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

    /// Leaves in `rows` of `batch` those that are not let through.
    fn withdraw(&self, batch: &RecordBatch, identity: &[String], rows: &mut Vec<usize>) -> Result<(), ArrowError> {
        if !rows.is_empty() && !self.0.is_empty() {
            let columns = columns(batch, identity)?;
            rows.retain(|row| !self.0.contains(&hash(&columns, *row)));
        }
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
        let readmitted = Readmitted::default();
        (!judges.is_empty()).then_some(Self { judges, identity, readmitted, rows: 0, waiting: None })
    }

    /// Takes what was found in other tables. Checks that compare with them cannot be computed without.
    pub fn compare_with(&mut self, others: &mut Others) {
        for judge in &mut self.judges {
            judge.rule.given(others.take(&judge.name));
        }
    }

    /// Lets `rows` through.
    pub fn readmit(&mut self, rows: Readmitted) {
        self.readmitted = rows;
    }

    /// The columns that identify a row.
    pub fn identity(&self) -> &[String] {
        &self.identity
    }

    /// Takes out of the next batch what breaks a rule; `None` says that there are no more. What comes back is in the order
    /// in which it came, and all of it once there are no more batches.
    ///
    /// # Errors
    /// When rows cannot be taken apart; a rule that cannot be judged is a verdict.
    pub fn split(&mut self, batch: Option<&RecordBatch>) -> Result<Vec<Split>, ArrowError> {
        let Some(batch) = batch else {
            return self.waiting.take().map(|judged| self.parted(judged)).into_iter().collect();
        };
        if batch.num_rows() == 0 {
            return Ok(vec![Split { kept: batch.clone(), aside: None }]);
        }
        self.rows += batch.num_rows() as u64;
        let mut before = self.waiting.take();
        let mut judged = Judged { batch: batch.clone(), broken: Vec::new() };
        let mut open = false;
        for (position, judge) in self.judges.iter_mut().enumerate() {
            let Failing { mut rows, earlier, open: this } = judge.broken(batch);
            open |= this;
            if let Some(before) = before.as_mut().filter(|_| earlier) {
                let mut last = vec![before.batch.num_rows() - 1];
                self.readmitted.withdraw(&before.batch, &self.identity, &mut last)?;
                judge.note(&before.batch, &last, &self.identity);
                last.into_iter().for_each(|row| before.mark(row, position));
            }
            self.readmitted.withdraw(batch, &self.identity, &mut rows)?;
            judge.note(batch, &rows, &self.identity);
            rows.into_iter().for_each(|row| judged.mark(row, position));
        }
        let mut parts = Vec::with_capacity(2);
        if let Some(before) = before {
            parts.push(self.parted(before)?);
        }
        if open {
            self.waiting = Some(judged);
        } else {
            parts.push(self.parted(judged)?);
        }
        Ok(parts)
    }

    fn parted(&self, judged: Judged) -> Result<Split, ArrowError> {
        let Judged { batch, mut broken } = judged;
        if broken.is_empty() {
            return Ok(Split { kept: batch, aside: None });
        }
        // A row may be found to break an earlier rule after a later one.
        broken.iter_mut().for_each(|rules| rules.sort_unstable());
        let keep: BooleanArray = broken.iter().map(|rules| Some(rules.is_empty())).collect();
        let aside: BooleanArray = broken.iter().map(|rules| Some(!rules.is_empty())).collect();
        let why: Vec<_> = broken.iter().filter(|rules| !rules.is_empty()).collect();
        let kept = filter_record_batch(&batch, &keep)?;
        let aside = self.explained(&filter_record_batch(&batch, &aside)?, &why)?;
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
