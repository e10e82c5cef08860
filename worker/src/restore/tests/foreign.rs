//! Another program was at a table: what it did is refused before anything changes, with the reason, or undone.

use serde_json::{Value, json};
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::restore::Restoring as _;
use tidegate_registry::restore::plan::Target;
use tidegate_registry::store::Store as _;

use super::{DEFINITIONS, all_published, begun, carried_out, checked, planned, published, sell, view, views};
use crate::tests::World;

/// Two days, of which the first is what is gone back to.
async fn two_days() -> (World, SnapshotId) {
    let world = World::with(DEFINITIONS).await;
    sell(&world, 1, 7, 400).await;
    let first = world.succeed(1, 0).await;
    sell(&world, 2, 3, 10).await;
    world.succeed(2, 0).await;
    (world, SnapshotId(first.id.0))
}

fn log(table: &str, version: u64) -> String {
    format!("{table}/_delta_log/{version:020}.json")
}

const REVENUE: &str = "features/revenue/v1";

/// The actions of a commit of a table.
async fn actions(world: &World, table: &str, version: u64) -> Vec<Value> {
    world.read(&log(table, version)).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn commit(world: &World, table: &str, version: u64, actions: &[Value]) {
    let text: Vec<String> = actions.iter().map(ToString::to_string).collect();
    world.write(&log(table, version), &text.join("\n")).await;
}

/// The first file that a commit of a table added.
async fn added(world: &World, table: &str, version: u64) -> Value {
    let actions = actions(world, table, version).await;
    actions.into_iter().find_map(|action| action.get("add").cloned()).expect("it adds a file")
}

/// Deletes a row of a file as Spark does, but for the protocol.
async fn delete_a_row(world: &World, table: &str, of: u64, version: u64) {
    let mut add = added(world, table, of).await;
    let remove = json!({ "path": add["path"], "deletionTimestamp": 1, "dataChange": true });
    add["deletionVector"] = json!({
        "storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1, "sizeInBytes": 36, "cardinality": 1,
    });
    commit(world, table, version, &[json!({ "remove": remove }), json!({ "add": add })]).await;
}

/// It cannot be done, for that reason, and nothing has changed.
async fn refused(world: &World, to: SnapshotId, reason: &str) {
    let plan = planned(world, &views(), Target::To(to)).await.unwrap();
    let error = checked(world, &plan).await.expect_err("it is refused").to_string();
    assert!(error.contains(reason), "{error}");
    assert!(world.store.restores(0).await.unwrap().is_empty());
    assert!(world.store.holds().await.unwrap().holds.is_empty());
}

#[tokio::test]
async fn a_deletion_vector_in_the_head_is_refused() {
    let (world, first) = two_days().await;
    delete_a_row(&world, REVENUE, 2, 3).await;
    refused(&world, first, "has a deletion vector, which Tidegate never writes").await;
}

#[tokio::test]
async fn a_deletion_vector_in_what_is_gone_back_to_is_refused() {
    let world = World::with(DEFINITIONS).await;
    sell(&world, 1, 7, 100).await;
    world.succeed(1, 0).await;
    delete_a_row(&world, REVENUE, 1, 2).await;
    // Of another slice, so that the run did not look at it; and nobody has it in the head any more.
    sell(&world, 2, 3, 10).await;
    let second = world.succeed(2, 0).await;
    let add = added(&world, REVENUE, 1).await;
    let undo = json!({ "remove": { "path": add["path"], "deletionTimestamp": 1, "dataChange": true, "deletionVector": {
        "storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1, "sizeInBytes": 36, "cardinality": 1,
    } } });
    commit(&world, REVENUE, 4, &[undo, json!({ "add": add })]).await;
    sell(&world, 3, 3, 10).await;
    world.succeed(3, 0).await;
    refused(&world, SnapshotId(second.id.0), "has a deletion vector, which Tidegate never writes").await;
}

#[tokio::test]
async fn columns_that_another_program_added_are_refused() {
    let (world, first) = two_days().await;
    let created = actions(&world, REVENUE, 0).await;
    let mut meta = created.into_iter().find(|action| action.get("metaData").is_some()).unwrap();
    let mut schema: Value = serde_json::from_str(meta["metaData"]["schemaString"].as_str().unwrap()).unwrap();
    let column = json!({ "name": "note", "type": "string", "nullable": true, "metadata": {} });
    schema["fields"].as_array_mut().unwrap().push(column);
    meta["metaData"]["schemaString"] = schema.to_string().into();
    commit(&world, REVENUE, 3, &[meta]).await;
    refused(&world, first, "another program has changed the columns of the table of `revenue@v1`").await;
}

#[tokio::test]
async fn a_protocol_that_tidegate_does_not_write_is_refused() {
    let (world, first) = two_days().await;
    let protocol = json!({ "protocol": {
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"],
    } });
    commit(&world, REVENUE, 3, &[protocol]).await;
    refused(&world, first, "another writer has upgraded the table to `deletionVectors`").await;
}

#[tokio::test]
async fn files_that_another_program_vacuumed_away_are_missed() {
    let (world, first) = two_days().await;
    // Computed again, so that the head no longer names what the first run wrote.
    sell(&world, 1, 3, 5).await;
    world.succeed(1, 1).await;
    let path = added(&world, REVENUE, 1).await["path"].as_str().unwrap().to_owned();
    world.remove(&format!("{REVENUE}/{path}")).await;
    refused(&world, first, "another program has vacuumed the table").await;
}

#[tokio::test]
async fn what_was_set_aside_is_looked_at_too() {
    let (world, first) = two_days().await;
    sell(&world, 1, 3, 5).await;
    world.succeed(1, 1).await;
    let aside = "quarantine/revenue/v1";
    let path = added(&world, aside, 1).await["path"].as_str().unwrap().to_owned();
    world.remove(&format!("{aside}/{path}")).await;
    refused(&world, first, "another program has vacuumed the table").await;
}

/// Rows that another program appended belong to no publication: nothing that is kept names them, so a restore does not
/// either.
#[tokio::test]
async fn rows_that_another_program_appended_are_gone_afterwards() {
    let (world, first) = two_days().await;
    let before = all_published(&world).await;
    // A copy of a file of ours, as if Spark had written it, into another interval.
    let mut add = added(&world, REVENUE, 2).await;
    add["path"] = "interval_start=2024-01-09%2000%253A00%253A00/part-00000.parquet".into();
    add["partitionValues"]["interval_start"] = "2024-01-09T00:00:00.000000Z".into();
    commit(&world, REVENUE, 3, &[json!({ "add": add })]).await;
    let request = begun(&world, planned(&world, &views(), Target::To(first)).await.unwrap()).await;
    let restored = carried_out(&world, request.id).await;
    assert!(restored.validation.unwrap().passed);
    let now = published(&world, &view("revenue")).await;
    assert_eq!(now.rows.keys().collect::<Vec<_>>(), ["2024-01-01T00:00:00"]);
    // And what was before it comes back without them.
    let second = world.store.snapshots(None, None, 0).await.unwrap()[1].id;
    super::restored(&world, &views(), Target::To(second)).await;
    assert_eq!(all_published(&world).await, before);
}
