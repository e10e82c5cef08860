//! Conditions in SQL over the columns of one staged row: what `where:` and `expression` checks are made of.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_expr::PhysicalExpr;
use tidegate_registry::time::Interval;

use super::rows::{Failing, RowRule, Unjudgeable};
use crate::session::plan_condition;

/// A condition, planned when the first rows show their types.
pub(super) struct Condition {
    sql: String,
    /// On one line, cut where it gets long.
    shown: String,
    interval: Interval,
    state: SessionState,
    planned: Option<Arc<dyn PhysicalExpr>>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").field("sql", &self.sql).finish_non_exhaustive()
    }
}

impl Condition {
    pub(super) fn new(sql: &str, interval: Interval, state: &SessionState) -> Self {
        const CHARACTERS_MAX: usize = 80;
        let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = match line.char_indices().nth(CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        };
        Self { sql: sql.to_owned(), shown, interval, state: state.clone(), planned: None }
    }

    /// The condition on one line, cut where it gets long.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// True, false or null for each row.
    pub(super) fn evaluate(&mut self, batch: &RecordBatch) -> Result<BooleanArray, Unjudgeable> {
        let shown = &self.shown;
        let broken = |error: &DataFusionError| Unjudgeable(format!("`{shown}`: {}", error.find_root()));
        let planned = match &self.planned {
            Some(planned) => planned,
            None => {
                let schema = DFSchema::try_from(batch.schema()).map_err(|error| broken(&error))?;
                let planned = plan_condition(&self.state, &self.sql, &schema, self.interval);
                self.planned.insert(planned.map_err(|error| broken(&error))?)
            }
        };
        let values = planned
            .evaluate(batch)
            .and_then(|values| values.into_array(batch.num_rows()))
            .map_err(|error| broken(&error))?;
        // A condition that is always null has no type of its own.
        let values = cast(&values, &DataType::Boolean).map_err(|error| Unjudgeable(error.to_string()))?;
        Ok(values.as_boolean().clone())
    }
}

/// A condition that is false for no row.
#[derive(Debug)]
pub(super) struct Expression {
    condition: Condition,
}

impl Expression {
    pub(super) fn new(condition: Condition) -> Self {
        Self { condition }
    }
}

impl RowRule for Expression {
    fn columns(&self) -> &[String] {
        &[]
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        Ok(Failing::where_false(&self.condition.evaluate(batch)?))
    }

    fn complaint(&self) -> String {
        format!("something else than `{}`", self.condition.shown())
    }
}
