//! Where a project keeps what it has: resolved once, from flags, environment, profile, file and defaults, in this order.
//!
//! Every value remembers where it came from ([`Settings::origins`]), so that `tidegate` can say why a setting is what
//! it is. Passwords are never part of a message: see [`redact`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::read::{At, Field, Read, check_keys, described, key_name, missing, record, schema_of, wrong_type};
use super::rules::RulesFile;
use super::scalars;
use super::yaml::{Node, Value};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::ProjectName;
use crate::time::Instant;

/// A setting that flags and the environment may override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SettingKey {
    /// The project's name.
    Project,
    /// Where the registry is.
    Registry,
    /// Where the lake is.
    Lake,
    /// Where the online store is; `none` for batch only.
    Online,
    /// How much memory the engine may use.
    Memory,
    /// Where project time begins.
    ClockStart,
    /// Project seconds per real second.
    ClockSpeed,
    /// Where sources outside the project may lie, separated by commas.
    AllowedRoots,
}

/// The environment variable that names the profile, when no flag does.
pub const PROFILE_VARIABLE: &str = "TIDEGATE_PROFILE";

impl SettingKey {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Project,
        Self::Registry,
        Self::Lake,
        Self::Online,
        Self::Memory,
        Self::ClockStart,
        Self::ClockSpeed,
        Self::AllowedRoots,
    ];

    /// The key in `tidegate.yaml`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Registry => "registry",
            Self::Lake => "lake",
            Self::Online => "online",
            Self::Memory => "memory",
            Self::ClockStart => "clock.start",
            Self::ClockSpeed => "clock.speed",
            Self::AllowedRoots => "allowed_roots",
        }
    }

    /// The environment variable.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Project => "TIDEGATE_PROJECT_NAME",
            Self::Registry => "TIDEGATE_REGISTRY",
            Self::Lake => "TIDEGATE_LAKE",
            Self::Online => "TIDEGATE_ONLINE",
            Self::Memory => "TIDEGATE_MEMORY",
            Self::ClockStart => "TIDEGATE_CLOCK_START",
            Self::ClockSpeed => "TIDEGATE_CLOCK_SPEED",
            Self::AllowedRoots => "TIDEGATE_ALLOWED_ROOTS",
        }
    }

    fn default(self) -> Option<&'static str> {
        match self {
            Self::Registry => Some("sqlite://.tidegate/registry.db"),
            Self::Lake => Some(".tidegate/lake"),
            Self::Memory => Some("2GiB"),
            Self::ClockSpeed => Some("1"),
            Self::Project | Self::Online | Self::ClockStart | Self::AllowedRoots => None,
        }
    }
}

/// Where a setting's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A flag of the command.
    Flag,
    /// An environment variable.
    Environment(&'static str),
    /// A profile in `tidegate.yaml`.
    Profile(String),
    /// `tidegate.yaml` itself.
    File,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.pad("flag"),
            Self::Environment(variable) => write!(f, "environment ({variable})"),
            Self::Profile(profile) => write!(f, "profile ({profile})"),
            Self::File => f.pad(super::PROJECT_FILE),
            Self::Default => f.pad("default"),
        }
    }
}

/// What a command hands in: everything that decides settings beside the file.
pub struct LoadOptions<'a> {
    /// The profile chosen by a flag.
    pub profile: Option<String>,
    /// Settings given by flags.
    pub flags: BTreeMap<SettingKey, String>,
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Default for LoadOptions<'_> {
    /// No flags and an empty environment.
    fn default() -> Self {
        Self { profile: None, flags: BTreeMap::new(), env: &|_| None }
    }
}

impl LoadOptions<'_> {
    /// No flags, and the environment of this process.
    pub fn from_process() -> Self {
        Self { env: &process_variable, ..Self::default() }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may hold passwords.
        let flags: Vec<_> = self.flags.keys().collect();
        f.debug_struct("LoadOptions").field("profile", &self.profile).field("flags", &flags).finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where settings read the environment")]
fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A project's settings, all resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The folder of `tidegate.yaml`.
    pub root: PathBuf,
    /// The project's name.
    pub project: ProjectName,
    /// Where the registry is.
    pub registry: RegistryLocation,
    /// Where the lake is.
    pub lake: LakeLocation,
    /// Where the online store is; `None` for batch only.
    pub online: Option<OnlineLocation>,
    /// How much memory the engine may use, in bytes.
    pub memory_bytes: u64,
    /// A simulated clock, when the project has one.
    pub clock: Option<ClockSettings>,
    /// Where sources outside the project may lie: URIs and absolute paths.
    pub allowed_roots: Vec<String>,
    /// The profile in force.
    pub profile: Option<String>,
    /// Where each value came from.
    pub origins: BTreeMap<SettingKey, ValueOrigin>,
}

/// Where a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLocation {
    /// A SQLite file.
    Sqlite(PathBuf),
}

/// Where a lake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LakeLocation {
    /// A folder.
    Directory(PathBuf),
}

/// Where an online store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnlineLocation {
    /// A SQLite file.
    Sqlite(PathBuf),
}

/// A simulated clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClockSettings {
    /// Project time when the project is first started.
    pub start: Instant,
    /// Project seconds per real second; greater than 0.
    pub speed: f64,
}

record! {
    /// `tidegate.yaml`: where a project keeps what it has. Each setting has an environment variable, too.
    ProjectFile "`tidegate.yaml`" {
        /// The project's name: the namespace of everything in it.
        project: optional String,
        /// Where the registry is; `sqlite://.tidegate/registry.db` when left out.
        registry: optional String,
        /// Where the lake is: a folder; `.tidegate/lake` when left out.
        lake: optional String,
        /// Where the online store is, as in `sqlite://.tidegate/online.db`; left out for batch only.
        online: optional String,
        /// How much memory the engine may use; `2GiB` when left out.
        memory: optional TextOrNumber,
        /// A simulated clock, so that old data behaves as on its day.
        clock: optional ClockFile,
        /// URIs and absolute paths below which sources outside the project may lie.
        allowed_roots: optional Vec<At<String>>,
        /// Sections by name that override these settings, chosen with `--profile`.
        profiles: optional Profiles,
        /// House rules for definitions.
        rules: optional RulesFile,
    }
}

record! {
    /// A profile: settings that override those of `tidegate.yaml`.
    ProfileFile "a profile" {
        /// The project's name.
        project: optional String,
        /// Where the registry is.
        registry: optional String,
        /// Where the lake is.
        lake: optional String,
        /// Where the online store is; `none` for batch only.
        online: optional String,
        /// How much memory the engine may use.
        memory: optional TextOrNumber,
        /// A simulated clock.
        clock: optional ClockFile,
        /// URIs and absolute paths below which sources outside the project may lie.
        allowed_roots: optional Vec<At<String>>,
    }
}

record! {
    /// A simulated clock, on embedded parts only.
    ClockFile "clock" {
        /// Project time when the project is first started: a date (midnight UTC) or RFC 3339.
        start: required TextOrNumber,
        /// Project seconds per real second; 1 when left out.
        speed: optional TextOrNumber,
    }
}

/// A value that YAML may take for a number.
#[derive(Debug, Clone)]
pub(super) struct TextOrNumber(String);

impl Read for TextOrNumber {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        String::read(node, out).map(Self)
    }
}
schema_of!(TextOrNumber, "text_or_number", { "type": ["string", "number"] });

/// Profiles by name.
#[derive(Debug, Clone)]
pub(super) struct Profiles(Vec<(String, ProfileFile)>);

impl Read for Profiles {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            out.push(wrong_type(node, "a map from profile names to settings"));
            return None;
        };
        let read = |(key, node): &(super::yaml::Key, Node)| Some((key.name.clone(), ProfileFile::read(node, out)?));
        Some(Self(entries.iter().filter_map(read).collect()))
    }
}

impl JsonSchema for Profiles {
    fn schema_name() -> Cow<'static, str> {
        "Profiles".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let profile = generator.subschema_for::<ProfileFile>();
        json_schema!({ "type": "object", "additionalProperties": profile })
    }
}

/// `text` with the password of every URL in it replaced by as many asterisks, so that columns stay right.
pub fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        redacted.push_str(head);
        let end = tail.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | ',')).unwrap_or(tail.len());
        let (authority, after) = tail.split_at(end);
        match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?, host))) {
            // A variable's name is no secret.
            Some(((user, password), host)) if !password.starts_with("${") => {
                redacted.push_str(user);
                redacted.push(':');
                redacted.extend(password.chars().map(|_| '*'));
                redacted.push('@');
                redacted.push_str(host);
            }
            _ => redacted.push_str(authority),
        }
        rest = after;
    }
    redacted.push_str(rest);
    redacted
}

/// One setting before it is understood. No `Debug`: `text` may hold a password.
struct Raw {
    key: SettingKey,
    text: String,
    origin: Origin,
    from: ValueOrigin,
}

impl Raw {
    fn error(&self, id: &'static str, fact: &str) -> Diagnostic {
        let name = match &self.from {
            ValueOrigin::Environment(variable) => (*variable).to_owned(),
            _ => self.key.key().to_owned(),
        };
        Diagnostic::error(id, self.origin.clone(), format!("`{name}` {fact}"))
    }
}

/// The settings of a project below `root`, or `None` and why.
pub(super) fn resolve(
    root: &Path,
    file: &At<ProjectFile>,
    options: &LoadOptions<'_>,
    out: &mut Vec<Diagnostic>,
) -> Option<Settings> {
    let before = out.len();
    let profile_name =
        options.profile.clone().or_else(|| (options.env)(PROFILE_VARIABLE).filter(|name| !name.is_empty()));
    let profile = profile_name.as_deref().and_then(|name| find_profile(name, file, out));
    let mut resolver =
        Resolver { file, profile, profile_name: profile_name.clone(), options, origins: BTreeMap::new(), out };

    let project = resolver.get(SettingKey::Project);
    let registry = resolver.get(SettingKey::Registry);
    let lake = resolver.get(SettingKey::Lake);
    let online = resolver.get(SettingKey::Online).filter(|raw| raw.text != "none");
    let memory = resolver.get(SettingKey::Memory);
    let start = resolver.get(SettingKey::ClockStart);
    let speed = resolver.get(SettingKey::ClockSpeed);
    let allowed_roots = resolver.allowed_roots();
    let origins = resolver.origins;

    let project = project_name(project, file, out);
    let registry = registry.and_then(|raw| sqlite(&raw, root, "a registry", out)).map(RegistryLocation::Sqlite);
    let lake = lake.and_then(|raw| directory(&raw, root, out)).map(LakeLocation::Directory);
    let online = online.map(|raw| sqlite(&raw, root, "an online store", out).map(OnlineLocation::Sqlite));
    let memory_bytes = memory.and_then(|raw| memory_bytes(&raw, out));
    let clock = clock(start, speed, out);
    if out[before..].iter().any(|diagnostic| diagnostic.level == crate::diagnostics::Level::Error) {
        return None;
    }
    Some(Settings {
        root: root.to_owned(),
        project: project?,
        registry: registry?,
        lake: lake?,
        online: match online {
            Some(online) => Some(online?),
            None => None,
        },
        memory_bytes: memory_bytes?,
        clock,
        allowed_roots,
        profile: profile_name,
        origins,
    })
}

fn find_profile<'a>(name: &str, file: &'a At<ProjectFile>, out: &mut Vec<Diagnostic>) -> Option<&'a ProfileFile> {
    let profiles = file.profiles.get();
    let found = profiles.and_then(|profiles| profiles.0.iter().find(|(profile, _)| profile == name));
    if found.is_none() && !matches!(file.profiles, Field::Bad) {
        let known = profiles.into_iter().flat_map(|profiles| profiles.0.iter().map(|(name, _)| name.as_str()));
        let mut diagnostic = Diagnostic::error(
            ids::UNKNOWN_PROFILE,
            Origin::file(super::PROJECT_FILE),
            format!("there is no profile `{name}`"),
        );
        diagnostic.help = Some(
            super::read::suggestion(name, known)
                .unwrap_or_else(|| "add it under `profiles:` in `tidegate.yaml`".to_owned()),
        );
        out.push(diagnostic);
    }
    found.map(|(_, profile)| profile)
}

fn text(field: &Field<String>) -> Option<(&str, &Origin)> {
    field.get().map(|at| (at.value.as_str(), &at.origin))
}

fn number(field: &Field<TextOrNumber>) -> Option<(&str, &Origin)> {
    field.get().map(|at| (at.value.0.as_str(), &at.origin))
}

struct Resolver<'a, 'b> {
    file: &'a At<ProjectFile>,
    profile: Option<&'a ProfileFile>,
    profile_name: Option<String>,
    options: &'a LoadOptions<'b>,
    origins: BTreeMap<SettingKey, ValueOrigin>,
    out: &'a mut Vec<Diagnostic>,
}

impl Resolver<'_, '_> {
    fn get(&mut self, key: SettingKey) -> Option<Raw> {
        let raw = self.find(key)?;
        let text = self.interpolate(&raw)?;
        self.origins.insert(key, raw.from.clone());
        Some(Raw { text, ..raw })
    }

    fn find(&mut self, key: SettingKey) -> Option<Raw> {
        let raw =
            |text: &str, origin: Origin, from: ValueOrigin| Some(Raw { key, text: text.to_owned(), origin, from });
        if let Some(text) = self.options.flags.get(&key) {
            return raw(text, Origin::default(), ValueOrigin::Flag);
        }
        if let Some(text) = (self.options.env)(key.variable()).filter(|text| !text.is_empty()) {
            return raw(&text, Origin::default(), ValueOrigin::Environment(key.variable()));
        }
        let profile = self.profile.and_then(|profile| match key {
            SettingKey::Project => text(&profile.project),
            SettingKey::Registry => text(&profile.registry),
            SettingKey::Lake => text(&profile.lake),
            SettingKey::Online => text(&profile.online),
            SettingKey::Memory => number(&profile.memory),
            SettingKey::ClockStart => profile.clock.get().and_then(|clock| number(&clock.value.start)),
            SettingKey::ClockSpeed => profile.clock.get().and_then(|clock| number(&clock.value.speed)),
            SettingKey::AllowedRoots => None,
        });
        if let Some((text, origin)) = profile {
            let name = self.profile_name.clone().unwrap_or_default();
            return raw(text, origin.clone(), ValueOrigin::Profile(name));
        }
        let file = match key {
            SettingKey::Project => text(&self.file.project),
            SettingKey::Registry => text(&self.file.registry),
            SettingKey::Lake => text(&self.file.lake),
            SettingKey::Online => text(&self.file.online),
            SettingKey::Memory => number(&self.file.memory),
            SettingKey::ClockStart => self.file.clock.get().and_then(|clock| number(&clock.value.start)),
            SettingKey::ClockSpeed => self.file.clock.get().and_then(|clock| number(&clock.value.speed)),
            SettingKey::AllowedRoots => None,
        };
        match file {
            Some((text, origin)) => raw(text, origin.clone(), ValueOrigin::File),
            None => raw(key.default()?, Origin::default(), ValueOrigin::Default),
        }
    }

    /// Replaces `${NAME}` by the variable's value; `$${` stands for `${`.
    fn interpolate(&mut self, raw: &Raw) -> Option<String> {
        if !matches!(raw.from, ValueOrigin::File | ValueOrigin::Profile(_)) {
            return Some(raw.text.clone());
        }
        let mut text = String::new();
        let mut rest = raw.text.as_str();
        let mut good = true;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                text.push_str(&rest[..at]);
                text.push('{');
                rest = &rest[at + 2..];
                continue;
            }
            text.push_str(&rest[..at]);
            let Some((name, after)) = rest[at + 2..].split_once('}') else {
                self.out.push(
                    raw.error(ids::BAD_SETTING, "holds `${` without `}`")
                        .with_help("write `${NAME}`, or `$${` for the text itself"),
                );
                return None;
            };
            match (self.options.env)(name) {
                Some(value) => text.push_str(&value),
                None => {
                    good = false;
                    self.out.push(
                        raw.error(
                            ids::UNSET_VARIABLE,
                            &format!("needs the environment variable `{name}`, which is not set"),
                        )
                        .with_label("not set")
                        .with_help(format!("set it, as in `export {name}=…`")),
                    );
                }
            }
            rest = after;
        }
        text.push_str(rest);
        good.then_some(text)
    }

    fn allowed_roots(&mut self) -> Vec<String> {
        let key = SettingKey::AllowedRoots;
        let raws: Vec<Raw> = if let Some(raw) = self.find(key) {
            let roots = raw.text.split(',').map(str::trim).filter(|root| !root.is_empty());
            roots
                .map(|root| Raw { text: root.to_owned(), origin: raw.origin.clone(), from: raw.from.clone(), key })
                .collect()
        } else {
            let profile = self.profile.and_then(|profile| profile.allowed_roots.get());
            let (written, from) = match (profile, self.file.allowed_roots.get()) {
                (Some(roots), _) => (roots, ValueOrigin::Profile(self.profile_name.clone().unwrap_or_default())),
                (None, Some(roots)) => (roots, ValueOrigin::File),
                (None, None) => return Vec::new(),
            };
            let raw = |root: &At<String>| Raw {
                key,
                text: root.value.clone(),
                origin: root.origin.clone(),
                from: from.clone(),
            };
            written.iter().map(raw).collect()
        };
        if let Some(raw) = raws.first() {
            self.origins.insert(key, raw.from.clone());
        }
        raws.into_iter().filter_map(|raw| self.allowed_root(&raw)).collect()
    }

    fn allowed_root(&mut self, raw: &Raw) -> Option<String> {
        let text = self.interpolate(raw)?;
        if !text.contains("://") && !text.starts_with('/') {
            self.out.push(
                raw.error(ids::BAD_SETTING, "holds a relative path")
                    .with_label("neither a URI nor an absolute path")
                    .with_help("paths below the project are always allowed; write others in full"),
            );
            return None;
        }
        let bare = text.trim_end_matches('/');
        if bare.is_empty() || bare.ends_with(':') {
            self.out.push(raw.error(ids::BAD_SETTING, "allows everything").with_help("name a bucket or a folder"));
            return None;
        }
        Some(text)
    }
}

fn project_name(raw: Option<Raw>, file: &At<ProjectFile>, out: &mut Vec<Diagnostic>) -> Option<ProjectName> {
    let Some(raw) = raw else {
        if file.project.is_missing() {
            out.push(
                Diagnostic::error(ids::MISSING_FIELD, file.origin.clone(), "`tidegate.yaml` has no `project`")
                    .with_label("`project` is missing")
                    .with_help("add `project:` with a name: the namespace of everything in it"),
            );
        }
        return None;
    };
    match ProjectName::new(raw.text.clone()) {
        Ok(name) => Some(name),
        Err(invalid) => {
            let fact = format!("is `{}`, which is not a valid project name", redact(&invalid.value));
            out.push(raw.error(ids::BAD_NAME, &fact).with_label(format!("expected {}", invalid.expected)));
            None
        }
    }
}

fn sqlite(raw: &Raw, root: &Path, what: &str, out: &mut Vec<Diagnostic>) -> Option<PathBuf> {
    let scheme = raw.text.split_once(':').map_or("", |(scheme, _)| scheme);
    let path = raw.text.strip_prefix("sqlite://").or_else(|| raw.text.strip_prefix("sqlite:"));
    if let Some(path) = path.filter(|path| !path.is_empty() && !path.starts_with('?')) {
        return Some(root.join(path));
    }
    let later = match scheme {
        "postgres" | "postgresql" => Some("PostgreSQL"),
        "redis" | "rediss" | "redis-sentinel" | "redis-cluster" => Some("Redis"),
        _ => None,
    };
    out.push(match later {
        Some(later) => raw
            .error(ids::NOT_AVAILABLE, &format!("names {later}, which is not available yet"))
            .with_label("not available in this version")
            .with_help(format!("use `sqlite://.tidegate/{}.db`", raw.key.key())),
        None => raw
            .error(ids::BAD_SETTING, &format!("is not {what} that Tidegate knows"))
            .with_label("expected `sqlite://PATH`")
            .with_help(format!("write `sqlite://.tidegate/{}.db`", raw.key.key())),
    });
    None
}

fn directory(raw: &Raw, root: &Path, out: &mut Vec<Diagnostic>) -> Option<PathBuf> {
    let text = raw.text.strip_prefix("file://").unwrap_or(&raw.text);
    if !text.contains("://") && !text.is_empty() {
        return Some(root.join(text));
    }
    out.push(
        raw.error(ids::NOT_AVAILABLE, "names an object store, which is not available yet")
            .with_label("not available in this version")
            .with_help("use a folder, as in `.tidegate/lake`"),
    );
    None
}

fn memory_bytes(raw: &Raw, out: &mut Vec<Diagnostic>) -> Option<u64> {
    const LEAST: u64 = 64 << 20;
    match scalars::parse_bytes(&raw.text) {
        Some(bytes) if bytes >= LEAST => Some(bytes),
        Some(_) => {
            out.push(
                raw.error(ids::OUT_OF_RANGE, "is less than 64MiB")
                    .with_label("too little to compute anything")
                    .with_help("write for example `2GiB`"),
            );
            None
        }
        None => {
            out.push(
                raw.error(ids::BAD_SETTING, "is not a size")
                    .with_label("expected a number and a unit")
                    .with_help("write for example `512MiB` or `2GiB`"),
            );
            None
        }
    }
}

fn clock(start: Option<Raw>, speed: Option<Raw>, out: &mut Vec<Diagnostic>) -> Option<ClockSettings> {
    let start = start?;
    let at = scalars::parse_time(&start.text).map(|time| time.resolve(Tz::UTC));
    if at.is_none() {
        out.push(
            start
                .error(ids::BAD_TIME, "is not a date or time")
                .with_label("expected a date or an RFC 3339 time")
                .with_help("write for example `2013-01-08` (midnight UTC) or `2013-01-08T02:15:00Z`"),
        );
    }
    let speed = speed?;
    let factor = speed.text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 0.0 && *factor <= 1e6);
    if factor.is_none() {
        out.push(
            speed
                .error(ids::BAD_SETTING, "is not a speed")
                .with_label("expected a number above 0, at most 1000000")
                .with_help("`3600` lets an hour pass each second"),
        );
    }
    Some(ClockSettings { start: at?, speed: factor? })
}
