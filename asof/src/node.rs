//! The join as part of a logical plan.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::Field;
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, plan_err};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore, lit};
use datafusion::scalar::ScalarValue;

use crate::join::HistorySpec;
use crate::keys::KeyType;
use crate::rule::Rule;
use crate::ticks::{scalar_ceil, scalar_floor, unit_of};
use datafusion::arrow::datatypes::TimeUnit;

/// One history to join labels with, such as the table of a feature view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub struct History {
    /// What it is called in messages.
    pub name: String,
    /// Its rows, in any order.
    pub plan: LogicalPlan,
    /// Pairs of key columns: of the spine, of `plan`. All must be equal; null equals nothing. Without pairs every label sees
    /// every row.
    pub keys: Vec<(Column, Column)>,
    /// Which of the rows with its keys a label sees.
    pub rule: Rule,
    /// The columns of `plan` to take from that row, and what they are called in the output. Null where there is no row.
    pub take: Vec<(Column, String)>,
}

/// Joins label rows with several histories: every row of `spine` comes out exactly once, in the order of the spine, with its
/// own columns and for each history the columns taken of the row that it sees at `label_time`, or nulls.
///
/// Instants of labels and histories may be timestamps of any unit; they are compared exactly. A label whose time is null sees
/// nothing. Of a spine with several streams (which only happens outside of a session made by [`crate::register`]) the order is
/// that of its streams, one after the other.
///
/// # Errors
/// When a column does not exist, a time is no timestamp, the types of two keys do not compare, a rule contradicts itself, or
/// a name appears twice in the output. Each message names the column.
pub fn point_in_time(spine: LogicalPlan, label_time: Column, histories: Vec<History>) -> Result<LogicalPlan> {
    let place = index_of(spine.schema(), &label_time, "the spine")?;
    let label_type = spine.schema().field(place).data_type();
    if unit_of(label_type).is_none() {
        return plan_err!("the time `{}` of labels is `{label_type}`, not a timestamp: cast it", label_time.name());
    }
    let histories = histories
        .into_iter()
        .map(|history| {
            history.validate(spine.schema())?;
            history.without_unpublished()
        })
        .collect::<Result<_>>()?;
    let node = PointInTime::try_new(Arc::new(spine), label_time, histories)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

impl History {
    fn validate(&self, spine: &DFSchema) -> Result<()> {
        let (schema, name) = (self.plan.schema(), &self.name);
        for (of_spine, of_history) in &self.keys {
            let a = spine.field(index_of(spine, of_spine, "the spine")?).data_type();
            let b = schema.field(index_of(schema, of_history, name)?).data_type();
            if KeyType::common(a, b).is_none() {
                return plan_err!(
                    "the key `{}` of the spine is `{a}` and `{}` of {name} is `{b}`: such values cannot be matched, cast one of them",
                    of_spine.name(),
                    of_history.name()
                );
            }
        }
        let time = self.rule.time();
        let time_type = schema.field(index_of(schema, time, name)?).data_type();
        if unit_of(time_type).is_none() {
            return plan_err!("`{}` of {name} is `{time_type}`, not a timestamp: cast it", time.name());
        }
        for column in self.rule.tie_break().iter().chain(self.take.iter().map(|(column, _)| column)) {
            index_of(schema, column, name)?;
        }
        self.rule.validate()
    }

    /// Leaves out what is before the first and after the last published period, so that scans can do without it.
    fn without_unpublished(mut self) -> Result<Self> {
        let Rule::Interval { interval, published } = &self.rule else { return Ok(self) };
        let values = || published.iter().map(|period| period.interval);
        let (Some(first), Some(last)) = (values().min(), values().max()) else { return Ok(self) };
        let place = index_of(self.plan.schema(), interval, "a history")?;
        let own = self.plan.schema().field(place).data_type();
        let micros = TimeUnit::Microsecond;
        let fine = datafusion::arrow::datatypes::DataType::Timestamp(micros, None);
        let bound = |ticks: i64, up: bool| -> Option<ScalarValue> {
            // a column finer than microseconds is compared in microseconds
            let own = if unit_of(own) == Some(TimeUnit::Nanosecond) { &fine } else { own };
            if up { scalar_ceil(ticks, micros, own) } else { scalar_floor(ticks, micros, own) }
        };
        if let (Some(first), Some(last)) = (bound(first, false), bound(last, true)) {
            let time = Expr::Column(interval.clone());
            let within = time.clone().gt_eq(lit(first)).and(time.lt_eq(lit(last)));
            self.plan = LogicalPlanBuilder::from(self.plan).filter(within)?.build()?;
        }
        Ok(self)
    }
}

fn index_of(schema: &DFSchema, column: &Column, whose: &str) -> Result<usize> {
    match schema.maybe_index_of_column(column) {
        Some(place) => Ok(place),
        None => {
            let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            plan_err!("{whose} has no column `{}`, only `{}`", column.name(), known.join("`, `"))
        }
    }
}

/// The node. Its inputs are the spine and then the histories; it has no expressions, only columns of its inputs.
#[derive(Debug, Clone)]
pub(crate) struct PointInTime {
    pub(crate) spine: Arc<LogicalPlan>,
    pub(crate) label_time: Column,
    pub(crate) histories: Vec<History>,
    schema: DFSchemaRef,
}

impl PointInTime {
    fn try_new(spine: Arc<LogicalPlan>, label_time: Column, histories: Vec<History>) -> Result<Self> {
        let mut fields: Vec<_> =
            spine.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        for history in &histories {
            for (column, name) in &history.take {
                let place = index_of(history.plan.schema(), column, "a history")?;
                let field = history.plan.schema().field(place);
                let taken = Field::new(name, field.data_type().clone(), true).with_metadata(field.metadata().clone());
                fields.push((None, Arc::new(taken)));
            }
        }
        let mut seen = std::collections::HashSet::new();
        for (_, field) in &fields {
            if !seen.insert(field.name()) {
                return plan_err!("the name `{}` appears twice in the output: rename one of the columns", field.name());
            }
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        Ok(Self { spine, label_time, histories, schema })
    }

    /// Columns by their places, for the physical operator.
    pub(crate) fn specs(&self) -> Result<(usize, Vec<HistorySpec>)> {
        let label_time = index_of(self.spine.schema(), &self.label_time, "the spine")?;
        let specs = self
            .histories
            .iter()
            .map(|history| {
                let place = |column: &Column| index_of(history.plan.schema(), column, "a history");
                Ok(HistorySpec {
                    keys: history
                        .keys
                        .iter()
                        .map(|(of_spine, of_history)| {
                            Ok((index_of(self.spine.schema(), of_spine, "the spine")?, place(of_history)?))
                        })
                        .collect::<Result<_>>()?,
                    rule: history.rule.clone(),
                    time: place(history.rule.time())?,
                    tie_break: history.rule.tie_break().iter().map(place).collect::<Result<_>>()?,
                    take: history
                        .take
                        .iter()
                        .map(|(column, name)| Ok((place(column)?, name.clone())))
                        .collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok((label_time, specs))
    }

    /// The same join with another spine of the same columns.
    pub(crate) fn with_spine(&self, spine: LogicalPlan) -> Result<Self> {
        Self::try_new(Arc::new(spine), self.label_time.clone(), self.histories.clone())
    }
}

impl UserDefinedLogicalNodeCore for PointInTime {
    fn name(&self) -> &'static str {
        "PointInTime"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        std::iter::once(self.spine.as_ref()).chain(self.histories.iter().map(|history| &history.plan)).collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PointInTime: labels at {}", self.label_time.name())?;
        for history in &self.histories {
            let keys: Vec<String> = history.keys.iter().map(|(a, b)| format!("{} = {}", a.name(), b.name())).collect();
            let take: Vec<&str> = history.take.iter().map(|(_, name)| name.as_str()).collect();
            write!(f, "; {} on [{}] takes [{}]", history.rule, keys.join(", "), take.join(", "))?;
        }
        Ok(())
    }

    /// Rebuilt on other inputs. The optimizer may have taken columns out of them that nobody needs; then they leave the
    /// output too, as they do of any join.
    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut inputs = inputs.into_iter();
        let (Some(spine), true) = (inputs.next(), inputs.len() == self.histories.len()) else {
            return plan_err!("a point-in-time join keeps its spine and all of its {} histories", self.histories.len());
        };
        let histories = self
            .histories
            .iter()
            .zip(inputs)
            .map(|(history, plan)| {
                let mut history = history.clone();
                history.take.retain(|(column, _)| plan.schema().maybe_index_of_column(column).is_some());
                history.plan = plan;
                history
            })
            .collect();
        Self::try_new(Arc::new(spine), self.label_time.clone(), histories)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let (label_time, specs) = self.specs().ok()?;
        let of_spine = self.spine.schema().fields().len();
        let mut spine: Vec<usize> = output_columns.iter().copied().filter(|column| *column < of_spine).collect();
        spine.push(label_time);
        let mut first = of_spine;
        let mut children = Vec::new();
        for spec in &specs {
            spine.extend(spec.keys.iter().map(|(key, _)| *key));
            let mut needed: Vec<usize> = spec.keys.iter().map(|(_, key)| *key).collect();
            needed.push(spec.time);
            needed.extend(&spec.tie_break);
            needed.extend(
                (first..).zip(&spec.take).filter(|(output, _)| output_columns.contains(output)).map(|(_, (c, _))| *c),
            );
            first += spec.take.len();
            children.push(needed);
        }
        children.insert(0, spine);
        for needed in &mut children {
            needed.sort_unstable();
            needed.dedup();
        }
        Some(children)
    }
}

impl PartialEq for PointInTime {
    fn eq(&self, other: &Self) -> bool {
        self.spine == other.spine && self.label_time == other.label_time && self.histories == other.histories
    }
}

impl Eq for PointInTime {}

impl Hash for PointInTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spine.hash(state);
        self.label_time.hash(state);
        self.histories.hash(state);
    }
}

impl PartialOrd for PointInTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (&self.spine, &self.label_time, &self.histories).partial_cmp(&(
            &other.spine,
            &other.label_time,
            &other.histories,
        ))
    }
}
