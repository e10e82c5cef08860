//! From the logical node to the physical operator, and how a session learns of it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::execution::context::{QueryPlanner, SessionState};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use crate::exec::{HistoryExec, PointInTimeExec};
use crate::in_order::InOrderExec;
use crate::node::PointInTime;
use crate::optimize::FilterSpine;

/// Teaches a session point-in-time joins: `builder` with the planner of the operator and the optimizer rule that belongs to
/// it. It takes the place of the builder's query planner; a session that needs another one too adds [`extension_planner`] to it
/// and calls [`register_optimizer`] instead.
pub fn register(builder: SessionStateBuilder) -> SessionStateBuilder {
    register_optimizer(builder).with_query_planner(Arc::new(Planner))
}

/// The part of [`register`] that lets filters on the spine reach it.
pub fn register_optimizer(builder: SessionStateBuilder) -> SessionStateBuilder {
    builder.with_optimizer_rule(Arc::new(FilterSpine))
}

/// The part of [`register`] that plans the operator, for a query planner with extensions of its own.
pub fn extension_planner() -> Arc<dyn ExtensionPlanner + Send + Sync> {
    Arc::new(Extension)
}

#[derive(Debug)]
struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![extension_planner()]);
        planner.create_physical_plan(plan, session).await
    }
}

struct Extension;

#[async_trait]
impl ExtensionPlanner for Extension {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        _planning_ctx: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<PointInTime>() else { return Ok(None) };
        let (label_time, specs) = node.specs()?;
        let spine = match in_one_stream(session) {
            Some(session) => planner.create_physical_plan(&node.spine, &session).await?,
            None => Arc::clone(&physical_inputs[0]),
        };
        let histories = specs
            .into_iter()
            .zip(&physical_inputs[1..])
            // nothing is taken of it any more, and it neither adds nor removes rows
            .filter(|(spec, _)| !spec.take.is_empty())
            .map(|(spec, plan)| HistoryExec { plan: Arc::clone(plan), spec: Arc::new(spec), filter: None })
            .collect();
        let spine = Arc::new(InOrderExec::new(spine));
        Ok(Some(Arc::new(PointInTimeExec::try_new(spine, label_time, histories)?)))
    }
}

/// The session with one stream per plan, so that rows keep their order (`in_order.rs`).
fn in_one_stream(session: &dyn Session) -> Option<SessionState> {
    let mut state = session.as_any().downcast_ref::<SessionState>()?.clone();
    state.config_mut().options_mut().execution.target_partitions = 1;
    Some(state)
}
