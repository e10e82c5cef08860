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

use crate::client::{Client, Parts};
use crate::values;

/// What is remembered is compared with what is live so often.
const CHECK_EVERY: Duration = Duration::from_secs(1);
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

#[derive(Default)]
struct Remembered {
    live: Option<Live>,
    switches: ViewSwitches,
    checked: Option<Moment>,
    rows: HashMap<String, (Option<OnlineRow>, Moment)>,
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
    /// How long the store, and the registry, may take to answer.
    pub(crate) timeout: Duration,
}

/// Reads what is asked for.
///
/// Gives a dict: `view`, `snapshot`, `age` (seconds, or `None`), `defaults` (per feature), and `entities`, each a tuple of
/// found, event timestamp, unreachable, and per feature its value and where it comes from.
pub(crate) fn get<'py>(client: &Client, py: Python<'py>, asked: &Asked) -> PyResult<Bound<'py, PyDict>> {
    let answer = client.wait(py, read(&client.parts, asked))?;
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
    let registry = parts.known_registry(asked.timeout).await;
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
    let (live, entities) = entities(parts, view, &texts, now, asked).await?;
    let age = match &live {
        Some(live) if asked.aged => {
            let age = within(asked.timeout, "the registry", parts.cache.age(&registry, &view.id, live, now)).await;
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

/// Each entity from what is remembered, or else from the store.
async fn entities(
    parts: &Parts,
    view: &FeatureView,
    keys: &[String],
    now: Instant,
    asked: &Asked,
) -> anyhow::Result<(Option<Live>, Vec<Found>)> {
    let cache = &parts.cache;
    let checking = async {
        let store = parts.online().await?;
        cache.check(&**store, &view.id).await.context("looking what is live")?;
        Ok(store)
    };
    let reachable = within(asked.timeout, "the online store", checking).await;
    let known: Vec<Option<Found>> = keys.iter().map(|key| cache.recall(view, key, now)).collect();
    let missing: Vec<&String> =
        keys.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(key, _)| key).collect();
    let mut live = cache.live(&view.id);
    if missing.is_empty() {
        return Ok((live, known.into_iter().flatten().collect()));
    }
    let read = match reachable {
        Ok(store) => {
            let wanted: Vec<(ViewId, String)> = missing.iter().map(|key| (view.id.clone(), (*key).clone())).collect();
            let reading = async {
                // All begin after the call, so what was switched off before is never given.
                let all =
                    tokio::try_join!(store.get_many(&wanted, now), store.live(&view.id), store.switches(&view.id));
                all.context("reading features")
            };
            within(asked.timeout, "the online store", reading).await
        }
        Err(error) => Err(error),
    };
    let mut fresh = match read {
        Ok((rows, now_live, switches)) => {
            cache.remember(&view.id, &missing, &rows, now_live.as_ref(), &switches);
            live = now_live;
            let fresh = missing.iter().zip(rows).map(|(key, row)| Found {
                served: given(view, key, row, live.clone(), &switches),
                cached: false,
                unreachable: false,
            });
            fresh.collect::<Vec<_>>()
        }
        Err(error) => {
            if !(asked.anyhow && is_unavailable(&error)) {
                return Err(error);
            }
            missing.iter().map(|key| unreachable(view, key)).collect()
        }
    }
    .into_iter();
    Ok((live, known.into_iter().filter_map(|known| known.or_else(|| fresh.next())).collect()))
}

/// `work`, unless it takes longer than `limit`: then `who` is not available.
async fn within<T>(
    limit: Duration,
    who: &'static str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let slow = format!("{who} did not answer within {} s", limit.as_secs_f64());
            Err(anyhow::Error::new(OnlineError::Unavailable(slow.into())).context("reading features"))
        }
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
        {
            let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            let remembered = views.entry(view.clone()).or_default();
            if remembered.rows.is_empty() || remembered.checked.is_some_and(|at| at.elapsed() < CHECK_EVERY) {
                return Ok(());
            }
            // Others need not look while this one does; and a store that is gone is not asked for by every call.
            remembered.checked = Some(Moment::now());
        }
        let (live, switches) = tokio::try_join!(store.live(view), store.switches(view))?;
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = views.entry(view.clone()).or_default();
        remembered.see(live.as_ref(), &switches);
        Ok(())
    }

    /// What is remembered of an entity, unless its seconds are over.
    fn recall(&self, view: &FeatureView, key: &str, now: Instant) -> Option<Found> {
        if self.lasts.is_zero() {
            return None;
        }
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = views.get(&view.id)?;
        let (row, at) = remembered.rows.get(key)?;
        let expired = row.as_ref().and_then(|row| row.expires_at).is_some_and(|expires| expires <= now);
        (at.elapsed() < self.lasts && !expired).then(|| Found {
            served: given(view, key, row.clone(), remembered.live.clone(), &remembered.switches),
            cached: true,
            unreachable: false,
        })
    }

    fn live(&self, view: &ViewId) -> Option<Live> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.get(view)?.live.clone()
    }

    /// Remembers rows that were read when `live` was live.
    fn remember(
        &self,
        view: &ViewId,
        keys: &[&String],
        rows: &[Option<OnlineRow>],
        live: Option<&Live>,
        switches: &ViewSwitches,
    ) {
        if self.lasts.is_zero() {
            return;
        }
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = views.entry(view.clone()).or_default();
        let was_empty = remembered.rows.is_empty();
        // Rows that were read around a change may be of what was live before it.
        if !remembered.see(live, switches) && !was_empty {
            return;
        }
        if remembered.rows.len() + rows.len() > ENTITIES_MAX {
            remembered.rows.clear();
        }
        let now = Moment::now();
        remembered.rows.extend(keys.iter().zip(rows).map(|(key, row)| ((*key).clone(), (row.clone(), now))));
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

impl Remembered {
    /// Notes what is live; forgets everything and says false when that is something else than before.
    fn see(&mut self, live: Option<&Live>, switches: &ViewSwitches) -> bool {
        self.checked = Some(Moment::now());
        let same = self.live.as_ref() == live;
        if !same {
            self.live = live.cloned();
            self.rows.clear();
        }
        self.switches = switches.clone();
        same
    }
}
