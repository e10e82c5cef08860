//! `tidegate dataset build` and `rebuild`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use chrono_tz::Tz;
use serde::Serialize;
use tidegate_registry::dataset::{ColumnNames, Dataset, DatasetFilter, Manifest, SpineFrom};
use tidegate_registry::definitions::Settings;
use tidegate_registry::features::{Asked, Selection};
use tidegate_registry::ids::DatasetId;
use tidegate_registry::time::{Instant, format_instant};
use tidegate_worker::dataset::{
    DatasetError, DatasetParts, DatasetRequest, LABEL_TIME, Place, PlaceFormat, Spine, ViewFiles, build, files,
    imported,
};
use tidegate_worker::engine::Engine;

use super::{Report, find, has_words, pin};
use crate::commands::preview::Scratch;
use crate::commands::snapshots;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::Counter;
use crate::times::TimeArgument;

/// What `dataset build` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    spine: SpineArguments,
    /// The instant of `--all-entities`; without offset it is UTC
    #[arg(long, value_name = "TIME", requires = "all_entities")]
    at: Option<TimeArgument>,
    /// The spine's column that says when each row's features are wanted
    #[arg(long, value_name = "COLUMN", default_value = LABEL_TIME)]
    event_timestamp: String,
    /// What to join: view.feature, view@v2.feature, a view for all of its features, or a feature service; * for any text
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// Name columns `feature` in place of `view__feature`
    #[arg(long)]
    short_names: bool,
    /// Where to write: FILE.parquet, or a folder for a Delta table; also a URL of an object store
    #[arg(long, value_name = "PLACE", required_unless_present = "dry_run")]
    out: Option<String>,
    /// Read views as they were when this snapshot had just been recorded
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "known_at")]
    at_snapshot: Option<String>,
    /// Let only what had been published by then count; without offset it is UTC
    #[arg(long, value_name = "TIME")]
    known_at: Option<TimeArgument>,
    /// A name to find it by
    #[arg(long)]
    name: Option<String>,
    /// Keep what it is built from, for this reason, until `tidegate dataset unpin`
    #[arg(long, value_name = "REASON")]
    pin: Option<String>,
    /// Show what would be read, and build nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct SpineArguments {
    /// The labels: a Parquet or CSV file, a folder of such, or a Delta table, with the entities' keys and an instant
    #[arg(long, value_name = "PLACE")]
    spine: Option<String>,
    /// The labels as a query over the project's sources
    #[arg(long, value_name = "QUERY")]
    spine_sql: Option<String>,
    /// Every entity that the views know at `--at`
    #[arg(long, requires = "at")]
    all_entities: bool,
}

/// What `dataset rebuild` is told.
#[derive(Debug, clap::Args)]
pub(super) struct RebuildArguments {
    /// Its name, its id, or the id's beginning
    dataset: String,
    /// Where to write, as for `build`
    #[arg(long, value_name = "PLACE")]
    out: String,
}

/// What `dataset import` is told.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArguments {
    /// Where it is: FILE.parquet with its manifest beside it, or the folder of a Delta table; also a URL
    place: String,
    /// A name to find it by
    #[arg(long)]
    name: Option<String>,
}

/// Builds a dataset.
pub(super) async fn run(arguments: Arguments, registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    // Before anything is built: what could not be pinned then would stand there unrecorded.
    arguments.pin.as_deref().map_or(Ok(()), has_words)?;
    let request = request(wanted(&arguments)?, registry).await?;
    let parts = parts(&settings, registry)?;
    if arguments.dry_run {
        let scratch = Scratch::new();
        let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
        let working = Arc::clone(&engine);
        let reads = engine.run(async move { files(&working, &parts, &request).await }).await?.map_err(told)?;
        let reads: Vec<Reads> = reads.iter().map(Reads::of).collect();
        context.output.list(&reads)?;
        return Ok(Exit::Done);
    }
    let place = place(&settings, arguments.out.as_deref().unwrap_or_default())?;
    let manifest = write(&settings, &parts, &request, &place, context).await?;
    let now = registry.clock.now();
    let pin = match arguments.pin {
        Some(reason) => Some(pin(&manifest, &parts.lake, context, now, reason).await?),
        None => None,
    };
    let dataset = Dataset {
        id: DatasetId::generate(),
        name: arguments.name,
        place: place.name().to_owned(),
        created_at: now,
        actor: context.actor(),
        manifest,
        pin,
    };
    let recorded = registry.store.dataset_record(&dataset).await;
    recorded.context("the dataset is written, and could not be recorded; `tidegate dataset import` does that later")?;
    let report = Report::of(&dataset);
    context.output.one(&report, &report.lines())?;
    Ok(Exit::Done)
}

/// Records a dataset that is there, and that the registry does not know.
pub(super) async fn import(arguments: ImportArguments, registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let place = place(&settings, &arguments.place)?;
    let manifest = imported(&place).await.map_err(told)?;
    let now = registry.clock.now();
    if manifest.project != registry.project.name.as_str() {
        return Err(UserError::new(format!(
            "`{}` is a dataset of the project `{}`, and this is `{}`",
            place.name(),
            manifest.project,
            registry.project.name
        ))
        .into());
    }
    if !is_of(&manifest, registry).await? {
        return Err(UserError::new(format!("`{}` is made of what this registry does not know", place.name()))
            .hint("when the registry is an older copy of the one that it was built with: bring back a newer one first")
            .into());
    }
    let there = DatasetFilter { place: Some(place.name().to_owned()), ..DatasetFilter::default() };
    let known = registry.store.datasets(&there).await?;
    if let Some(known) = known.iter().find(|known| known.manifest == manifest) {
        return Err(UserError::new(format!("`{}` is known as `{}` already", place.name(), known.label())).into());
    }
    let dataset = Dataset {
        id: DatasetId::generate(),
        name: arguments.name,
        place: place.name().to_owned(),
        created_at: now,
        actor: context.actor(),
        manifest,
        pin: None,
    };
    registry.store.dataset_record(&dataset).await?;
    let report = Report::of(&dataset);
    context.output.one(&report, &report.lines())?;
    Ok(Exit::Done)
}

/// Builds a dataset again and compares it with what its manifest says.
pub(super) async fn again(arguments: RebuildArguments, registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let dataset = find(&*registry.store, &arguments.dataset).await?;
    let old = &dataset.manifest;
    let spine = match &old.spine.from {
        SpineFrom::File { place, .. } => Spine::File { place: place.clone() },
        SpineFrom::Sql { sql, .. } => Spine::Sql(sql.clone()),
        SpineFrom::Entities { at } => Spine::Entities(*at),
        SpineFrom::Rows => {
            return Err(UserError::new(format!("the spine of `{}` was handed over and is not kept", dataset.label()))
                .hint("build it again from the same rows, with `--at-snapshot`")
                .into());
        }
    };
    let (definitions, project) =
        registry.store.project(Some(old.definitions)).await.context("reading the definitions")?;
    let request = DatasetRequest {
        project: Arc::new(project),
        definitions,
        spine,
        label_time: old.spine.label_time.clone(),
        features: old.features.clone(),
        names: old.names,
        number: old.number,
        known_at: old.known_at,
    };
    let parts = parts(&settings, registry)?;
    let place = place(&settings, &arguments.out)?;
    let new = write(&settings, &parts, &request, &place, context).await?;
    let outcome = Rebuilt::of(&dataset, old, &new, place.name());
    context.output.one(&outcome, &outcome.lines())?;
    Ok(if outcome.same_rows { Exit::Done } else { Exit::Wrong })
}

/// Whether the registry counts definitions and snapshots as the one did that `manifest` was made with: a registry that was
/// made anew from the lake may not.
async fn is_of(manifest: &Manifest, registry: &Registry) -> anyhow::Result<bool> {
    if manifest.definitions > registry.revision {
        return Ok(false);
    }
    let (_, project) = registry.store.project(Some(manifest.definitions)).await.context("reading the definitions")?;
    for (id, read) in &manifest.views {
        let fingerprint = project.views.get(id).map(|view| view.fingerprint.as_str());
        let then = registry.store.as_of(id, manifest.number).await.context("looking up what was published")?;
        if fingerprint != Some(read.fingerprint.as_str()) || then.snapshot != read.snapshot {
            return Ok(false);
        }
    }
    Ok(true)
}

fn wanted(arguments: &Arguments) -> anyhow::Result<Wanted> {
    let spine = match (&arguments.spine.spine, &arguments.spine.spine_sql, arguments.at) {
        (Some(place), _, _) => Spine::File { place: here(place)? },
        (None, Some(sql), _) => Spine::Sql(sql.clone()),
        (None, None, Some(at)) => Spine::Entities(at.in_zone(Tz::UTC)),
        (None, None, None) => return Err(UserError::new("there is no spine").hint("give `--spine FILE`").into()),
    };
    Ok(Wanted {
        spine,
        label_time: arguments.event_timestamp.clone(),
        features: arguments.features.clone(),
        names: if arguments.short_names { ColumnNames::Short } else { ColumnNames::Full },
        at_snapshot: arguments.at_snapshot.clone(),
        known_at: arguments.known_at.map(|time| time.in_zone(Tz::UTC)),
    })
}

/// A dataset in the words of whoever wants it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose features, and when.
    pub spine: Spine,
    /// The column of the spine that says when.
    pub label_time: String,
    /// What to join, as in `view.feature`.
    pub features: Vec<String>,
    /// How columns are named.
    pub names: ColumnNames,
    /// The id of a snapshot, or its beginning: views are read as they were when it had just been recorded.
    pub at_snapshot: Option<String>,
    /// Only what had been published by then counts.
    pub known_at: Option<Instant>,
}

/// What `wanted` means in this project, now.
///
/// # Errors
/// When a feature or the snapshot does not exist, or the registry cannot be read.
pub async fn request(wanted: Wanted, registry: &Registry) -> anyhow::Result<DatasetRequest> {
    let mut features = Selection::default();
    for asked in &wanted.features {
        let asked: Asked = asked.trim().parse().map_err(UserError::new)?;
        features
            .add(&registry.project, &asked)
            .map_err(|error| UserError::new(error.reason).hint(error.help).missing())?;
    }
    let number = match &wanted.at_snapshot {
        Some(snapshot) => {
            let snapshot = snapshots::find(&*registry.store, snapshot).await?;
            registry.store.snapshot_number(snapshot.id).await?
        }
        None => registry.store.number_at(wanted.known_at.unwrap_or_else(|| registry.clock.now())).await?,
    };
    Ok(DatasetRequest {
        project: Arc::new(registry.project.clone()),
        definitions: registry.revision,
        spine: wanted.spine,
        label_time: wanted.label_time,
        features,
        names: wanted.names,
        number,
        known_at: wanted.known_at,
    })
}

/// A path is one of the folder that this process runs in, wherever the project is.
///
/// # Errors
/// When there is no such folder.
pub fn here(place: &str) -> anyhow::Result<String> {
    if place.contains("://") {
        return Ok(place.to_owned());
    }
    let path = std::path::absolute(place).with_context(|| format!("finding `{place}`"))?;
    let resolved = normal(&path);
    Ok(resolved.to_string_lossy().into_owned())
}

/// Without `..`, which places do not take.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain
}

/// What building a dataset of this project needs.
///
/// # Errors
/// When the lake, or a folder of sources, cannot be opened.
pub fn parts(settings: &Settings, registry: &Registry) -> anyhow::Result<DatasetParts> {
    Ok(DatasetParts {
        store: Arc::clone(&registry.store),
        lake: engine::lake(settings)?,
        sources: engine::sources(settings)?,
        spines: engine::spines(settings)?,
    })
}

fn place(settings: &Settings, out: &str) -> anyhow::Result<Place> {
    let plain = out.trim_end_matches('/');
    let format = if Path::new(plain).extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet")) {
        PlaceFormat::Parquet
    } else if Path::new(plain).extension().is_some_and(|end| end.eq_ignore_ascii_case("csv")) {
        return Err(UserError::new("datasets are written as Parquet or Delta, which keep types and nulls")
            .hint("name a file `….parquet`, or a folder")
            .into());
    } else {
        PlaceFormat::Delta
    };
    if !plain.contains("://")
        && let Some(folder) = Path::new(plain).parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder).with_context(|| format!("making the folder `{}`", folder.display()))?;
    }
    Place::new(plain, format, &engine::stores(settings)).map_err(|error| UserError::new(format!("{error:#}")).into())
}

async fn write(
    settings: &Settings,
    parts: &DatasetParts,
    request: &DatasetRequest,
    place: &Place,
    context: &Context,
) -> anyhow::Result<Manifest> {
    let scratch = Scratch::new();
    let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
    let mut counter = Counter::start("rows written");
    let (parts, request, place) = (parts.clone(), request.clone(), place.clone());
    let working = Arc::clone(&engine);
    let stop = context.shutdown.gentle.clone();
    let building = async move { build(&working, &parts, &request, &place, &stop, &mut |rows| counter.set(rows)).await };
    engine.run(building).await?.map_err(told)
}

/// What the user can mend is the user's.
pub fn told(error: DatasetError) -> anyhow::Error {
    match error {
        DatasetError::Wrong { message, hint } => UserError::new(message).hint(hint).into(),
        DatasetError::Stopped => anyhow::Error::new(error),
        DatasetError::Failed(error) => error,
    }
}

/// What would be read of one view.
#[derive(Debug, Serialize)]
struct Reads {
    view: String,
    snapshot: Option<String>,
    delta_version: Option<u64>,
    intervals: u64,
    covers: Option<String>,
    files: u64,
    bytes: u64,
    table_files: u64,
}

impl Reads {
    fn of(reads: &ViewFiles) -> Self {
        Self {
            view: reads.view.to_string(),
            snapshot: reads.input.snapshot.map(|id| id.to_string()),
            delta_version: reads.input.delta_version,
            intervals: reads.input.intervals,
            covers: reads.input.covers.map(format_instant),
            files: reads.files,
            bytes: reads.bytes,
            table_files: reads.table_files,
        }
    }
}

impl Row for Reads {
    const HEADINGS: &'static [&'static str] = &["VIEW", "SNAPSHOT", "INTERVALS", "COVERS", "FILES", "AT MOST BYTES"];

    fn cells(&self) -> Vec<String> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.view.clone(),
            or_none(&self.snapshot),
            self.intervals.to_string(),
            or_none(&self.covers),
            format!("{} of {}", self.files, self.table_files),
            self.bytes.to_string(),
        ]
    }
}

/// How a dataset compares with its first building.
#[derive(Debug, Serialize)]
struct Rebuilt {
    dataset: String,
    out: String,
    same_bytes: bool,
    same_rows: bool,
    differences: Vec<String>,
}

impl Rebuilt {
    fn of(dataset: &Dataset, old: &Manifest, new: &Manifest, out: &str) -> Self {
        let mut differences = Vec::new();
        if old.spine.digest != new.spine.digest || old.spine.rows != new.spine.rows {
            differences.push(format!(
                "the spine is another one: it had {} rows with digest {}, and has {} with {}",
                old.spine.rows, old.spine.digest, new.spine.rows, new.spine.digest
            ));
        }
        for (view, was) in &old.views {
            match new.views.get(view) {
                Some(now) if now == was => {}
                Some(now) => differences.push(format!(
                    "`{view}` is read at version {:?} in place of {:?}",
                    now.delta_version.unwrap_or_default(),
                    was.delta_version.unwrap_or_default()
                )),
                None => differences.push(format!("`{view}` is gone")),
            }
        }
        if old.tidegate != new.tidegate {
            differences.push(format!("it was written by version {}, and this is {}", old.tidegate, new.tidegate));
        }
        let sums = |manifest: &Manifest| -> Vec<String> {
            manifest.output.files.iter().map(|file| file.sha256.clone()).collect()
        };
        let same_rows = old.output.rows == new.output.rows && old.output.digest == new.output.digest;
        if !same_rows {
            differences.push(format!(
                "the rows differ: {} with digest {}, and now {} with {}",
                old.output.rows, old.output.digest, new.output.rows, new.output.digest
            ));
        }
        Self {
            dataset: dataset.label(),
            out: out.to_owned(),
            same_bytes: sums(old) == sums(new),
            same_rows,
            differences,
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let outcome = match (self.same_bytes, self.same_rows) {
            (true, _) => "the same bytes",
            (false, true) => "the same rows, in other bytes",
            (false, false) => "other rows",
        };
        vec![
            ("dataset", self.dataset.clone()),
            ("out", self.out.clone()),
            ("outcome", outcome.to_owned()),
            ("differences", self.differences.join("\n")),
        ]
    }
}
