//! A store whose calls go wrong: for tests of whoever works over a [`Store`].
//!
//! A [`FaultStore`] passes every call on to a real store, as a [`Script`] says: late, not at all, or done and reported as
//! an outage, which is what a caller sees who loses the answer to a commit. Effects own what they need, so one that its
//! caller gave up on can still happen later, as a packet that was on its way. The script also decides how time passes
//! and how an effect is carried out, so simulations bring their own clock.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use tidegate_registry::audit::{AuditEvent, AuditFilter, AuditVerdict, NewAuditEvent};
use tidegate_registry::care::{self, Care, PrunedRows, Rebuild, TableRows, ViewKeep};
use tidegate_registry::dataset::{Dataset, DatasetFilter, DatasetPin, Datasets};
use tidegate_registry::drill::{Drill, DrillEnd, Drilling, Proven};
use tidegate_registry::figures::{Figures, Measuring};
use tidegate_registry::firing::{Firing, FiringProgress, Happened, NewFiring, Triggering};
use tidegate_registry::ids::{
    ApprovalId, DagName, DatasetId, DrillId, DrillName, LeaseToken, NoticeId, RegistryId, RunId, SnapshotId, ViewId,
};
use tidegate_registry::model::{Alike, Project};
use tidegate_registry::notice::{
    Delivery, DeliveryClaim, DeliveryEnd, NewNotice, Notice, NoticeFilter, Outbox, Subscription,
};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::restore::policy::{Approval, Approving};
use tidegate_registry::restore::{
    AsOf, BadMark, HoldPolicy, Holds, Restore, RestoreRecord, RestoreRequest, Restoring, ResumeRequest, Validation,
};
use tidegate_registry::run::{Claim, Intent, NewRun, Pins, Run, Task};
use tidegate_registry::store::{
    ApplyRecord, ApplyRequest, CheckFilter, CheckRow, ClaimRequest, DagHistory, DagState, Decision, DefinitionVersion,
    IntentRequest, LedgerEntry, Listener, LogLine, PlanStep, PoolState, QueueState, Record, Recorded, RegistryInfo,
    Result, RunFilter, Snapshot, Store, StoreError, TaskEnd, ViewState, WaitingTask, WorkerBeat, WorkerRow,
};
use tidegate_registry::switches::{SwitchChange, Switches, Switching, ViewSwitches};
use tidegate_registry::time::Instant;
use tokio::task::JoinSet;

/// What a call does to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What was asked for, before the caller hears anything.
    Now,
    /// Nothing.
    Never,
    /// What was asked for, so much after the caller was answered.
    Late(Duration),
}

/// What the caller of a call hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// What the store said; an outage when it has not been asked yet.
    Truth,
    /// [`StoreError::Unavailable`].
    Outage,
    /// Nothing, ever: the caller is about to die, or has to give up by itself.
    Silence,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Passes before the effect.
    pub before: Duration,
    /// What happens to the store.
    pub effect: Effect,
    /// Passes between the effect and the answer.
    pub after: Duration,
    /// What the caller hears.
    pub answer: Answer,
}

impl Fault {
    /// All is well.
    pub const NONE: Self =
        Self { before: Duration::ZERO, effect: Effect::Now, after: Duration::ZERO, answer: Answer::Truth };
    /// An outage: nothing is done.
    pub const REFUSED: Self = Self { effect: Effect::Never, answer: Answer::Outage, ..Self::NONE };
    /// It worked, but the caller is told of an outage.
    pub const ANSWER_LOST: Self = Self { answer: Answer::Outage, ..Self::NONE };

    /// The caller is told of an outage, and what it asked for happens so much later.
    pub fn late(delay: Duration) -> Self {
        Self { effect: Effect::Late(delay), answer: Answer::Outage, ..Self::NONE }
    }
}

/// An effect on its way: boxed, so that a [`Script`] can carry it out in its own manner.
pub type Carried<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Decides what goes wrong.
#[async_trait]
pub trait Script: fmt::Debug + Send + Sync {
    /// What becomes of the next call, which is of the method of that name.
    fn next(&self, method: &'static str) -> Fault;

    /// Lets time pass.
    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
    }

    /// Carries out the effect of a call of `method`.
    async fn carry_out(&self, _method: &'static str, effect: Carried<'_>) {
        effect.await;
    }
}

/// A store that fails as its script says.
pub struct FaultStore {
    inner: Arc<dyn Store>,
    script: Arc<dyn Script>,
    /// Effects on their way.
    late: Mutex<JoinSet<()>>,
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("inner", &self.inner).field("script", &self.script).finish_non_exhaustive()
    }
}

impl FaultStore {
    /// Passes calls on to `inner` as `script` says. Late effects are given up when this is dropped.
    pub fn new(inner: Arc<dyn Store>, script: Arc<dyn Script>) -> Self {
        Self { inner, script, late: Mutex::default() }
    }

    async fn call<T: Send + 'static>(
        &self,
        method: &'static str,
        effect: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let fault = self.script.next(method);
        self.pause(fault.before).await;
        let script = Arc::clone(&self.script);
        let told = match fault.effect {
            Effect::Now => Some(carried_out(&*script, method, effect).await),
            Effect::Never => None,
            Effect::Late(delay) => {
                self.late.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                    script.pause(delay).await;
                    // Nobody is left to hear it.
                    drop(carried_out(&*script, method, effect).await);
                });
                None
            }
        };
        self.pause(fault.after).await;
        match (fault.answer, told) {
            (Answer::Truth, Some(told)) => told,
            (Answer::Silence, _) => std::future::pending().await,
            _ => Err(StoreError::Unavailable(format!("`{method}` was meant to fail").into())),
        }
    }

    async fn pause(&self, pause: Duration) {
        if !pause.is_zero() {
            self.script.pause(pause).await;
        }
    }
}

async fn carried_out<T: Send>(
    script: &dyn Script,
    method: &'static str,
    effect: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    let mut told = None;
    script.carry_out(method, Box::pin(async { told = Some(effect.await) })).await;
    told.unwrap_or_else(|| Err(StoreError::Unavailable("the script did not carry the call out".into())))
}

/// Every method of a trait, its arguments, and how they are handed on once they are owned; then those written out.
macro_rules! pass_on {
    ($trait:ident {
        $($method:ident($($arg:ident: $type:ty),*) -> $answer:ty => ($($given:expr),*);)*
    } $($written:tt)*) => {
        #[async_trait]
        impl $trait for FaultStore {
            $(async fn $method(&self, $($arg: $type),*) -> Result<$answer> {
                let inner = Arc::clone(&self.inner);
                $(let $arg = $arg.to_owned();)*
                self.call(stringify!($method), async move { inner.$method($($given),*).await }).await
            })*
            $($written)*
        }
    };
}

pass_on! {
    Store {
        info() -> RegistryInfo => ();
        apply(request: ApplyRequest) -> i64 => (request);
        applies() -> Vec<ApplyRecord> => ();
        project(revision: Option<i64>) -> (i64, Project) => (revision);
        definition_versions(kind: DefinitionKind, name: &str) -> Vec<DefinitionVersion> => (kind, &name);
        dags_due(now: Instant, limit: u32) -> Vec<DagState> => (now, limit);
        dags() -> Vec<DagState> => ();
        next_due() -> Option<Instant> => ();
        plan(step: PlanStep, now: Instant) -> () => (step, now);
        plan_all(steps: &[PlanStep], now: Instant) -> Vec<Result<()>> => (&steps, now);
        ticks(dag: &DagName, from: Instant, to: Instant) -> Vec<Instant> => (&dag, from, to);
        dag_history(dag: &DagName, views: &[ViewId]) -> DagHistory => (&dag, &views);
        dag_pause(dag: &DagName, paused: bool, actor: &str, now: Instant) -> () => (&dag, paused, &actor, now);
        runs_create(runs: Vec<NewRun>, now: Instant) -> Vec<RunId> => (runs, now);
        runs(filter: &RunFilter) -> Vec<Run> => (&filter);
        run(id: RunId) -> (Run, Vec<Task>) => (id);
        runs_by_prefix(prefix: &str) -> Vec<RunId> => (&prefix);
        runs_open() -> Vec<Run> => ();
        run_admit(id: RunId) -> () => (id);
        runs_admit(ids: &[RunId]) -> () => (&ids);
        run_wait_reason(id: RunId, reason: &str) -> () => (id, &reason);
        run_cancel(id: RunId, actor: &str, now: Instant) -> () => (id, &actor, now);
        run_retry(id: RunId, attempts_max: u32, actor: &str, now: Instant) -> RunId => (id, attempts_max, &actor, now);
        run_override(id: RunId, decision: Decision) -> RunId => (id, decision);
        run_readmit(id: RunId, view: &ViewId, decision: Decision) -> RunId => (id, &view, decision);
        latest_runs(dag: &DagName, from: Instant, to: Instant) -> Vec<Run> => (&dag, from, to);
        run_logs(id: RunId) -> Vec<LogLine> => (id);
        task_claim(request: &ClaimRequest, now: Instant) -> Vec<Claim> => (&request, now);
        task_heartbeat(token: LeaseToken, lease: Duration) -> () => (token, lease);
        task_end(token: LeaseToken, end: TaskEnd, now: Instant) -> () => (token, end, now);
        task_log(token: LeaseToken, lines: &[(String, String)], now: Instant) -> () => (token, &lines, now);
        leases_release(owner: &str) -> u64 => (&owner);
        lease_owners() -> Vec<String> => ();
        view_states(views: &[ViewId]) -> IndexMap<ViewId, ViewState> => (&views);
        recorded(view: &ViewId, before: Instant, alike: Option<Alike>, limit: u32) -> Vec<Recorded>
            => (&view, before, alike, limit);
        recorded_in(snapshot: SnapshotId, view: &ViewId) -> Recorded => (snapshot, &view);
        manifest(view: &ViewId, before: Option<Instant>) -> Option<Pins> => (&view, before);
        ledger(view: &ViewId, until: Option<Instant>, limit: u32) -> Vec<LedgerEntry> => (&view, until, limit);
        intent_take(token: LeaseToken, request: IntentRequest, now: Instant) -> Intent => (token, request, now);
        intent(run: RunId) -> Option<Intent> => (run);
        record(token: LeaseToken, record: Record, now: Instant) -> () => (token, record, now);
        snapshot(id: SnapshotId) -> Snapshot => (id);
        checks(filter: &CheckFilter) -> Vec<CheckRow> => (&filter);
        worker_heartbeat(beat: &WorkerBeat) -> bool => (&beat);
        worker_goodbye(owner: &str) -> () => (&owner);
        workers(within: Duration) -> Vec<WorkerRow> => (within);
        worker_drain(owner: &str, drained: bool, actor: &str, now: Instant) -> () => (&owner, drained, &actor, now);
        tasks_waiting(limit: u32, within: Duration) -> Vec<WaitingTask> => (limit, within);
        queues() -> Vec<QueueState> => ();
        pools() -> Vec<PoolState> => ();
        audit(event: NewAuditEvent) -> () => (event);
        audit_events(filter: &AuditFilter) -> Vec<AuditEvent> => (&filter);
        audit_verify(noted: Option<String>) -> AuditVerdict => (noted);
        clock_anchor(real_now: Instant, project_start: Instant) -> (Instant, Instant) => (real_now, project_start);
    }

    async fn snapshots(&self, dag: Option<&DagName>, view: Option<&ViewId>, limit: u32) -> Result<Vec<Snapshot>> {
        let (inner, dag, view) = (Arc::clone(&self.inner), dag.cloned(), view.cloned());
        let effect = async move { inner.snapshots(dag.as_ref(), view.as_ref(), limit).await };
        self.call("snapshots", effect).await
    }

    /// Whom the store calls is not a question, so it cannot go wrong.
    fn listen(&self, listener: Listener) {
        self.inner.listen(listener);
    }

    /// Letting go is no question either.
    async fn close(&self) {
        self.inner.close().await;
    }
}

pass_on! {
    Outbox {
        notify(notice: NewNotice) -> () => (notice);
        notices(filter: &NoticeFilter) -> Vec<(Notice, Vec<Delivery>)> => (&filter);
        notices_route(subscriptions: &[Subscription], age_max: Duration, now: Instant) -> u64
            => (&subscriptions, age_max, now);
        delivery_claim(webhooks: &[String], lease: Duration, limit: u32) -> Vec<DeliveryClaim>
            => (&webhooks, lease, limit);
        delivery_end(token: LeaseToken, end: DeliveryEnd, now: Instant) -> () => (token, end, now);
        deliveries_retry(notice: Option<NoticeId>, actor: &str, now: Instant) -> u64 => (notice, &actor, now);
    }
}

pass_on! {
    Care {
        keep(views: &[ViewId]) -> IndexMap<ViewId, ViewKeep> => (&views);
        known_views() -> Vec<ViewId> => ();
        open_run_ids() -> Vec<RunId> => ();
        snapshots_expire(ids: &[SnapshotId], now: Instant) -> Vec<SnapshotId> => (&ids, now);
        snapshot_pin(id: SnapshotId, pin: care::Pin) -> () => (id, pin);
        snapshot_unpin(id: SnapshotId, actor: &str, now: Instant) -> () => (id, &actor, now);
        pins() -> BTreeMap<SnapshotId, care::Pin> => ();
        duty_take(name: &str, owner: &str, lease: Duration) -> bool => (&name, &owner, lease);
        duty_release(name: &str, owner: &str) -> () => (&name, &owner);
        duties() -> Vec<(String, String)> => ();
        compaction_take(view: &ViewId) -> Option<u64> => (&view);
        compaction_record(view: &ViewId, number: u64, version: u64) -> bool => (&view, number, version);
        rows_prune(before: Instant) -> PrunedRows => (before);
        row_counts() -> Vec<TableRows> => ();
        schema_version() -> i64 => ();
        backup(file: &Path) -> Vec<TableRows> => (&file);
        restore(file: &Path, replace: bool, actor: &str, now: Instant) -> Vec<TableRows> => (&file, replace, &actor, now);
        adopt_id(id: RegistryId) -> () => (id);
        rebuild(rebuild: &Rebuild, now: Instant) -> () => (&rebuild, now);
    }
}

pass_on! {
    Approving {
        approval_request(request: &Approval) -> Approval => (&request);
        approvals(limit: u32) -> Vec<Approval> => (limit);
        approve(id: ApprovalId, actor: &str, now: Instant) -> () => (id, &actor, now);
        approval_use(id: ApprovalId, used_for: &str) -> () => (id, &used_for);
        oldest_recorded(snapshots: &[SnapshotId]) -> Option<Instant> => (&snapshots);
    }
}

pass_on! {
    Drilling {
        drill_begin(drill: &Drill) -> () => (&drill);
        drill_end(id: DrillId, end: DrillEnd) -> () => (id, end);
        drills(limit: u32) -> Vec<Drill> => (limit);
        drills_open() -> Vec<Drill> => ();
        drilled_last(drill: &DrillName) -> Option<Instant> => (&drill);
        proven(views: &[ViewId]) -> IndexMap<ViewId, Proven> => (&views);
    }
}

pass_on! {
    Measuring {
        figures(now: Instant) -> Figures => (now);
    }
}

pass_on! {
    Datasets {
        dataset_record(dataset: &Dataset) -> () => (&dataset);
        datasets(filter: &DatasetFilter) -> Vec<Dataset> => (&filter);
        dataset_pin(id: DatasetId, pin: DatasetPin) -> () => (id, pin.clone());
        dataset_unpin(id: DatasetId, actor: &str, now: Instant) -> () => (id, &actor, now);
    }
}

pass_on! {
    Triggering {
        happened() -> Happened => ();
        firings_add(seen: i64, until: i64, firings: &[NewFiring], now: Instant) -> () => (seen, until, &firings, now);
        firings(limit: u32) -> Vec<Firing> => (limit);
        firings_open() -> Vec<Firing> => ();
        firing_move(firing: &Firing, progress: &FiringProgress, now: Instant) -> () => (&firing, &progress, now);
    }
}

pass_on! {
    Switching {
        switches() -> Switches => ();
        switch_set(change: &SwitchChange) -> ViewSwitches => (&change);
    }
}

pass_on! {
    Restoring {
        snapshot_number(id: SnapshotId) -> u64 => (id);
        number_at(at: Instant) -> u64 => (at);
        as_of(view: &ViewId, number: u64) -> AsOf => (&view, number);
        generation_written(view: &ViewId, generation: u64) -> Option<u64> => (&view, generation);
        good_numbers(views: &[ViewId], limit: u32) -> Vec<(u64, SnapshotId)> => (&views, limit);
        restore_begin(request: RestoreRequest) -> () => (request);
        restore_of(id: RunId) -> Restore => (id);
        restores(limit: u32) -> Vec<Restore> => (limit);
        restore_record(token: LeaseToken, record: RestoreRecord, now: Instant) -> () => (token, record, now);
        restore_validated(id: RunId, validation: &Validation, now: Instant) -> () => (id, &validation, now);
        reads_of(run: RunId) -> Option<Pins> => (run);
        holds() -> Holds => ();
        hold(views: &[ViewId], policy: HoldPolicy, actor: &str, reason: &str, now: Instant) -> () =>
            (&views, policy, &actor, &reason, now);
        resume(request: ResumeRequest) -> Vec<RunId> => (request);
        snapshot_mark(id: SnapshotId, bad: Option<BadMark>, actor: &str, now: Instant) -> () => (id, bad, &actor, now);
        bad_marks() -> IndexMap<SnapshotId, BadMark> => ();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::Notify;

    use super::*;
    use crate::SqliteStore;
    use crate::conformance::world::{LONG, World, dag, day};

    /// Says its lines once each; afterwards nothing goes wrong. A pause ends when it is told to.
    #[derive(Debug, Default)]
    struct Lines(Mutex<VecDeque<Fault>>, Notify);

    #[async_trait]
    impl Script for Lines {
        fn next(&self, _method: &'static str) -> Fault {
            self.0.lock().unwrap().pop_front().unwrap_or(Fault::NONE)
        }

        async fn pause(&self, _pause: Duration) {
            self.1.notified().await;
        }
    }

    async fn is_paused(store: &dyn Store) -> bool {
        store.dags().await.unwrap()[0].paused
    }

    #[tokio::test]
    async fn a_call_fails_before_or_after_its_effect_or_has_it_late() {
        let folder = tempfile::tempdir().unwrap();
        let real: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        World::new(Arc::clone(&real)).await;
        let script = Arc::new(Lines::default());
        let store = FaultStore::new(Arc::clone(&real), script.clone());
        let name = dag("daily");
        let pause = async |fault: Fault, paused: bool| {
            script.0.lock().unwrap().push_back(fault);
            store.dag_pause(&name, paused, "ana", day(1)).await
        };
        assert!(matches!(pause(Fault::REFUSED, true).await, Err(StoreError::Unavailable(_))));
        assert!(!is_paused(&*real).await);
        assert!(matches!(pause(Fault::ANSWER_LOST, true).await, Err(StoreError::Unavailable(_))));
        assert!(is_paused(&*real).await);
        assert!(pause(Fault::late(LONG), false).await.is_err());
        assert!(is_paused(&*real).await);
        script.1.notify_one();
        while is_paused(&*real).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took_effect = async {
            while !is_paused(&*real).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = pause(Fault { answer: Answer::Silence, ..Fault::NONE }, true) => panic!("{answer:?}"),
            () = took_effect => {}
        }
    }
}
