//! From what is written, in whatever place, to [`Settings`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;

use super::locations::{OBJECT_SCHEMES, object_url, postgres_url};
use super::notify;
use super::retention;
use super::written::{OnlineMode, OnlineStores, ProfileFile, ProjectFile, StorageFile, TextOrFlag, TextOrNumber};
use super::{
    ClockSettings, LakeLocation, LoadOptions, OnlineLocation, OnlineTarget, PROFILE_VARIABLE, RedisLocation,
    RegistryLocation, SettingKey, Settings, StorageSettings, ValueOrigin, redact,
};
use crate::definitions::read::{self, At, Field};
use crate::definitions::{PROJECT_FILE, scalars};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::ProjectName;

/// One setting before it is understood. No `Debug`: `text` may hold a password.
pub(super) struct Raw {
    key: SettingKey,
    pub(super) text: String,
    origin: Origin,
    from: ValueOrigin,
}

impl Raw {
    pub(super) fn error(&self, id: &'static str, fact: &str) -> Diagnostic {
        let name = match &self.from {
            ValueOrigin::Environment(variable) => (*variable).to_owned(),
            _ => self.key.key().to_owned(),
        };
        Diagnostic::error(id, self.origin.clone(), format!("`{name}` {fact}"))
    }
}

/// The settings of a project below `root`, or `None` and why.
pub(in crate::definitions) fn resolve(
    root: &Path,
    file: &At<ProjectFile>,
    options: &LoadOptions<'_>,
    out: &mut Vec<Diagnostic>,
) -> Option<Settings> {
    let profile_name =
        options.profile.clone().or_else(|| (options.env)(PROFILE_VARIABLE).filter(|name| !name.is_empty()));
    let profile = profile_name.as_deref().and_then(|name| find_profile(name, file, out));
    let written_notify = profile.and_then(|profile| profile.notify.get()).or(file.notify.get());
    let mut resolver =
        Resolver { file, profile, profile_name: profile_name.clone(), options, origins: BTreeMap::new(), out };

    let project = resolver.get(SettingKey::Project);
    let registry = resolver.get(SettingKey::Registry);
    let lake = resolver.get(SettingKey::Lake);
    let online = resolver.online();
    let memory = resolver.get(SettingKey::Memory);
    let spill_dir = resolver.get(SettingKey::SpillDir);
    let start = resolver.get(SettingKey::ClockStart);
    let speed = resolver.get(SettingKey::ClockSpeed);
    let allowed_roots = resolver.allowed_roots();
    let written = retention::Written {
        snapshots: resolver.get(SettingKey::RetentionSnapshots),
        snapshots_min: resolver.get(SettingKey::RetentionMinSnapshots),
        log: resolver.get(SettingKey::RetentionLog),
        staged: resolver.get(SettingKey::RetentionStaged),
    };
    let every = resolver.get(SettingKey::JanitorEvery);
    let reconcile = resolver.get(SettingKey::ReconcileEvery);
    let endpoint = resolver.get(SettingKey::StorageEndpoint);
    let region = resolver.get(SettingKey::StorageRegion);
    let path_style = resolver.get(SettingKey::StoragePathStyle);
    let allow_http = resolver.get(SettingKey::StorageAllowHttp);
    let origins = resolver.origins;

    let project = project_name(project, file, out);
    let registry = registry.and_then(|raw| registry_location(&raw, root, out));
    let lake = lake.and_then(|raw| lake_location(&raw, root, out));
    let online = online_targets(online, root, out);
    let memory_bytes = memory.and_then(|raw| memory_bytes(&raw, out));
    let clock = clock(start, speed, out);
    let retention = retention::retention(&written, out);
    let every = every.and_then(|raw| retention::every(&raw, "the janitor", "1h", out));
    let reconcile = reconcile.and_then(|raw| retention::every(&raw, "it", "1m", out));
    let storage = StorageSettings {
        allow_http: allow_http.and_then(|raw| flag(&raw, out)).unwrap_or(false),
        path_style: path_style.and_then(|raw| flag(&raw, out)),
        endpoint: endpoint.and_then(|raw| endpoint_url(&raw, out)),
        region: region.map(|raw| raw.text),
    };
    let notify = notify::notify(
        written_notify.map(|at| &at.value),
        &mut |text, out| {
            let error = |id, fact: &str| Diagnostic::error(id, text.origin.clone(), format!("`notify` {fact}"));
            filled(&text.value, options.env, &error, out)
        },
        out,
    );
    // Also what was wrong with the file itself: half of `tidegate.yaml` is not what its author meant.
    if out.iter().any(|diagnostic| diagnostic.level == crate::diagnostics::Level::Error) {
        return None;
    }
    Some(Settings {
        root: root.to_owned(),
        project: project?,
        registry: registry?,
        lake: lake?,
        online,
        memory_bytes: memory_bytes?,
        spill_dir: root.join(spill_dir?.text),
        clock,
        allowed_roots,
        retention: retention?,
        janitor_every: every?,
        reconcile_every: reconcile?,
        storage,
        notify,
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
            Origin::file(PROJECT_FILE),
            format!("there is no profile `{name}`"),
        );
        diagnostic.help = Some(
            read::suggestion(name, known).unwrap_or_else(|| "add it under `profiles:` in `tidegate.yaml`".to_owned()),
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

fn written_flag(field: &Field<TextOrFlag>) -> Option<(&str, &Origin)> {
    field.get().map(|at| (at.value.0.as_str(), &at.origin))
}

fn storage(key: SettingKey, storage: &Field<StorageFile>) -> Option<(&str, &Origin)> {
    let storage = &storage.get()?.value;
    match key {
        SettingKey::StorageEndpoint => text(&storage.endpoint),
        SettingKey::StorageRegion => text(&storage.region),
        SettingKey::StoragePathStyle => written_flag(&storage.path_style),
        SettingKey::StorageAllowHttp => written_flag(&storage.allow_http),
        _ => None,
    }
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
            SettingKey::Memory => number(&profile.memory),
            SettingKey::SpillDir => text(&profile.spill_dir),
            SettingKey::ClockStart => profile.clock.get().and_then(|clock| number(&clock.value.start)),
            SettingKey::ClockSpeed => profile.clock.get().and_then(|clock| number(&clock.value.speed)),
            SettingKey::RetentionSnapshots => profile.retention.get().and_then(|keep| text(&keep.value.snapshots)),
            SettingKey::RetentionMinSnapshots => {
                profile.retention.get().and_then(|keep| number(&keep.value.min_snapshots))
            }
            SettingKey::RetentionLog => profile.retention.get().and_then(|keep| text(&keep.value.log)),
            SettingKey::RetentionStaged => profile.retention.get().and_then(|keep| text(&keep.value.staged)),
            SettingKey::JanitorEvery => profile.janitor.get().and_then(|janitor| text(&janitor.value.every)),
            SettingKey::ReconcileEvery => profile.reconcile.get().and_then(|of| text(&of.value.every)),
            SettingKey::StorageEndpoint
            | SettingKey::StorageRegion
            | SettingKey::StoragePathStyle
            | SettingKey::StorageAllowHttp => storage(key, &profile.storage),
            SettingKey::Online | SettingKey::AllowedRoots => None,
        });
        if let Some((text, origin)) = profile {
            let name = self.profile_name.clone().unwrap_or_default();
            return raw(text, origin.clone(), ValueOrigin::Profile(name));
        }
        let file = match key {
            SettingKey::Project => text(&self.file.project),
            SettingKey::Registry => text(&self.file.registry),
            SettingKey::Lake => text(&self.file.lake),
            SettingKey::Memory => number(&self.file.memory),
            SettingKey::SpillDir => text(&self.file.spill_dir),
            SettingKey::ClockStart => self.file.clock.get().and_then(|clock| number(&clock.value.start)),
            SettingKey::ClockSpeed => self.file.clock.get().and_then(|clock| number(&clock.value.speed)),
            SettingKey::RetentionSnapshots => self.file.retention.get().and_then(|keep| text(&keep.value.snapshots)),
            SettingKey::RetentionMinSnapshots => {
                self.file.retention.get().and_then(|keep| number(&keep.value.min_snapshots))
            }
            SettingKey::RetentionLog => self.file.retention.get().and_then(|keep| text(&keep.value.log)),
            SettingKey::RetentionStaged => self.file.retention.get().and_then(|keep| text(&keep.value.staged)),
            SettingKey::JanitorEvery => self.file.janitor.get().and_then(|janitor| text(&janitor.value.every)),
            SettingKey::ReconcileEvery => self.file.reconcile.get().and_then(|of| text(&of.value.every)),
            SettingKey::StorageEndpoint
            | SettingKey::StorageRegion
            | SettingKey::StoragePathStyle
            | SettingKey::StorageAllowHttp => storage(key, &self.file.storage),
            SettingKey::Online | SettingKey::AllowedRoots => None,
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
        filled(&raw.text, self.options.env, &|id, fact| raw.error(id, fact), self.out)
    }

    /// Every online store with whether it is required; `none` stands for none.
    fn online(&mut self) -> Vec<(Raw, bool)> {
        let key = SettingKey::Online;
        let raws: Vec<(Raw, bool)> = if let Some(raw) = self.find(key) {
            vec![(raw, true)]
        } else {
            let profile = self.profile.and_then(|profile| profile.online.get());
            let (written, from) = match (profile, self.file.online.get()) {
                (Some(online), _) => (online, ValueOrigin::Profile(self.profile_name.clone().unwrap_or_default())),
                (None, Some(online)) => (online, ValueOrigin::File),
                (None, None) => return Vec::new(),
            };
            let raw =
                |url: &At<String>| Raw { key, text: url.value.clone(), origin: url.origin.clone(), from: from.clone() };
            match &written.value {
                OnlineStores::One(url) => vec![(raw(url), true)],
                OnlineStores::Several(several) => {
                    let target = |target: &At<super::written::OnlineStoreFile>| {
                        let required = target.mode.get().is_none_or(|mode| mode.value == OnlineMode::Required);
                        Some((raw(target.url.get()?), required))
                    };
                    several.iter().filter_map(target).collect()
                }
            }
        };
        if let Some((raw, _)) = raws.first() {
            self.origins.insert(key, raw.from.clone());
        }
        let filled = raws.into_iter().filter_map(|(raw, required)| {
            let text = self.interpolate(&raw)?;
            Some((Raw { text, ..raw }, required))
        });
        filled.filter(|(raw, _)| raw.text != "none").collect()
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

/// `text` with `${NAME}` replaced by the variable's value; `$${` stands for `${`.
fn filled(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    error: &dyn Fn(&'static str, &str) -> Diagnostic,
    out: &mut Vec<Diagnostic>,
) -> Option<String> {
    let mut filled = String::new();
    let mut rest = text;
    let mut good = true;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            filled.push_str(&rest[..at]);
            filled.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        filled.push_str(&rest[..at]);
        let Some((name, after)) = rest[at + 2..].split_once('}') else {
            out.push(
                error(ids::BAD_SETTING, "holds `${` without `}`")
                    .with_help("write `${NAME}`, or `$${` for the text itself"),
            );
            return None;
        };
        match env(name) {
            Some(value) => filled.push_str(&value),
            None => {
                good = false;
                let fact = format!("needs the environment variable `{name}`, which is not set");
                out.push(
                    error(ids::UNSET_VARIABLE, &fact)
                        .with_label("not set")
                        .with_help(format!("set it, as in `export {name}=…`")),
                );
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    good.then_some(filled)
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
    let path = raw.text.strip_prefix("sqlite://").or_else(|| raw.text.strip_prefix("sqlite:"));
    if let Some(path) = path.filter(|path| !path.is_empty() && !path.starts_with('?')) {
        return Some(root.join(path));
    }
    out.push(
        raw.error(ids::BAD_SETTING, &format!("is not {what} that Tidegate knows"))
            .with_label("expected `sqlite://PATH`")
            .with_help(format!("write `sqlite://.tidegate/{}.db`", raw.key.key())),
    );
    None
}

fn online_targets(raws: Vec<(Raw, bool)>, root: &Path, out: &mut Vec<Diagnostic>) -> Vec<OnlineTarget> {
    let mut targets: Vec<OnlineTarget> = Vec::new();
    let first = raws.first().map(|(raw, _)| raw.error(ids::BAD_SETTING, "holds no store that is required"));
    for (raw, required) in raws {
        let Some(location) = online_location(&raw, root, out) else { continue };
        if targets.iter().any(|target| target.location == location) {
            out.push(raw.error(ids::BAD_SETTING, "names the same store twice").with_label("named before"));
            continue;
        }
        targets.push(OnlineTarget { location, required });
    }
    if let Some(none_required) = first.filter(|_| !targets.is_empty() && !targets.iter().any(|target| target.required))
    {
        out.push(none_required.with_help("give one of them `mode: required`: a run must be live somewhere"));
    }
    targets
}

fn online_location(raw: &Raw, root: &Path, out: &mut Vec<Diagnostic>) -> Option<OnlineLocation> {
    if !RedisLocation::is_redis(&raw.text) {
        return sqlite(raw, root, "an online store", out).map(OnlineLocation::Sqlite);
    }
    match RedisLocation::parse(&raw.text) {
        Ok(mut location) => {
            location.ca = location.ca.map(|ca| root.join(ca));
            Some(OnlineLocation::Redis(location))
        }
        Err(wrong) => {
            out.push(raw.error(ids::BAD_SETTING, &wrong).with_label("expected the URL of a Redis"));
            None
        }
    }
}

fn registry_location(raw: &Raw, root: &Path, out: &mut Vec<Diagnostic>) -> Option<RegistryLocation> {
    if !raw.text.starts_with("postgres://") && !raw.text.starts_with("postgresql://") {
        return sqlite(raw, root, "a registry", out).map(RegistryLocation::Sqlite);
    }
    match postgres_url(&raw.text) {
        Ok(url) => Some(RegistryLocation::Postgres(url)),
        Err(wrong) => {
            out.push(
                raw.error(ids::BAD_SETTING, &wrong)
                    .with_label("expected the URL of a database")
                    .with_help("write `postgres://USER:${PASSWORD}@HOST/DATABASE`"),
            );
            None
        }
    }
}

fn lake_location(raw: &Raw, root: &Path, out: &mut Vec<Diagnostic>) -> Option<LakeLocation> {
    let text = raw.text.strip_prefix("file://").unwrap_or(&raw.text);
    let Some((scheme, _)) = text.split_once("://") else {
        if text.is_empty() {
            out.push(raw.error(ids::BAD_SETTING, "is empty").with_help("use a folder, as in `.tidegate/lake`"));
            return None;
        }
        return Some(LakeLocation::Directory(root.join(text)));
    };
    let found = if OBJECT_SCHEMES.contains(&scheme) {
        object_url(text)
    } else {
        Err("names a kind of store that Tidegate does not know".to_owned())
    };
    match found {
        Ok(url) => Some(LakeLocation::Object(url)),
        Err(wrong) => {
            out.push(
                raw.error(ids::BAD_SETTING, &wrong)
                    .with_label("expected a folder or a place in an object store")
                    .with_help("write for example `.tidegate/lake` or `s3://bucket/prefix`"),
            );
            None
        }
    }
}

fn flag(raw: &Raw, out: &mut Vec<Diagnostic>) -> Option<bool> {
    let flag = raw.text.parse().ok();
    if flag.is_none() {
        out.push(raw.error(ids::BAD_SETTING, "is neither `true` nor `false`").with_label("expected `true` or `false`"));
    }
    flag
}

fn endpoint_url(raw: &Raw, out: &mut Vec<Diagnostic>) -> Option<String> {
    let url = url::Url::parse(&raw.text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let wrong = match &url {
        None => "is not an `https://` or `http://` URL",
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            "holds credentials: leave them to the environment (`AWS_ACCESS_KEY_ID` and kin)"
        }
        Some(_) => return Some(raw.text.clone()),
    };
    out.push(raw.error(ids::BAD_SETTING, wrong).with_help("write for example `https://minio.example.com:9000`"));
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
