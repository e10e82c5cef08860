//! Creating runs with their tasks, many at a time: what exists is asked for once, and what is new is written by a few
//! statements, however many runs there are. A hundred DAGs that are due in one instant would otherwise wait for a
//! thousand answers.

use std::collections::{BTreeSet, HashMap};

use tidegate_registry::ids::{DagName, PoolName, QueueName, RunId, ViewId};
use tidegate_registry::run::{NewRun, TaskKind};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::{Instant, Interval};

use crate::codec::{json, micros};
use crate::db::{Conn, on};
use crate::definitions::{self, ViewTask};
use crate::sql::{Arg, Builder};

/// Rows in one statement: a row has up to 14 values, of which SQLite takes 32,766.
const ROWS_MAX: usize = 500;

/// Runs about to be created in a transaction that nobody else of its kind runs beside ([`crate::db::Db::write_alone`]).
#[derive(Debug, Default)]
pub(crate) struct Creation<'a> {
    /// What exists of every interval asked about, runs that are yet to be written included.
    known: HashMap<(DagName, Interval), Known>,
    /// The views of runs that do not exist, by the revision of the definitions.
    tasks: HashMap<(i64, ViewId), ViewTask>,
    new: Vec<New<'a>>,
}

/// The runs of one interval of a DAG.
#[derive(Debug, Default)]
struct Known {
    /// By views and cause; of runs made anew by a retry the newest, with its `retry`.
    ids: HashMap<(String, String), (i64, RunId)>,
    revision_next: i64,
}

#[derive(Debug)]
struct New<'a> {
    id: RunId,
    run: &'a NewRun,
    retry: i64,
    revision: i64,
}

impl<'a> Creation<'a> {
    /// Reads what creating `runs` depends on.
    pub(crate) async fn read(tx: &mut Conn, runs: &[&NewRun]) -> Result<Self> {
        let mut creation = Self::default();
        creation.read_known(tx, runs).await?;
        let mut views: HashMap<i64, BTreeSet<&ViewId>> = HashMap::new();
        for run in runs.iter().filter(|run| creation.existing(run).is_none()) {
            views.entry(run.definitions).or_default().extend(&run.views);
        }
        creation.read_tasks(tx, views).await?;
        Ok(creation)
    }

    /// The same for a run that is made anew although it exists.
    pub(crate) async fn read_again(tx: &mut Conn, run: &NewRun) -> Result<Self> {
        let mut creation = Self::default();
        creation.read_known(tx, &[run]).await?;
        creation.read_tasks(tx, HashMap::from([(run.definitions, run.views.iter().collect())])).await?;
        Ok(creation)
    }

    async fn read_known(&mut self, tx: &mut Conn, runs: &[&NewRun]) -> Result<()> {
        for run in runs {
            self.known.entry((run.dag.clone(), run.interval)).or_default();
        }
        let places: Vec<_> = self.known.keys().cloned().collect();
        for places in places.chunks(ROWS_MAX) {
            let mut existing = Builder::new(
                "SELECT runs.id, runs.dag, runs.interval_start, runs.interval_end, runs.views_key, runs.cause, \
                 runs.retry, runs.revision FROM (VALUES ",
            );
            existing.push_rows(places.iter().map(|(dag, interval)| {
                [Arg::from(dag.as_str()), micros(interval.start()).into(), micros(interval.end()).into()]
            }));
            existing.push(
                ") AS place JOIN runs ON runs.dag = place.column1 AND runs.interval_start = place.column2 \
                 AND runs.interval_end = place.column3",
            );
            for row in existing.build().fetch_all(&mut *tx).await.map_err(on("looking for runs"))? {
                let known = self.known.entry((row.parse("dag")?, row.interval()?)).or_default();
                known.revision_next = known.revision_next.max(row.get_as::<i64>("revision")? + 1);
                let (retry, id): (i64, RunId) = (row.get_as("retry")?, row.parse("id")?);
                let newest = known.ids.entry((row.get_as("views_key")?, row.get_as("cause")?)).or_insert((retry, id));
                if newest.0 < retry {
                    *newest = (retry, id);
                }
            }
        }
        Ok(())
    }

    async fn read_tasks(&mut self, tx: &mut Conn, views: HashMap<i64, BTreeSet<&ViewId>>) -> Result<()> {
        for (revision, views) in views {
            let views: Vec<&ViewId> = views.into_iter().collect();
            for views in views.chunks(ROWS_MAX) {
                for (view, task) in definitions::view_tasks_in_tx(tx, views, revision).await? {
                    self.tasks.insert((revision, view), task);
                }
            }
        }
        Ok(())
    }

    /// The run that exists in the place of `run`: that with the same interval, views and cause.
    pub(crate) fn existing(&self, run: &NewRun) -> Option<RunId> {
        let known = self.known.get(&(run.dag.clone(), run.interval))?;
        known.ids.get(&key(run)).map(|(_, id)| *id)
    }

    /// # Errors
    /// [`StoreError::Refused`] or [`StoreError::NotFound`] when [`Self::add`] may not be called with this run.
    pub(crate) fn refuse_unless_possible(&self, run: &NewRun) -> Result<()> {
        if self.existing(run).is_some() {
            return Ok(());
        }
        if run.views.is_empty() {
            return Err(StoreError::Refused(format!("a run of `{}` needs at least one view", run.dag)));
        }
        match run.views.iter().find(|view| !self.tasks.contains_key(&(run.definitions, (*view).clone()))) {
            None => Ok(()),
            Some(view) => Err(StoreError::NotFound {
                what: "feature view",
                name: format!("{view} at revision {}", run.definitions),
            }),
        }
    }

    /// Takes up a run unless it exists. Returns its id.
    pub(crate) fn add(&mut self, run: &'a NewRun) -> RunId {
        self.existing(run).unwrap_or_else(|| self.add_as(run, false))
    }

    /// Takes up a run that is made anew although it exists.
    pub(crate) fn add_again(&mut self, run: &'a NewRun) -> RunId {
        self.add_as(run, true)
    }

    fn add_as(&mut self, run: &'a NewRun, again: bool) -> RunId {
        let id = RunId::generate();
        let known = self.known.entry((run.dag.clone(), run.interval)).or_default();
        let revision = known.revision_next;
        let retry = if again { revision } else { 0 };
        known.revision_next += 1;
        known.ids.insert(key(run), (retry, id));
        self.new.push(New { id, run, retry, revision });
        id
    }

    /// Writes what was taken up.
    pub(crate) async fn write(self, tx: &mut Conn, now: Instant) -> Result<()> {
        for some in self.new.chunks(ROWS_MAX) {
            let rows = some.iter().map(|new| new.row(now)).collect::<Result<Vec<_>>>()?;
            let mut insert = Builder::new(
                "INSERT INTO runs (id, dag, interval_start, interval_end, views, views_key, cause, retry, definitions, \
                 revision, attempts_max, state, created_at, priority) VALUES ",
            );
            insert.push_rows(rows);
            insert.build().execute(&mut *tx).await.map_err(on("creating runs"))?;
        }
        let tasks = self.new.iter().map(|new| self.task_rows(new)).collect::<Result<Vec<_>>>()?.concat();
        for rows in tasks.chunks(ROWS_MAX) {
            let mut insert = Builder::new(
                "INSERT INTO tasks (run, seq, kind, state, waits_for, attempts_max, interval_start, queue, pool) VALUES ",
            );
            insert.push_rows(rows.iter().cloned());
            insert.build().execute(&mut *tx).await.map_err(on("creating the tasks of runs"))?;
        }
        Ok(())
    }

    /// Task 0 pins, task n stages view n − 1, the last one publishes.
    fn task_rows(&self, new: &New<'_>) -> Result<Vec<[Arg; 9]>> {
        let views = &new.run.views;
        let mut rows = vec![new.task_row(0, &TaskKind::Pin, &[], None)?];
        for (position, view) in views.iter().enumerate() {
            let task = self.tasks.get(&(new.run.definitions, view.clone()));
            // Views come in dependency order, so only earlier ones count: a run can never wait for itself.
            let reads = |earlier: &usize| task.is_some_and(|task| task.reads.contains(&views[*earlier]));
            let earlier = (0..position).filter(reads).map(|earlier| earlier + 1);
            let waits_for: Vec<usize> = std::iter::once(0).chain(earlier).collect();
            rows.push(new.task_row(position + 1, &TaskKind::View(view.clone()), &waits_for, task)?);
        }
        let last = views.len() + 1;
        rows.push(new.task_row(last, &TaskKind::Publish, &(0..last).collect::<Vec<_>>(), None)?);
        Ok(rows)
    }
}

impl New<'_> {
    fn attempts_max(&self) -> u32 {
        self.run.attempts_max.max(1)
    }

    fn row(&self, now: Instant) -> Result<[Arg; 14]> {
        let (views_key, cause) = key(self.run);
        Ok([
            self.id.to_string().into(),
            self.run.dag.as_str().into(),
            micros(self.run.interval.start()).into(),
            micros(self.run.interval.end()).into(),
            json(&self.run.views)?.into(),
            views_key.into(),
            cause.into(),
            self.retry.into(),
            self.run.definitions.into(),
            self.revision.into(),
            self.attempts_max().into(),
            "waiting".into(),
            micros(now).into(),
            self.run.priority.into(),
        ])
    }

    fn task_row(&self, seq: usize, kind: &TaskKind, waits_for: &[usize], view: Option<&ViewTask>) -> Result<[Arg; 9]> {
        Ok([
            self.id.to_string().into(),
            i64::try_from(seq).unwrap_or(i64::MAX).into(),
            kind.to_string().into(),
            "queued".into(),
            json(waits_for)?.into(),
            self.attempts_max().into(),
            micros(self.run.interval.start()).into(),
            view.and_then(|view| view.queue.as_ref()).map_or(QueueName::DEFAULT, QueueName::as_str).into(),
            view.and_then(|view| view.pool.as_ref()).map(PoolName::as_str).into(),
        ])
    }
}

/// What tells runs of one interval apart.
fn key(run: &NewRun) -> (String, String) {
    (views_key(&run.views), run.cause.to_string())
}

/// The views in an order of their own: the same set is the same run.
pub(crate) fn views_key(views: &[ViewId]) -> String {
    let mut names: Vec<String> = views.iter().map(ToString::to_string).collect();
    names.sort();
    names.join(",")
}
