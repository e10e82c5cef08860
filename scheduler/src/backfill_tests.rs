use chrono::DateTime;
use chrono_tz::TZ_VARIANTS;
use tidegate_registry::model::PublishUnit;

use super::*;
use crate::testing::{dag, daily, day, run, view_id};

/// Five complete days: published, blocked, under way, half published, never computed.
fn history() -> DagHistory {
    let mut history = DagHistory { ticks: (1..=6).map(day).collect(), ..DagHistory::default() };
    history.runs = vec![
        run("d", daily(1), &["a", "b"], RunState::Succeeded),
        run("d", daily(2), &["a", "b"], RunState::Blocked),
        run("d", daily(3), &["a", "b"], RunState::Running),
        run("d", daily(4), &["a"], RunState::Succeeded),
    ];
    history.published.insert(view_id("a"), BTreeSet::from([daily(1), daily(4)]));
    history.published.insert(view_id("b"), BTreeSet::from([daily(1)]));
    history
}

fn shown(reprocess: Reprocess, from: i64, to: i64) -> Vec<String> {
    let plan = plan_backfill(&dag("d", &["a", "b"]), &history(), day(from), day(to), reprocess);
    plan.intervals
        .iter()
        .map(|interval| {
            let views: Vec<_> = interval.views.iter().map(|view| view.name.to_string()).collect();
            format!("{} [{}] {}", interval.interval.start().format("%d"), views.join(","), interval.reason)
        })
        .collect()
}

#[test]
fn a_plan_says_of_every_interval_what_becomes_of_it_and_why() {
    assert_eq!(
        shown(Reprocess::Missing, 0, 99),
        [
            "01 [] published",
            "02 [] its last run published nothing; `--reprocess failed` computes it again",
            "03 [] a run of it is under way",
            "04 [b] never computed",
            "05 [a,b] never computed",
        ]
    );
    assert_eq!(
        shown(Reprocess::Failed, 0, 99),
        [
            "01 [] published",
            "02 [a,b] blocked by a check",
            "03 [] a run of it is under way",
            "04 [b] never computed",
            "05 [a,b] never computed",
        ]
    );
    assert_eq!(
        shown(Reprocess::All, 0, 99),
        [
            "01 [a,b] published, and all are asked for",
            "02 [a,b] blocked by a check",
            "03 [] a run of it is under way",
            "04 [a,b] published, and all are asked for",
            "05 [a,b] never computed",
        ]
    );
}

#[test]
fn the_range_is_half_open_over_interval_starts() {
    assert_eq!(shown(Reprocess::Missing, 4, 5), ["04 [b] never computed"]);
    assert_eq!(shown(Reprocess::Missing, 5, 5), [""; 0]);
    assert_eq!(shown(Reprocess::Missing, 6, 9), [""; 0], "the interval that begins on the 6th is not complete");
}

#[test]
fn a_backfills_runs_carry_its_id_and_follow_the_publish_setting() {
    let mut dag = dag("d", &["a", "b"]);
    let id = BackfillId::generate();
    let plan = plan_backfill(&dag, &history(), day(4), day(6), Reprocess::Missing);
    let runs = plan.runs(&dag, 3, id);
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run.cause == Cause::Backfill(id) && run.definitions == 3 && run.attempts_max == 3));
    dag.publish = PublishUnit::Each;
    assert_eq!(plan.runs(&dag, 3, id).len(), 3);
}

#[test]
fn midnight_is_the_first_instant_of_the_day() {
    for (date, zone, expected) in [
        ("2024-03-10", "America/New_York", "2024-03-10T05:00:00Z"),
        ("2024-01-01", "UTC", "2024-01-01T00:00:00Z"),
        // Skipped, repeated, and a day that was left out.
        ("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00Z"),
        ("2018-02-18", "America/Sao_Paulo", "2018-02-18T03:00:00Z"),
        ("2024-11-03", "America/Havana", "2024-11-03T04:00:00Z"),
        ("2011-12-30", "Pacific/Apia", "2011-12-30T10:00:00Z"),
    ] {
        assert_eq!(
            midnight(date.parse().unwrap(), zone.parse().unwrap()),
            expected.parse::<Instant>().unwrap(),
            "{zone}"
        );
    }
}

#[test]
fn midnights_ascend_in_every_zone() {
    for zone in TZ_VARIANTS {
        let mut last = DateTime::UNIX_EPOCH;
        for date in NaiveDate::from_ymd_opt(2009, 1, 1).unwrap().iter_days().take(1500) {
            let found = midnight(date, zone);
            let skipped = zone == Tz::Pacific__Apia || zone == Tz::Pacific__Fakaofo;
            assert!(found > last || skipped && found == last, "{date} in {zone}");
            last = found;
        }
    }
}
