//! What the operator does: read the spine, join one history after the other, put the columns side by side.
//!
//! In memory, while it lasts: the labels in order, and the winners of one history. When the pool refuses, first what is
//! finished goes to disk (the label rows, the columns of earlier histories, both in the order of rows and read once at the
//! end), and if that does not suffice, this history and its labels are divided by key (`partitioned.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::JoinSet;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, SpillMetrics, Time};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, SpillManager};
use futures::StreamExt;
use tokio::sync::mpsc::Sender;

use crate::candidates::{Candidates, Matches};
use crate::exec::{HistoryExec, PointInTimeExec};
use crate::join::{Join, Reader};
use crate::labels::{Labels, LabelsBuilder};
use crate::memory::{Share, guessed_width, is_exhausted};
use crate::partitioned;
use crate::prune::LabelSpan;
use crate::spill::SpillWriter;
use crate::spine::{Cursor, Sequence};
use crate::ticks::unit_of;

/// What the operator counts and times.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    spine_rows: Count,
    distinct_keys: Count,
    pub(crate) history_rows: Count,
    matched_rows: Count,
    output_rows: Count,
    /// Reading and ordering the labels.
    build_time: Time,
    /// Reading histories and finding winners.
    probe_time: Time,
    /// Putting columns together.
    output_time: Time,
    spill: SpillMetrics,
}

impl Metrics {
    fn new(metrics: &ExecutionPlanMetricsSet) -> Self {
        let builder = || MetricBuilder::new(metrics);
        Self {
            spine_rows: builder().counter("spine_rows", 0),
            distinct_keys: builder().counter("distinct_keys", 0),
            history_rows: builder().counter("history_rows", 0),
            matched_rows: builder().counter("matched_rows", 0),
            output_rows: builder().output_rows(0),
            build_time: builder().subset_time("build_time", 0),
            probe_time: builder().subset_time("probe_time", 0),
            output_time: builder().subset_time("output_time", 0),
            spill: SpillMetrics::new(metrics, 0),
        }
    }
}

/// What every step of one execution needs.
#[derive(Debug, Clone)]
pub(crate) struct Execution {
    pub(crate) context: Arc<TaskContext>,
    pub(crate) reservation: Arc<MemoryReservation>,
    pub(crate) metrics: Metrics,
    pub(crate) batch_size: usize,
}

impl Execution {
    /// A writer of spill files of this schema.
    pub(crate) fn spills(&self, schema: SchemaRef) -> SpillManager {
        let compression = self.context.session_config().spill_compression();
        SpillManager::new(self.context.runtime_env(), self.metrics.spill.clone(), schema)
            .with_compression_type(compression)
    }

    /// What the pool would grant at this moment, to the next lower power of two; in bytes.
    pub(crate) fn room(&self) -> usize {
        (0..usize::BITS - 1).rev().map(|bits| 1 << bits).find(|bytes| self.has_room(*bytes)).unwrap_or(0)
    }

    /// Whether the pool would grant so much at this moment.
    fn has_room(&self, bytes: usize) -> bool {
        Share::new(&self.reservation).try_grow(bytes).is_ok()
    }
}

/// The answer of one history.
enum Answer {
    Memory(Matches, usize),
    /// The columns taken, in the order of label rows.
    File(Sequence),
}

/// Starts the operator. Dropping the stream stops all of its tasks.
pub(crate) fn run(plan: &PointInTimeExec, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
    let reservation = MemoryConsumer::new("PointInTimeExec").with_can_spill(true).register(context.memory_pool());
    let execution = Execution {
        reservation: Arc::new(reservation),
        metrics: Metrics::new(&plan.metrics),
        batch_size: context.session_config().batch_size(),
        context,
    };
    let work = Work {
        spine: Arc::clone(&plan.spine),
        label_time: plan.label_time,
        histories: plan.histories.clone(),
        schema: plan.schema(),
        execution,
    };
    let mut stream = RecordBatchReceiverStreamBuilder::new(plan.schema(), 2);
    let output = stream.tx();
    stream.spawn(async move { work.run(output).await.map_err(explain) });
    Ok(stream.build())
}

/// Says which operator ran out when the pool's message does not begin with it.
fn explain(error: DataFusionError) -> DataFusionError {
    if is_exhausted(&error) { error.context("PointInTimeExec ran out of memory") } else { error }
}

struct Work {
    spine: Arc<dyn ExecutionPlan>,
    label_time: usize,
    histories: Vec<HistoryExec>,
    schema: SchemaRef,
    execution: Execution,
}

impl Work {
    async fn run(self, output: Sender<Result<RecordBatch>>) -> Result<()> {
        let metrics = &self.execution.metrics;
        let timer = metrics.build_time.timer();
        let spine_schema = self.spine.schema();
        let unit = unit_of(spine_schema.field(self.label_time).data_type())
            .ok_or_else(|| exec_datafusion_err!("the time of labels is no timestamp"))?;
        let mut span = LabelSpan::new(unit);
        let mut spine = Sequence::collect(
            self.spine.execute(0, Arc::clone(&self.execution.context))?,
            &self.execution.reservation,
            self.execution.spills(Arc::clone(&spine_schema)),
            |batch| span.add(batch, self.label_time),
        )
        .await?;
        drop(timer);
        metrics.spine_rows.add(spine.rows);
        let mut answers: Vec<Answer> = Vec::new();
        let mut known: Option<(Arc<Reader>, Arc<Labels>)> = None;
        if spine.rows > 0 {
            for history in &self.histories {
                let reader = Reader::new(&history.spec, self.label_time, &spine_schema, &history.plan.schema())?;
                let reader = Arc::new(reader);
                self.make_room(&reader, &mut spine, &mut answers, &mut known)?;
                let answer = match self.join(history, &reader, &spine, &span, &mut known).await? {
                    Joined::Whole(matches) => Answer::Memory(matches, reader.ties),
                    Joined::Part(begun, rest) => {
                        known = None;
                        self.write_all(&mut answers)?;
                        let _timer = metrics.probe_time.timer();
                        let execution = &self.execution;
                        let (file, matched) = partitioned::join(execution, &reader, &mut spine, begun, rest).await?;
                        metrics.matched_rows.add(matched);
                        Answer::File(file)
                    }
                };
                answers.push(answer);
            }
        }
        drop(known);
        self.leave_room(&mut spine, &mut answers)?;
        self.put_out(&spine, answers, &output).await
    }

    /// Puts to disk what is finished, if the next history is likely to need its memory.
    fn make_room(
        &self,
        reader: &Arc<Reader>,
        spine: &mut Sequence,
        answers: &mut [Answer],
        known: &mut Option<(Arc<Reader>, Arc<Labels>)>,
    ) -> Result<()> {
        if known.as_ref().is_some_and(|(other, _)| other.labels_signature() != reader.labels_signature()) {
            *known = None;
        }
        let values: usize = reader.stored_schema.fields().iter().map(|field| guessed_width(field.data_type())).sum();
        let labels = if known.is_some() { 0 } else { LabelsBuilder::BYTES_PER_ROW + 16 };
        // values twice: half of what is held may be garbage
        let needed = spine.rows.saturating_mul(labels + Candidates::BYTES_PER_SLOT + 2 * (values + 4));
        for answer in answers.iter_mut() {
            if self.execution.has_room(needed) {
                return Ok(());
            }
            if let Answer::Memory(matches, ties) = answer {
                *answer = Answer::File(self.write(matches, *ties)?);
            }
        }
        if !self.execution.has_room(needed) {
            spine.spill()?;
        }
        Ok(())
    }

    /// Moves all answers to disk.
    fn write_all(&self, answers: &mut [Answer]) -> Result<()> {
        for answer in answers {
            if let Answer::Memory(matches, ties) = answer {
                *answer = Answer::File(self.write(matches, *ties)?);
            }
        }
        Ok(())
    }

    /// Puts to disk what would leave less than half of the pool to whoever takes the output, such as a writer of Parquet, which
    /// holds a row group and cannot spill.
    fn leave_room(&self, spine: &mut Sequence, answers: &mut [Answer]) -> Result<()> {
        let MemoryLimit::Finite(limit) = self.execution.context.memory_pool().memory_limit() else { return Ok(()) };
        for answer in answers {
            if self.execution.reservation.size() <= limit / 2 {
                return Ok(());
            }
            if let Answer::Memory(matches, ties) = answer {
                *answer = Answer::File(self.write(matches, *ties)?);
            }
        }
        if self.execution.reservation.size() > limit / 2 {
            spine.spill()?;
        }
        Ok(())
    }

    /// Writes the columns of an answer in the order of label rows.
    fn write(&self, matches: &Matches, ties: usize) -> Result<Sequence> {
        let rows = matches.rows();
        let schema = matches.schema(ties);
        let spills = self.execution.spills(Arc::clone(&schema));
        let mut file = SpillWriter::new(&spills, "columns of a point-in-time join")?;
        let mut row = 0;
        while row < rows && !schema.fields().is_empty() {
            let end = rows.min(row + self.execution.batch_size);
            file.append(&RecordBatch::try_new(Arc::clone(&schema), matches.columns(ties, row..end)?)?)?;
            row = end;
        }
        Ok(Sequence::of_file(rows, file.finish()?, spills))
    }

    /// Joins one history in memory, as far as that goes.
    async fn join(
        &self,
        history: &HistoryExec,
        reader: &Arc<Reader>,
        spine: &Sequence,
        span: &LabelSpan,
        known: &mut Option<(Arc<Reader>, Arc<Labels>)>,
    ) -> Result<Joined> {
        let execution = &self.execution;
        let metrics = &execution.metrics;
        let timer = metrics.build_time.timer();
        let labels = match known {
            Some((_, labels)) => Some(Arc::clone(labels)),
            None => match self.order_labels(reader, spine).await {
                Ok(labels) => {
                    metrics.distinct_keys.add(labels.keys.len());
                    let labels = Arc::new(labels);
                    *known = Some((Arc::clone(reader), Arc::clone(&labels)));
                    Some(labels)
                }
                Err(error) if is_exhausted(&error) => None,
                Err(error) => return Err(error),
            },
        };
        drop(timer);
        self.narrow(history, span, labels.as_deref())?;
        let _timer = metrics.probe_time.timer();
        let mut streams = Vec::new();
        for partition in 0..history.plan.output_partitioning().partition_count() {
            streams.push(history.plan.execute(partition, Arc::clone(&execution.context))?);
        }
        let join = match labels.map(|labels| Join::new(labels, Arc::clone(reader), &execution.reservation)) {
            Some(Ok(join)) => Some(join),
            Some(Err(error)) if !is_exhausted(&error) => return Err(error),
            Some(Err(_)) | None => None,
        };
        let Some(join) = join else { return Ok(Joined::Part(None, streams)) };
        let (join, rest) = self.probe(join, reader, streams).await?;
        if let Some(rest) = rest {
            return Ok(Joined::Part(Some(join), rest));
        }
        let matches = join.finish()?;
        metrics.matched_rows.add(matches.matched());
        Ok(Joined::Whole(matches))
    }

    async fn order_labels(&self, reader: &Reader, spine: &Sequence) -> Result<Labels> {
        let mut builder = LabelsBuilder::new(reader.spine_keys(), &self.execution.reservation);
        let mut cursor = spine.read()?;
        while let Some(batch) = cursor.next().await? {
            let (keys, times) = reader.labels(&batch)?;
            builder.push(&keys, &times)?;
        }
        builder.finish()
    }

    /// Tells the history's scan which rows can matter.
    fn narrow(&self, history: &HistoryExec, span: &LabelSpan, labels: Option<&Labels>) -> Result<()> {
        let Some(filter) = &history.filter else { return Ok(()) };
        let keys = labels.and_then(|labels| labels.keys.bounds());
        filter.update(span.filter(&history.spec, &history.plan.schema(), keys))?;
        filter.mark_complete();
        Ok(())
    }

    /// Reads the streams, each on a task of its own, until they end or memory does. In the latter case they are given back.
    async fn probe(
        &self,
        join: Join,
        reader: &Arc<Reader>,
        streams: Vec<SendableRecordBatchStream>,
    ) -> Result<(Join, Option<Vec<SendableRecordBatchStream>>)> {
        let join = Arc::new(join);
        let full = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for mut stream in streams {
            let (join, full, reader) = (Arc::clone(&join), Arc::clone(&full), Arc::clone(reader));
            let history_rows = self.execution.metrics.history_rows.clone();
            tasks.spawn(async move {
                while !full.load(Ordering::Relaxed) {
                    let Some(batch) = stream.next().await.transpose()? else { return Ok(None) };
                    history_rows.add(batch.num_rows());
                    match join.offer(&reader.rows(&batch)?) {
                        Ok(()) => {}
                        Err(error) if is_exhausted(&error) => full.store(true, Ordering::Relaxed),
                        Err(error) => return Err(error),
                    }
                }
                Ok::<_, DataFusionError>(Some(stream))
            });
        }
        let mut rest = Vec::new();
        while let Some(done) = tasks.join_next().await {
            rest.extend(done.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??);
        }
        let join = Arc::into_inner(join).ok_or_else(|| exec_datafusion_err!("a task of the join did not end"))?;
        Ok((join, full.load(Ordering::Relaxed).then_some(rest)))
    }

    /// Label rows and the columns of all answers, side by side.
    async fn put_out(
        &self,
        spine: &Sequence,
        answers: Vec<Answer>,
        output: &Sender<Result<RecordBatch>>,
    ) -> Result<()> {
        let metrics = &self.execution.metrics;
        let mut labels = spine.read()?;
        let mut sources = answers.into_iter().map(Source::new).collect::<Result<Vec<_>>>()?;
        let mut row = 0;
        while row < spine.rows {
            let timer = metrics.output_time.timer();
            let rows = self.execution.batch_size.min(spine.rows - row);
            let mut columns: Vec<ArrayRef> = labels.exactly(rows).await?.columns().to_vec();
            for source in &mut sources {
                columns.extend(source.columns(row..row + rows).await?);
            }
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
            drop(timer);
            metrics.output_rows.add(rows);
            row += rows;
            if output.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// How far a join in memory came.
enum Joined {
    Whole(Matches),
    /// Memory ended before these streams did.
    Part(Option<Join>, Vec<SendableRecordBatchStream>),
}

/// Where columns come from.
enum Source {
    Memory(Matches, usize),
    /// The sequence is kept because it holds the file.
    File(Cursor, Sequence),
}

impl Source {
    fn new(answer: Answer) -> Result<Self> {
        Ok(match answer {
            Answer::Memory(matches, ties) => Self::Memory(matches, ties),
            Answer::File(sequence) => Self::File(sequence.read()?, sequence),
        })
    }

    /// The columns of these rows, which follow those of the call before.
    async fn columns(&mut self, rows: std::ops::Range<usize>) -> Result<Vec<ArrayRef>> {
        match self {
            Self::Memory(matches, ties) => matches.columns(*ties, rows),
            Self::File(_, sequence) if sequence.columns() == 0 => Ok(Vec::new()),
            Self::File(cursor, _) => Ok(cursor.exactly(rows.len()).await?.columns().to_vec()),
        }
    }
}
