//! What programs are told when a run was published: that data are ready, and where.
//!
//! A DAG names webhooks under `on_published:`. Each gets a notice of its own, which is recorded together with what was
//! published: readers see the rows before anybody can be told of them, and a run that is recorded is never forgotten to be
//! told of. It tells where tables are and nothing that opens them. A restore has notices of its own (`restore.finished`).

use serde_json::json;

use crate::ids::ViewId;
use crate::model::Dag;
use crate::notice::{Addressed, NewNotice, NoticeEvent};
use crate::run::{Intent, Run};
use crate::store::Record;
use crate::time::Instant;

/// The notices for the webhooks of `dag`, of its `run` that is about to be recorded as `record`. `place` is where a view's
/// table is, without credentials.
pub fn notices(
    dag: &Dag,
    run: &Run,
    intent: &Intent,
    record: &Record,
    place: impl Fn(&ViewId) -> String,
    at: Instant,
) -> Vec<Addressed> {
    if dag.on_published.is_empty() {
        return Vec::new();
    }
    let rows: u64 = record.views.values().map(|view| view.rows).sum();
    let tables = record.views.iter().map(|(id, view)| {
        json!({
            "view": id,
            "uri": place(id),
            "delta_version": view.delta_version,
            "rows": view.rows,
            "set_aside": view.quarantined,
            "digest": view.digest,
            "online_generation": view.online_generation,
        })
    });
    let tables: Vec<_> = tables.collect();
    // What a later interval has is not news of the day: an old slice was done again.
    let newest = intent.views.values().all(|view| view.online);
    let message = format!(
        "the run of `{}` over {} was published: {}, {}",
        run.dag,
        run.interval,
        counted(rows, "row"),
        counted(record.views.len() as u64, "view"),
    );
    let told = dag.on_published.iter().map(|told| {
        let detail = json!({
            "dag": run.dag,
            "run": run.id,
            "interval_start": run.interval.start(),
            "interval_end": run.interval.end(),
            "views": run.views,
            "revision": run.revision,
            "cause": run.cause.to_string(),
            "snapshot": record.snapshot,
            "newest": newest,
            "rows": rows,
            "tables": tables,
            "payload": told.payload,
        });
        let event = NoticeEvent::RunPublished;
        let notice = NewNotice::new(event, run.id.to_string(), at, message.clone()).with(detail);
        Addressed { notice: notice.once(format!("{event} {} {}", run.id, told.webhook)), webhook: told.webhook.clone() }
    });
    told.collect()
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::ids::{RunId, SnapshotId};
    use crate::model::OnPublished;
    use crate::profile::ViewProfile;
    use crate::run::{Cause, Pins, RunState, ViewIntent};
    use crate::store::ViewRecord;
    use crate::time::Interval;

    fn dag(webhooks: &[&str]) -> Dag {
        let on_published: Vec<_> = webhooks
            .iter()
            .map(|webhook| OnPublished {
                webhook: (*webhook).to_owned(),
                payload: [("model".to_owned(), json!(webhook))].into_iter().collect(),
            })
            .collect();
        let schedule = json!({ "cron": "@daily", "timezone": "UTC", "start": day(1), "catchup": "all" });
        let retries = json!({ "max": 0, "backoff": 1.0 });
        serde_json::from_value(json!({
            "name": "daily", "owner": "ana", "schedule": schedule, "views": ["a@v1", "b@v2"], "retries": retries,
            "max_active_runs": 1, "in_order": false, "on_blocked": "continue", "publish": "together",
            "on_published": on_published,
        }))
        .unwrap()
    }

    fn day(number: u32) -> Instant {
        format!("2013-01-{number:02}T00:00:00Z").parse().unwrap()
    }

    fn told(webhooks: &[&str], later: bool) -> (RunId, Vec<Addressed>) {
        let views: Vec<ViewId> = ["a@v1", "b@v2"].map(|id| id.parse().unwrap()).into();
        let run = Run {
            id: RunId::generate(),
            dag: "daily".parse().unwrap(),
            interval: Interval::new(day(1), day(2)).unwrap(),
            views: views.clone(),
            cause: Cause::Manual(1),
            definitions: 1,
            revision: 3,
            state: RunState::Publishing,
            reason: None,
            created_at: day(2),
            started_at: None,
            finished_at: None,
            restarts: 0,
            overriding: None,
        };
        let intent =
            |id: &ViewId| ViewIntent { publish_number: 4, online: !later || id.version == 1, checks: Vec::new() };
        let intent = Intent { run: run.id, views: views.iter().map(|id| (id.clone(), intent(id))).collect() };
        let record = |id: &ViewId| ViewRecord {
            fingerprint: "f".to_owned(),
            publish_number: 4,
            delta_version: 7,
            rows: u64::from(id.version),
            digest: "0".repeat(32),
            online_generation: (id.version == 1).then_some(4),
            profile: Value::Null,
            summary: ViewProfile::default(),
            quarantined: 0,
            quarantine_version: None,
        };
        let record = Record {
            snapshot: SnapshotId(run.id.0),
            views: views.iter().map(|id| (id.clone(), record(id))).collect(),
            manifest: Pins::default(),
            actor: "worker".to_owned(),
            notices: Vec::new(),
        };
        let place = |id: &ViewId| format!("s3://lake/features/{}/v{}/", id.name, id.version);
        (run.id, notices(&dag(webhooks), &run, &intent, &record, place, day(2)))
    }

    #[test]
    fn each_webhook_is_told_what_was_published_and_where_it_is() {
        let (run, told) = told(&["scoring", "report"], false);
        assert_eq!(told.iter().map(|one| one.webhook.as_str()).collect::<Vec<_>>(), ["scoring", "report"]);
        let notice = &told[0].notice;
        assert_eq!((notice.event, notice.subject.clone()), (NoticeEvent::RunPublished, run.to_string()));
        assert_ne!(notice.key, told[1].notice.key, "one does not stand for the other");
        assert!(notice.message.ends_with("was published: 3 rows, 2 views"), "{}", notice.message);
        let table = |view: &str, uri: &str, rows: u64, generation: Option<u64>| {
            json!({
                "view": view, "uri": uri, "delta_version": 7, "rows": rows, "set_aside": 0,
                "digest": "0".repeat(32), "online_generation": generation,
            })
        };
        let expected = json!({
            "dag": "daily", "run": run, "interval_start": "2013-01-01T00:00:00Z", "interval_end": "2013-01-02T00:00:00Z",
            "views": ["a@v1", "b@v2"], "revision": 3, "cause": "manual 1", "snapshot": run, "newest": true, "rows": 3,
            "tables": [
                table("a@v1", "s3://lake/features/a/v1/", 1, Some(4)),
                table("b@v2", "s3://lake/features/b/v2/", 2, None),
            ],
            "payload": { "model": "scoring" },
        });
        assert_eq!(notice.detail, expected);
        assert_eq!(told[1].notice.detail["payload"], json!({ "model": "report" }));
    }

    #[test]
    fn an_old_slice_that_was_done_again_says_so() {
        assert_eq!(told(&["scoring"], true).1[0].notice.detail["newest"], json!(false));
        assert!(told(&[], false).1.is_empty(), "nobody asked");
    }
}
