use std::collections::{BTreeMap, BTreeSet};

use chrono::Timelike;
use chrono_tz::TZ_VARIANTS;
use proptest::prelude::*;
use tidegate_registry::model::Catchup;

use super::*;

fn schedule(cron: &str, timezone: Tz, gap: Option<Gap>, overlap: Option<Overlap>) -> Schedule {
    let start = DateTime::UNIX_EPOCH;
    Schedule { cron: cron.to_owned(), timezone, start, end: None, catchup: Catchup::All, gap, overlap }
}

fn at(text: &str) -> Instant {
    let text = if text.contains('T') { format!("{text}:00Z") } else { format!("{text}T00:00:00Z") };
    text.parse().unwrap()
}

/// The ticks of a day or more, as UTC times of day.
fn ticks(cron: &str, zone: &str, choice: (Option<Gap>, Option<Overlap>), from: &str, until: &str) -> Vec<String> {
    let grid = Grid::new(&schedule(cron, zone.parse().unwrap(), choice.0, choice.1)).unwrap();
    grid.cron_ticks(at(from), at(until)).map(|tick| tick.format("%dT%H:%M").to_string()).collect()
}

const DEFAULT: (Option<Gap>, Option<Overlap>) = (None, None);
const RUN_AFTER: (Option<Gap>, Option<Overlap>) = (Some(Gap::RunAfter), None);
const SKIP: (Option<Gap>, Option<Overlap>) = (Some(Gap::Skip), None);
const FIRST: (Option<Gap>, Option<Overlap>) = (None, Some(Overlap::First));
const SECOND: (Option<Gap>, Option<Overlap>) = (None, Some(Overlap::Second));
const BOTH: (Option<Gap>, Option<Overlap>) = (None, Some(Overlap::Both));

#[test]
fn ticks_in_the_skipped_hour_run_after_it_or_not_at_all() {
    for (cron, zone, choice, from, until, expected) in [
        // New York, 2024-03-10: 02:00 EST (07:00Z) becomes 03:00 EDT.
        ("30 2 * * *", "America/New_York", DEFAULT, "2024-03-09", "2024-03-12", "09T07:30 10T07:00 11T06:30"),
        ("30 2 * * *", "America/New_York", SKIP, "2024-03-09", "2024-03-12", "09T07:30 11T06:30"),
        ("0 2 * * *", "America/New_York", DEFAULT, "2024-03-10", "2024-03-11", "10T07:00"),
        ("0 3 * * *", "America/New_York", DEFAULT, "2024-03-10", "2024-03-11", "10T07:00"),
        // Ticks that meet at the end of the gap are one.
        ("15,45 2,3 * * *", "America/New_York", DEFAULT, "2024-03-10", "2024-03-11", "10T07:00 10T07:15 10T07:45"),
        ("0,30 2,3 * * *", "America/New_York", DEFAULT, "2024-03-10", "2024-03-11", "10T07:00 10T07:30"),
        // A star or step means elapsed time.
        (
            "30 * * * *",
            "America/New_York",
            DEFAULT,
            "2024-03-10T05:00",
            "2024-03-10T08:00",
            "10T05:30 10T06:30 10T07:30",
        ),
        (
            "30 * * * *",
            "America/New_York",
            RUN_AFTER,
            "2024-03-10T05:00",
            "2024-03-10T08:00",
            "10T05:30 10T06:30 10T07:00 10T07:30",
        ),
        // London, 2024-03-31: 01:00 GMT becomes 02:00 BST.
        ("59 1 * * *", "Europe/London", DEFAULT, "2024-03-30", "2024-04-02", "30T01:59 31T01:00 01T00:59"),
        ("59 1 * * *", "Europe/London", SKIP, "2024-03-30", "2024-04-02", "30T01:59 01T00:59"),
        // Lord Howe moves by half an hour, 2024-10-06: 02:00 (+10:30) becomes 02:30 (+11).
        ("15 2 * * *", "Australia/Lord_Howe", DEFAULT, "2024-10-04", "2024-10-06T20:00", "04T15:45 05T15:30 06T15:15"),
        ("15 2 * * *", "Australia/Lord_Howe", SKIP, "2024-10-04", "2024-10-06T20:00", "04T15:45 06T15:15"),
        ("45 2 * * *", "Australia/Lord_Howe", DEFAULT, "2024-10-05", "2024-10-06", "05T15:45"),
        // Apia left out the 30th of December 2011: a whole day's ticks meet at the 31st's midnight (30T10:00Z).
        ("0 9 * * *", "Pacific/Apia", DEFAULT, "2011-12-28T20:00", "2012-01-01", "29T19:00 30T10:00 30T19:00 31T19:00"),
        ("0 9 * * *", "Pacific/Apia", SKIP, "2011-12-28T20:00", "2012-01-01", "29T19:00 30T19:00 31T19:00"),
        ("0 0 * * *", "Pacific/Apia", DEFAULT, "2011-12-29", "2012-01-01", "29T10:00 30T10:00 31T10:00"),
        ("0 */6 * * *", "Pacific/Apia", DEFAULT, "2011-12-30", "2011-12-30T17:00", "30T04:00 30T10:00 30T16:00"),
        // São Paulo skipped midnight, 2018-11-04: 00:00 (-3) becomes 01:00 (-2).
        ("@daily", "America/Sao_Paulo", DEFAULT, "2018-11-03", "2018-11-06", "03T03:00 04T03:00 05T02:00"),
        ("@daily", "America/Sao_Paulo", SKIP, "2018-11-03", "2018-11-06", "03T03:00 05T02:00"),
    ] {
        assert_eq!(ticks(cron, zone, choice, from, until).join(" "), expected, "{cron} in {zone} with {choice:?}");
    }
}

#[test]
fn ticks_in_the_repeated_hour_run_first_second_or_twice() {
    for (cron, zone, choice, from, until, expected) in [
        // New York, 2024-11-03: 02:00 EDT (06:00Z) becomes 01:00 EST.
        ("30 1 * * *", "America/New_York", DEFAULT, "2024-11-02", "2024-11-05", "02T05:30 03T05:30 04T06:30"),
        ("30 1 * * *", "America/New_York", SECOND, "2024-11-02", "2024-11-05", "02T05:30 03T06:30 04T06:30"),
        ("30 1 * * *", "America/New_York", BOTH, "2024-11-02", "2024-11-05", "02T05:30 03T05:30 03T06:30 04T06:30"),
        ("0 1 * * *", "America/New_York", SECOND, "2024-11-03", "2024-11-04", "03T06:00"),
        ("0 2 * * *", "America/New_York", DEFAULT, "2024-11-03", "2024-11-04", "03T07:00"),
        // Two ticks in the repeated hour keep their order.
        ("0,30 1 * * *", "America/New_York", BOTH, "2024-11-03", "2024-11-04", "03T05:00 03T05:30 03T06:00 03T06:30"),
        (
            "0 * * * *",
            "America/New_York",
            DEFAULT,
            "2024-11-03T04:00",
            "2024-11-03T08:00",
            "03T05:00 03T06:00 03T07:00 03T08:00",
        ),
        ("0 * * * *", "America/New_York", FIRST, "2024-11-03T04:00", "2024-11-03T08:00", "03T05:00 03T07:00 03T08:00"),
        // London, 2024-10-27: 02:00 BST becomes 01:00 GMT.
        ("30 1 * * *", "Europe/London", DEFAULT, "2024-10-26", "2024-10-28", "26T00:30 27T00:30"),
        ("30 1 * * *", "Europe/London", SECOND, "2024-10-26", "2024-10-28", "26T00:30 27T01:30"),
        // Lord Howe, 2024-04-07: 02:00 (+11) becomes 01:30 (+10:30).
        ("45 1 * * *", "Australia/Lord_Howe", DEFAULT, "2024-04-06", "2024-04-07", "06T14:45"),
        ("45 1 * * *", "Australia/Lord_Howe", SECOND, "2024-04-06", "2024-04-07", "06T15:15"),
        ("45 1 * * *", "Australia/Lord_Howe", BOTH, "2024-04-06", "2024-04-07", "06T14:45 06T15:15"),
        ("15 1 * * *", "Australia/Lord_Howe", BOTH, "2024-04-06", "2024-04-07", "06T14:15"),
        // São Paulo repeated the hour before midnight, 2018-02-18: 00:00 (-2) became 23:00 (-3) of the 17th.
        ("30 23 * * *", "America/Sao_Paulo", BOTH, "2018-02-17T12:00", "2018-02-19", "18T01:30 18T02:30"),
        ("@daily", "America/Sao_Paulo", BOTH, "2018-02-17", "2018-02-20", "17T02:00 18T03:00 19T03:00"),
    ] {
        assert_eq!(ticks(cron, zone, choice, from, until).join(" "), expected, "{cron} in {zone} with {choice:?}");
    }
}

#[test]
fn start_and_end_choose_intervals_by_their_start() {
    let grid = |start: &str, end: Option<&str>| {
        let daily = schedule("0 2 * * *", Tz::UTC, None, None);
        Grid::new(&Schedule { start: at(start), end: end.map(at), ..daily }).unwrap()
    };
    let days = |grid: &Grid, after: Option<&str>| {
        grid.ticks(after.map(at), at("2024-01-20"))
            .take(9)
            .map(|tick| tick.format("%d").to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let whole = grid("2024-01-01", Some("2024-01-04"));
    assert_eq!(days(&whole, None), "01 02 03 04", "the tick of the 4th closes the interval that starts on the 3rd");
    assert_eq!(days(&whole, Some("2024-01-02T02:00")), "03 04");
    assert_eq!(days(&whole, Some("2024-01-03T02:00")), "04");
    assert_eq!(days(&whole, Some("2024-01-04T02:00")), "");
    assert_eq!(days(&grid("2024-01-04T03:00", Some("2024-01-05T01:00")), None), "", "no tick lies in [start, end)");
    assert_eq!(days(&grid("2024-01-04T02:00", Some("2024-01-04T02:01")), None), "04 05");
    assert_eq!(days(&grid("2024-01-09", None), Some("2023-01-01")), "09 10 11 12 13 14 15 16 17");
    assert_eq!(whole.next_tick(None), Some(at("2024-01-01T02:00")));
    assert_eq!(whole.next_tick(Some(at("2024-01-04T02:00"))), None);
    let between = Interval::new(at("2023-12-31T02:00"), at("2024-01-01T02:00")).unwrap();
    assert!(!whole.wants(&between));
}

#[test]
fn a_start_within_a_second_counts_the_next_tick_only() {
    let daily = schedule("* * * * *", Tz::UTC, None, None);
    let start = at("2024-01-01") + TimeDelta::microseconds(1);
    let grid = Grid::new(&Schedule { start, ..daily }).unwrap();
    assert_eq!(grid.next_tick(None), Some(at("2024-01-01T00:01")));
}

#[test]
fn zones_with_odd_historical_offsets_still_cut_time() {
    // Amsterdam kept +00:19:32 until 1937, Monrovia -00:44:30 until 1972, Kathmandu +05:30 until 1986.
    for (zone, year) in [("Europe/Amsterdam", 1930), ("Africa/Monrovia", 1969), ("Asia/Kathmandu", 1983)] {
        let grid = Grid::new(&schedule("0 0 * * *", zone.parse().unwrap(), None, None)).unwrap();
        let from = at(&format!("{year}-01-01"));
        let found: Vec<_> = grid.cron_ticks(from, from + TimeDelta::days(800)).collect();
        assert!((799..=801).contains(&found.len()), "{zone}: {}", found.len());
        for tick in found {
            assert_eq!(tick.with_timezone(&grid.timezone()).time(), chrono::NaiveTime::MIN, "{zone}");
        }
    }
}

#[test]
fn rare_and_distant_ticks_are_found_and_the_calendar_ends() {
    let leap_sunday = Grid::new(&schedule("0 0 29 2 */7", Tz::America__New_York, None, None)).unwrap();
    assert_eq!(leap_sunday.cron_ticks(at("2089-01-01"), at("2200-01-01")).next(), Some(at("2128-02-29T05:00")));
    let yearly = Grid::new(&schedule("@yearly", Tz::UTC, None, None)).unwrap();
    assert_eq!(yearly.cron_ticks(at("9998-06-01"), DateTime::<Utc>::MAX_UTC).count(), 1);
    assert_eq!(yearly.next_tick(Some(DateTime::<Utc>::MAX_UTC)), None);
}

#[test]
fn fire_times_are_shown_on_both_clocks() {
    let daily = schedule("15 2 * * *", Tz::America__New_York, None, None);
    let shown: Vec<String> = next_fire_times(&daily, at("2024-03-08T12:00"), 3)
        .unwrap()
        .into_iter()
        .map(|(utc, local)| format!("{} {}", utc.format("%dT%H:%M"), local.format("%H:%M %Z")))
        .collect();
    assert_eq!(shown, ["09T07:15 02:15 EST", "10T07:00 03:00 EDT", "11T06:15 02:15 EDT"]);
}

/// The ticks in `(from, until]` found by looking at every single minute of UTC: what the clock on the wall shows then, and
/// whether it shows that again or jumps over something. Knows nothing of how the grid walks.
fn every_minute(grid: &Grid, from: Instant, until: Instant) -> BTreeSet<Instant> {
    let around = TimeDelta::hours(27);
    let minute = TimeDelta::minutes(1);
    let wall = |at: Instant| at.with_timezone(&grid.timezone).naive_local();
    let mut shown: BTreeMap<NaiveDateTime, Vec<Instant>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let mut now = from - around;
    while now <= until + around {
        let (before, after) = (wall(now - minute), wall(now));
        shown.entry(after).or_default().push(now);
        let mut skipped = before + minute;
        while skipped < after {
            if grid.gap == Gap::RunAfter && grid.cron.matches(skipped) {
                found.insert(now);
            }
            skipped += minute;
        }
        now += minute;
    }
    for (wall, instants) in shown {
        if grid.cron.matches(wall) {
            match grid.overlap {
                Overlap::First => found.extend(instants.first()),
                Overlap::Second => found.extend(instants.last()),
                Overlap::Both => found.extend(instants),
            }
        }
    }
    found.into_iter().filter(|tick| from < *tick && *tick <= until).collect()
}

fn any_zone() -> impl Strategy<Value = Tz> {
    prop::sample::select(&TZ_VARIANTS[..])
}

fn any_cron() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "* * * * *",
            "*/7 * * * *",
            "0 * * * *",
            "@daily",
            "30 1 * * *",
            "30 2 * * *",
            "0,30 1-3 * * *",
            "59 23 * * *",
            "0 */5 * * *",
            "15 0-4/2 * * *",
            "0 12 31 * *",
            "5 4 1 * 0",
            "@weekly",
            "@monthly",
        ])
        .prop_map(str::to_owned),
        (0..60_u32, 0..24_u32).prop_map(|(minute, hour)| format!("{minute} {hour} * * *")),
        (0..60_u32, 0..24_u32, 0..60_u32)
            .prop_map(|(minute, hour, other)| format!("{minute},{other} {hour},{} * * *", hour / 2)),
    ]
}

fn any_grid() -> impl Strategy<Value = Grid> {
    let gap = prop_oneof![Just(None), Just(Some(Gap::RunAfter)), Just(Some(Gap::Skip))];
    let overlap =
        prop_oneof![Just(None), Just(Some(Overlap::First)), Just(Some(Overlap::Second)), Just(Some(Overlap::Both)),];
    (any_cron(), any_zone(), gap, overlap)
        .prop_map(|(cron, zone, gap, overlap)| Grid::new(&schedule(&cron, zone, gap, overlap)).unwrap())
}

/// Any minute from 1990 to 2040.
fn any_minute() -> impl Strategy<Value = Instant> {
    (631_152_000_i64 / 60..2_240_524_800 / 60).prop_map(|minute| DateTime::from_timestamp(minute * 60, 0).unwrap())
}

/// A minute shortly before the zone's next change, if it changes within three years: where all the trouble is.
fn before_change(grid: &Grid, from: Instant, lead_mins: i64) -> Instant {
    let secs = from.timestamp();
    match grid.next_change(secs, secs + 3 * 366 * 86_400) {
        Some(change) => DateTime::from_timestamp(change - lead_mins * 60, 0).unwrap().with_second(0).unwrap(),
        None => from,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_walk_finds_what_a_look_at_every_minute_finds(
        grid in any_grid(), from in any_minute(), lead_mins in 0_i64..1600,
    ) {
        let from = before_change(&grid, from, lead_mins);
        let until = from + TimeDelta::hours(40);
        let found: Vec<_> = grid.cron_ticks(from, until).collect();
        let expected: Vec<_> = every_minute(&grid, from, until).into_iter().collect();
        prop_assert_eq!(found, expected, "{} in {} from {}", grid.cron, grid.timezone, from);
    }
}

proptest! {
    #[test]
    fn ticks_increase_and_cut_time_without_hole_or_overlap(
        grid in any_grid(), from in any_minute(), lead_mins in 0_i64..20_000,
    ) {
        let from = before_change(&grid, from, lead_mins);
        let found: Vec<_> = grid.cron_ticks(from, from + TimeDelta::days(60)).take(300).collect();
        prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(found.first().is_none_or(|first| *first > from));
        let cut: Vec<_> = intervals(&found).collect();
        prop_assert_eq!(cut.len(), found.len().saturating_sub(1));
        prop_assert!(cut.windows(2).all(|pair| pair[0].end() == pair[1].start()));
    }

    #[test]
    fn enumeration_in_pieces_is_enumeration_at_once(
        grid in any_grid(), from in any_minute(), lead_mins in 0_i64..4000, mut cuts in prop::collection::vec(0_i64..8000, 0..6),
    ) {
        let from = before_change(&grid, from, lead_mins);
        let until = from + TimeDelta::minutes(8000);
        let at_once: Vec<_> = grid.cron_ticks(from, until).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut begin = from;
        for end in cuts.into_iter().map(|cut| from + TimeDelta::minutes(cut)).chain([until]) {
            pieces.extend(grid.cron_ticks(begin, end));
            begin = end;
        }
        prop_assert_eq!(&pieces, &at_once);
        // And tick by tick, as the stored grid grows.
        let mut stepped = Vec::new();
        let mut last = from;
        while let Some(tick) = grid.cron_ticks(last, until).next() {
            stepped.push(tick);
            last = tick;
        }
        prop_assert_eq!(stepped, at_once);
    }

    #[test]
    fn the_choices_differ_only_where_the_wall_clock_jumps(
        cron in any_cron(), zone in any_zone(), from in any_minute(), lead_mins in 0_i64..3000,
    ) {
        let with = |gap, overlap| Grid::new(&schedule(&cron, zone, Some(gap), Some(overlap))).unwrap();
        let from = before_change(&with(Gap::Skip, Overlap::Both), from, lead_mins);
        let until = from + TimeDelta::days(3);
        let ticks = |gap, overlap| with(gap, overlap).cron_ticks(from, until).collect::<BTreeSet<_>>();
        let wall = |tick: &Instant| tick.with_timezone(&zone).naive_local();

        // Both is all; first and second each show every repeated wall clock once; together they are both.
        let (first, second, both) = (ticks(Gap::Skip, Overlap::First), ticks(Gap::Skip, Overlap::Second), ticks(Gap::Skip, Overlap::Both));
        prop_assert_eq!(&first | &second, both.clone());
        for tick in first.symmetric_difference(&second) {
            prop_assert!(matches!(zone.from_local_datetime(&wall(tick)), LocalResult::Ambiguous(..)));
        }
        // Skip loses only ticks at the end of a gap, and every tick that it has is one that the cron names.
        let run_after = ticks(Gap::RunAfter, Overlap::Both);
        prop_assert!(run_after.is_superset(&both));
        for tick in run_after.difference(&both) {
            let before = wall(&(*tick - TimeDelta::seconds(1)));
            prop_assert!(wall(tick) - before > TimeDelta::seconds(1), "{} is not the end of a gap", tick);
        }
        let cron = Cron::parse(&cron).unwrap();
        prop_assert!(both.iter().all(|tick| cron.matches(wall(tick))));
    }
}
