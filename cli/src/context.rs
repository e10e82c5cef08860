//! What every command works with: the project's folder, its settings, the registry, the clock.
//!
//! Everything is opened when a command asks for it: `--help`, `init` and `schema` touch nothing, and a broken definition
//! file does not keep anybody from listing runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::definitions::settings::RegistryLocation;
use tidegate_registry::definitions::{self, LoadOptions, Loaded, PROJECT_FILE, Settings};
use tidegate_registry::diagnostics::{Diagnostic, RenderStyle, SourceMap, render};
use tidegate_registry::ids::RegistryId;
use tidegate_registry::model::Project;
use tidegate_registry::store::Store;
use tidegate_registry::time::{Clock, Instant, SimulatedClock, SystemClock};
use tidegate_store::{PostgresStore, SqliteStore};
use tracing::info;

use crate::cli::Shared;
use crate::error::UserError;
use crate::output::Output;
use crate::process;
use crate::progress;
use crate::shutdown::Shutdown;

/// What a command works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where data goes.
    pub output: Output,
    /// The wish to stop.
    pub shutdown: Shutdown,
    shared: Shared,
}

/// An opened registry and what is applied there.
#[derive(Debug, Clone)]
pub struct Registry {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// Identifies it to the lake and the online store.
    pub id: RegistryId,
    /// The revision of `project`; 0 when nothing was applied.
    pub revision: i64,
    /// The definitions in force.
    pub project: Project,
    /// Project time.
    pub clock: Arc<dyn Clock>,
}

impl Context {
    /// A context that has touched nothing yet.
    pub fn new(shared: Shared, shutdown: Shutdown) -> Self {
        Self { output: Output::new(shared.format), shutdown, shared }
    }

    /// The same for the project in `folder`, whatever the command line says.
    #[must_use]
    pub fn in_folder(&self, folder: &Path) -> Self {
        let shared = Shared { project: Some(folder.to_owned()), profile: None, ..self.shared.clone() };
        Self { output: self.output, shutdown: self.shutdown.clone(), shared }
    }

    /// The project's folder: as the command line says, or the nearest upwards with a `tidegate.yaml`.
    ///
    /// # Errors
    /// When there is none.
    pub fn root(&self) -> anyhow::Result<PathBuf> {
        let none = |what: String| {
            UserError::new(what).hint(
                "go to the project's folder, name it with `--project DIR`, make one with `tidegate init DIR`, or see \
                 `tidegate demo`",
            )
            .missing()
        };
        if let Some(folder) = &self.shared.project {
            if !folder.join(PROJECT_FILE).is_file() {
                return Err(none(format!("there is no `{PROJECT_FILE}` in `{}`", folder.display())).into());
            }
            return std::path::absolute(folder).with_context(|| format!("finding `{}`", folder.display()));
        }
        let here = std::env::current_dir().context("finding the current folder")?;
        here.ancestors()
            .find(|folder| folder.join(PROJECT_FILE).is_file())
            .map(Path::to_owned)
            .ok_or_else(|| none(format!("there is no `{PROJECT_FILE}` here or further up")).into())
    }

    /// Reads and validates everything that the project's files say.
    ///
    /// # Errors
    /// When there is no project.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        Ok(definitions::load(&self.root()?, &self.load_options()))
    }

    fn load_options(&self) -> LoadOptions<'static> {
        LoadOptions { profile: self.shared.profile.clone(), ..LoadOptions::from_process() }
    }

    /// The settings alone: what is wrong with definitions does not matter here.
    ///
    /// # Errors
    /// When there is no project or its settings are wrong.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let loaded = self.load_settings()?;
        if loaded.settings.is_none() {
            self.report(&loaded.diagnostics, &loaded.files);
        }
        loaded.settings.ok_or_else(|| UserError::new("the project's settings are wrong").into())
    }

    /// [`Context::settings`], with all that is to be said about them.
    ///
    /// # Errors
    /// When there is no project.
    pub fn load_settings(&self) -> anyhow::Result<Loaded> {
        let root = self.root()?;
        let file = root.join(PROJECT_FILE);
        let content = std::fs::read(&file).with_context(|| format!("reading `{}`", file.display()))?;
        Ok(definitions::load_files(&root, &[(PROJECT_FILE, &content)], &self.load_options()))
    }

    /// Shows `diagnostics` on standard error, for people.
    pub fn report(&self, diagnostics: &[Diagnostic], files: &SourceMap) {
        let text = render(diagnostics, files, render_style());
        if !text.is_empty() {
            progress::note(text);
        }
    }

    /// The registry, which must exist and serve this project.
    ///
    /// # Errors
    /// When nothing was applied yet, or the registry cannot be read.
    pub async fn registry(&self) -> anyhow::Result<Registry> {
        let settings = self.settings()?;
        match self.registry_if_any(&settings).await? {
            Some(registry) if registry.revision > 0 => Ok(registry),
            _ => Err(UserError::new("nothing has been applied yet")
                .hint("`tidegate plan` shows what would be, `tidegate apply` does it")
                .into()),
        }
    }

    /// The registry, unless it does not exist: then it is not made.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn registry_if_any(&self, settings: &Settings) -> anyhow::Result<Option<Registry>> {
        if let RegistryLocation::Sqlite(path) = &settings.registry
            && !path.exists()
        {
            return Ok(None);
        }
        self.open_registry(settings).await.map(Some)
    }

    /// The registry, made where it does not exist.
    ///
    /// # Errors
    /// When it cannot be opened or serves another project.
    pub async fn open_registry(&self, settings: &Settings) -> anyhow::Result<Registry> {
        let opening = || format!("opening the registry `{}`", settings.registry);
        let store: Arc<dyn Store> = match &settings.registry {
            RegistryLocation::Sqlite(path) => Arc::new(SqliteStore::open(path).await.with_context(opening)?),
            RegistryLocation::Postgres(url) => Arc::new(PostgresStore::open(url.expose()).await.with_context(opening)?),
        };
        let about = store.info().await.with_context(opening)?;
        if let Some(project) = about.project.as_deref().filter(|project| *project != settings.project.as_str()) {
            return Err(UserError::new(format!(
                "the registry `{}` serves the project `{project}`, not `{}`",
                settings.registry, settings.project
            ))
            .hint("each project needs a registry of its own: change `registry:` in tidegate.yaml")
            .into());
        }
        let clock = clock(settings, &*store).await?;
        let (revision, project) = store.project(None).await.context("reading the definitions")?;
        Ok(Registry { store, id: about.id, revision, project, clock })
    }

    /// What whoever runs this command does to `subject`, for the audit trail.
    pub fn event(&self, registry: &Registry, action: &str, subject: impl Into<String>) -> NewAuditEvent {
        NewAuditEvent::new(registry.clock.now(), self.actor(), action, subject)
    }

    /// Who acts, for the audit trail.
    pub fn actor(&self) -> String {
        let user = environment("USER").or_else(|| environment("USERNAME")).unwrap_or_else(|| "somebody".to_owned());
        format!("{user}@{}", process::host())
    }
}

/// Project time: real, or simulated from the instant at which somebody first asked this registry.
async fn clock(settings: &Settings, store: &dyn Store) -> anyhow::Result<Arc<dyn Clock>> {
    let Some(simulated) = settings.clock else { return Ok(Arc::new(SystemClock)) };
    let (real_start, project_start) =
        store.clock_anchor(SystemClock.now(), simulated.start).await.context("reading the project's clock")?;
    Ok(Arc::new(SimulatedClock { real_start, project_start, speed: simulated.speed }))
}

/// Project time without making a registry: a simulated clock that nobody has started stands at its start.
pub fn now(settings: &Settings, registry: Option<&Registry>) -> Instant {
    match (registry, settings.clock) {
        (Some(registry), _) => registry.clock.now(),
        (None, Some(simulated)) => simulated.start,
        (None, None) => SystemClock.now(),
    }
}

/// Lets go of the leases and duties of processes of this machine that are gone, so that nobody waits for them to run out.
///
/// # Errors
/// When the registry cannot be read or written.
pub async fn release_dead_leases(store: &dyn Store) -> anyhow::Result<()> {
    for owner in store.lease_owners().await.context("reading who holds leases")? {
        if process::is_dead(&owner) {
            let released =
                store.leases_release(&owner).await.with_context(|| format!("releasing leases of `{owner}`"))?;
            info!(owner = %owner, tasks = released, "an earlier process is gone: its tasks are taken up again");
        }
    }
    for (duty, owner) in store.duties().await.context("reading who has which duty")? {
        if process::is_dead(&owner) {
            let releasing = || format!("releasing the duty `{duty}` of `{owner}`");
            store.duty_release(&duty, &owner).await.with_context(releasing)?;
        }
    }
    Ok(())
}

/// How diagnostics look on this terminal.
pub fn render_style() -> RenderStyle {
    let width = terminal_size::terminal_size_of(std::io::stderr()).map_or(120, |(width, _)| usize::from(width.0));
    RenderStyle { color: colour(), unicode: true, width: width.clamp(60, 160) }
}

/// Whether standard error takes colour; what is meant never depends on it.
pub fn colour() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal() && environment("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// An environment variable of this process; all settings come through clap or `definitions::settings` instead.
#[expect(clippy::disallowed_methods, reason = "no settings of a project: the person's name, and NO_COLOR")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
