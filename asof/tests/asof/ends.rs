//! How an execution ends before its time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::{Column, Result};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{Stream, StreamExt};
use tidegate_asof::point_in_time;

use crate::plans::{event, history, labels, physical, session};
use crate::world::block_on;

/// A stream that never ends, and knows whether somebody holds it.
#[derive(Debug)]
struct Endless {
    schema: SchemaRef,
    held: Arc<()>,
}

struct EndlessStream {
    schema: SchemaRef,
    _held: Arc<()>,
}

impl PartitionStream for Endless {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        Box::pin(EndlessStream { schema: Arc::clone(&self.schema), _held: Arc::clone(&self.held) })
    }
}

impl Stream for EndlessStream {
    type Item = Result<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Pending
    }
}

impl RecordBatchStream for EndlessStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

#[test]
fn dropping_the_output_stops_reading() {
    block_on(async {
        let session = session();
        let schema = Arc::new(Schema::new(vec![
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
            Field::new("key", DataType::Int64, true),
            Field::new("a", DataType::Int64, true),
        ]));
        let held = Arc::new(());
        let streams: Vec<Arc<dyn PartitionStream>> =
            (0..2).map(|_| Arc::new(Endless { schema: Arc::clone(&schema), held: Arc::clone(&held) }) as _).collect();
        let facts = Arc::new(StreamingTable::try_new(schema, streams).unwrap());
        let facts = LogicalPlanBuilder::scan("facts", provider_as_source(facts), None).unwrap().build().unwrap();
        let histories = vec![history(facts, event(None), &["a"])];
        let plan = point_in_time(labels(&session).await, Column::from_name("at"), histories).unwrap();
        let physical = physical(&session, plan).await;
        let idle = Arc::strong_count(&held);
        let mut output = physical.execute(0, session.task_ctx()).unwrap();
        wait_until(|| Arc::strong_count(&held) == idle + 2, Some(&mut output)).await;
        drop(output);
        wait_until(|| Arc::strong_count(&held) == idle, None).await;
    });
}

/// Waits for `reached`, driving `output` meanwhile, for at most ten seconds.
async fn wait_until(reached: impl Fn() -> bool, mut output: Option<&mut SendableRecordBatchStream>) {
    for _ in 0..1000 {
        if reached() {
            return;
        }
        match &mut output {
            Some(output) => {
                let _ = tokio::time::timeout(Duration::from_millis(10), output.next()).await;
            }
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("not reached within ten seconds");
}
