//! Features of entities that a model is asked about now, and what is remembered of them for some seconds.
//!
//! What was read is given again for `cache_seconds` without asking the store. Whether something else went live meanwhile is
//! looked at once a second, so that a restore or a switched-off feature reaches every reader that soon, however long it may
//! remember; when the store does not answer, what is remembered is given until its seconds are over. What to do about
//! values that are missing or too old is decided in `python/tidegate/_online.py`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Moment};

use anyhow::Context as _;
use indexmap::IndexMap;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tidegate::commands::online::{entity, key_of, no_store, not_online, snapshot_of};
use tidegate::context::Registry;
use tidegate::error::is_unavailable;
use tidegate::select;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::{Feature, FeatureView};
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::{Instant, format_instant};
use tidegate_worker::online::{Given, Live, OnlineError, OnlineRow, OnlineStore, Served, given};

use crate::client::{Opened, Parts};
use crate::values;

/// What is remembered is compared with what is live so often.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Definitions are read again within this time, or else those that are known go on to count.
const DEFINITIONS_MAX: Duration = Duration::from_secs(2);
/// Entities that are remembered of one view; one more, and all are forgotten.
const ENTITIES_MAX: usize = 100_000;

/// What is remembered of online stores.
#[derive(Default)]
pub(crate) struct Cache {
    lasts: Duration,
    views: Mutex<HashMap<ViewId, Remembered>>,
    /// Per view the snapshot that was asked about last, with the end of its interval.
    ends: Mutex<HashMap<ViewId, (String, Instant)>>,
}

/// What is remembered of a view. What is live is noted even by those who remember no rows: see [`Reading::complete`].
#[derive(Default)]
struct Remembered {
    live: Option<Live>,
    switches: ViewSwitches,
    /// When somebody last began to look what is live.
    checked: Option<Moment>,
    rows: HashMap<String, (Option<OnlineRow>, Moment)>,
}

/// Entities of a view, as far as they are known: all as of what was live at one moment.
struct Reading {
    live: Option<Live>,
    switches: ViewSwitches,
    /// Per entity, in the order of the question; `None` while it is not known.
    rows: Vec<Option<Row>>,
}

/// The row of an entity, if it has one.
struct Row {
    stored: Option<OnlineRow>,
    cached: bool,
}

impl Cache {
    /// One that remembers for `lasts`; zero for not at all.
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { lasts, ..Self::default() }
    }
}

/// One entity, as far as it is known.
struct Found {
    served: Served,
    cached: bool,
    /// The store did not answer, and nothing is remembered.
    unreachable: bool,
}

/// What the store said, or is remembered to have said.
struct Answer {
    view: FeatureView,
    live: Option<Live>,
    entities: Vec<Found>,
    /// Between the end of what is live and now, in seconds; only when it was asked for.
    age: Option<f64>,
}

/// What is asked of the online store.
pub(crate) struct Asked {
    pub(crate) view: String,
    /// Per entity its keys, as names and texts.
    pub(crate) keys: Vec<Vec<(String, String)>>,
    /// `None` for all.
    pub(crate) features: Option<Vec<String>>,
    /// Whether the age of what is live is wanted.
    pub(crate) aged: bool,
    /// Entities that cannot be read are given as if they were not there.
    pub(crate) anyhow: bool,
    /// How long the answer may take; `None` for as long as it takes.
    pub(crate) timeout: Option<Duration>,
}

/// Reads what is asked for.
///
/// Gives a dict: `view`, `snapshot`, `age` (seconds, or `None`), `defaults` (per feature), and `entities`, each a tuple of
/// found, event timestamp, unreachable, and per feature its value and where it comes from.
pub(crate) fn get<'py>(opened: &Opened, py: Python<'py>, asked: &Asked) -> PyResult<Bound<'py, PyDict>> {
    let answer = opened.wait(py, read(&opened.parts, asked))?;
    let asked: Vec<&Feature> = match &asked.features {
        Some(names) => {
            let of = |name: &String| answer.view.features.iter().find(|feature| feature.name == *name);
            names.iter().filter_map(of).collect()
        }
        None => answer.view.features.iter().collect(),
    };
    let defaults = PyDict::new(py);
    for feature in &asked {
        if let Some(default) = &feature.default {
            defaults.set_item(&feature.name, values::of_json(py, &feature.kind, default)?)?;
        }
    }
    let mut entities = Vec::with_capacity(answer.entities.len());
    for Found { served, cached, unreachable } in &answer.entities {
        let row = PyDict::new(py);
        for feature in &asked {
            let none = || py.None().into_bound(py);
            let default = || defaults.get_item(&feature.name).map(|found| found.unwrap_or_else(none));
            let switched = served.switched.contains_key(&feature.name);
            let (value, source) = match served.features.get(&feature.name) {
                Some(Given::Stored(text)) => {
                    (values::of_text(py, &feature.kind, text)?, if *cached { "cache" } else { "online" })
                }
                Some(Given::Default) if switched => (default()?, "switched_off"),
                Some(Given::Null) if switched => (none(), "switched_off"),
                Some(Given::Default) if feature.default.is_some() => (default()?, "default"),
                _ => (none(), "none"),
            };
            row.set_item(&feature.name, (value, source))?;
        }
        let at = served.row.as_ref().map(|row| values::instant(py, &format_instant(row.event_timestamp)));
        entities.push((served.row.is_some(), at.transpose()?, *unreachable, row));
    }
    let told = PyDict::new(py);
    told.set_item("view", answer.view.id.to_string())?;
    told.set_item("snapshot", answer.live.as_ref().map(|live| snapshot_of(&live.tag)))?;
    told.set_item("age", answer.age)?;
    told.set_item("defaults", defaults)?;
    told.set_item("entities", entities)?;
    Ok(told)
}

async fn read(parts: &Parts, asked: &Asked) -> anyhow::Result<Answer> {
    let deadline = Deadline::after(asked.timeout);
    let registry = parts.known_registry(deadline.share(DEFINITIONS_MAX)).await;
    let view = select::view(&registry.project, &asked.view)?;
    for name in asked.features.as_deref().unwrap_or_default() {
        let found = view.features.iter().find(|feature| feature.name == *name);
        let known = view.features.iter().map(|feature| feature.name.as_str());
        select::named(&format!("feature in `{}`", view.id), name, found, known)?;
    }
    let of_entity = registry.project.keys_of(view);
    let texts = asked.keys.iter().map(|key| {
        let values: IndexMap<&str, &str> = key.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Ok(key_of(&entity(of_entity, &values)?))
    });
    let texts = texts.collect::<anyhow::Result<Vec<String>>>()?;
    let now = registry.clock.now();
    if parts.settings.online.is_empty() {
        return Err(no_store().into());
    }
    if view.online.is_none() {
        return Err(not_online(view).into());
    }
    if texts.is_empty() {
        return Ok(Answer { view: view.clone(), live: None, entities: Vec::new(), age: None });
    }
    let (live, entities) = entities(parts, view, &texts, now, asked.anyhow, deadline).await?;
    let age = match &live {
        Some(live) if asked.aged => {
            let age = deadline.within("the registry", parts.cache.age(&registry, &view.id, live, now)).await;
            match age {
                // How old it is cannot be told, so it may be too old.
                Err(error) if asked.anyhow && is_unavailable(&error) => None,
                age => Some(age?),
            }
        }
        _ => None,
    };
    Ok(Answer { view: view.clone(), live, entities, age })
}

/// Each entity from what is remembered, or else from the store; with `anyhow` as if it were not there, should the store be
/// away.
async fn entities(
    parts: &Parts,
    view: &FeatureView,
    keys: &[String],
    now: Instant,
    anyhow: bool,
    deadline: Deadline,
) -> anyhow::Result<(Option<Live>, Vec<Found>)> {
    let cache = &parts.cache;
    let checking = async {
        let store = parts.online().await?;
        cache.check(&**store, &view.id).await.context("looking what is live")?;
        Ok(store)
    };
    let reachable = deadline.within("the online store", checking).await;
    let mut reading = cache.recall(&view.id, keys, now);
    if reading.lacks_some() {
        let read = match reachable {
            Ok(store) => {
                deadline.within("the online store", reading.complete(cache, &**store, &view.id, keys, now)).await
            }
            Err(error) => Err(error),
        };
        match read {
            Err(error) if anyhow && is_unavailable(&error) => (),
            read => read?,
        }
    }
    let Reading { live, switches, rows } = reading;
    let found = keys.iter().zip(rows).map(|(key, row)| match row {
        Some(Row { stored, cached }) => {
            Found { served: given(view, key, stored, live.clone(), &switches), cached, unreachable: false }
        }
        None => unreachable(view, key),
    });
    let found = found.collect();
    Ok((live, found))
}

/// Until when an answer is wanted: one for all that it takes.
#[derive(Clone, Copy)]
struct Deadline {
    timeout: Duration,
    /// `None` for never.
    at: Option<tokio::time::Instant>,
}

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        let now = tokio::time::Instant::now();
        Self { timeout: timeout.unwrap_or_default(), at: timeout.and_then(|timeout| now.checked_add(timeout)) }
    }

    /// How long something may take that the answer can do without: at most `max`, and half of what is left.
    fn share(self, max: Duration) -> Duration {
        self.at.map_or(max, |at| max.min(at.saturating_duration_since(tokio::time::Instant::now()) / 2))
    }

    /// `work`, unless it does not end in time: then `who` is not available.
    async fn within<T>(self, who: &'static str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let Some(at) = self.at else { return work.await };
        tokio::time::timeout_at(at, work).await.unwrap_or_else(|_| {
            let slow = format!("{who} did not answer within {} s", self.timeout.as_secs_f64());
            Err(anyhow::Error::new(OnlineError::Unavailable(slow.into())).context("reading features"))
        })
    }
}

/// An entity of which nothing can be learnt: it has defaults.
fn unreachable(view: &FeatureView, key: &str) -> Found {
    Found { served: given(view, key, None, None, &ViewSwitches::default()), cached: false, unreachable: true }
}

impl Cache {
    /// Forgets a view of which something else is live than what is remembered, looking no more often than it has to.
    ///
    /// # Errors
    /// Those of the store; what is remembered stays then.
    async fn check(&self, store: &dyn OnlineStore, view: &ViewId) -> tidegate_worker::online::Result<()> {
        if self.lasts.is_zero() {
            return Ok(());
        }
        let began = Moment::now();
        {
            let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            let remembered = views.entry(view.clone()).or_default();
            if remembered.rows.is_empty() || remembered.checked.is_some_and(|at| at.elapsed() < CHECK_EVERY) {
                return Ok(());
            }
            // Others need not look while this one does; and a store that is gone is not asked for by every call.
            remembered.checked = Some(began);
        }
        let (live, switches) = tokio::try_join!(store.live(view), store.switches(view))?;
        self.see(view, live.as_ref(), &switches, began, |_| ());
        Ok(())
    }

    /// What is remembered of entities, unless their seconds are over.
    fn recall(&self, view: &ViewId, keys: &[String], now: Instant) -> Reading {
        // All under one lock, for meanwhile something else could be seen to be live.
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = views.entry(view.clone()).or_default();
        let row = |key: &String| {
            let (row, at) = remembered.rows.get(key)?;
            let expired = row.as_ref().and_then(|row| row.expires_at).is_some_and(|expires| expires <= now);
            (at.elapsed() < self.lasts && !expired).then(|| Row { stored: row.clone(), cached: true })
        };
        let rows = keys.iter().map(row).collect();
        Reading { live: remembered.live.clone(), switches: remembered.switches.clone(), rows }
    }

    /// Notes what somebody saw to be live who began to look at `began`; `and_then` is done with what is remembered of it.
    fn see(
        &self,
        view: &ViewId,
        live: Option<&Live>,
        switches: &ViewSwitches,
        began: Moment,
        and_then: impl FnOnce(&mut Remembered),
    ) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = views.entry(view.clone()).or_default();
        if remembered.see(live, switches, began) {
            and_then(remembered);
        }
    }

    /// Seconds since the end of the interval that is live.
    ///
    /// # Errors
    /// When the registry has to be asked and does not answer.
    async fn age(&self, registry: &Arc<Registry>, view: &ViewId, live: &Live, now: Instant) -> anyhow::Result<f64> {
        let known = {
            let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            ends.get(view).filter(|(tag, _)| *tag == live.tag).map(|(_, end)| *end)
        };
        let end = match known {
            Some(end) => end,
            None => {
                let id: SnapshotId = snapshot_of(&live.tag).parse().context("reading what is live")?;
                let snapshot = registry.store.snapshot(id).await.context("asking how old the features are")?;
                let end = snapshot.interval.end();
                let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
                ends.insert(view.clone(), (live.tag.clone(), end));
                end
            }
        };
        Ok((now - end).as_seconds_f64())
    }
}

impl Reading {
    fn lacks_some(&self) -> bool {
        self.rows.iter().any(Option::is_none)
    }

    /// Reads what is not known yet.
    ///
    /// The store tells rows and what is live one after the other, and something else may go live between. Publish numbers only
    /// grow, so rows are of what was live before them and is so after them still. Where that differs, all of them are read
    /// again, with those that were remembered.
    ///
    /// # Errors
    /// Those of the store.
    async fn complete(
        &mut self,
        cache: &Cache,
        store: &dyn OnlineStore,
        view: &ViewId,
        keys: &[String],
        now: Instant,
    ) -> anyhow::Result<()> {
        loop {
            let began = Moment::now();
            let missing = keys.iter().zip(&self.rows).filter(|(_, row)| row.is_none());
            let wanted: Vec<(ViewId, String)> = missing.map(|(key, _)| (view.clone(), key.clone())).collect();
            // Both begin after the call, so what was switched off before is never given.
            let both = tokio::try_join!(store.get_many(&wanted, now), store.switches(view));
            let (rows, switches) = both.context("reading features")?;
            let live = store.live(view).await.context("reading features")?;
            self.switches = switches;
            if self.live != live {
                cache.see(view, live.as_ref(), &self.switches, began, |_| ());
                self.live = live;
                self.rows.fill_with(|| None);
                continue;
            }
            cache.see(view, live.as_ref(), &self.switches, began, |remembered| {
                if !cache.lasts.is_zero() {
                    remembered.keep(wanted.iter().map(|(_, key)| key).zip(&rows), began);
                }
            });
            let mut rows = rows.into_iter();
            for row in self.rows.iter_mut().filter(|row| row.is_none()) {
                *row = rows.next().map(|stored| Row { stored, cached: false });
            }
            return Ok(());
        }
    }
}

impl Remembered {
    /// Notes what is live, and forgets all rows when that is something else than before. False when somebody who began to
    /// look later saw something else: rows read under `live` are then not to be remembered.
    fn see(&mut self, live: Option<&Live>, switches: &ViewSwitches, began: Moment) -> bool {
        let same = self.live.as_ref() == live;
        if self.checked.is_some_and(|checked| checked > began) {
            return same;
        }
        self.checked = Some(began);
        self.switches = switches.clone();
        if !same {
            self.live = live.cloned();
            self.rows.clear();
        }
        true
    }

    fn keep<'a>(&mut self, rows: impl ExactSizeIterator<Item = (&'a String, &'a Option<OnlineRow>)>, at: Moment) {
        if self.rows.len() + rows.len() > ENTITIES_MAX {
            self.rows.clear();
        }
        self.rows.extend(rows.map(|(key, row)| (key.clone(), (row.clone(), at))));
    }
}
