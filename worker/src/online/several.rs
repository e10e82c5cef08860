//! Several online stores that are kept alike: one that must have everything, and perhaps a hot standby that should.
//!
//! A run waits for the **required** ones and fails when one of them does. A **best-effort** one that fails is left out of
//! that publication with a warning, and brought up to date when it is looked after next (every member is looked after by
//! itself: see [`OnlineStore::members`]). Each store cuts over atomically; between stores there may be a moment.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tidegate_registry::ids::{ProjectName, RegistryId, ViewId};
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::Instant;

use super::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result, Standing,
};

/// See the module.
#[derive(Debug)]
pub struct SeveralOnline {
    members: Vec<Arc<dyn OnlineStore>>,
    required: Vec<bool>,
    /// Members that take no part in writing a generation: they have it already, or failed.
    left_out: Mutex<HashSet<(usize, ViewId, u64)>>,
}

impl SeveralOnline {
    /// Keeps `members` alike, each with whether it is required. Readers ask the first that answers.
    ///
    /// # Errors
    /// When none is required: then nobody could say what is published.
    pub fn new(members: Vec<(Arc<dyn OnlineStore>, bool)>) -> Result<Self> {
        if !members.iter().any(|(_, required)| *required) {
            return Err(OnlineError::Internal {
                doing: "arranging",
                source: "at least one online store must be `required`".into(),
            });
        }
        // Those that readers and decisions rest on come first.
        let mut members = members;
        members.sort_by_key(|(_, required)| !required);
        let (members, required) = members.into_iter().unzip();
        Ok(Self { members, required, left_out: Mutex::default() })
    }

    fn first(&self) -> Result<&Arc<dyn OnlineStore>> {
        self.members.first().ok_or_else(|| OnlineError::Unavailable("there is no online store".into()))
    }

    fn takes_part(&self, member: usize, view: &ViewId, generation: u64) -> bool {
        !self.left_out.lock().is_ok_and(|left_out| left_out.contains(&(member, view.clone(), generation)))
    }

    fn leave_out(&self, member: usize, view: &ViewId, generation: u64) {
        if let Ok(mut left_out) = self.left_out.lock() {
            left_out.insert((member, view.clone(), generation));
        }
    }

    fn begin_anew(&self, view: &ViewId, generation: u64) {
        if let Ok(mut left_out) = self.left_out.lock() {
            // Earlier generations of the view are of no more interest, so this does not grow.
            left_out.retain(|(_, of, number)| of != view || *number > generation);
        }
    }

    /// What a member said; a best-effort one's failure is told and taken for nothing.
    fn heed<T>(&self, member: usize, doing: &str, said: Result<T>) -> Result<Option<T>> {
        match said {
            Ok(said) => Ok(Some(said)),
            Err(error) if self.required.get(member).copied().unwrap_or(true) => Err(error),
            Err(error) => {
                let error = anyhow::Error::from(error);
                let store = &self.members[member];
                tracing::warn!("The online store {store} failed in {doing} and is left behind for now: {error:#}");
                Ok(None)
            }
        }
    }

    /// Asks all that take part in a generation, at the same time.
    async fn participants<'a, T, F>(
        &'a self,
        view: &ViewId,
        generation: u64,
        doing: &str,
        ask: impl Fn(&'a Arc<dyn OnlineStore>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<T>>,
    {
        let asked =
            self.members.iter().enumerate().filter(|(member, _)| self.takes_part(*member, view, generation)).map(
                |(member, store)| {
                    let said = ask(store);
                    async move { (member, said.await) }
                },
            );
        let mut done = Ok(());
        for (member, said) in join_all(asked).await {
            match self.heed(member, doing, said) {
                Ok(Some(_)) => {}
                Ok(None) => self.leave_out(member, view, generation),
                Err(error) => done = Err(error),
            }
        }
        done
    }
}

impl fmt::Display for SeveralOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.members.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(" and "))
    }
}

#[async_trait]
impl OnlineStore for SeveralOnline {
    fn members(&self) -> &[Arc<dyn OnlineStore>] {
        &self.members
    }

    async fn claim_owner(&self, project: &ProjectName, registry: RegistryId) -> Result<()> {
        for (member, store) in self.members.iter().enumerate() {
            match store.claim_owner(project, registry).await {
                // Another's data must not be written over, required or not.
                Err(error @ OnlineError::Owned { .. }) => return Err(error),
                said => self.heed(member, "claiming it", said)?,
            };
        }
        Ok(())
    }

    async fn begin_generation(&self, view: &ViewId, generation: u64) -> Result<Begun> {
        self.begin_anew(view, generation);
        let begun = join_all(self.members.iter().map(|store| store.begin_generation(view, generation))).await;
        let mut answer = Begun::Published;
        for (member, said) in begun.into_iter().enumerate() {
            match self.heed(member, "beginning a generation", said)? {
                Some(Begun::Empty) => answer = Begun::Empty,
                Some(Begun::Published) | None => self.leave_out(member, view, generation),
            }
        }
        Ok(answer)
    }

    async fn write(&self, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()> {
        self.participants(view, generation, "writing rows", |store| store.write(view, generation, rows)).await
    }

    async fn finish_generation(&self, view: &ViewId, generation: u64, rows: u64) -> Result<()> {
        let finish = |store: &'_ Arc<dyn OnlineStore>| {
            let store = Arc::clone(store);
            async move { store.finish_generation(view, generation, rows).await }
        };
        self.participants(view, generation, "finishing a generation", finish).await
    }

    async fn cut_over(&self, views: &[CutOver]) -> Result<()> {
        for (member, store) in self.members.iter().enumerate() {
            self.heed(member, "cutting over", store.cut_over(views).await)?;
        }
        Ok(())
    }

    async fn begin_upsert(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<InPlace> {
        self.begin_anew(view, generation);
        let mut answer = InPlace::Published;
        for (member, store) in self.members.iter().enumerate() {
            let said = store.begin_upsert(view, generation, publish_number).await;
            match self.heed(member, "beginning to change rows", said)? {
                Some(InPlace::Ready) => answer = InPlace::Ready,
                Some(InPlace::Gone) if self.required[member] => return Ok(InPlace::Gone),
                Some(InPlace::Gone | InPlace::Published) | None => self.leave_out(member, view, generation),
            }
        }
        Ok(answer)
    }

    async fn upsert(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()> {
        let upsert = |store: &'_ Arc<dyn OnlineStore>| {
            let store = Arc::clone(store);
            async move { store.upsert(view, generation, publish_number, changes).await }
        };
        self.participants(view, generation, "changing rows", upsert).await
    }

    async fn finish_upsert(&self, view: &ViewId, generation: u64, publish_number: u64, rows: u64) -> Result<()> {
        let finish = |store: &'_ Arc<dyn OnlineStore>| {
            let store = Arc::clone(store);
            async move { store.finish_upsert(view, generation, publish_number, rows).await }
        };
        self.participants(view, generation, "finishing changes", finish).await
    }

    async fn repair(&self, view: &ViewId, live: Expected, changes: &Changes) -> Result<()> {
        self.first()?.repair(view, live, changes).await
    }

    async fn claim_care(&self, view: &ViewId, owner: &str, lasts: Duration) -> Result<bool> {
        self.first()?.claim_care(view, owner, lasts).await
    }

    async fn check(&self, view: &ViewId, expected: Expected) -> Result<Standing> {
        self.first()?.check(view, expected).await
    }

    async fn set_switches(&self, view: &ViewId, switches: &ViewSwitches) -> Result<u64> {
        // All of them hear of it, also when one that is required does not answer.
        let said = join_all(self.members.iter().map(|store| store.set_switches(view, switches))).await;
        let mut newest = 0;
        let mut done = Ok(());
        for (member, said) in said.into_iter().enumerate() {
            match self.heed(member, "switching features", said) {
                Ok(revision) => newest = revision.unwrap_or(0).max(newest),
                Err(error) => done = Err(error),
            }
        }
        done.map(|()| newest)
    }

    async fn switches(&self, view: &ViewId) -> Result<ViewSwitches> {
        let mut refused = OnlineError::Unavailable("there is no online store".into());
        for store in &self.members {
            match store.switches(view).await {
                Err(error @ OnlineError::Unavailable(_)) => refused = error,
                said => return said,
            }
        }
        Err(refused)
    }

    async fn live(&self, view: &ViewId) -> Result<Option<Live>> {
        self.first()?.live(view).await
    }

    async fn get_many(&self, keys: &[(ViewId, String)], now: Instant) -> Result<Vec<Option<OnlineRow>>> {
        let mut refused = OnlineError::Unavailable("there is no online store".into());
        for store in &self.members {
            match store.get_many(keys, now).await {
                Err(error @ OnlineError::Unavailable(_)) => refused = error,
                said => return said,
            }
        }
        Err(refused)
    }

    async fn discard(&self, view: &ViewId, generation: u64) -> Result<()> {
        self.participants(view, generation, "dropping rows", |store| store.discard(view, generation)).await
    }

    async fn prune(&self, view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Result<Vec<u64>> {
        let mut removed = Vec::new();
        for (member, store) in self.members.iter().enumerate() {
            let said = store.prune(view, keep, age_min, dead_below).await;
            removed.extend(self.heed(member, "removing generations", said)?.unwrap_or_default());
        }
        removed.sort_unstable();
        removed.dedup();
        Ok(removed)
    }

    async fn count(&self, view: &ViewId, generation: u64) -> Result<u64> {
        self.first()?.count(view, generation).await
    }

    async fn rows_kept(&self, view: &ViewId, generation: u64) -> Result<u64> {
        self.first()?.rows_kept(view, generation).await
    }

    async fn scan(
        &self,
        view: &ViewId,
        generation: u64,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, OnlineRow)>> {
        self.first()?.scan(view, generation, after, limit).await
    }

    async fn keys(
        &self,
        view: &ViewId,
        generation: u64,
        cursor: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>)> {
        self.first()?.keys(view, generation, cursor).await
    }

    async fn rows(&self, view: &ViewId, generation: u64, keys: &[String]) -> Result<Vec<Option<OnlineRow>>> {
        self.first()?.rows(view, generation, keys).await
    }

    async fn close(&self) {
        join_all(self.members.iter().map(|store| store.close())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::online::SqliteOnline;
    use crate::online::conformance::Fixture;
    use chrono::DateTime;
    use tidegate_registry::definitions::settings::RedisLocation;
    use tidegate_servers::Redis;

    async fn two(folder: &std::path::Path) -> Arc<dyn OnlineStore> {
        let one: Arc<dyn OnlineStore> = Arc::new(SqliteOnline::open(&folder.join("one.db")).await.unwrap());
        let other: Arc<dyn OnlineStore> = Arc::new(SqliteOnline::open(&folder.join("other.db")).await.unwrap());
        Arc::new(SeveralOnline::new(vec![(one, true), (other, true)]).unwrap())
    }

    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        Fixture {
            store: two(folder.path()).await,
            twin: two(folder.path()).await,
            project: "flights".parse().unwrap(),
            guard: Box::new(folder),
        }
    }

    crate::online_conformance!(crate::online::several::tests::fixture);

    fn view() -> ViewId {
        "a@v1".parse().unwrap()
    }

    async fn publish(store: &dyn OnlineStore, generation: u64) -> Result<()> {
        let row = EncodedRow {
            entity_key: "x".to_owned(),
            event_timestamp: DateTime::UNIX_EPOCH,
            expires_at: None,
            features: vec![("value".to_owned(), generation.to_string())],
        };
        store.begin_generation(&view(), generation).await?;
        store.write(&view(), generation, &[row]).await?;
        store.finish_generation(&view(), generation, 1).await?;
        let step = CutOver {
            view: view(),
            generation,
            publish_number: generation,
            tag: "s".to_owned(),
            defaults: "{}".to_owned(),
        };
        store.cut_over(&[step]).await
    }

    async fn generation(store: &dyn OnlineStore) -> Option<u64> {
        store.live(&view()).await.unwrap().map(|live| live.generation)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_standby_that_is_down_holds_nothing_up_and_a_required_store_does() {
        let folder = tempfile::tempdir().unwrap();
        let sqlite: Arc<dyn OnlineStore> =
            Arc::new(SqliteOnline::open(&folder.path().join("online.db")).await.unwrap());
        let mut server = Redis::start().unwrap();
        let location = RedisLocation::parse(&server.url()).unwrap();
        let redis: Arc<dyn OnlineStore> =
            Arc::new(crate::online::RedisOnline::open(&location, &"flights".parse().unwrap(), false).await.unwrap());
        let store = SeveralOnline::new(vec![(Arc::clone(&redis), false), (Arc::clone(&sqlite), true)]).unwrap();
        publish(&store, 1).await.unwrap();
        assert_eq!((generation(&*sqlite).await, generation(&*redis).await), (Some(1), Some(1)));
        server.kill();
        publish(&store, 2).await.unwrap();
        assert_eq!(generation(&*sqlite).await, Some(2));
        server.restart().unwrap();
        publish(&store, 3).await.unwrap();
        assert_eq!((generation(&*sqlite).await, generation(&*redis).await), (Some(3), Some(3)));
        let both = SeveralOnline::new(vec![(redis, true), (sqlite, true)]).unwrap();
        server.kill();
        let error = publish(&both, 4).await.unwrap_err();
        assert!(matches!(error, OnlineError::Unavailable(_)), "{error:?}");
    }

    #[test]
    fn one_store_at_least_is_required() {
        assert!(SeveralOnline::new(Vec::new()).is_err());
    }
}
