use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> NaiveDateTime {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
}

/// The first `count` minutes that `cron` names from `from` on, as text.
fn fires(cron: &str, from: &str, count: usize) -> Vec<String> {
    let cron = Cron::parse(cron).unwrap();
    cron.iter_from(at(from)).take(count).map(|wall| wall.format("%Y-%m-%d %H:%M").to_string()).collect()
}

#[test]
fn every_form_of_crontab_names_the_minutes_it_says() {
    // 2024-02-28 is a Wednesday.
    let from = "2024-02-28 12:34";
    for (cron, expected) in [
        ("* * * * *", ["2024-02-28 12:34", "2024-02-28 12:35", "2024-02-28 12:36"]),
        ("15 2 * * *", ["2024-02-29 02:15", "2024-03-01 02:15", "2024-03-02 02:15"]),
        ("*/20 * * * *", ["2024-02-28 12:40", "2024-02-28 13:00", "2024-02-28 13:20"]),
        ("5-59/25 * * * *", ["2024-02-28 12:55", "2024-02-28 13:05", "2024-02-28 13:30"]),
        ("0 9-17/4 * * *", ["2024-02-28 13:00", "2024-02-28 17:00", "2024-02-29 09:00"]),
        ("30 2,14 * * *", ["2024-02-28 14:30", "2024-02-29 02:30", "2024-02-29 14:30"]),
        ("0,30,10-12 23 * * *", ["2024-02-28 23:00", "2024-02-28 23:10", "2024-02-28 23:11"]),
        ("0 0 * * 0", ["2024-03-03 00:00", "2024-03-10 00:00", "2024-03-17 00:00"]),
        ("0 0 * * 7", ["2024-03-03 00:00", "2024-03-10 00:00", "2024-03-17 00:00"]),
        ("0 0 * * sun", ["2024-03-03 00:00", "2024-03-10 00:00", "2024-03-17 00:00"]),
        ("0 0 * * 5-7", ["2024-03-01 00:00", "2024-03-02 00:00", "2024-03-03 00:00"]),
        ("0 0 * * MON-Wed", ["2024-03-04 00:00", "2024-03-05 00:00", "2024-03-06 00:00"]),
        ("0 0 * * 1", ["2024-03-04 00:00", "2024-03-11 00:00", "2024-03-18 00:00"]),
        ("0 0 1 jan,Jul *", ["2024-07-01 00:00", "2025-01-01 00:00", "2025-07-01 00:00"]),
        ("0 0 31 * *", ["2024-03-31 00:00", "2024-05-31 00:00", "2024-07-31 00:00"]),
        ("0 0 29 2 *", ["2024-02-29 00:00", "2028-02-29 00:00", "2032-02-29 00:00"]),
        // Both day fields restricted: either will do.
        ("0 0 1 * 5", ["2024-03-01 00:00", "2024-03-08 00:00", "2024-03-15 00:00"]),
        ("0 0 13 * 5", ["2024-03-01 00:00", "2024-03-08 00:00", "2024-03-13 00:00"]),
        // A field that begins with `*` is not restricted, so both must fit: odd days that are Mondays, and the 1st if it
        // is a Sunday, Tuesday, Thursday or Saturday.
        ("0 0 */2 * 1", ["2024-03-11 00:00", "2024-03-25 00:00", "2024-04-01 00:00"]),
        ("0 0 1 * */2", ["2024-06-01 00:00", "2024-08-01 00:00", "2024-09-01 00:00"]),
        // The rarest: a 29th of February that is a Sunday, across the missing leap day of 2100.
        ("0 0 29 2 */7", ["2032-02-29 00:00", "2060-02-29 00:00", "2088-02-29 00:00"]),
        ("*/90 * * * *", ["2024-02-28 13:00", "2024-02-28 14:00", "2024-02-28 15:00"]),
        ("  0\t0  * * * ", ["2024-02-29 00:00", "2024-03-01 00:00", "2024-03-02 00:00"]),
        ("00 007 01 * *", ["2024-03-01 07:00", "2024-04-01 07:00", "2024-05-01 07:00"]),
        ("@hourly", ["2024-02-28 13:00", "2024-02-28 14:00", "2024-02-28 15:00"]),
        ("@daily", ["2024-02-29 00:00", "2024-03-01 00:00", "2024-03-02 00:00"]),
        ("@midnight", ["2024-02-29 00:00", "2024-03-01 00:00", "2024-03-02 00:00"]),
        ("@weekly", ["2024-03-03 00:00", "2024-03-10 00:00", "2024-03-17 00:00"]),
        ("@monthly", ["2024-03-01 00:00", "2024-04-01 00:00", "2024-05-01 00:00"]),
        ("@yearly", ["2025-01-01 00:00", "2026-01-01 00:00", "2027-01-01 00:00"]),
        ("@annually", ["2025-01-01 00:00", "2026-01-01 00:00", "2027-01-01 00:00"]),
    ] {
        assert_eq!(fires(cron, from, 3), expected, "{cron}");
    }
}

#[test]
fn what_is_not_crontab_is_refused_with_reason_place_and_remedy() {
    for (text, expected) in [
        ("", "the schedule is empty (``): write five fields, as in `15 2 * * *`"),
        (
            "0 0 * *",
            "the schedule has 4 fields instead of five (`0 0 * *`): minute, hour, day of month, month, day of week, as in `15 2 * * *`",
        ),
        (
            "0 0 0 * * *",
            "the schedule has 6 fields instead of five (`0 0 0 * * *`): minute, hour, day of month, month, day of week: crontab(5) has no seconds, years or commands",
        ),
        ("60 0 * * *", "`60` is not a minute: it lies outside 0 to 59 (`60`)"),
        ("0 24 * * *", "`24` is not an hour: it lies outside 0 to 23 (`24`)"),
        ("0 0 0 * *", "`0` is not a day of month: it lies outside 1 to 31 (`0`)"),
        ("0 0 * 13 *", "`13` is not a month: it lies outside 1 to 12 (`13`)"),
        ("0 0 * * 8", "`8` is not a day of week: it lies outside 0 to 7 (`8`)"),
        ("0 0 * * monday", "`monday` is not a day of week (`monday`): names have three letters: `mon`"),
        ("0 0 mon * *", "`mon` is not a day of month (`mon`): a number from 1 to 31"),
        ("x 0 * * *", "`x` is not a minute (`x`): a number from 0 to 59"),
        ("-1 0 * * *", "`-1` in the minute field lacks a value (`-1`)"),
        ("+1 0 * * *", "`+1` is not a minute (`+1`): a number from 0 to 59"),
        ("1,,2 0 * * *", "`` in the minute field lacks a value (`1,,2`)"),
        ("5- 0 * * *", "`5-` in the minute field lacks a value (`5-`)"),
        ("1-2-3 0 * * *", "`2-3` is not a minute (`1-2-3`): a number from 0 to 59"),
        ("*5 0 * * *", "`*5` is not a minute (`*5`): a number from 0 to 59"),
        ("*/0 0 * * *", "`*/0` in the minute field steps by zero (`*/0`)"),
        ("*/x 0 * * *", "`*/x` in the minute field has a step that is not a number (`*/x`)"),
        ("*/5/5 0 * * *", "`*/5/5` in the minute field has a step that is not a number (`*/5/5`)"),
        ("5/15 0 * * *", "`5/15` in the minute field steps without a range (`5/15`): write `5-59/15`"),
        ("0 22-4 * * *", "`22-4` in the hour field runs backwards (`22-4`): write `22-23,0-4`"),
        (
            "0 0 * * fri-sun",
            "`fri-sun` in the day of week field runs backwards (`fri-sun`): Sunday is also 7: write `5-7`",
        ),
        ("0 0 L * *", "`L` in the day of month field: crontab(5) has no `L` (the last day) (`L`)"),
        ("0 0 * * 5L", "`5L` in the day of week field: crontab(5) has no `L` (the last day) (`5L`)"),
        ("0 0 15W * *", "`15W` in the day of month field: crontab(5) has no `W` (the nearest working day) (`15W`)"),
        ("0 0 * * 5#2", "`5#2` in the day of week field: crontab(5) has no `#` (the nth weekday of a month) (`5#2`)"),
        ("0 0 ? * *", "`?` in the day of month field: crontab(5) has no `?` (no particular day) (`?`): write `*`"),
        ("0~9 0 * * *", "`0~9` in the minute field: crontab(5) has no `~` (a random value) (`0~9`)"),
        (
            "@reboot",
            "`@reboot` names no time (`@reboot`): a DAG cuts time into intervals, so its schedule must recur: `@hourly`, `@daily` or five fields",
        ),
        ("@every 5m", "`5m` follows `@every`, which stands alone (`5m`)"),
        (
            "@fortnightly",
            "`@fortnightly` is not a schedule (`@fortnightly`): known are `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually`",
        ),
        (
            "CRON_TZ=UTC 0 0 * * *",
            "`CRON_TZ=UTC` is an assignment, not a field (`CRON_TZ=UTC`): the zone has its own setting, `timezone`",
        ),
        ("0 0 31 2 *", "`0 0 31 2 *` can never fire: no month it names has a day it names (`31 2`)"),
        ("0 0 30,31 feb */2", "`0 0 30,31 feb */2` can never fire: no month it names has a day it names (`30,31 feb`)"),
        (
            "0 0 31 4,6,9,11 *",
            "`0 0 31 4,6,9,11 *` can never fire: no month it names has a day it names (`31 4,6,9,11`)",
        ),
    ] {
        let error = Cron::parse(text).expect_err(text);
        let help = error.help.as_ref().map(|help| format!(": {help}")).unwrap_or_default();
        assert_eq!(format!("{error} (`{}`){help}", &text[error.place.clone()]), expected, "{text}");
    }
    assert!(Cron::parse(&"1,".repeat(300)).is_err());
}

#[test]
fn an_impossible_day_of_month_still_fires_by_weekday() {
    assert_eq!(fires("0 0 31 2 1", "2024-02-28 00:00", 2), ["2025-02-03 00:00", "2025-02-10 00:00"]);
}

#[test]
fn a_star_or_step_in_minute_or_hour_means_elapsed_time() {
    for (cron, expected) in [
        ("0 * * * *", true),
        ("*/10 3 * * *", true),
        ("0 0-12/6 * * *", true),
        ("@hourly", true),
        ("0 0-23 * * *", false),
        ("30 2,14 * * *", false),
        ("0 0 */2 * *", false),
        ("@daily", false),
    ] {
        assert_eq!(Cron::parse(cron).unwrap().is_elapsed_time(), expected, "{cron}");
    }
}

#[test]
fn the_search_ends_with_the_calendar() {
    let cron = Cron::parse("0 0 1 1 *").unwrap();
    assert_eq!(cron.first_from(NaiveDateTime::MAX), None);
    assert_eq!(cron.iter_from(NaiveDateTime::MAX - TimeDelta::days(900)).count(), 2);
}

/// A field in every shape, and the values that it names.
fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
    let item = prop_oneof![
        (min..=max).prop_map(|value| value.to_string()),
        (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        (min..=max, min..=max, 1..=max).prop_map(|(a, b, step)| format!("{}-{}/{step}", a.min(b), a.max(b))),
    ];
    prop_oneof![
        2 => Just("*".to_owned()),
        1 => (1..=max).prop_map(|step| format!("*/{step}")),
        3 => prop::collection::vec(item, 1..4).prop_map(|items| items.join(",")),
    ]
}

/// Reads one field naively, value by value.
fn names(word: &str, min: u32, max: u32, value: u32) -> bool {
    word.split(',').any(|item| {
        let (range, step) = item.split_once('/').map_or((item, 1), |(range, step)| (range, step.parse().unwrap()));
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
            None if range == "*" => (min, max),
            None => (range.parse().unwrap(), range.parse().unwrap()),
        };
        (first..=last).contains(&value) && (value - first).is_multiple_of(step)
    })
}

proptest! {
    /// The search for the next minute agrees with reading the text again for every single minute.
    #[test]
    fn the_search_finds_what_a_scan_of_every_minute_finds(
        words in (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)),
        start in 0_i64..40_000_000,
    ) {
        let text = format!("{} {} {} {} {}", words.0, words.1, words.2, words.3, words.4);
        let Ok(cron) = Cron::parse(&text) else { return Ok(()) };
        let from = chrono::DateTime::from_timestamp(start * 60, 0).unwrap().naive_utc();
        let until = from + TimeDelta::days(3);
        let expected: Vec<_> = (0..3 * 24 * 60).map(|minutes| from + TimeDelta::minutes(minutes)).filter(|wall| {
            let day = names(&words.2, 1, 31, wall.day());
            let weekday = wall.weekday().num_days_from_sunday();
            let weekday = names(&words.4, 0, 7, weekday) || weekday == 0 && names(&words.4, 0, 7, 7);
            let either = !words.2.starts_with('*') && !words.4.starts_with('*');
            names(&words.0, 0, 59, wall.minute())
                && names(&words.1, 0, 23, wall.hour())
                && names(&words.3, 1, 12, wall.month())
                && if either { day || weekday } else { day && weekday }
        }).collect();
        let found: Vec<_> = cron.iter_from(from).take_while(|wall| *wall < until).collect();
        prop_assert_eq!(found, expected, "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[-0-9*/,a-zA-Z@#?~ é]{0,40}") {
        if let Err(error) = Cron::parse(&text) {
            prop_assert!(text.get(error.place).is_some());
        }
    }
}
