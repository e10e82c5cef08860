//! What a history need not read: rows outside the span of the labels.
//!
//! The bounds are known when the label rows have been read, before the first history is opened. They travel as a dynamic filter,
//! which scans compare with the statistics of files, row groups and pages; the join itself does not rely on them.

use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::compute::{max, min};
use datafusion::arrow::datatypes::{Schema, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal, lit};
use datafusion::scalar::ScalarValue;

use crate::join::HistorySpec;
use crate::rule::Rule;
use crate::ticks::{finest, micros_to_ticks, scalar_ceil, scalar_floor, ticks, ticks_per_micro, unit_of};

/// The first and the last instant of label rows, in a unit of at least microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LabelSpan {
    unit: TimeUnit,
    bounds: Option<(i64, i64)>,
}

impl LabelSpan {
    /// The span of no labels, whose instants are in `unit`.
    pub(crate) fn new(unit: TimeUnit) -> Self {
        Self { unit: finest(unit, TimeUnit::Microsecond), bounds: None }
    }

    /// Widens the span by the labels of `batch`.
    pub(crate) fn add(&mut self, batch: &RecordBatch, label_time: usize) -> Result<()> {
        let instants: Int64Array = ticks(batch.column(label_time), self.unit)?;
        if let (Some(first), Some(last)) = (min(&instants), max(&instants)) {
            self.bounds = Some(match self.bounds {
                Some((least, greatest)) => (least.min(first), greatest.max(last)),
                None => (first, last),
            });
        }
        Ok(())
    }

    /// The columns of a history that [`LabelSpan::filter`] may speak of.
    pub(crate) fn columns(spec: &HistorySpec, history: &Schema) -> Vec<Arc<dyn PhysicalExpr>> {
        let key = int_key(spec, history).filter(|key| *key != spec.time);
        [Some(spec.time), key].into_iter().flatten().map(|place| column(history, place)).collect()
    }

    /// What holds for every row that a label can see. `keys` is the span of the labels' keys, when they are integers.
    pub(crate) fn filter(
        &self,
        spec: &HistorySpec,
        history: &Schema,
        keys: Option<(i64, i64)>,
    ) -> Arc<dyn PhysicalExpr> {
        let Some((first, last)) = self.bounds else { return lit(false) };
        let time = history.field(spec.time).data_type();
        let Some(own) = unit_of(time) else { return lit(true) };
        let unit = finest(own, self.unit);
        let factor = ticks_per_micro(unit) / ticks_per_micro(self.unit);
        let (first, last) = (first.saturating_mul(factor), last.saturating_mul(factor));
        let micros = |micros: u128| i64::try_from(micros).unwrap_or(i64::MAX).saturating_mul(ticks_per_micro(unit));
        let (least, greatest) = match &spec.rule {
            // saturated arithmetic only ever widens the span here: towards the ends of time
            Rule::Event { delay, ttl, .. } => (
                ttl.map(|ttl| first.saturating_sub(micros(ttl.as_micros()))),
                Some(last.saturating_sub(micros(delay.as_micros()))),
            ),
            Rule::Interval { published, .. } => {
                let seen = published.iter().filter(|period| {
                    let until = micros_to_ticks(period.available_until, unit);
                    // the end of time stands for no end
                    micros_to_ticks(period.available_from, unit) <= last && (until > first || until == i64::MAX)
                });
                let values = seen.map(|period| micros_to_ticks(period.interval, unit));
                match (values.clone().min(), values.max()) {
                    (None, _) | (_, None) => return lit(false),
                    bounds => bounds,
                }
            }
        };
        let mut conditions = Vec::new();
        if let Some(least) = least.and_then(|least| scalar_floor(least, unit, time)) {
            conditions.push(compare(history, spec.time, Operator::GtEq, least));
        }
        if let Some(greatest) = greatest.and_then(|greatest| scalar_ceil(greatest, unit, time)) {
            conditions.push(compare(history, spec.time, Operator::LtEq, greatest));
        }
        if let (Some(key), Some((least, greatest))) = (int_key(spec, history), keys) {
            let own = history.field(key).data_type();
            for (operator, bound) in [(Operator::GtEq, least), (Operator::LtEq, greatest)] {
                // a bound that the column cannot hold excludes nothing of it
                if let Ok(bound) = ScalarValue::Int64(Some(bound)).cast_to(own)
                    && !bound.is_null()
                {
                    conditions.push(compare(history, key, operator, bound));
                }
            }
        }
        conditions
            .into_iter()
            .reduce(|all, one| Arc::new(BinaryExpr::new(all, Operator::And, one)))
            .unwrap_or_else(|| lit(true))
    }
}

/// The only key of the history, when its type is a plain integer.
fn int_key(spec: &HistorySpec, history: &Schema) -> Option<usize> {
    match spec.keys.as_slice() {
        [(_, key)] if history.field(*key).data_type().is_signed_integer() => Some(*key),
        _ => None,
    }
}

fn column(schema: &Schema, place: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(schema.field(place).name(), place))
}

fn compare(schema: &Schema, place: usize, operator: Operator, bound: ScalarValue) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(column(schema, place), operator, Arc::new(Literal::new(bound))))
}
