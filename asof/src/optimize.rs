//! Filters above the join that speak of the spine alone go below it: each label row is joined for itself.
//!
//! DataFusion's own rule pushes a filter into all inputs of a node or into none, so the node forbids it. Columns that nobody
//! needs are taken out of all inputs by DataFusion (`necessary_children_exprs`). A filter on a column taken of a history stays
//! above: below, it would let an older row win.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Extension, Filter, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use crate::node::PointInTime;

/// The rule.
#[derive(Debug, Default)]
pub(crate) struct FilterSpine;

impl OptimizerRule for FilterSpine {
    fn name(&self) -> &'static str {
        "point_in_time_filter_spine"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = &plan else { return Ok(Transformed::no(plan)) };
        let LogicalPlan::Extension(extension) = filter.input.as_ref() else { return Ok(Transformed::no(plan)) };
        let Some(node) = extension.node.as_any().downcast_ref::<PointInTime>() else {
            return Ok(Transformed::no(plan));
        };
        let spine = node.spine.schema();
        let (below, above): (Vec<_>, Vec<_>) =
            split_conjunction_owned(filter.predicate.clone()).into_iter().partition(|condition| {
                !condition.is_volatile() && condition.column_refs().iter().all(|column| spine.has_column(column))
            });
        let Some(below) = conjunction(below) else { return Ok(Transformed::no(plan)) };
        let filtered = LogicalPlan::Filter(Filter::try_new(below, Arc::clone(&node.spine))?);
        let joined = LogicalPlan::Extension(Extension { node: Arc::new(node.with_spine(filtered)?) });
        Ok(Transformed::yes(match conjunction(above) {
            Some(above) => LogicalPlan::Filter(Filter::try_new(above, Arc::new(joined))?),
            None => joined,
        }))
    }
}
