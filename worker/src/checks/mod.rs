//! Checks: every rule of a view, judged in one pass over the rows that are being staged.
//!
//! A [`CheckRunner`] sees each staged batch once, in the order in which rows are written (sorted by entity, then time),
//! so checking costs no second read and no second copy of the data. Three rules hold for every view without being
//! written down: keys are not null, no entity (of a `partial` view: no entity and time) comes twice, and
//! `event_timestamp` is there and not after the interval's end.
//!
//! Rows that break a rule with a `quarantine` are no longer in the batches that it sees: a [`Diverter`] took them out
//! before, and has the verdicts of those rules.
//!
//! Numbers of the run (means, null rates…) are taken from its profile when the last row has been seen; those of groups of
//! rows are counted here. Two kinds of check
//! cannot be judged here and come out `pending`: `sql` needs all staged rows at once ([`run_sql_check`]), and what compares
//! with earlier intervals needs their records ([`judge_history`]).
//! What other tables have to do with it is read before ([`read_others`]).
//! A check that cannot be computed is an `error`, which counts as failed: doubt holds the gate.

mod condition;
mod divert;
mod group_numbers;
mod groups;
mod history;
mod metrics;
mod order;
mod others;
mod profile;
mod rows;
mod sources;
mod sql;
mod texts;
mod times;
mod unique;

use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::session_state::SessionState;
use indexmap::IndexMap;
use tidegate_registry::model::{Budget, Check, FeatureView, Key, Output, Rule, Severity, Tolerance};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{CheckResult, OF_EVERY_VIEW, Verdict};
use tidegate_registry::time::Interval;

pub use self::divert::{Diverter, Readmitted, Split};
pub use self::groups::BEFORE_GROUPS;
pub use self::history::{judge_history, needs_history};
pub use self::metrics::Measured;
pub use self::others::{OtherTables, Others, read_others};
pub use self::sources::{SourceLook, judge_source};
pub use self::sql::run_sql_check;

use self::condition::{Condition, Expression};
use self::group_numbers::GroupNumbers;
use self::groups::Groups;
use self::others::Reconciled;
pub(crate) use self::profile::Profiler;
use self::rows::{AcceptedValues, Failing, InTime, NotNull, Range, RowRule, Unjudgeable};
use crate::text::TextColumn;
use crate::types::EVENT_TIMESTAMP;

/// How many offending rows a result shows.
pub const SAMPLES_MAX: usize = 5;

/// Judges the checks of one view over one stream of batches.
#[derive(Debug)]
pub struct CheckRunner {
    judges: Vec<Judge>,
    others: Vec<Check>,
    reconciled: Vec<Reconciled>,
    grouped: Vec<GroupNumbers>,
    /// Columns that identify a row in samples.
    identity: Vec<String>,
    profiler: Profiler,
    rows: u64,
}

impl CheckRunner {
    /// A runner for the checks of `view` and those that hold for every view; `interval` is the run's. Conditions mean what
    /// they mean in a query of `state`; what grows with the data is accounted in its memory pool and spills to its
    /// temporary files.
    pub fn new(view: &FeatureView, keys: &[Key], interval: Interval, state: &SessionState) -> Self {
        let key_names: Vec<String> = keys.iter().map(|key| key.name.clone()).collect();
        let mut judges = built_in(view, &key_names, interval);
        let mut others = Vec::new();
        for check in view.checks.iter().filter(|check| check.quarantine.is_none()) {
            match Judge::of(check, &key_names, interval, state) {
                Some(judge) => judges.push(judge),
                None => others.push(check.clone()),
            }
        }
        let features = view.features.iter().map(|feature| feature.name.clone());
        let columns = key_names.iter().cloned().chain([EVENT_TIMESTAMP.to_owned()]).chain(features);
        let profiler = Profiler::new(columns);
        let reconciled = others.iter().filter(|check| matches!(check.rule, Rule::Reconciliation { .. })).map(|check| {
            let filter = check.filter.as_ref().map(|filter| Condition::new(&filter.text, interval, state));
            Reconciled::new(check, filter)
        });
        let reconciled = reconciled.collect();
        let grouped = others.iter().filter_map(|check| GroupNumbers::of(check, state.runtime_env())).collect();
        Self { judges, others, reconciled, grouped, identity: identity(view, key_names), profiler, rows: 0 }
    }

    /// Takes what was found in other tables. Checks that compare with them cannot be computed without.
    pub fn compare_with(mut self, mut others: Others) -> Self {
        for judge in &mut self.judges {
            judge.rule.given(others.take(&judge.name));
        }
        for reconciled in &mut self.reconciled {
            let found = others.take(reconciled.check());
            reconciled.given(found);
        }
        self
    }

    /// Whether it profiles columns, as it does unless told otherwise. Without, checks of numbers cannot be computed.
    #[must_use]
    pub fn profiling(mut self, profiling: bool) -> Self {
        if !profiling {
            self.profiler = Profiler::new(std::iter::empty());
        }
        self
    }

    /// Its profiler, to be asked beside it; it must come back before [`CheckRunner::finish`].
    pub(crate) fn detach_profiler(&mut self) -> Profiler {
        std::mem::replace(&mut self.profiler, Profiler::new(std::iter::empty()))
    }

    /// See [`CheckRunner::detach_profiler`].
    pub(crate) fn attach_profiler(&mut self, profiler: Profiler) {
        self.profiler = profiler;
    }

    /// Looks at the next batch of staged rows: keys, `event_timestamp` and features in their stored types.
    pub fn update(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        for judge in &mut self.judges {
            judge.update(batch, &self.identity);
        }
        for reconciled in &mut self.reconciled {
            reconciled.update(batch);
        }
        for grouped in &mut self.grouped {
            grouped.update(batch);
        }
        self.profiler.update(batch);
    }

    /// The verdicts (those of every view first, then the view's own in declared order), the profile of each column, and
    /// the number of rows seen.
    pub fn finish(self) -> (Vec<CheckResult>, IndexMap<String, ColumnProfile>, u64) {
        let rows = self.rows;
        let mut results: Vec<CheckResult> = self.judges.into_iter().map(|judge| judge.finish(rows)).collect();
        let profile = self.profiler.finish();
        let grouped = |check: &Check| self.grouped.iter().find(|grouped| grouped.check() == check.name);
        results.extend(self.others.iter().map(|check| match &check.rule {
            _ if let Some(grouped) = grouped(check) => grouped.finish(),
            Rule::Sql { .. } => pending(check, "waits for all rows to be staged".to_owned()),
            Rule::RowCount { .. } => history::judge_bounds(check, rows),
            Rule::Reconciliation { .. } => match self.reconciled.iter().find(|of| of.check() == check.name) {
                Some(reconciled) => reconciled.finish(),
                None => result(check, Verdict::Error, "could not be computed: it was not begun".to_owned()),
            },
            _ => metrics::judge_bounds(check, Measured { rows, profile: &profile }),
        }));
        (results, profile, rows)
    }
}

/// Columns that identify a row of `view`.
fn identity(view: &FeatureView, mut keys: Vec<String>) -> Vec<String> {
    if matches!(view.output, Output::Partial { .. }) {
        keys.push(EVENT_TIMESTAMP.to_owned());
    }
    keys
}

fn built_in(view: &FeatureView, keys: &[String], interval: Interval) -> Vec<Judge> {
    let unique = identity(view, keys.to_vec());
    let named = |kind: &str, columns: &[String]| format!("{kind}({}){OF_EVERY_VIEW}", columns.join(", "));
    vec![
        Judge::new(named("not_null", keys), Severity::Block, Box::new(NotNull::new(keys))),
        Judge::new(named("unique", &unique), Severity::Block, Box::new(order::SortedUnique::new(keys, &unique))),
        Judge::new(format!("{EVENT_TIMESTAMP}{OF_EVERY_VIEW}"), Severity::Block, Box::new(InTime::new(interval.end()))),
    ]
}

fn same_columns(some: &[String], others: &[String]) -> bool {
    some.iter().all(|name| others.contains(name)) && others.iter().all(|name| some.contains(name))
}

pub(crate) fn pending(check: &Check, message: String) -> CheckResult {
    result(check, Verdict::Pending, message)
}

fn result(check: &Check, verdict: Verdict, message: String) -> CheckResult {
    CheckResult {
        check: check.name.clone(),
        severity: check.severity,
        verdict,
        message,
        failing_rows: 0,
        samples: Vec::new(),
        overridden: false,
    }
}

/// One rule with what it has found so far.
#[derive(Debug)]
struct Judge {
    name: String,
    severity: Severity,
    rule: Box<dyn RowRule>,
    filter: Option<Condition>,
    tolerance: Option<Tolerance>,
    /// Where the tolerance holds in groups of rows.
    groups: Option<Groups>,
    budget: Option<Budget>,
    /// Rows that it was asked about.
    rows: u64,
    failing: u64,
    samples: Vec<serde_json::Value>,
    /// Set once; the rule is not asked again after that.
    error: Option<Unjudgeable>,
}

impl Judge {
    fn new(name: String, severity: Severity, rule: Box<dyn RowRule>) -> Self {
        let (filter, tolerance, groups, budget) = (None, None, None, None);
        let (rows, failing, samples, error) = (0, 0, Vec::new(), None);
        Self { name, severity, rule, filter, tolerance, groups, budget, rows, failing, samples, error }
    }

    /// What judges `check`, when it is about rows; `keys` are the names of the view's keys.
    fn of(check: &Check, keys: &[String], interval: Interval, state: &SessionState) -> Option<Self> {
        let rule: Box<dyn RowRule> = match &check.rule {
            Rule::NotNull { columns } => Box::new(NotNull::new(columns)),
            Rule::Unique { columns } if check.quarantine.is_some() => Box::new(order::Doubled::new(keys, columns)),
            // What sorted rows show in constant memory needs no set of hashes.
            Rule::Unique { columns } if same_columns(columns, keys) => Box::new(order::SortedUnique::new(keys, keys)),
            Rule::Unique { columns } => Box::new(unique::Unique::new(columns, state.runtime_env())),
            Rule::Range { column, min, max } => Box::new(Range::new(column, *min, *max)),
            Rule::AcceptedValues { column, values } => Box::new(AcceptedValues::new(column, values)),
            Rule::Regex { column, pattern } => Box::new(texts::Matches::new(column, pattern)),
            Rule::Format { column, format } => Box::new(texts::Formatted::new(column, *format)),
            Rule::Length { column, min, max } => Box::new(texts::Length::new(column, *min, *max)),
            Rule::EventTime { column, at, min_age, max_age } => {
                Box::new(times::Aged::new(column, *at, *min_age, *max_age, interval))
            }
            Rule::Referential { columns, table, references } => {
                Box::new(others::Referential::new(columns, table, references))
            }
            Rule::Expression { condition } => {
                Box::new(Expression::new(Condition::new(&condition.text, interval, state)))
            }
            Rule::RowCount { .. }
            | Rule::Bounds { .. }
            | Rule::Anomaly { .. }
            | Rule::Monotonic { .. }
            | Rule::Drift { .. }
            | Rule::Reconciliation { .. }
            | Rule::Sql { .. } => return None,
        };
        let filter = check.filter.as_ref().map(|filter| Condition::new(&filter.text, interval, state));
        let groups = (!check.group_by.is_empty()).then(|| Groups::new(&check.group_by, state.runtime_env()));
        let judge = Self::new(check.name.clone(), check.severity, rule);
        Some(Self { filter, tolerance: check.tolerance, groups, budget: check.quarantine, ..judge })
    }

    fn update(&mut self, batch: &RecordBatch, identity: &[String]) {
        let broken = self.broken(batch);
        self.note(batch, &broken.rows, identity);
    }

    /// Where in `batch` the rows are that break the rule. None once it could not be judged.
    fn broken(&mut self, batch: &RecordBatch) -> Failing {
        if self.error.is_some() {
            return Failing::default();
        }
        self.look(batch).unwrap_or_else(|error| {
            self.error = Some(error);
            Failing::default()
        })
    }

    fn look(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let Some(filter) = &mut self.filter else {
            return self.judge(batch);
        };
        let mask = filter.evaluate(batch)?;
        let chosen = filter_record_batch(batch, &mask);
        let chosen = chosen.map_err(|error| Unjudgeable(format!("choosing rows: {error}")))?;
        let mut failing = self.judge(&chosen)?;
        if failing.rows.is_empty() {
            return Ok(failing);
        }
        let places: Vec<usize> = (0..).zip(&mask).filter(|(_, is)| *is == Some(true)).map(|(row, _)| row).collect();
        failing.rows = failing.rows.into_iter().filter_map(|row| places.get(row).copied()).collect();
        Ok(failing)
    }

    /// Where in `batch`, of which all rows count, those are that break the rule.
    fn judge(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        self.rows += batch.num_rows() as u64;
        let failing = self.rule.failing(batch)?;
        if let Some(groups) = &mut self.groups {
            groups.count(batch, &failing.rows)?;
        }
        Ok(failing)
    }

    /// Counts the rows of `batch` at `broken`, and remembers the first few.
    fn note(&mut self, batch: &RecordBatch, broken: &[usize], identity: &[String]) {
        self.failing += broken.len() as u64;
        for row in broken.iter().take(SAMPLES_MAX - self.samples.len()) {
            self.samples.push(sample(batch, *row, identity, self.rule.columns()));
        }
    }

    /// The verdict, when `all` rows were computed.
    fn finish(mut self, all: u64) -> CheckResult {
        if self.error.is_none() {
            match self.rule.finish() {
                Ok(more) => self.failing += more,
                Err(error) => self.error = Some(error),
            }
        }
        let complaint = self.rule.complaint();
        let of = match &self.filter {
            None => format!("{} rows", self.rows),
            Some(filter) => format!("{} rows where {}", self.rows, filter.shown()),
        };
        let (verdict, message) = match (&self.error, self.failing) {
            (Some(error), _) => (Verdict::Error, format!("could not be computed: {error}")),
            (None, 0) if self.rows == 0 => (
                Verdict::Passed,
                match &self.filter {
                    None => "there are no rows".to_owned(),
                    Some(filter) => format!("there are no rows where {}", filter.shown()),
                },
            ),
            (None, 0) => (Verdict::Passed, format!("none of {of} has {complaint}")),
            (None, failing) => {
                let (verdict, tolerated) = match (self.budget, &self.groups) {
                    (Some(budget), _) => set_aside(budget, failing, all),
                    (None, None) => tolerated(self.tolerance, failing, self.rows),
                    (None, Some(groups)) => {
                        let (passed, said) = groups.finish(self.tolerance);
                        (if passed { Verdict::Passed } else { Verdict::Failed }, said)
                    }
                };
                let have = if failing == 1 { "has" } else { "have" };
                (verdict, format!("{failing} of {of} {have} {complaint}{tolerated}"))
            }
        };
        CheckResult {
            check: self.name,
            severity: self.severity,
            verdict,
            message,
            failing_rows: self.failing,
            samples: self.samples,
            overridden: false,
        }
    }
}

/// The verdict over `failing` (at least one) of `rows` rows, and what is to be said of the tolerance.
fn tolerated(tolerance: Option<Tolerance>, failing: u64, rows: u64) -> (Verdict, String) {
    let said = match tolerance {
        None => String::new(),
        Some(Tolerance::Rows(1)) => "; 1 is tolerated".to_owned(),
        Some(Tolerance::Rows(most)) => format!("; {most} are tolerated"),
        Some(Tolerance::Ratio(most)) => format!("; {} are tolerated", history::percent(most)),
    };
    let passed = tolerance.is_some_and(|tolerance| tolerance.covers(failing, rows));
    (if passed { Verdict::Passed } else { Verdict::Failed }, said)
}

/// The verdict over `failing` (at least one) of `all` rows that were to be set aside, and what is to be said of it.
fn set_aside(budget: Budget, failing: u64, all: u64) -> (Verdict, String) {
    let rows = budget.max_rows.map(|most| most.to_string());
    let ratio = budget.max_ratio.map(|most| format!("{} of all rows", history::percent(most)));
    let most = rows.into_iter().chain(ratio).collect::<Vec<_>>().join(" and ");
    if budget.covers(failing, all) {
        (Verdict::Quarantined, "; set aside".to_owned())
    } else {
        (Verdict::Failed, format!("; at most {most} may be set aside"))
    }
}

fn sample(batch: &RecordBatch, row: usize, identity: &[String], columns: &[String]) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    for name in identity.iter().chain(columns) {
        let Some(array) = batch.column_by_name(name) else { continue };
        // one row of the column: preparing a whole batch for one value would be waste
        let value = TextColumn::new(&array.slice(row, 1)).map_or(serde_json::Value::Null, |column| column.json(0));
        object.insert(name.clone(), value);
    }
    serde_json::Value::Object(object)
}

#[cfg(test)]
mod tests;
