//! Redis: the online store of a cluster of workers, read by any client in any language with two commands.
//!
//! ```text
//! HGET    tg:flights:live carrier_delays@v2            → 17
//! HGETALL tg:flights:carrier_delays@v2:g17:AA          → avg_dep_delay_7d 8.6 flights_7d 612 _event_timestamp 2013-01-…
//! ```
//!
//! The whole layout is in `docs/online-layout.md`.
//!
//! # Who may write what
//!
//! Everything that decides (what is live, under which number, how each generation stands) is fields of one hash and moves
//! in scripts, which Redis runs alone: see `scripts`. Rows are other keys, in a cluster on other nodes, and no command can
//! compare the one and write the other. So:
//!
//! * A generation is filled by one attempt at a time, which has a token. Whoever begins it again takes a new token, and
//!   from then on the earlier attempt can neither list rows nor finish.
//! * Rows that an overtaken attempt still has on the wire land in that generation only: its number is part of their key. They
//!   equal those of the new attempt, because a generation's number is the publish number of one intent, which fixes the
//!   table's version, the definitions and the instant. So even when they land after the cut-over, nothing changes.
//! * A generation that is being removed can be filled again only under another number. What a frozen writer leaves in it
//!   is listed by itself before it is written, and [`OnlineStore::prune`] looks again for a day.
//! * In place (`upsert`) a single server refuses rows as soon as a later publication was begun; in a cluster every row
//!   carries the number that wrote it, and a script compares: see `in_place`.
//!
//! # What Redis may lose
//!
//! Before a generation is finished every row is looked for; the servers' replication ids are noted first. If another
//! server answers at the cut-over (a failover, a restart), it is looked again. Afterwards [`OnlineStore::check`] notices
//! what went missing.

mod connection;
mod errors;
#[cfg(test)]
mod faults;
mod in_place;
mod index;
mod keys;
mod rows;
mod scripts;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use redis::Value;
use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_registry::ids::{DrillId, ProjectName, RegistryId, ViewId};
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::Instant;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use self::connection::{Connections, info_field};
use self::errors::strange;
use self::keys::{
    Keys, decode_row, publish_field, switched_field, switches_field, tag_field, text, view_of_generations, writer_field,
};
use self::rows::Target;
use self::scripts::{BeginAnswer, Entry, UpsertAnswer};
use super::serve::parse_switches;
use super::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result,
    Standing, stands,
};

/// Rows of one chunk of the list of entities.
const ROWS_PER_CHUNK: usize = 8_192;
/// How many entities are looked for where a few must do.
const SAMPLE: usize = 100;
/// How often a read is put again because what was live changed under it.
const READS_MAX: u32 = 20;

/// An online store in Redis.
pub struct RedisOnline {
    connections: Connections,
    keys: Keys,
    /// Whether rows are dropped by Redis when they expire: not when project time is simulated.
    expire: bool,
    /// Of the generations that this process writes.
    tokens: Mutex<HashMap<(ViewId, u64), String>>,
}

impl RedisOnline {
    /// An online store for `project`. With a `simulated_clock` expired rows stay until their generation goes: Redis's clock
    /// cannot tell when they do.
    ///
    /// A Redis that does not answer now is no error: calls fail until it does.
    ///
    /// # Errors
    /// When Redis refuses us, or would evict keys, or the file of certificates cannot be read.
    pub async fn open(location: &RedisLocation, project: &ProjectName, simulated_clock: bool) -> Result<Self> {
        Self::opened(Self::new(location, project, simulated_clock)?).await
    }

    /// An online store for a drill of `project`, beside the project's own.
    ///
    /// # Errors
    /// As [`RedisOnline::open`].
    pub(crate) async fn open_beside(
        location: &RedisLocation,
        project: &ProjectName,
        id: DrillId,
        simulated_clock: bool,
    ) -> Result<Self> {
        let keys = Keys::of_drill(project.clone(), id);
        Self::opened(Self { keys, ..Self::new(location, project, simulated_clock)? }).await
    }

    async fn opened(store: Self) -> Result<Self> {
        match store.connections.get().await {
            Ok(_) => {}
            Err(OnlineError::Unavailable(error)) => {
                tracing::warn!("The online store {store} does not answer yet: {error}");
            }
            Err(error) => return Err(error),
        }
        Ok(store)
    }

    fn new(location: &RedisLocation, project: &ProjectName, simulated_clock: bool) -> Result<Self> {
        Ok(Self {
            connections: Connections::new(location.clone())?,
            keys: Keys::new(project.clone()),
            expire: !simulated_clock,
            tokens: Mutex::default(),
        })
    }

    /// Removes every key of a drill, which nobody else reads or writes. (In a cluster, what says that a row was removed in
    /// place goes by itself within a day.)
    ///
    /// # Errors
    /// When Redis does not answer, or this is the store of a project.
    pub(crate) async fn erase(&self) -> Result<()> {
        if !self.keys.is_of_drill() {
            return Err(strange("only what a drill wrote is erased"));
        }
        let mut cmd = redis::cmd("HKEYS");
        cmd.arg(self.keys.live());
        let Value::Array(fields) = self.connections.query("reading", &cmd).await? else {
            return Err(strange("`HKEYS` answered no list"));
        };
        for field in fields {
            let Some(view) = view_of_generations(&text(field).map_err(strange)?) else { continue };
            for entry in scripts::entries(&self.connections, &self.keys, &view).await? {
                index::unlink(&self.connections, &self.keys, &view, entry.generation).await?;
            }
            self.unlink(self.keys.care(&view)).await?;
        }
        self.unlink(self.keys.live()).await?;
        self.unlink(self.keys.owner()).await
    }

    async fn unlink(&self, key: String) -> Result<()> {
        let mut cmd = redis::cmd("UNLINK");
        cmd.arg(key);
        self.connections.query("removing", &cmd).await.map(drop)
    }

    async fn target<'a>(&'a self, view: &'a ViewId, generation: u64, rows: &[EncodedRow]) -> Result<Target<'a>> {
        let expire = self.expire && rows.iter().any(|row| row.expires_at.is_some());
        let expire_after = if expire { Some(rows::clock_ms(&self.connections).await?) } else { None };
        Ok(Target { connections: &self.connections, keys: &self.keys, view, generation, expire_after })
    }

    fn token(&self, view: &ViewId, generation: u64) -> Option<String> {
        self.tokens.lock().ok()?.get(&(view.clone(), generation)).cloned()
    }

    async fn entry(&self, view: &ViewId, generation: u64) -> Result<Option<Entry>> {
        scripts::entry(&self.connections, &self.keys, view, generation).await
    }

    /// Whether the generation is being written, by us.
    async fn is_writing(&self, view: &ViewId, generation: u64) -> Result<Writing> {
        let token = self.token(view, generation);
        Ok(match self.entry(view, generation).await? {
            Some(entry) if entry.state == "writing" && Some(&entry.token) == token.as_ref() => Writing::Ours,
            Some(entry) if entry.state == "writing" => Writing::Theirs,
            Some(_) => Writing::Over,
            None => Writing::NotBegun,
        })
    }

    /// Which servers hold the data: changes with every failover and restart.
    async fn servers(&self) -> Result<String> {
        let mut ids = Vec::new();
        for info in self.connections.info("replication").await? {
            let id = info_field(&info, "master_replid").ok_or_else(|| strange("`INFO replication` has no id"))?;
            ids.push(id.to_owned());
        }
        ids.sort_unstable();
        Ok(format!("{:016x}", xxh3_64(ids.join(" ").as_bytes())))
    }

    /// Looks again for the rows of what is about to go live, when they were last seen on other servers.
    async fn verify_again(&self, views: &[CutOver]) -> Result<()> {
        let mut servers = None;
        for step in views {
            let Some(entry) = self.entry(&step.view, step.generation).await? else { continue };
            let Some(rows) = entry.rows.filter(|_| matches!(entry.state.as_str(), "finished" | "published")) else {
                continue;
            };
            let servers = match &servers {
                Some(servers) => servers,
                None => servers.insert(self.servers().await?),
            };
            if entry.servers == *servers {
                continue;
            }
            let found = self.count(&step.view, step.generation).await?;
            if found != rows {
                let problem = format!("lost rows when Redis changed its server: it holds {found} of {rows}");
                return Err(refused(&step.view, step.generation, &problem));
            }
            let verified = Entry { servers: servers.clone(), ..entry };
            scripts::finish(&self.connections, &self.keys, &step.view, &verified).await?;
        }
        Ok(())
    }

    /// Whether the upsert of `publish_number` is the one that was begun last.
    async fn may_change(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<()> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.live()).arg(view.to_string()).arg(writer_field(view));
        let Value::Array(answers) = self.connections.query("reading", &cmd).await? else {
            return Err(strange("`HMGET` answered no list"));
        };
        let numbers = answers.into_iter().map(optional_number).collect::<Result<Vec<_>>>()?;
        match numbers.as_slice() {
            [Some(live), Some(writer)] if *live == generation && *writer == publish_number => Ok(()),
            [_, Some(writer)] if *writer > publish_number => {
                Err(OnlineError::Superseded { view: view.clone(), live: *writer, asked: publish_number })
            }
            _ => Err(refused(view, generation, "is not being changed")),
        }
    }

    async fn change(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()> {
        for added in changes.added.chunks(ROWS_PER_CHUNK) {
            let target = self.target(view, generation, added).await?;
            rows::list(target, added).await?;
            in_place::write(target, publish_number, added, &[]).await?;
        }
        let target = self.target(view, generation, &changes.changed).await?;
        in_place::write(target, publish_number, &changes.changed, &changes.removed).await
    }

    /// Whether some rows of a generation that should have `rows` are there.
    async fn sample_is_there(&self, view: &ViewId, generation: u64, rows: u64) -> Result<bool> {
        if rows == 0 {
            return Ok(true);
        }
        let mut cmd = redis::cmd("HRANDFIELD");
        cmd.arg(self.keys.index(view, generation));
        let name = match self.connections.query("reading", &cmd).await? {
            Value::Nil => return Ok(false),
            name => text(name).map_err(strange)?,
        };
        let listed = index::chunk(&self.connections, &self.keys, view, generation, &name).await?;
        let prefix = self.keys.row_prefix(view, generation);
        let keys: Vec<String> =
            listed.iter().take(SAMPLE).map(|listed| format!("{prefix}{}", listed.entity_key)).collect();
        Ok(rows::exist(&self.connections, &keys).await?.into_iter().all(|there| there))
    }

    async fn read_live(&self, views: &[&ViewId]) -> Result<Vec<Option<u64>>> {
        if views.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.live());
        for view in views {
            cmd.arg(view.to_string());
        }
        let Value::Array(answers) = self.connections.query("reading", &cmd).await? else {
            return Err(strange("`HMGET` answered no list"));
        };
        answers.into_iter().map(optional_number).collect()
    }
}

enum Writing {
    Ours,
    Theirs,
    Over,
    NotBegun,
}

fn optional_number(value: Value) -> Result<Option<u64>> {
    if value == Value::Nil {
        return Ok(None);
    }
    let text = text(value).map_err(strange)?;
    text.parse().map(Some).map_err(|_| strange(format!("`{text}` is no number")))
}

fn refused(view: &ViewId, generation: u64, problem: &str) -> OnlineError {
    OnlineError::Generation { view: view.clone(), generation, problem: problem.to_owned() }
}

impl fmt::Debug for RedisOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOnline")
            .field("location", self.connections.location())
            .field("project", self.keys.project())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for RedisOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.connections.location().fmt(f)
    }
}

#[async_trait]
impl OnlineStore for RedisOnline {
    async fn claim_owner(&self, project: &ProjectName, registry: RegistryId) -> Result<()> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.keys.owner()).arg(registry.to_string()).arg("NX");
        self.connections.query("claiming", &cmd).await?;
        let mut cmd = redis::cmd("GET");
        cmd.arg(self.keys.owner());
        let owner = text(self.connections.query("claiming", &cmd).await?).map_err(strange)?;
        if owner != registry.to_string() || project != self.keys.project() {
            return Err(OnlineError::Owned { project: self.keys.project().to_string(), registry: owner });
        }
        Ok(())
    }

    async fn begin_generation(&self, view: &ViewId, generation: u64) -> Result<Begun> {
        let token = Uuid::now_v7().simple().to_string();
        match scripts::begin(&self.connections, &self.keys, view, generation, &token).await? {
            BeginAnswer::Begun => {}
            BeginAnswer::Published => return Ok(Begun::Published),
            BeginAnswer::Removing(live) if live > generation => {
                return Err(OnlineError::Superseded { view: view.clone(), live, asked: generation });
            }
            BeginAnswer::Removing(_) => return Err(refused(view, generation, "is being removed")),
        }
        if let Ok(mut tokens) = self.tokens.lock() {
            tokens.insert((view.clone(), generation), token.clone());
        }
        if index::wipe(&self.connections, &self.keys, view, generation, &["writing"], Some(&token)).await? {
            Ok(Begun::Empty)
        } else {
            Err(refused(view, generation, "was taken over while it was emptied"))
        }
    }

    async fn write(&self, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()> {
        for rows in rows.chunks(ROWS_PER_CHUNK) {
            match self.is_writing(view, generation).await? {
                Writing::Ours => {}
                Writing::Theirs => return Err(refused(view, generation, "was begun again by another worker")),
                Writing::Over => return Err(refused(view, generation, "is finished, no rows can be added")),
                Writing::NotBegun => return Err(refused(view, generation, "was not begun")),
            }
            let target = self.target(view, generation, rows).await?;
            rows::list(target, rows).await?;
            rows::write(target, rows).await?;
        }
        Ok(())
    }

    async fn finish_generation(&self, view: &ViewId, generation: u64, rows: u64) -> Result<()> {
        match self.entry(view, generation).await? {
            Some(entry) if matches!(entry.state.as_str(), "writing" | "finished" | "published") => {}
            _ => return Err(refused(view, generation, "was not begun")),
        }
        // First who answers, then what is there: a change in between shows at the cut-over.
        let servers = self.servers().await?;
        let found = self.count(view, generation).await?;
        if found != rows {
            return Err(refused(view, generation, &format!("holds {found} rows where {rows} were expected")));
        }
        let token = self.token(view, generation).unwrap_or_else(|| "-".to_owned());
        let entry = Entry { generation, state: String::new(), rows: Some(rows), servers, token };
        match scripts::finish(&self.connections, &self.keys, view, &entry).await?.as_deref() {
            None => Ok(()),
            Some("taken") => Err(refused(view, generation, "was begun again by another worker")),
            Some(_) => Err(refused(view, generation, "was not begun")),
        }
    }

    async fn cut_over(&self, views: &[CutOver]) -> Result<()> {
        if views.is_empty() {
            return Ok(());
        }
        self.verify_again(views).await?;
        scripts::cut_over(&self.connections, &self.keys, views).await?;
        if let Ok(mut tokens) = self.tokens.lock() {
            for step in views {
                tokens.remove(&(step.view.clone(), step.generation));
            }
        }
        Ok(())
    }

    async fn begin_upsert(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<InPlace> {
        match scripts::upsert(&self.connections, &self.keys, view, generation, publish_number).await? {
            UpsertAnswer::Begun => Ok(InPlace::Ready),
            UpsertAnswer::Done => Ok(InPlace::Published),
            UpsertAnswer::Other => Ok(InPlace::Gone),
            UpsertAnswer::Superseded(live) => {
                Err(OnlineError::Superseded { view: view.clone(), live, asked: publish_number })
            }
        }
    }

    async fn upsert(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()> {
        self.may_change(view, generation, publish_number).await?;
        self.change(view, generation, publish_number, changes).await
    }

    async fn finish_upsert(&self, view: &ViewId, generation: u64, publish_number: u64, rows: u64) -> Result<()> {
        self.may_change(view, generation, publish_number).await?;
        let Some(entry) = self.entry(view, generation).await? else {
            return Err(refused(view, generation, "does not exist"));
        };
        let entry = Entry { rows: Some(rows), ..entry };
        match scripts::finish(&self.connections, &self.keys, view, &entry).await? {
            None => Ok(()),
            Some(_) => Err(refused(view, generation, "was never live")),
        }
    }

    async fn repair(&self, view: &ViewId, live: Expected, changes: &Changes) -> Result<()> {
        let now = self.live(view).await?;
        match now {
            Some(now) if now.generation == live.generation && now.publish_number == live.publish_number => {
                self.change(view, live.generation, live.publish_number, changes).await
            }
            now => Err(OnlineError::Superseded {
                view: view.clone(),
                live: now.map_or(0, |now| now.publish_number),
                asked: live.publish_number,
            }),
        }
    }

    async fn claim_care(&self, view: &ViewId, owner: &str, lasts: Duration) -> Result<bool> {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(scripts::CLAIM_CARE).arg(1).arg(self.keys.care(view)).arg(owner).arg(lasts.as_millis().to_string());
        Ok(self.connections.query("claiming", &cmd).await? == Value::Int(1))
    }

    async fn check(&self, view: &ViewId, expected: Expected) -> Result<Standing> {
        let live = self.live(view).await?;
        if let Some(standing) = stands(live.as_ref(), expected) {
            return Ok(standing);
        }
        let generation = expected.generation;
        let Some(entry) = self.entry(view, generation).await? else {
            return Ok(Standing::NotLive(format!("nothing is known of generation {generation}")));
        };
        let servers = self.servers().await?;
        let rows = entry.rows.unwrap_or(0);
        if entry.servers == servers && self.sample_is_there(view, generation, rows).await? {
            return Ok(Standing::Whole);
        }
        let found = self.count(view, generation).await?;
        if found != rows {
            return Ok(Standing::Incomplete(format!("{found} of {rows} entities are there")));
        }
        // So that the next look is a short one again.
        scripts::finish(&self.connections, &self.keys, view, &Entry { servers, ..entry }).await?;
        Ok(Standing::Whole)
    }

    async fn set_switches(&self, view: &ViewId, switches: &ViewSwitches) -> Result<u64> {
        scripts::switch(&self.connections, &self.keys, view, switches).await
    }

    async fn switches(&self, view: &ViewId) -> Result<ViewSwitches> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.live()).arg(switches_field(view)).arg(switched_field(view));
        let Value::Array(answers) = self.connections.query("reading", &cmd).await? else {
            return Err(strange("`HMGET` answered no list"));
        };
        let [features, revision] =
            <[Value; 2]>::try_from(answers).map_err(|_| strange("`HMGET` answered another number of values"))?;
        let Some(revision) = optional_number(revision)? else { return Ok(ViewSwitches::default()) };
        let off = if features == Value::Nil {
            IndexMap::new()
        } else {
            parse_switches(&text(features).map_err(strange)?).map_err(|error| strange(error.to_string()))?
        };
        Ok(ViewSwitches { revision, off })
    }

    async fn live(&self, view: &ViewId) -> Result<Option<Live>> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.live()).arg(view.to_string()).arg(publish_field(view)).arg(tag_field(view));
        let Value::Array(answers) = self.connections.query("reading", &cmd).await? else {
            return Err(strange("`HMGET` answered no list"));
        };
        let [generation, publish_number, tag] =
            <[Value; 3]>::try_from(answers).map_err(|_| strange("`HMGET` answered another number of values"))?;
        let (generation, publish_number) = (optional_number(generation)?, optional_number(publish_number)?);
        let (Some(generation), Some(publish_number)) = (generation, publish_number) else { return Ok(None) };
        let tag = if tag == Value::Nil { String::new() } else { text(tag).map_err(strange)? };
        Ok(Some(Live { generation, publish_number, tag }))
    }

    async fn get_many(&self, keys: &[(ViewId, String)], now: Instant) -> Result<Vec<Option<OnlineRow>>> {
        let mut views: Vec<&ViewId> = keys.iter().map(|(view, _)| view).collect();
        views.sort_unstable();
        views.dedup();
        let mut live = self.read_live(&views).await?;
        for _ in 0..READS_MAX {
            let of: HashMap<&ViewId, u64> =
                views.iter().zip(&live).filter_map(|(view, generation)| Some((*view, (*generation)?))).collect();
            let asked: Vec<(usize, String)> = keys
                .iter()
                .enumerate()
                .filter_map(|(position, (view, entity))| {
                    let prefix = self.keys.row_prefix(view, *of.get(view)?);
                    Some((position, format!("{prefix}{entity}")))
                })
                .collect();
            let names: Vec<String> = asked.iter().map(|(_, key)| key.clone()).collect();
            let mut found: Vec<Option<OnlineRow>> = vec![None; keys.len()];
            let mut missing = false;
            for ((position, _), answer) in asked.into_iter().zip(rows::read(&self.connections, &names).await?) {
                found[position] = decode_row(answer).map_err(strange)?;
                missing |= found[position].is_none();
            }
            // A generation stays for a while after it was superseded, so what was live when we began is whole; unless we
            // were held up for so long that rows of it are gone.
            if missing {
                let again = self.read_live(&views).await?;
                if again != live {
                    live = again;
                    continue;
                }
            }
            let counts = |row: &OnlineRow| row.expires_at.is_none_or(|expires_at| expires_at > now);
            return Ok(found.into_iter().map(|row| row.filter(counts)).collect());
        }
        Err(OnlineError::Unavailable("what is live changed with every try to read it".into()))
    }

    async fn discard(&self, view: &ViewId, generation: u64) -> Result<()> {
        let Some(token) = self.token(view, generation) else { return Ok(()) };
        index::wipe(&self.connections, &self.keys, view, generation, &["writing"], Some(&token)).await.map(drop)
    }

    async fn prune(&self, view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Result<Vec<u64>> {
        let doomed = scripts::doom(&self.connections, &self.keys, view, keep, age_min.as_millis(), dead_below).await?;
        let mut removed = Vec::new();
        for doomed in doomed {
            let generation = doomed.generation;
            fail::fail_point!("prune.doomed");
            let states = ["removing", "removed"];
            let gone = index::wipe(&self.connections, &self.keys, view, generation, &states, None).await?;
            if !doomed.removed {
                removed.push(generation);
                if gone {
                    fail::fail_point!("prune.wiped");
                    scripts::removed(&self.connections, &self.keys, view, generation).await?;
                }
            }
        }
        removed.sort_unstable();
        Ok(removed)
    }

    async fn count(&self, view: &ViewId, generation: u64) -> Result<u64> {
        index::count(&self.connections, &self.keys, view, generation).await
    }

    async fn rows_kept(&self, view: &ViewId, generation: u64) -> Result<u64> {
        let Some(entry) = self.entry(view, generation).await? else { return Ok(0) };
        let known = entry.rows.filter(|_| matches!(entry.state.as_str(), "finished" | "published"));
        if let Some(rows) = known
            && entry.servers == self.servers().await?
            && self.sample_is_there(view, generation, rows).await?
        {
            return Ok(rows);
        }
        self.count(view, generation).await
    }

    async fn scan(
        &self,
        view: &ViewId,
        generation: u64,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, OnlineRow)>> {
        let limit = limit as usize;
        // The list is in no order, so every page looks through all of it; comparisons with the lake walk it otherwise.
        let mut first: std::collections::BTreeSet<String> = std::collections::BTreeSet::new();
        for name in index::chunks(&self.connections, &self.keys, view, generation).await? {
            for listed in index::chunk(&self.connections, &self.keys, view, generation, &name).await? {
                let follows = after.is_none_or(|after| listed.entity_key.as_str() > after);
                let early = first.len() < limit || first.last().is_some_and(|last| listed.entity_key < *last);
                if follows && early {
                    first.insert(listed.entity_key);
                    if first.len() > limit {
                        first.pop_last();
                    }
                }
            }
        }
        let prefix = self.keys.row_prefix(view, generation);
        let keys: Vec<String> = first.iter().map(|entity| format!("{prefix}{entity}")).collect();
        let mut page = Vec::new();
        for (entity, answer) in first.into_iter().zip(rows::read(&self.connections, &keys).await?) {
            if let Some(row) = decode_row(answer).map_err(strange)? {
                page.push((entity, row));
            }
        }
        Ok(page)
    }

    async fn keys(
        &self,
        view: &ViewId,
        generation: u64,
        cursor: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let names = index::chunks(&self.connections, &self.keys, view, generation).await?;
        let next = names.iter().position(|name| cursor.is_none_or(|cursor| name.as_str() > cursor));
        let Some(name) = next.and_then(|next| names.get(next)) else { return Ok((Vec::new(), None)) };
        let listed = index::chunk(&self.connections, &self.keys, view, generation, name).await?;
        Ok((listed.into_iter().map(|listed| listed.entity_key).collect(), Some(name.clone())))
    }

    async fn rows(&self, view: &ViewId, generation: u64, keys: &[String]) -> Result<Vec<Option<OnlineRow>>> {
        let prefix = self.keys.row_prefix(view, generation);
        let keys: Vec<String> = keys.iter().map(|entity| format!("{prefix}{entity}")).collect();
        let answers = rows::read(&self.connections, &keys).await?;
        answers.into_iter().map(|answer| decode_row(answer).map_err(strange)).collect()
    }

    async fn close(&self) {
        self.connections.close().await;
    }
}
