//! The physical operator: its place in a plan. What it does is in `run.rs`.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::{DynamicFilterPhysicalExpr, lit};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, CardinalityEffect, EmissionType};
use datafusion::physical_plan::filter_pushdown::{
    ChildFilterDescription, ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    ReplaceChildrenOptions,
};

use crate::join::HistorySpec;
use crate::prune::LabelSpan;
use crate::run;

/// The point-in-time join. Its children are the spine and the histories.
///
/// The spine is read as one stream, whose order the output has. Histories are read with all the streams that they have, each on
/// a task of its own and in any order, one history after the other.
#[derive(Debug)]
pub(crate) struct PointInTimeExec {
    pub(crate) spine: Arc<dyn ExecutionPlan>,
    pub(crate) label_time: usize,
    pub(crate) histories: Vec<HistoryExec>,
    pub(crate) metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

/// One history of the operator.
#[derive(Debug, Clone)]
pub(crate) struct HistoryExec {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) spec: Arc<HistorySpec>,
    /// Set when something below reads it.
    pub(crate) filter: Option<Arc<DynamicFilterPhysicalExpr>>,
}

impl PointInTimeExec {
    /// A join of `spine`, which has one stream, with these histories.
    ///
    /// # Errors
    /// When the spine has several streams.
    pub(crate) fn try_new(
        spine: Arc<dyn ExecutionPlan>,
        label_time: usize,
        histories: Vec<HistoryExec>,
    ) -> Result<Self> {
        let streams = spine.properties().partitioning.partition_count();
        if streams != 1 {
            return internal_err!("the spine of a point-in-time join has {streams} streams");
        }
        let schema = output_schema(&spine.schema(), &histories);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Self { spine, label_time, histories, metrics, properties: Arc::new(properties) })
    }
}

fn output_schema(spine: &Schema, histories: &[HistoryExec]) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = spine.fields().iter().cloned().collect();
    for history in histories {
        let schema = history.plan.schema();
        for (column, name) in &history.spec.take {
            let field = schema.field(*column);
            let taken = Field::new(name, field.data_type().clone(), true).with_metadata(field.metadata().clone());
            fields.push(Arc::new(taken));
        }
    }
    Arc::new(Schema::new(fields))
}

impl DisplayAs for PointInTimeExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let spine = self.spine.schema();
        write!(f, "PointInTimeExec: labels at {}", spine.field(self.label_time).name())?;
        for HistoryExec { plan, spec, .. } in &self.histories {
            let schema = plan.schema();
            let keys: Vec<String> = spec
                .keys
                .iter()
                .map(|(a, b)| format!("{} = {}", spine.field(*a).name(), schema.field(*b).name()))
                .collect();
            let take: Vec<&str> = spec.take.iter().map(|(_, name)| name.as_str()).collect();
            write!(f, "; {} on [{}] takes [{}]", spec.rule, keys.join(", "), take.join(", "))?;
        }
        Ok(())
    }
}

impl ExecutionPlan for PointInTimeExec {
    fn name(&self) -> &'static str {
        "PointInTimeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        std::iter::once(&self.spine).chain(self.histories.iter().map(|history| &history.plan)).collect()
    }

    /// Histories want as many streams as there are cores; how rows are spread over them does not matter.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        let mut benefits = vec![true; self.histories.len() + 1];
        benefits[0] = false;
        benefits
    }

    fn apply_expressions(
        &self,
        each: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for filter in self.dynamic_expressions_produced() {
            if each(&filter)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn dynamic_expressions_produced(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        self.histories
            .iter()
            .filter_map(|history| history.filter.clone())
            .map(|filter| filter as Arc<dyn PhysicalExpr>)
            .collect()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut children = children.into_iter();
        let (Some(spine), true) = (children.next(), children.len() == self.histories.len()) else {
            return internal_err!("PointInTimeExec keeps its spine and all of its histories");
        };
        let histories = self
            .histories
            .iter()
            .zip(children)
            .map(|(history, plan)| HistoryExec { plan, ..history.clone() })
            .collect();
        Ok(Arc::new(Self::try_new(spine, self.label_time, histories)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("PointInTimeExec has one stream, not {}", partition + 1);
        }
        run::run(self, context)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn child_stats_requests(&self, _partition: Option<usize>) -> Vec<ChildStats> {
        let mut requests = vec![ChildStats::Skip; self.histories.len() + 1];
        requests[0] = ChildStats::At(None);
        requests
    }

    /// As many rows as the spine has.
    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        if let Some(spine) = inputs.first() {
            statistics.num_rows = spine.num_rows;
            for (own, of_spine) in statistics.column_statistics.iter_mut().zip(&spine.column_statistics) {
                own.clone_from(of_spine);
            }
        }
        Ok(Arc::new(statistics))
    }

    /// Offers every history's scan a filter that will hold the span of the labels when they have been read.
    fn gather_filters_for_pushdown(
        &self,
        phase: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let mut description =
            FilterDescription::new().with_child(ChildFilterDescription::all_unsupported(&parent_filters));
        let offer = phase == FilterPushdownPhase::Post && config.optimizer.enable_join_dynamic_filter_pushdown;
        for history in &self.histories {
            let mut child = ChildFilterDescription::all_unsupported(&parent_filters);
            if offer && history.filter.is_none() {
                let columns = LabelSpan::columns(&history.spec, &history.plan.schema());
                child = child.with_self_filter(Arc::new(DynamicFilterPhysicalExpr::new(columns, lit(true))));
            }
            description = description.with_child(child);
        }
        Ok(description)
    }

    fn handle_child_pushdown_result(
        &self,
        _phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let mut histories = self.histories.clone();
        let mut changed = false;
        for (history, offered) in histories.iter_mut().zip(result.self_filters.iter().skip(1)) {
            // whether a scan filters rows by it or only compares statistics makes no difference to the join
            let Some(filter) = offered.first() else { continue };
            let predicate: Arc<dyn Any + Send + Sync> = Arc::clone(&filter.predicate) as _;
            if let Ok(filter) = Arc::downcast::<DynamicFilterPhysicalExpr>(predicate) {
                history.filter = Some(filter);
                changed = true;
            }
        }
        let propagation = FilterPushdownPropagation::if_all(result);
        if !changed {
            return Ok(propagation);
        }
        let node = Self::try_new(Arc::clone(&self.spine), self.label_time, histories)?;
        Ok(propagation.with_updated_node(Arc::new(node)))
    }
}
