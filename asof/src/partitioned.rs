//! One history when it does not fit: labels and history divided by key into files, joined file by file.
//!
//! Equal keys meet in the same file, so each pair of files is a smaller join of the same kind. Its labels are taken in pieces of
//! consecutive rows, as large as memory allows, and the file of the history is read once per piece: that is how a key with most
//! of the labels, or a join without keys, still works, at the price of reading its history several times. What comes out of
//! each pair is ordered by row, and a merge brings all of them back into the order of the spine.
//!
//! What was joined before memory ran out is not lost and not repeated: the winners so far are history rows themselves, and
//! everything else that was read can no longer win.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use datafusion::arrow::compute::{concat_batches, interleave, take};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::runtime::JoinSet;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::SpillManager;
use futures::StreamExt;

use crate::candidates::Candidates;
use crate::join::{Join, Reader, Rows};
use crate::keys::KeyColumn;
use crate::labels::LabelsBuilder;
use crate::memory::{Share, batch_bytes, compact, guessed_width, is_exhausted};
use crate::run::Execution;
use crate::spill::SpillWriter;
use crate::spine::{Cursor, Sequence};

/// More files than this at once are not worth it: pieces do the rest.
const PARTS_MAX: usize = 128;
/// Rows wait in memory until so many bytes of them have gathered.
const WAITING_BYTES_MAX: usize = 16 << 20;
const WAITING_BYTES_MIN: usize = 2 << 10;

/// The columns taken of a history for every row of the spine, in its order, and how many labels see a row.
///
/// `begun` is the join so far, `streams` is the rest of the history.
///
/// # Errors
/// When a single label row and the history row that it sees do not fit into memory; those of the streams and of the disk.
pub(crate) async fn join(
    execution: &Execution,
    reader: &Arc<Reader>,
    spine: &mut Sequence,
    begun: Option<Join>,
    streams: Vec<SendableRecordBatchStream>,
) -> Result<(Sequence, usize)> {
    spine.spill()?;
    let budget = execution.reservation.size() + execution.room();
    let width: usize = reader.stored_schema.fields().iter().map(|field| guessed_width(field.data_type())).sum();
    let per_row = LabelsBuilder::BYTES_PER_ROW + Candidates::BYTES_PER_SLOT + 24 + 2 * (width + 4);
    // half as many again, since keys do not spread evenly
    let parts = (spine.rows.saturating_mul(per_row) / 2 * 3).div_ceil(budget.max(1)).clamp(2, PARTS_MAX);

    let history = scatter_history(execution, reader, parts, begun, streams).await?;
    let labels = scatter_labels(execution, reader, parts, spine).await?;

    // heads of the merge: one batch of each part, and one that is being read
    let rows_max = (budget / (4 * parts * (width + 8))).clamp(16, execution.batch_size);
    let mut outputs = Vec::new();
    let mut matched = 0;
    for (labels, history) in labels.iter().zip(&history) {
        let part = Part { execution, reader, labels, history, rows_max };
        let (output, seen) = part.join().await?;
        outputs.push(output);
        matched += seen;
    }
    drop((labels, history));
    Ok((merge(execution, reader, spine.rows, &outputs).await?, matched))
}

/// Divides history rows by key.
async fn scatter_history(
    execution: &Execution,
    reader: &Arc<Reader>,
    parts: usize,
    begun: Option<Join>,
    streams: Vec<SendableRecordBatchStream>,
) -> Result<Vec<Sequence>> {
    let schema = history_schema(reader);
    let mut scatter = Scatter::new(execution, Arc::clone(&schema), parts);
    if let Some(begun) = begun {
        begun.drain(execution.batch_size, |rows| scatter.add(&rows.keys, &to_batch(&schema, &rows)?, None))?;
    }
    scatter.reserve(execution)?;
    let scatter = Arc::new(Mutex::new(scatter));
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        let (scatter, reader, schema) = (Arc::clone(&scatter), Arc::clone(reader), Arc::clone(&schema));
        let history_rows = execution.metrics.history_rows.clone();
        tasks.spawn(async move {
            while let Some(batch) = stream.next().await.transpose()? {
                history_rows.add(batch.num_rows());
                let rows = reader.rows(&batch)?;
                let batch = to_batch(&schema, &rows)?;
                scatter.lock().unwrap_or_else(PoisonError::into_inner).add(&rows.keys, &batch, None)?;
            }
            Ok::<_, DataFusionError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
    }
    let mut scatter = scatter.lock().unwrap_or_else(PoisonError::into_inner);
    scatter.finish()
}

/// Divides label rows by key, each with its number; those without a key are in the first part.
async fn scatter_labels(
    execution: &Execution,
    reader: &Reader,
    parts: usize,
    spine: &Sequence,
) -> Result<Vec<Sequence>> {
    let mut fields = vec![Field::new("row", DataType::UInt64, false), Field::new("time", DataType::Int64, true)];
    fields.extend(reader.key_type().map(|key_type| Field::new("key", key_type, true)));
    let schema = Arc::new(Schema::new(fields));
    let mut scatter = Scatter::new(execution, Arc::clone(&schema), parts);
    scatter.reserve(execution)?;
    let mut cursor = spine.read()?;
    let mut row = 0u64;
    while let Some(batch) = cursor.next().await? {
        let (keys, times) = reader.labels(&batch)?;
        let end = row + batch.num_rows() as u64;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from_iter_values(row..end)), Arc::new(times)];
        columns.extend(keys.to_array());
        scatter.add(&keys, &RecordBatch::try_new(Arc::clone(&schema), columns)?, Some(0))?;
        row = end;
    }
    scatter.finish()
}

/// Orders, keys if there are any, and the stored columns.
fn history_schema(reader: &Reader) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new("order", DataType::Int64, true))];
    fields.extend(reader.key_type().map(|key_type| Arc::new(Field::new("key", key_type, true))));
    fields.extend(reader.stored_schema.fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

fn to_batch(schema: &SchemaRef, rows: &Rows) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = vec![Arc::new(rows.orders.clone())];
    columns.extend(rows.keys.to_array());
    columns.extend(rows.columns.iter().cloned());
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn from_batch(reader: &Reader, batch: &RecordBatch) -> Rows {
    let orders: Int64Array = batch.column(0).as_primitive().clone();
    let keys = keys_of(reader, batch.columns().get(1), batch.num_rows());
    let first = 1 + usize::from(reader.key_type().is_some());
    Rows { keys, orders, columns: batch.columns()[first..].to_vec() }
}

fn keys_of(reader: &Reader, column: Option<&ArrayRef>, rows: usize) -> KeyColumn {
    match column {
        Some(column) if reader.key_type().is_some() => KeyColumn::from_array(column),
        _ => KeyColumn::Global(rows),
    }
}

/// Batches divided into files by the hash of a key.
struct Scatter {
    spills: SpillManager,
    parts: Vec<ScatterPart>,
    waiting_bytes: usize,
    waiting_bytes_max: usize,
    share: Share,
}

#[derive(Default)]
struct ScatterPart {
    waiting: Vec<RecordBatch>,
    file: Option<SpillWriter>,
    rows: usize,
}

impl Scatter {
    fn new(execution: &Execution, schema: SchemaRef, parts: usize) -> Self {
        Self {
            spills: execution.spills(schema),
            parts: std::iter::repeat_with(ScatterPart::default).take(parts).collect(),
            waiting_bytes: 0,
            waiting_bytes_max: WAITING_BYTES_MIN,
            share: Share::new(&execution.reservation),
        }
    }

    /// Takes memory for rows that wait: larger pieces make better files.
    fn reserve(&mut self, execution: &Execution) -> Result<()> {
        let wanted = (execution.room() / 4).clamp(WAITING_BYTES_MIN, WAITING_BYTES_MAX);
        self.share.try_resize(wanted)?;
        self.waiting_bytes_max = wanted;
        Ok(())
    }

    /// Adds the rows of `batch`; those without a key to part `null_part`, or nowhere.
    fn add(&mut self, keys: &KeyColumn, batch: &RecordBatch, null_part: Option<usize>) -> Result<()> {
        let parts = self.parts.len() as u64;
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); self.parts.len()];
        let mut number = 0u32;
        keys.hashes(|_, hash| {
            // the upper half of the hash, spread evenly over the parts
            let part = match hash {
                Some(hash) => usize::try_from(((hash >> 32) * parts) >> 32).ok(),
                None => null_part,
            };
            if let Some(part) = part {
                rows[part].push(number);
            }
            number += 1;
        });
        for (part, rows) in self.parts.iter_mut().zip(rows) {
            if rows.is_empty() {
                continue;
            }
            part.rows += rows.len();
            let rows = UInt32Array::from(rows);
            let columns =
                batch.columns().iter().map(|column| Ok(compact(take(column, &rows, None)?))).collect::<Result<_>>()?;
            let piece = RecordBatch::try_new(batch.schema(), columns)?;
            self.waiting_bytes += batch_bytes(&piece);
            part.waiting.push(piece);
        }
        if self.waiting_bytes > self.waiting_bytes_max { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        for part in self.parts.iter_mut().filter(|part| !part.waiting.is_empty()) {
            let batch = concat_batches(self.spills.schema(), &part.waiting)?;
            part.waiting.clear();
            let file = match &mut part.file {
                Some(file) => file,
                None => part.file.insert(SpillWriter::new(&self.spills, "parts of a point-in-time join")?),
            };
            file.append(&batch)?;
        }
        self.waiting_bytes = 0;
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Sequence>> {
        self.flush()?;
        self.share.try_resize(0)?;
        self.parts
            .drain(..)
            .map(|part| {
                let file = part.file.map(SpillWriter::finish).transpose()?.flatten();
                Ok(Sequence::of_file(part.rows, file, self.spills.clone()))
            })
            .collect()
    }
}

/// The labels and the history rows of some keys.
struct Part<'a> {
    execution: &'a Execution,
    reader: &'a Arc<Reader>,
    labels: &'a Sequence,
    history: &'a Sequence,
    /// Rows in a batch of the output.
    rows_max: usize,
}

/// What became of a piece of so many label rows.
enum Piece {
    Done { rows: usize, matched: usize },
    TooLarge { rows: usize, error: DataFusionError },
}

impl Part<'_> {
    /// Row numbers with the columns taken, ordered by row, and how many labels see a row.
    async fn join(&self) -> Result<(Sequence, usize)> {
        let mut fields = vec![Arc::new(Field::new("row", DataType::UInt64, false))];
        fields.extend(self.reader.stored_schema.fields().iter().skip(self.reader.ties).cloned());
        let schema = Arc::new(Schema::new(fields));
        let spills = self.execution.spills(Arc::clone(&schema));
        let mut file = SpillWriter::new(&spills, "parts of a point-in-time join")?;
        let (mut done, mut matched, mut rows_max) = (0, 0, usize::MAX);
        while done < self.labels.rows {
            match self.piece(done, rows_max, &schema, &mut file).await? {
                Piece::Done { rows, matched: seen } => {
                    done += rows;
                    matched += seen;
                }
                Piece::TooLarge { rows: 0 | 1, error } => return Err(error),
                Piece::TooLarge { rows, .. } => rows_max = rows / 2,
            }
        }
        Ok((Sequence::of_file(done, file.finish()?, spills), matched))
    }

    /// Joins at most `rows_max` label rows from number `first` on.
    async fn piece(&self, first: usize, rows_max: usize, schema: &SchemaRef, file: &mut SpillWriter) -> Result<Piece> {
        let reservation = &self.execution.reservation;
        let mut builder = LabelsBuilder::new(self.reader.spine_keys(), reservation);
        let mut share = Share::new(reservation);
        let mut row_numbers: Vec<u64> = Vec::new();
        let mut cursor = self.labels.read()?;
        cursor.skip(first).await?;
        while builder.rows() < rows_max
            && let Some(batch) = cursor.next().await?
        {
            let batch = batch.slice(0, batch.num_rows().min(rows_max - builder.rows()));
            let keys = keys_of(self.reader, batch.columns().get(2), batch.num_rows());
            let added = share
                .try_grow(batch.num_rows() * size_of::<u64>())
                .and_then(|()| builder.push(&keys, batch.column(1).as_primitive()));
            match added {
                Ok(()) => row_numbers.extend(batch.column(0).as_primitive::<UInt64Type>().values()),
                Err(error) if is_exhausted(&error) => {
                    return Ok(Piece::TooLarge { rows: builder.rows() + batch.num_rows(), error });
                }
                Err(error) => return Err(error),
            }
        }
        let rows = builder.rows();
        let join =
            builder.finish().and_then(|labels| Join::new(Arc::new(labels), Arc::clone(self.reader), reservation));
        let join = match join {
            Ok(join) => join,
            Err(error) if is_exhausted(&error) => return Ok(Piece::TooLarge { rows, error }),
            Err(error) => return Err(error),
        };
        let mut history = self.history.read()?;
        while let Some(batch) = history.next().await? {
            match join.offer(&from_batch(self.reader, &batch)) {
                Ok(()) => {}
                Err(error) if is_exhausted(&error) => return Ok(Piece::TooLarge { rows, error }),
                Err(error) => return Err(error),
            }
        }
        let matches = join.finish()?;
        let mut row = 0;
        while row < rows {
            let end = rows.min(row + self.rows_max);
            let mut columns: Vec<ArrayRef> =
                vec![Arc::new(UInt64Array::from_iter_values(row_numbers[row..end].iter().copied()))];
            columns.extend(matches.columns(self.reader.ties, row..end)?);
            file.append(&RecordBatch::try_new(Arc::clone(schema), columns)?)?;
            row = end;
        }
        Ok(Piece::Done { rows, matched: matches.matched() })
    }
}

/// Brings `rows` rows back into their order.
async fn merge(execution: &Execution, reader: &Reader, rows: usize, parts: &[Sequence]) -> Result<Sequence> {
    let fields: Vec<_> = reader.stored_schema.fields().iter().skip(reader.ties).cloned().collect();
    let schema = Arc::new(Schema::new(fields));
    let spills = execution.spills(Arc::clone(&schema));
    let mut file = SpillWriter::new(&spills, "columns of a point-in-time join")?;
    let mut heads = parts.iter().map(Sequence::read).collect::<Result<Vec<Cursor>>>()?;
    let mut start = 0;
    while start < rows {
        let end = rows.min(start + execution.batch_size);
        let mut sources: Vec<RecordBatch> = Vec::new();
        let mut places = vec![(usize::MAX, 0); end - start];
        for head in &mut heads {
            while let Some(batch) = head.next().await? {
                let numbers = batch.column(0).as_primitive::<UInt64Type>().values();
                let due = numbers.partition_point(|row| *row < end as u64);
                for (position, row) in numbers[..due].iter().enumerate() {
                    let row = usize::try_from(*row).expect("row numbers count rows that were held");
                    places[row - start] = (sources.len(), position);
                }
                let all = due == batch.num_rows();
                head.put_back(batch.slice(due, batch.num_rows() - due));
                if due > 0 {
                    sources.push(batch.slice(0, due));
                }
                if !all {
                    break;
                }
            }
        }
        if places.iter().any(|(source, _)| *source == usize::MAX) {
            return internal_err!("rows between {start} and {end} are missing from the parts of a join");
        }
        let columns = (1..=schema.fields().len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = sources.iter().map(|source| source.column(column).as_ref()).collect();
                Ok(interleave(&arrays, &places)?)
            })
            .collect::<Result<_>>()?;
        file.append(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        start = end;
    }
    Ok(Sequence::of_file(rows, file.finish()?, spills))
}
