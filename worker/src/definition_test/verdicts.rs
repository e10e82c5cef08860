//! Verdicts of a view's checks on the few rows of a test.
//!
//! Rows go the way they go in a run: those that checks set aside are taken out first, and all other checks see what is left.
//! What a test has no data for is skipped, with the reason: earlier intervals, and the tables that checks compare with.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use tidegate_registry::model::{Check, DefinitionTest, FeatureView, Project, Rule};
use tidegate_registry::run::{CheckResult, Verdict};

use crate::checks::{CheckRunner, Diverter, Measured, run_sql_check};
use crate::reads::register;

/// What a check says of the computed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOutcome {
    /// The check's name.
    pub check: String,
    /// The verdict that the test expects.
    pub expected: Verdict,
    /// The verdict.
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub message: String,
}

impl CheckOutcome {
    /// Whether the verdict is the expected one.
    pub fn passed(&self) -> bool {
        self.verdict == self.expected
    }
}

/// Judges the checks that `test` names on `computed`, rows of `view` with the columns of `schema`; `ctx` is the session that
/// they were computed in.
pub(super) async fn judge(
    ctx: &SessionContext,
    project: &Project,
    view: &FeatureView,
    test: &DefinitionTest,
    schema: &SchemaRef,
    computed: &[RecordBatch],
) -> Result<Vec<CheckOutcome>> {
    if test.checks.is_empty() {
        return Ok(Vec::new());
    }
    let keys = project.keys_of(view);
    let mut diverter = Diverter::new(view, keys, test.interval, &ctx.state());
    let mut runner = CheckRunner::new(view, keys, test.interval, &ctx.state());
    let mut kept = Vec::new();
    match &mut diverter {
        None => kept.extend_from_slice(computed),
        Some(diverter) => {
            for batch in computed.iter().map(Some).chain([None]) {
                let parts = diverter.split(batch).with_context(|| format!("setting rows of `{}` aside", view.id))?;
                kept.extend(parts.into_iter().map(|split| split.kept));
            }
        }
    }
    kept.iter().for_each(|batch| runner.update(batch));
    let (mut results, profile, rows) = runner.finish();
    results.extend(diverter.map(Diverter::finish).into_iter().flatten());
    let measured = Measured { rows, profile: &profile };

    // The view's name may be taken by its own earlier state; checks mean the rows just computed.
    let schema = kept.first().map_or_else(|| Arc::clone(schema), RecordBatch::schema);
    let staged = Arc::new(MemTable::try_new(schema, vec![kept])?);
    for name in [view.id.name.to_string(), view.id.to_string()] {
        ctx.deregister_table(name.as_str())?;
        register(ctx, &name, Arc::clone(&staged) as _)?;
    }
    let mut outcomes = Vec::with_capacity(test.checks.len());
    for expected in &test.checks {
        let check = view.checks.iter().find(|check| check.name == expected.check);
        let check = check.with_context(|| format!("`{}` is not a check of `{}`", expected.check, view.id))?;
        let result = results.iter().find(|result| result.check == check.name);
        let (verdict, message) = verdict(ctx, check, result, test, measured).await;
        outcomes.push(CheckOutcome { check: check.name.clone(), expected: expected.verdict, verdict, message });
    }
    Ok(outcomes)
}

async fn verdict(
    ctx: &SessionContext,
    check: &Check,
    result: Option<&CheckResult>,
    test: &DefinitionTest,
    measured: Measured<'_>,
) -> (Verdict, String) {
    let of = |result: &CheckResult| (result.verdict, result.message.clone());
    match (&check.rule, result) {
        (Rule::Referential { .. } | Rule::Reconciliation { .. }, _) => {
            (Verdict::Skipped, "it compares with another table, which a test does not have".to_owned())
        }
        (Rule::Sql { .. }, _) => of(&run_sql_check(ctx, check, test.interval, measured.rows).await),
        (_, Some(result)) if result.verdict == Verdict::Pending => {
            (Verdict::Skipped, "it compares with earlier intervals, which a test does not have".to_owned())
        }
        (_, Some(result)) => of(result),
        (_, None) => (Verdict::Error, "could not be computed: it was not judged".to_owned()),
    }
}
