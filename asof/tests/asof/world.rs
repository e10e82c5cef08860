//! Small worlds of labels and histories, and what a join of them must give.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use datafusion::arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::catalog::MemTable;
use datafusion::common::{Column, Result};
use datafusion::datasource::provider_as_source;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use tidegate_asof::{History, Period, Rule, point_in_time, register};
use tokio::runtime::Runtime;

/// Instants are nanoseconds here, so that every unit can be tried.
pub(crate) const MICRO: i64 = 1_000;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.block_on(work)
}

#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) nanos: Option<i64>,
    number: Option<i32>,
    name: Option<String>,
}

impl Label {
    /// The last microsecond that is not after the label.
    pub(crate) fn micros(&self) -> Option<i64> {
        self.nanos.map(|nanos| nanos.div_euclid(MICRO))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Fact {
    nanos: Option<i64>,
    number: Option<i64>,
    name: Option<String>,
    tie: Option<i64>,
    amount: Option<f64>,
    word: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    by_number: bool,
    by_name: bool,
    rule: TableRule,
    /// Whether times are stored in nanoseconds.
    fine: bool,
    name_type: DataType,
    pub(crate) facts: Vec<Fact>,
}

#[derive(Debug, Clone)]
pub(crate) enum TableRule {
    Event { delay: u64, ttl: Option<u64>, tie_break: bool },
    Interval(Vec<Period>),
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) spine: Vec<Label>,
    fine: bool,
    pub(crate) tables: Vec<Table>,
}

/// That a label sees a row of a history.
pub(crate) struct Seen {
    pub(crate) label: usize,
    pub(crate) label_micros: i64,
    pub(crate) history: usize,
    fact: usize,
}

/// How a world is joined.
pub(crate) struct Setting {
    pub(crate) streams: usize,
    pub(crate) batch: usize,
    pub(crate) pool: Arc<dyn MemoryPool>,
}

fn name() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        6 => prop::sample::select(vec!["", "a", "b", "a name too long to be stored in place", "a name too long to be stored elsewhere"])
            .prop_map(|name| Some(name.to_owned())),
    ]
}

fn instant(fine: bool) -> impl Strategy<Value = Option<i64>> {
    let jitter = if fine { -1i64..2 } else { 0..1 };
    (prop_oneof![1 => Just(None), 12 => (0i64..14).prop_map(Some)], jitter)
        .prop_map(|(micros, jitter)| micros.map(|micros| micros * MICRO + jitter))
}

fn label(fine: bool) -> impl Strategy<Value = Label> {
    (instant(fine), prop::option::weighted(0.9, -1i32..3), name()).prop_map(|(nanos, number, name)| Label {
        nanos,
        number,
        name,
    })
}

fn fact(fine: bool) -> impl Strategy<Value = Fact> {
    (
        instant(fine),
        prop::option::weighted(0.9, -1i64..4),
        name(),
        prop::option::weighted(0.9, 0i64..3),
        prop::option::weighted(0.8, prop::sample::select(vec![0.0, -0.0, 1.5, f64::INFINITY, -7.0])),
        prop::option::weighted(0.8, prop::sample::select(vec!["x", "y", "words that are longer than a view holds"])),
    )
        .prop_map(|(nanos, number, name, tie, amount, word)| Fact {
            nanos,
            number,
            name,
            tie,
            amount,
            word: word.map(str::to_owned),
        })
}

fn rule() -> impl Strategy<Value = TableRule> {
    let event = (0u64..3, prop::option::of(0u64..7), any::<bool>())
        .prop_map(|(delay, ttl, tie_break)| TableRule::Event { delay, ttl, tie_break });
    // states of some of the instants, in any order of publication, each until the next one
    let interval =
        (Just((0i64..14).collect::<Vec<_>>()).prop_shuffle(), prop::collection::vec(0i64..5, 0..6), any::<bool>())
            .prop_map(|(starts, steps, open)| {
                let mut from = 0;
                let mut periods: Vec<Period> = Vec::new();
                for (interval, step) in starts.into_iter().zip(steps) {
                    periods.push(Period { interval, available_from: from, available_until: from + step });
                    from += step;
                }
                if let (Some(last), true) = (periods.last_mut(), open) {
                    last.available_until = i64::MAX;
                }
                TableRule::Interval(periods)
            });
    prop_oneof![2 => event, 1 => interval]
}

fn table(facts: usize) -> impl Strategy<Value = Table> {
    any::<bool>().prop_flat_map(move |fine| {
        (
            any::<bool>(),
            any::<bool>(),
            rule(),
            prop::sample::select(vec![
                DataType::Utf8,
                DataType::Utf8View,
                DataType::LargeUtf8,
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            ]),
            prop::collection::vec(fact(fine), 0..facts),
        )
            .prop_map(move |(by_number, by_name, rule, name_type, facts)| Table {
                by_number,
                by_name,
                rule,
                fine,
                name_type,
                facts,
            })
    })
}

/// Worlds of up to `labels` labels and up to three histories of up to `facts` rows.
pub(crate) fn world(labels: usize, facts: usize) -> impl Strategy<Value = World> {
    any::<bool>().prop_flat_map(move |fine| {
        (prop::collection::vec(label(fine), 0..labels), prop::collection::vec(table(facts), 1..4))
            .prop_map(move |(spine, tables)| World { spine, fine, tables })
    })
}

impl World {
    /// A world of one size, the same every time: two histories, `keys` keys.
    pub(crate) fn large(labels: usize, facts: usize, keys: i64) -> Self {
        let mut state = 7u64;
        let mut random = move |below: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from(state >> 33).unwrap() % below
        };
        let spine = (0..labels)
            .map(|_| Label {
                nanos: Some(random(1_000) * MICRO),
                number: Some(i32::try_from(random(keys)).unwrap()),
                name: Some(format!("key number {}", random(keys))),
            })
            .collect();
        let mut tables = Vec::new();
        for (by_number, by_name) in [(true, false), (false, true)] {
            let facts = (0..facts)
                .map(|_| Fact {
                    nanos: Some(random(1_000) * MICRO),
                    number: Some(random(keys)),
                    name: Some(format!("key number {}", random(keys))),
                    tie: Some(random(2)),
                    amount: Some(random(1 << 30) as f64),
                    word: Some(format!("word {}", random(5))),
                })
                .collect();
            let rule = TableRule::Event { delay: 3, ttl: Some(400), tie_break: true };
            tables.push(Table { by_number, by_name, rule, fine: false, name_type: DataType::Utf8View, facts });
        }
        Self { spine, fine: false, tables }
    }

    /// The row that a label sees of the first history that is ruled by time, if it sees one.
    pub(crate) fn seen_by_time(&self, label: usize) -> Option<Seen> {
        let label_micros = self.spine.get(label)?.micros()?;
        self.tables.iter().enumerate().find_map(|(history, table)| {
            let TableRule::Event { .. } = table.rule else { return None };
            let seen = see(&self.spine[label], table)?;
            let fact = table.facts.iter().position(|fact| std::ptr::eq(fact, seen))?;
            Some(Seen { label, label_micros, history, fact })
        })
    }

    /// The same world with another word in one row, which is thereby unique, and perhaps at another time.
    pub(crate) fn with_fact(&self, seen: &Seen, micros: Option<i64>, word: &str) -> Self {
        let mut world = self.clone();
        let fact = &mut world.tables[seen.history].facts[seen.fact];
        fact.word = Some(word.to_owned());
        // of equal rows it is the one that wins
        fact.amount = Some(f64::NAN);
        fact.tie = Some(9);
        if let Some(micros) = micros {
            fact.nanos = Some(micros * MICRO);
        }
        world
    }

    /// The place of the words of a history in [`rows`].
    pub(crate) fn word_column(&self, history: usize) -> usize {
        3 + history * 2
    }

    pub(crate) fn plan(&self, setting: &Setting) -> Result<LogicalPlan> {
        let spine = scan("labels", split(&self.labels(), 1, setting.batch))?;
        let histories = self
            .tables
            .iter()
            .enumerate()
            .map(|(number, table)| {
                let plan = scan(&format!("h{number}"), split(&table.batch(), setting.streams, setting.batch))?;
                let mut keys = Vec::new();
                if table.by_number {
                    keys.push((Column::from_name("number"), Column::from_name("key_number")));
                }
                if table.by_name {
                    keys.push((Column::from_name("name"), Column::from_name("key_name")));
                }
                let rule = match &table.rule {
                    TableRule::Event { delay, ttl, tie_break } => Rule::Event {
                        time: Column::from_name("at"),
                        delay: Duration::from_micros(*delay),
                        ttl: ttl.map(Duration::from_micros),
                        tie_break: if *tie_break { vec![Column::from_name("tie")] } else { Vec::new() },
                    },
                    TableRule::Interval(periods) => {
                        Rule::Interval { interval: Column::from_name("at"), published: Arc::from(periods.as_slice()) }
                    }
                };
                let take = vec![
                    (Column::from_name("amount"), format!("amount{number}")),
                    (Column::from_name("word"), format!("word{number}")),
                ];
                Ok(History { name: "the history".to_owned(), plan, keys, rule, take })
            })
            .collect::<Result<_>>()?;
        point_in_time(spine, Column::from_name("at"), histories)
    }

    /// Runs the join.
    pub(crate) async fn join(&self, setting: &Setting) -> Result<Vec<RecordBatch>> {
        let context = context(setting);
        context.execute_logical_plan(self.plan(setting)?).await?.collect().await
    }

    fn labels(&self) -> RecordBatch {
        let nanos = self.spine.iter().map(|label| label.nanos);
        let names = StringArray::from_iter(self.spine.iter().map(|label| label.name.as_deref()));
        batch(vec![
            ("row", Arc::new(Int64Array::from_iter_values(0..i64::try_from(self.spine.len()).unwrap()))),
            ("at", times(nanos, self.fine)),
            ("number", Arc::new(Int32Array::from_iter(self.spine.iter().map(|label| label.number)))),
            ("name", Arc::new(names)),
        ])
    }
}

/// A session that knows the join.
pub(crate) fn context(setting: &Setting) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&setting.pool)).build_arc().unwrap();
    let config = SessionConfig::new().with_target_partitions(setting.streams).with_batch_size(setting.batch);
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    SessionContext::new_with_state(register(builder).build())
}

impl Table {
    fn without_facts(&self) -> Self {
        Self { rule: self.rule.clone(), name_type: self.name_type.clone(), facts: Vec::new(), ..*self }
    }

    fn batch(&self) -> RecordBatch {
        let facts = || self.facts.iter();
        let names: ArrayRef = Arc::new(StringArray::from_iter(facts().map(|fact| fact.name.as_deref())));
        let words: ArrayRef = Arc::new(StringArray::from_iter(facts().map(|fact| fact.word.as_deref())));
        batch(vec![
            ("at", times(facts().map(|fact| fact.nanos), self.fine)),
            ("key_number", Arc::new(Int64Array::from_iter(facts().map(|fact| fact.number)))),
            ("key_name", cast(&names, &self.name_type).unwrap()),
            ("tie", Arc::new(Int64Array::from_iter(facts().map(|fact| fact.tie)))),
            ("amount", Arc::new(Float64Array::from_iter(facts().map(|fact| fact.amount)))),
            ("word", cast(&words, &DataType::Utf8View).unwrap()),
        ])
    }
}

fn times(nanos: impl Iterator<Item = Option<i64>>, fine: bool) -> ArrayRef {
    if fine {
        let nanos: Int64Array = nanos.collect();
        return cast(&nanos, &DataType::Timestamp(TimeUnit::Nanosecond, None)).unwrap();
    }
    let micros = TimestampMicrosecondArray::from_iter(nanos.map(|nanos| nanos.map(|nanos| nanos / MICRO)));
    Arc::new(micros.with_timezone("UTC"))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// The rows in so many streams of batches of so many rows, dealt out in turn.
fn split(whole: &RecordBatch, streams: usize, rows: usize) -> (RecordBatch, Vec<Vec<RecordBatch>>) {
    let mut split = vec![Vec::new(); streams];
    for (number, start) in (0..whole.num_rows()).step_by(rows).enumerate() {
        split[number % streams].push(whole.slice(start, rows.min(whole.num_rows() - start)));
    }
    (whole.clone(), split)
}

fn scan(name: &str, (whole, split): (RecordBatch, Vec<Vec<RecordBatch>>)) -> Result<LogicalPlan> {
    let table = MemTable::try_new(whole.schema(), split)?;
    LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(table)), None)?.build()
}

/// Row number, instant, and the values taken, as text.
pub(crate) fn rows(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let columns = [0].into_iter().chain(2..batch.num_columns());
            let text = columns.filter(|column| *column != 3).map(|column| {
                let column = batch.column(column);
                if column.is_null(row) { "null".to_owned() } else { array_value_to_string(column, row).unwrap() }
            });
            rows.push(text.collect());
        }
    }
    rows
}

/// [`expected`] of a world from [`World::large`], whose histories each have one key: only the facts of a label's key are
/// looked at.
pub(crate) fn expected_by_key(world: &World) -> Vec<Vec<String>> {
    let mut whole: Vec<Vec<String>> = vec![Vec::new(); world.spine.len()];
    for (place, table) in world.tables.iter().enumerate() {
        let key = |number: Option<i64>, name: Option<&str>| {
            (
                number.filter(|_| table.by_number).map(|number| i32::try_from(number).unwrap()),
                name.filter(|_| table.by_name).map(str::to_owned),
            )
        };
        let mut facts: HashMap<_, Vec<Fact>> = HashMap::new();
        for fact in &table.facts {
            facts.entry(key(fact.number, fact.name.as_deref())).or_default().push(fact.clone());
        }
        for (row, label) in world.spine.iter().enumerate() {
            let facts =
                facts.get(&key(label.number.map(i64::from), label.name.as_deref())).cloned().unwrap_or_default();
            let table = Table { facts, ..table.without_facts() };
            let alone = World { spine: vec![label.clone()], fine: world.fine, tables: vec![table] };
            let columns = expected(&alone).remove(0);
            if place == 0 {
                whole[row] = vec![row.to_string(), columns[1].clone()];
            }
            whole[row].extend_from_slice(&columns[2..]);
        }
    }
    whole
}

/// What [`rows`] must be.
pub(crate) fn expected(world: &World) -> Vec<Vec<String>> {
    let text = |word: Option<String>| word.unwrap_or_else(|| "null".to_owned());
    world
        .spine
        .iter()
        .enumerate()
        .map(|(row, label)| {
            let mut columns = vec![row.to_string(), text(label.number.map(|number| number.to_string()))];
            for table in &world.tables {
                let seen = see(label, table);
                columns.push(text(seen.and_then(|fact| fact.amount).map(|amount| {
                    let array = Float64Array::from(vec![amount]);
                    array_value_to_string(&array, 0).unwrap()
                })));
                columns.push(text(seen.and_then(|fact| fact.word.clone())));
            }
            columns
        })
        .collect()
}

/// The row that a label sees, by the words of [`Rule`].
fn see<'a>(label: &Label, table: &'a Table) -> Option<&'a Fact> {
    let t = label.nanos?;
    let mine = table.facts.iter().filter(|fact| {
        let number = !table.by_number || (label.number.is_some() && label.number.map(i64::from) == fact.number);
        let name = !table.by_name || (label.name.is_some() && label.name == fact.name);
        number && name && fact.nanos.is_some()
    });
    match &table.rule {
        TableRule::Event { delay, ttl, tie_break } => {
            let delay = i64::try_from(*delay).unwrap() * MICRO;
            let newest = mine.filter(|fact| fact.nanos.unwrap() + delay <= t).max_by(|a, b| {
                let ties = if *tie_break { a.tie.cmp(&b.tie) } else { std::cmp::Ordering::Equal };
                a.nanos.cmp(&b.nanos).then(ties).then(values(a, b))
            })?;
            let alive = ttl.is_none_or(|ttl| t < newest.nanos.unwrap() + i64::try_from(ttl).unwrap() * MICRO);
            alive.then_some(newest)
        }
        TableRule::Interval(periods) => {
            let period = periods.iter().find(|period| {
                let until = period.available_until;
                period.available_from * MICRO <= t && (until == i64::MAX || t < until * MICRO)
            })?;
            mine.filter(|fact| fact.nanos.unwrap() == period.interval * MICRO).max_by(|a, b| values(a, b))
        }
    }
}

fn values(a: &Fact, b: &Fact) -> std::cmp::Ordering {
    let amount = match (a.amount, b.amount) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    amount.then_with(|| a.word.cmp(&b.word))
}
