//! What every [`OnlineStore`] must keep, one function per promise.
//!
//! An implementation stamps all of them onto itself with [`online_conformance!`](crate::online_conformance!), giving a
//! function that makes a [`Fixture`]: an empty store of its own for each promise.

#![allow(clippy::unwrap_used, reason = "these are tests, exported for the crates that implement the trait")]

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::DateTime;
use tidegate_registry::ids::{ProjectName, RegistryId, ViewId};
use tidegate_registry::switches::{Off, Serve, ViewSwitches};
use tidegate_registry::time::Instant;
use tokio::task::JoinSet;

use super::{Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineStore, Standing};

/// An empty store, opened twice as if by two processes, and what must live as long as it.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn OnlineStore>,
    /// The same store through connections of its own.
    pub twin: Arc<dyn OnlineStore>,
    /// Whose store it is.
    pub project: ProjectName,
    /// Dropped last.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Makes a test of every promise. Takes the path of an `async fn() -> Fixture`, seen from
/// the crate's root.
#[macro_export]
macro_rules! online_conformance {
    ($fixture:path) => {
        $crate::online_conformance! { @each $fixture;
            a_store_belongs_to_one_registry,
            nothing_is_read_before_the_cut_over,
            what_is_written_is_read,
            an_absent_entity_is_gone_after_the_next_cut_over,
            a_row_counts_until_it_expires,
            a_generation_can_be_begun_again,
            a_published_generation_is_never_wiped,
            rows_go_only_into_a_begun_generation,
            a_generation_with_another_count_is_not_finished,
            an_unfinished_generation_does_not_go_live,
            an_older_number_changes_nothing,
            cutting_over_twice_is_harmless,
            views_cut_over_together_or_not_at_all,
            an_older_generation_can_go_live_again,
            prune_keeps_what_may_be_needed,
            a_superseded_generation_is_known_to_be_whole,
            a_generation_is_scanned_in_pages,
            rows_change_in_place,
            an_overtaken_writer_changes_no_row,
            changes_left_half_done_need_a_new_generation,
            only_what_is_live_is_put_right,
            what_is_not_live_is_noticed,
            one_at_a_time_takes_care_of_a_view,
            keys_and_rows_of_any_generation_can_be_read,
            switches_outlive_publications_and_only_grow,
            an_older_switch_changes_nothing,
            readers_never_see_half_or_a_mix,
        }
    };
    (@each $fixture:path; $($promise:ident),* $(,)?) => {
        mod conformance {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture().await;
                $crate::online::conformance::$promise(&fixture).await;
                drop(fixture);
            })*
        }
    };
}

fn view(name: &str) -> ViewId {
    format!("{name}@v1").parse().unwrap()
}

fn at(secs: i64) -> Instant {
    DateTime::from_timestamp(secs, 0).unwrap()
}

fn row(key: &str, value: &str) -> EncodedRow {
    EncodedRow {
        entity_key: key.to_owned(),
        event_timestamp: at(100),
        expires_at: None,
        features: vec![("value".to_owned(), value.to_owned())],
    }
}

fn step(view: &ViewId, generation: u64, publish_number: u64) -> CutOver {
    CutOver {
        view: view.clone(),
        generation,
        publish_number,
        tag: format!("snapshot of {publish_number}"),
        defaults: "{}".to_owned(),
    }
}

async fn fill(store: &dyn OnlineStore, view: &ViewId, generation: u64, rows: &[EncodedRow]) {
    assert_eq!(store.begin_generation(view, generation).await.unwrap(), Begun::Empty);
    store.write(view, generation, rows).await.unwrap();
    store.finish_generation(view, generation, rows.len() as u64).await.unwrap();
}

async fn publish(store: &dyn OnlineStore, view: &ViewId, generation: u64, rows: &[EncodedRow]) {
    fill(store, view, generation, rows).await;
    store.cut_over(&[step(view, generation, generation)]).await.unwrap();
}

async fn value(store: &dyn OnlineStore, view: &ViewId, key: &str) -> Option<String> {
    let row = store.get(view, key, at(200)).await.unwrap()?;
    row.features.into_iter().next().map(|(_, text)| text)
}

/// Claiming again is harmless; another registry or project is refused.
pub async fn a_store_belongs_to_one_registry(fixture: &Fixture) {
    let (ours, theirs) = (RegistryId::generate(), RegistryId::generate());
    let project = fixture.project.clone();
    fixture.store.claim_owner(&project, ours).await.unwrap();
    fixture.twin.claim_owner(&project, ours).await.unwrap();
    let error = fixture.store.claim_owner(&project, theirs).await.unwrap_err();
    assert!(matches!(&error, OnlineError::Owned { registry, .. } if *registry == ours.to_string()), "{error:?}");
    let error = fixture.store.claim_owner(&"trains".parse().unwrap(), ours).await.unwrap_err();
    assert!(
        matches!(&error, OnlineError::Owned { project, .. } if *project == fixture.project.to_string()),
        "{error:?}"
    );
}

/// A generation that was filled is invisible, and a view that was never published is empty.
pub async fn nothing_is_read_before_the_cut_over(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    assert_eq!(value(store, &view, "x").await, None);
    assert_eq!(store.live(&view).await.unwrap(), None);
    fill(store, &view, 1, &[row("x", "1")]).await;
    assert_eq!(value(store, &view, "x").await, None);
    assert_eq!(store.live(&view).await.unwrap(), None);
    assert_eq!(store.count(&view, 1).await.unwrap(), 1);
}

/// Texts, times and keys come back as they were, whatever is in them, through another connection too.
pub async fn what_is_written_is_read(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let rows = [
        EncodedRow {
            entity_key: r"a\:b:ü".to_owned(),
            event_timestamp: DateTime::from_timestamp_micros(1_357_603_200_000_001).unwrap(),
            expires_at: Some(DateTime::from_timestamp_micros(9_357_603_200_000_007).unwrap()),
            features: vec![
                ("zeta".to_owned(), "[1.0,null,\"NaN\"]".to_owned()),
                ("alpha".to_owned(), "line\nbreak \"quote\" \\ \u{0} 🦀".to_owned()),
                ("empty".to_owned(), String::new()),
            ],
        },
        EncodedRow { entity_key: String::new(), event_timestamp: at(-5), expires_at: None, features: vec![] },
    ];
    publish(store, &view, 7, &rows).await;
    for written in &rows {
        let read = fixture.twin.get(&view, &written.entity_key, at(0)).await.unwrap().unwrap();
        let read = EncodedRow {
            entity_key: written.entity_key.clone(),
            event_timestamp: read.event_timestamp,
            expires_at: read.expires_at,
            features: read.features,
        };
        assert_eq!(read, *written);
    }
    let live = Live { generation: 7, publish_number: 7, tag: "snapshot of 7".to_owned() };
    assert_eq!(fixture.twin.live(&view).await.unwrap(), Some(live));
}

/// Nothing of the generation before shines through.
pub async fn an_absent_entity_is_gone_after_the_next_cut_over(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[row("x", "1"), row("y", "1")]).await;
    publish(store, &view, 2, &[row("y", "2")]).await;
    assert_eq!(value(store, &view, "x").await, None);
    assert_eq!(value(store, &view, "y").await.as_deref(), Some("2"));
}

/// Up to and without the instant of expiry, in the time that the reader gives.
pub async fn a_row_counts_until_it_expires(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[EncodedRow { expires_at: Some(at(200)), ..row("x", "1") }]).await;
    assert!(store.get(&view, "x", at(199)).await.unwrap().is_some());
    assert!(store.get(&view, "x", at(200)).await.unwrap().is_none());
    assert_eq!(store.count(&view, 1).await.unwrap(), 1);
}

/// What an interrupted try left is gone, finished or not.
pub async fn a_generation_can_be_begun_again(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let many: Vec<_> = (0..12_000).map(|i| row(&format!("k{i}"), "old")).collect();
    store.begin_generation(&view, 1).await.unwrap();
    store.write(&view, 1, &many).await.unwrap();
    fill(store, &view, 1, &[row("x", "half")]).await;
    fill(store, &view, 1, &[row("x", "1")]).await;
    store.cut_over(&[step(&view, 1, 1)]).await.unwrap();
    assert_eq!(store.count(&view, 1).await.unwrap(), 1);
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
}

/// Whoever rolls forward after a crash begins anew, also when the cut-over had come through.
pub async fn a_published_generation_is_never_wiped(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[row("x", "1")]).await;
    assert_eq!(store.begin_generation(&view, 1).await.unwrap(), Begun::Published);
    store.finish_generation(&view, 1, 1).await.unwrap();
    store.cut_over(&[step(&view, 1, 1)]).await.unwrap();
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
    publish(store, &view, 2, &[row("x", "2")]).await;
    assert_eq!(store.begin_generation(&view, 1).await.unwrap(), Begun::Published, "superseded, but kept for restores");
    assert_eq!(store.count(&view, 1).await.unwrap(), 1);
}

/// Not before it is begun, not after it is finished.
pub async fn rows_go_only_into_a_begun_generation(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let error = store.write(&view, 1, &[row("x", "1")]).await.unwrap_err();
    assert!(matches!(error, OnlineError::Generation { generation: 1, .. }), "{error:?}");
    fill(store, &view, 1, &[]).await;
    let error = store.write(&view, 1, &[row("x", "1")]).await.unwrap_err();
    assert!(matches!(error, OnlineError::Generation { generation: 1, .. }), "{error:?}");
    publish(store, &view, 2, &[row("x", "1"), row("x", "2")][..1]).await;
    assert!(store.write(&view, 2, &[row("x", "9")]).await.is_err());
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
}

/// A lost or doubled write shows; an entity written twice is one row with the later content.
pub async fn a_generation_with_another_count_is_not_finished(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    store.begin_generation(&view, 1).await.unwrap();
    store.write(&view, 1, &[row("x", "1")]).await.unwrap();
    store.write(&view, 1, &[row("x", "2")]).await.unwrap();
    let error = store.finish_generation(&view, 1, 2).await.unwrap_err();
    assert!(error.to_string().contains("holds 1 rows where 2 were expected"), "{error}");
    store.finish_generation(&view, 1, 1).await.unwrap();
    store.finish_generation(&view, 1, 1).await.unwrap();
    store.cut_over(&[step(&view, 1, 1)]).await.unwrap();
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("2"));
    assert!(store.finish_generation(&view, 3, 0).await.is_err());
}

/// Neither one that is being written nor one that does not exist.
pub async fn an_unfinished_generation_does_not_go_live(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    store.begin_generation(&view, 1).await.unwrap();
    for generation in [1, 2] {
        let error = store.cut_over(&[step(&view, generation, 1)]).await.unwrap_err();
        assert!(matches!(error, OnlineError::Generation { .. }), "{error:?}");
    }
    assert_eq!(store.live(&view).await.unwrap(), None);
}

/// A writer that was overtaken, for example by a restore, changes nothing.
pub async fn an_older_number_changes_nothing(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    fill(store, &view, 4, &[row("x", "late")]).await;
    publish(store, &view, 5, &[row("x", "5")]).await;
    for number in [4, 5] {
        let error = fixture.twin.cut_over(&[step(&view, 4, number)]).await.unwrap_err();
        assert!(matches!(error, OnlineError::Superseded { live: 5, .. }), "{error:?}");
    }
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("5"));
}

/// The reply may have been lost.
pub async fn cutting_over_twice_is_harmless(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[row("x", "1")]).await;
    let live = store.live(&view).await.unwrap();
    store.cut_over(&[step(&view, 1, 1)]).await.unwrap();
    assert_eq!(store.live(&view).await.unwrap(), live);
    store.cut_over(&[]).await.unwrap();
}

/// One view that cannot go holds back all.
pub async fn views_cut_over_together_or_not_at_all(fixture: &Fixture) {
    let (store, a, b) = (&*fixture.store, view("a"), view("b"));
    fill(store, &a, 1, &[row("x", "a1")]).await;
    publish(store, &b, 2, &[row("x", "b2")]).await;
    fill(store, &b, 1, &[row("x", "b1")]).await;
    let error = store.cut_over(&[step(&a, 1, 1), step(&b, 1, 1)]).await.unwrap_err();
    assert!(matches!(error, OnlineError::Superseded { .. }), "{error:?}");
    assert_eq!(value(store, &a, "x").await, None);
    assert_eq!(value(store, &b, "x").await.as_deref(), Some("b2"));
}

/// A restore: an old generation under a new number.
pub async fn an_older_generation_can_go_live_again(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[row("x", "1")]).await;
    publish(store, &view, 2, &[row("x", "2")]).await;
    store.cut_over(&[step(&view, 1, 3)]).await.unwrap();
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
    assert_eq!(store.prune(&view, 0, Duration::ZERO, 3).await.unwrap(), [2]);
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
}

/// The live one, the newest superseded ones, young ones, and those of open runs stay.
pub async fn prune_keeps_what_may_be_needed(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    for generation in 1..=4 {
        publish(store, &view, generation, &[row("x", "1")]).await;
    }
    let other = super::conformance::view("b");
    publish(store, &other, 1, &[row("x", "other")]).await;
    fill(store, &view, 8, &[row("x", "forgotten")]).await;
    store.begin_generation(&view, 9).await.unwrap();
    store.write(&view, 9, &[row("x", "open")]).await.unwrap();
    assert_eq!(store.prune(&view, 0, Duration::from_secs(3600), 0).await.unwrap(), [0; 0], "too young");
    assert_eq!(store.prune(&view, 2, Duration::ZERO, 9).await.unwrap(), [1, 8]);
    for (generation, rows) in [(1, 0), (2, 1), (3, 1), (4, 1), (8, 0), (9, 1)] {
        assert_eq!(store.count(&view, generation).await.unwrap(), rows, "{generation}");
    }
    assert_eq!(store.prune(&view, 0, Duration::ZERO, 10).await.unwrap(), [2, 3, 9]);
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"));
    assert_eq!(value(store, &other, "x").await.as_deref(), Some("other"));
    let error = store.cut_over(&[step(&view, 2, 9)]).await.unwrap_err();
    assert!(matches!(error, OnlineError::Generation { .. }), "{error:?}");
}

/// How many rows a kept generation has is known, live or not.
pub async fn a_superseded_generation_is_known_to_be_whole(fixture: &Fixture) {
    let (store, level) = (&*fixture.store, view("level"));
    publish(store, &level, 1, &[row("a", "1"), row("b", "1")]).await;
    publish(store, &level, 2, &[row("a", "2")]).await;
    assert_eq!(store.rows_kept(&level, 1).await.unwrap(), 2);
    assert_eq!(store.rows_kept(&level, 2).await.unwrap(), 1);
    assert_eq!(store.rows_kept(&level, 3).await.unwrap(), 0);
}

/// Every row once, in byte order of keys.
pub async fn a_generation_is_scanned_in_pages(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let mut keys: Vec<String> = (0..25).map(|i| format!("k{i}")).chain(["é".into(), "Z".into()]).collect();
    let rows: Vec<_> = keys.iter().map(|key| row(key, "1")).collect();
    fill(store, &view, 1, &rows).await;
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = store.scan(&view, 1, after.as_deref(), 10).await.unwrap();
        after = page.last().map(|(key, _)| key.clone()).or(after);
        if page.is_empty() {
            break;
        }
        read.extend(page.into_iter().map(|(key, _)| key));
    }
    keys.sort_unstable();
    assert_eq!(read, keys);
}

/// Added, changed and removed, and the count with them; repeating it changes nothing.
pub async fn rows_change_in_place(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let keys = ["same", "changed", "removed"];
    publish(store, &view, 1, &keys.map(|key| row(key, "1"))).await;
    let mut fewer = row("changed", "2");
    fewer.features = vec![("other".to_owned(), "2".to_owned())];
    let changes = Changes { added: vec![row("added", "2")], changed: vec![fewer], removed: vec!["removed".to_owned()] };
    for _ in 0..2 {
        assert_eq!(store.begin_upsert(&view, 1, 2).await.unwrap(), InPlace::Ready);
        store.upsert(&view, 1, 2, &changes).await.unwrap();
        store.finish_upsert(&view, 1, 2, 3).await.unwrap();
    }
    store.cut_over(&[step(&view, 1, 2)]).await.unwrap();
    assert_eq!(store.begin_upsert(&view, 1, 2).await.unwrap(), InPlace::Published);
    assert_eq!(value(store, &view, "same").await.as_deref(), Some("1"));
    assert_eq!(value(store, &view, "added").await.as_deref(), Some("2"));
    assert_eq!(value(store, &view, "removed").await, None);
    let changed = fixture.twin.get(&view, "changed", at(200)).await.unwrap().unwrap();
    assert_eq!(changed.features, [("other".to_owned(), "2".to_owned())], "nothing of the row before shines through");
    assert_eq!(store.count(&view, 1).await.unwrap(), 3);
    assert_eq!(store.live(&view).await.unwrap().unwrap().publish_number, 2);
    // What was removed may come back.
    assert_eq!(store.begin_upsert(&view, 1, 3).await.unwrap(), InPlace::Ready);
    let back = Changes { added: vec![row("removed", "3")], ..Changes::default() };
    store.upsert(&view, 1, 3, &back).await.unwrap();
    store.finish_upsert(&view, 1, 3, 4).await.unwrap();
    store.cut_over(&[step(&view, 1, 3)]).await.unwrap();
    assert_eq!(value(store, &view, "removed").await.as_deref(), Some("3"));
    assert_eq!(store.count(&view, 1).await.unwrap(), 4);
}

/// Neither what the later one wrote nor what it removed.
pub async fn an_overtaken_writer_changes_no_row(fixture: &Fixture) {
    let (store, twin, view) = (&*fixture.store, &*fixture.twin, view("a"));
    publish(store, &view, 1, &[row("x", "1"), row("y", "1")]).await;
    assert_eq!(store.begin_upsert(&view, 1, 2).await.unwrap(), InPlace::Ready);
    store.upsert(&view, 1, 2, &Changes::default()).await.unwrap();
    store.cut_over(&[step(&view, 1, 2)]).await.unwrap();
    assert_eq!(twin.begin_upsert(&view, 1, 3).await.unwrap(), InPlace::Ready);
    let later = Changes { changed: vec![row("x", "3")], removed: vec!["y".to_owned()], ..Changes::default() };
    twin.upsert(&view, 1, 3, &later).await.unwrap();
    let stale = Changes { changed: vec![row("x", "2"), row("y", "2")], ..Changes::default() };
    let error = store.upsert(&view, 1, 2, &stale).await.unwrap_err();
    assert!(matches!(error, OnlineError::Superseded { asked: 2, .. }), "{error:?}");
    let error = store.begin_upsert(&view, 1, 1).await.unwrap_err();
    assert!(matches!(error, OnlineError::Superseded { .. }), "{error:?}");
    twin.cut_over(&[step(&view, 1, 3)]).await.unwrap();
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("3"));
    assert_eq!(value(store, &view, "y").await, None);
}

/// Whoever comes after a publication that never came to cut over cannot know what the rows are like.
pub async fn changes_left_half_done_need_a_new_generation(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    assert_eq!(store.begin_upsert(&view, 1, 2).await.unwrap(), InPlace::Gone);
    publish(store, &view, 1, &[row("x", "1")]).await;
    assert!(store.upsert(&view, 1, 2, &Changes::default()).await.is_err(), "not begun");
    assert_eq!(store.begin_upsert(&view, 1, 2).await.unwrap(), InPlace::Ready);
    assert_eq!(store.begin_upsert(&view, 1, 3).await.unwrap(), InPlace::Gone);
    publish(store, &view, 3, &[row("x", "3")]).await;
    assert_eq!(store.begin_upsert(&view, 1, 4).await.unwrap(), InPlace::Gone);
    assert_eq!(store.begin_upsert(&view, 3, 4).await.unwrap(), InPlace::Ready);
}

/// And only under the number that it is live under.
pub async fn only_what_is_live_is_put_right(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    publish(store, &view, 1, &[row("x", "wrong"), row("stray", "1")]).await;
    let changes = Changes {
        added: vec![row("missing", "1")],
        changed: vec![row("x", "right")],
        removed: vec!["stray".to_owned()],
    };
    store.repair(&view, Expected { generation: 1, publish_number: 1 }, &changes).await.unwrap();
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("right"));
    assert_eq!(value(store, &view, "missing").await.as_deref(), Some("1"));
    assert_eq!(value(store, &view, "stray").await, None);
    publish(store, &view, 2, &[row("x", "2")]).await;
    let error = store.repair(&view, Expected { generation: 1, publish_number: 1 }, &changes).await.unwrap_err();
    assert!(matches!(error, OnlineError::Superseded { .. }), "{error:?}");
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("2"));
}

/// Nothing, something older, something newer.
pub async fn what_is_not_live_is_noticed(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let expected = |generation| Expected { generation, publish_number: generation };
    assert!(matches!(store.check(&view, expected(1)).await.unwrap(), Standing::NotLive(_)));
    publish(store, &view, 1, &[row("x", "1")]).await;
    assert_eq!(store.check(&view, expected(1)).await.unwrap(), Standing::Whole);
    assert!(matches!(store.check(&view, expected(2)).await.unwrap(), Standing::NotLive(_)));
    publish(store, &view, 2, &[]).await;
    assert_eq!(store.check(&view, expected(1)).await.unwrap(), Standing::Ahead);
    assert_eq!(fixture.twin.check(&view, expected(2)).await.unwrap(), Standing::Whole);
}

/// Until its claim runs out.
pub async fn one_at_a_time_takes_care_of_a_view(fixture: &Fixture) {
    let (store, twin, view) = (&*fixture.store, &*fixture.twin, view("a"));
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(50));
    assert!(store.claim_care(&view, "one", long).await.unwrap());
    assert!(store.claim_care(&view, "one", short).await.unwrap());
    tokio::time::sleep(2 * short).await;
    assert!(twin.claim_care(&view, "two", long).await.unwrap());
    assert!(!store.claim_care(&view, "one", long).await.unwrap());
    assert!(store.claim_care(&super::conformance::view("b"), "one", long).await.unwrap());
}

/// By whoever compares them with the lake.
pub async fn keys_and_rows_of_any_generation_can_be_read(fixture: &Fixture) {
    let (store, view) = (&*fixture.store, view("a"));
    let rows: Vec<_> = (0..20_000).map(|i| row(&format!("k{i}"), "1")).collect();
    fill(store, &view, 1, &rows).await;
    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = store.keys(&view, 1, cursor.as_deref()).await.unwrap();
        keys.extend(page);
        match next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), rows.len());
    let read = store.rows(&view, 1, &["k7".to_owned(), "none".to_owned()]).await.unwrap();
    assert_eq!(read.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
}

fn switches(revision: u64, off: &[(&str, Serve, u16)]) -> ViewSwitches {
    let off = off.iter().map(|(feature, serve, below)| ((*feature).to_owned(), Off { serve: *serve, below: *below }));
    ViewSwitches { revision, off: off.collect() }
}

/// Also when they were set before anything was live, and until they are lifted; each view by itself.
pub async fn switches_outlive_publications_and_only_grow(fixture: &Fixture) {
    let (store, twin, view) = (&*fixture.store, &*fixture.twin, view("a"));
    assert_eq!(store.switches(&view).await.unwrap(), ViewSwitches::default());
    let off = switches(3, &[("value", Serve::Null, 10_000), ("other", Serve::Default, 25)]);
    assert_eq!(store.set_switches(&view, &off).await.unwrap(), 3);
    publish(store, &view, 1, &[row("x", "1")]).await;
    publish(store, &view, 2, &[row("x", "2")]).await;
    store.cut_over(&[step(&view, 1, 3)]).await.unwrap();
    store.prune(&view, 0, Duration::ZERO, 4).await.unwrap();
    assert_eq!(twin.switches(&view).await.unwrap(), off);
    assert_eq!(twin.switches(&super::conformance::view("b")).await.unwrap(), ViewSwitches::default());
    assert_eq!(value(store, &view, "x").await.as_deref(), Some("1"), "rows stay as they are");
    assert_eq!(store.set_switches(&view, &switches(4, &[])).await.unwrap(), 4);
    assert_eq!(twin.switches(&view).await.unwrap(), switches(4, &[]));
}

/// Whoever was held up tells what is there by now.
pub async fn an_older_switch_changes_nothing(fixture: &Fixture) {
    let (store, twin, view) = (&*fixture.store, &*fixture.twin, view("a"));
    let newer = switches(10, &[("value", Serve::Default, 10_000)]);
    assert_eq!(store.set_switches(&view, &newer).await.unwrap(), 10);
    assert_eq!(twin.set_switches(&view, &switches(9, &[])).await.unwrap(), 10);
    assert_eq!(twin.set_switches(&view, &newer).await.unwrap(), 10, "twice is harmless");
    assert_eq!(store.switches(&view).await.unwrap(), newer);
    // All at once: the highest wins, and its features with it.
    let mut writers = JoinSet::new();
    for revision in 11..=20 {
        let (store, view) = (Arc::clone(if revision % 2 == 0 { &fixture.store } else { &fixture.twin }), view.clone());
        let below = u16::try_from(revision).unwrap();
        writers.spawn(async move {
            store.set_switches(&view, &switches(revision, &[("value", Serve::Null, below)])).await.unwrap()
        });
    }
    while let Some(written) = writers.join_next().await {
        assert!(written.unwrap() >= 11);
    }
    assert_eq!(store.switches(&view).await.unwrap(), switches(20, &[("value", Serve::Null, 20)]));
}

/// While generations are written, cut over and pruned, a reader of two views sees both from one run, whole.
pub async fn readers_never_see_half_or_a_mix(fixture: &Fixture) {
    const KEYS: usize = 300;
    const GENERATIONS: u64 = 12;
    let views = [view("a"), view("b")];
    let rows = |generation: u64| -> Vec<EncodedRow> {
        (0..KEYS).map(|i| row(&format!("k{i}"), &generation.to_string())).collect()
    };
    let write = async |store: &dyn OnlineStore, generation: u64| {
        for view in &views {
            fill(store, view, generation, &rows(generation)).await;
        }
        store.cut_over(&views.clone().map(|view| step(&view, generation, generation))).await.unwrap();
        for view in &views {
            store.prune(view, 1, Duration::ZERO, generation).await.unwrap();
        }
    };
    write(&*fixture.store, 1).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..3usize {
        let (twin, done, views) = (Arc::clone(&fixture.twin), Arc::clone(&done), views.clone());
        readers.spawn(async move {
            let (mut reads, mut newest) = (0u32, 0);
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let keys: Vec<_> = (0..20)
                    .map(|i| (views[i % 2].clone(), format!("k{}", (i * 7 + reader * 31 + reads as usize) % KEYS)))
                    .collect();
                let read = twin.get_many(&keys, at(200)).await.unwrap();
                let seen: Vec<String> = read.into_iter().map(|row| row.unwrap().features[0].1.clone()).collect();
                assert!(seen.iter().all(|value| *value == seen[0]), "a mix: {seen:?}");
                let generation: u64 = seen[0].parse().unwrap();
                assert!(generation >= newest, "went back from {newest} to {generation}");
                (reads, newest) = (reads + 1, generation);
            }
        });
    }
    for generation in 2..=GENERATIONS {
        write(&*fixture.store, generation).await;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
}
