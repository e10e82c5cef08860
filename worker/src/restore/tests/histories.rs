//! Whatever was computed, redone and taken back in whatever order: a restore brings back what was.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::restore::plan::{PlanError, Target};
use tidegate_registry::time::{Instant, format_instant};

use super::{DEFINITIONS, Published, all_published, newest_snapshot, planned, restored, sell, views};
use crate::tests::{World, at, interval};

#[derive(Debug, Clone)]
enum Act {
    /// Computes a day; by no shop at all, too.
    Compute { day: u32, shops: u8, amount: u32 },
    /// Goes back to an earlier snapshot with some of the views, and perhaps undoes that.
    GoBack { to: Index, views: u8, undo: bool },
    /// Takes one run back.
    TakeBack { run: Index },
}

fn compute() -> impl Strategy<Value = Act> {
    // A total above 1000 is set aside.
    (1..=4_u32, 0..16_u8, 1..600_u32).prop_map(|(day, shops, amount)| Act::Compute { day, shops, amount })
}

fn act() -> impl Strategy<Value = Act> {
    let go_back = (any::<Index>(), prop_oneof![2 => Just(15_u8), 1 => 1..15_u8], any::<bool>());
    prop_oneof![
        3 => compute(),
        2 => go_back.prop_map(|(to, views, undo)| Act::GoBack { to, views, undo }),
        1 => any::<Index>().prop_map(|run| Act::TakeBack { run }),
    ]
}

type All = BTreeMap<ViewId, Published>;

/// What was recorded when.
struct Lived {
    world: World,
    computed: u32,
    /// What everything was before any snapshot, and right after each.
    was: Vec<(Option<SnapshotId>, All)>,
    /// Runs, each with the place of its snapshot.
    runs: Vec<(RunId, usize)>,
}

impl Lived {
    async fn new() -> Self {
        let world = World::with(DEFINITIONS).await;
        let was = vec![(None, all_published(&world).await)];
        Self { world, computed: 0, was, runs: Vec::new() }
    }

    fn now(&self) -> &All {
        &self.was.last().unwrap().1
    }

    async fn note(&mut self) {
        self.was.push((Some(newest_snapshot(&self.world).await), all_published(&self.world).await));
    }

    async fn live(&mut self, act: &Act) {
        match act {
            Act::Compute { day, shops, amount } => {
                sell(&self.world, *day, *shops, *amount).await;
                self.computed += 1;
                let run = self.world.succeed(*day, self.computed).await;
                self.note().await;
                self.runs.push((run.id, self.was.len() - 1));
            }
            Act::GoBack { to, views: mask, undo } => {
                let Some(last) = self.was.len().checked_sub(1).filter(|last| *last > 0) else { return };
                let to = 1 + to.index(last);
                let chosen: Vec<ViewId> =
                    (0..).zip(views()).filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, view)| view).collect();
                let went = self.go_back(to, &chosen).await;
                if went && *undo {
                    assert!(self.go_back(last, &chosen).await, "what was undone can be undone");
                }
            }
            Act::TakeBack { run } => {
                if !self.runs.is_empty() {
                    let (run, at) = self.runs[run.index(self.runs.len())];
                    self.take_back(run, at).await;
                }
            }
        }
    }

    /// Whether there was anything to do.
    async fn go_back(&mut self, to: usize, chosen: &[ViewId]) -> bool {
        let target = Target::To(self.was[to].0.unwrap());
        let mut expected = self.now().clone();
        for view in chosen {
            expected.insert(view.clone(), self.was[to].1[view].clone());
        }
        let plan = planned(&self.world, chosen, target.clone()).await.unwrap();
        if plan.is_nothing() {
            for view in chosen {
                assert_eq!(self.now()[view].ledger, expected[view].ledger, "there is something to do with {view}");
            }
            return false;
        }
        restored(&self.world, chosen, target.clone()).await;
        self.note().await;
        for (view, mut expected) in expected {
            let now = &self.now()[&view];
            let state = state(&view, now);
            // What was computed after a later interval did not go online then, and may now.
            if chosen.contains(&view) && state.as_ref().is_some_and(|state| *state == shown(now)) {
                expected.online.clone_from(&now.online);
            }
            assert_eq!(*now, expected, "{view} is not what it was");
        }
        let again = planned(&self.world, chosen, target).await.unwrap();
        assert!(again.is_nothing(), "repeating it does something: {:#?}", again.request.plan);
        true
    }

    async fn take_back(&mut self, run: RunId, at: usize) {
        let plan = match planned(&self.world, &[], Target::Run(run)).await {
            Ok(plan) if plan.is_nothing() => return,
            Ok(plan) => plan,
            Err(PlanError::Refused(why)) => {
                assert!(why.iter().all(|why| why.contains("was replaced by the run")), "{why:?}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut expected = self.now().clone();
        for (view, what) in &plan.request.plan.views {
            let of = what.leaves[0].interval;
            let before = &self.was[at - 1].1[view];
            let view = expected.get_mut(view).unwrap();
            view.ledger.retain(|entry| entry.interval != of);
            view.ledger.extend(before.ledger.iter().filter(|entry| entry.interval == of).cloned());
            view.ledger.sort_by_key(|entry| std::cmp::Reverse(entry.interval.end()));
            view.newest = view.ledger.first().map(|entry| entry.interval);
            let start = format_instant(of.start()).replace('Z', "");
            for (now, before) in [(&mut view.rows, &before.rows), (&mut view.aside, &before.aside)] {
                now.remove(&start);
                now.extend(before.get_key_value(&start).map(|(start, rows)| (start.clone(), rows.clone())));
            }
        }
        // What is online then is compared with the lake by the restore itself.
        restored(&self.world, &[], Target::Run(run)).await;
        self.note().await;
        for (view, expected) in &expected {
            let now = self.now()[view].clone();
            let expected = Published { online: now.online.clone(), tag: now.tag.clone(), ..expected.clone() };
            assert_eq!(now, expected, "{view} is not what it would be without the run");
            let newest = now.newest.map(|newest| format_instant(newest.start()).replace('Z', ""));
            let newest = newest.and_then(|newest| now.rows.get(&newest)).map_or(0, Vec::len);
            if state(view, &now).is_none() {
                assert_eq!(now.online.len(), newest, "{view} is online by its newest interval");
            }
        }
        assert!(planned(&self.world, &[], Target::Run(run)).await.is_ok_and(|plan| plan.is_nothing()));
    }
}

/// What shops should have online of a partial view, by all of its rows: that of their newest one that is alive.
fn state(view: &ViewId, published: &Published) -> Option<Vec<(String, String)>> {
    let ttl = chrono::Duration::days(match view.name.as_str() {
        "last_receipt" => 2,
        "last_amount" => 3,
        _ => return None,
    });
    let mut newest: BTreeMap<String, (Instant, String)> = BTreeMap::new();
    for row in published.rows.values().flatten() {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (time, value) = (at(cells[1]), cells[2].to_owned());
        let found = newest.entry(cells[0].to_owned()).or_insert((time, value.clone()));
        if found.0 < time {
            *found = (time, value);
        }
    }
    let end = published.newest.map(|newest| newest.end());
    newest.retain(|_, (time, _)| end.is_some_and(|end| *time + ttl > end));
    Some(newest.into_iter().map(|(shop, (_, value))| (shop, value)).collect())
}

/// What shops have online.
fn shown(published: &Published) -> Vec<(String, String)> {
    let row = |row: &String| {
        let shop = row.split(' ').next().unwrap_or_default();
        let value = row.rsplit('"').nth(1).unwrap_or_default();
        (shop.to_owned(), value.to_owned())
    };
    published.online.iter().map(row).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 6, failure_persistence: None, ..ProptestConfig::default() }
}

/// A shop that only the second day has is alive at the end of the fourth, whose three shops are others.
#[test]
fn entities_that_the_newest_interval_does_not_have_count_too() {
    block_on(async {
        let mut lived = Lived::new().await;
        for (day, shops, amount) in [(1, 15, 300), (4, 14, 73), (2, 3, 234)] {
            lived.live(&Act::Compute { day, shops, amount }).await;
        }
        let (run, at) = lived.runs[0];
        lived.take_back(run, at).await;
    });
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn whatever_happened_a_restore_brings_back_what_was(acts in proptest::collection::vec(act(), 4..8)) {
        block_on(async {
            let mut lived = Lived::new().await;
            for act in [Act::Compute { day: 1, shops: 15, amount: 300 }].iter().chain(&acts) {
                lived.live(act).await;
            }
            // At last to the very first one, by everything.
            lived.go_back(1, &views()).await;
        });
    }
}

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn a_restore_and_a_replay_are_a_replay(computed in proptest::collection::vec(compute(), 2..5), to in any::<Index>()) {
        block_on(async {
            let mut lived = Lived::new().await;
            for act in &computed {
                lived.live(act).await;
            }
            let expected = lived.now().clone();
            let to = 1 + to.index(computed.len());
            lived.go_back(to, &views()).await;
            // Under publish numbers that are later than the marks of what was taken back, so nothing is passed over.
            for act in &computed[to..] {
                lived.live(act).await;
            }
            for (view, expected) in &expected {
                assert_eq!(lived.now()[view].values(), expected.values(), "{view}");
            }
        });
    }
}

/// A view whose only publication is taken back is empty, offline and online, as one that was never published.
#[tokio::test]
async fn what_had_never_been_published_before_is_empty_again() {
    let mut lived = Lived::new().await;
    lived.live(&Act::Compute { day: 1, shops: 7, amount: 400 }).await;
    let (run, at) = lived.runs[0];
    assert!(lived.now().values().all(|view| view.rows.len() == 1 && !view.online.is_empty()));
    assert!(!lived.now()[&super::view("revenue")].aside.is_empty());
    lived.take_back(run, at).await;
    for (view, now) in lived.now() {
        assert_eq!((now.ledger.len(), now.rows.len(), now.aside.len(), now.online.len()), (0, 0, 0, 0), "{view}");
        assert_eq!(now.newest, None);
        assert_eq!(lived.world.online(&view.to_string(), "a", super::NOW).await, None);
    }
    // The undoing brings all of it back, and the next run begins anew.
    assert!(lived.go_back(1, &views()).await);
    assert!(lived.go_back(2, &views()).await);
    lived.live(&Act::Compute { day: 2, shops: 3, amount: 10 }).await;
    assert_eq!(lived.now()[&super::view("ranking")].newest, Some(interval(2)));
}
