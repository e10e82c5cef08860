//! Where settings come from, and what never leaves them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tidegate_registry::definitions::settings::{
    LakeLocation, OnlineLocation, OnlineTarget, RegistryLocation, Retention, SettingKey, ValueOrigin, redact,
};
use tidegate_registry::definitions::{LoadOptions, Loaded, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};

const FILE: &str = "project: flights
registry: sqlite://${DATA}/registry.db
online: sqlite:///srv/online.db
memory: 512MiB
clock: {start: 2013-01-08, speed: 3600}
allowed_roots: [\"s3://bucket/open\"]
profiles:
  ci:
    project: flights_ci
    lake: /tmp/lake
    online: none
  big: {memory: 64GiB}
";

fn resolve(file: &str, profile: Option<&str>, flags: &[(SettingKey, &str)], env: &[(&str, &str)]) -> Loaded {
    let lookup = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let flags: BTreeMap<_, _> = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let options = LoadOptions { profile: profile.map(str::to_owned), flags, env: &lookup };
    load_files(Path::new("/project"), &[("tidegate.yaml", file.as_bytes())], &options)
}

fn target(path: &str, required: bool) -> OnlineTarget {
    OnlineTarget { location: OnlineLocation::Sqlite(path.into()), required }
}

#[test]
fn a_hot_standby_is_one_of_several_online_stores() {
    let file = |list: &str| format!("project: flights\nonline:\n{list}");
    let several = "  - url: sqlite://a.db\n  - {url: \"rediss://:${PW}@cache/1?ca=ca.pem\", mode: best_effort}\n";
    let settings = resolve(&file(several), None, &[], &[("PW", "hunter2")]).settings.unwrap();
    assert_eq!(settings.online[0], target("/project/a.db", true));
    let OnlineLocation::Redis(redis) = &settings.online[1].location else { panic!("{:?}", settings.online) };
    assert_eq!(redis.ca.as_deref(), Some(Path::new("/project/ca.pem")), "relative to the project");
    assert_eq!((settings.online[1].required, redis.db), (false, 1));
    assert!(!format!("{settings:?}").contains("hunter2"));
    for (list, expected) in [
        ("  - {url: sqlite://a.db, mode: best_effort}\n", "holds no store that is required"),
        ("  - {url: sqlite://a.db}\n  - {url: sqlite://a.db}\n", "names the same store twice"),
        ("  - {url: redis://h:x}\n", "`online`"),
        ("  - {url: sqlite://a.db, mode: maybe}\n", "`maybe` is not"),
    ] {
        let loaded = resolve(&file(list), None, &[], &[]);
        let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
        assert!(text.contains(expected), "{list}: {text}");
        assert!(loaded.settings.is_none());
    }
}

const NOTIFY: &str = "project: flights
notify:
  allowed_hosts: [hooks.example.com, \"*.example.org\", chat.internal, 10.1.2.3]
  allowed_private: [chat.internal, 10.1.0.0/16]
  give_up_after: 1d
  webhooks:
    - {name: oncall, url: \"https://hooks.example.com/${TOKEN}\", secret_env: ONCALL_SECRET, events: [run.*, hold.placed]}
    - {name: chat, url: \"http://chat.internal:8080/x\", secret_env: CHAT_SECRET}
    - {name: box, url: \"http://10.1.2.3/\", secret_env: BOX_SECRET}
profiles:
  quiet: {notify: {webhooks: []}}
";

#[test]
fn webhooks_are_named_with_what_they_want_and_hide_their_urls() {
    let env = [("TOKEN", "hush")];
    let settings = resolve(NOTIFY, None, &[], &env).settings.unwrap();
    let notify = &settings.notify;
    assert_eq!(notify.give_up_after, Duration::from_secs(86_400));
    let names: Vec<_> = notify.webhooks.iter().map(|webhook| (webhook.name.as_str(), webhook.host.as_str())).collect();
    assert_eq!(names, [("oncall", "hooks.example.com"), ("chat", "chat.internal"), ("box", "10.1.2.3")]);
    assert_eq!(notify.webhooks[0].url.expose(), "https://hooks.example.com/hush");
    assert_eq!(notify.webhooks[0].events, ["run.*", "hold.placed"]);
    assert!(!format!("{settings:?}").contains("hush"));
    assert_eq!(resolve(NOTIFY, Some("quiet"), &[], &env).settings.unwrap().notify.webhooks, []);
    let none = resolve("project: flights\n", None, &[], &[]).settings.unwrap();
    assert_eq!((none.notify.webhooks.len(), none.notify.give_up_after), (0, Duration::from_secs(3 * 86_400)));
}

/// Before anything is sent, and without asking anybody.
#[test]
fn webhooks_that_lead_where_none_may_are_refused() {
    let with = |hosts: &str, webhook: &str| {
        format!("project: flights\nnotify:\n  allowed_hosts: [{hosts}]\n  webhooks:\n    - {{name: w, {webhook}}}\n")
    };
    let to = |hosts: &str, url: &str| with(hosts, &format!("url: \"{url}\", secret_env: S"));
    for (file, expected) in [
        (to("a.example.com", "https://b.example.com/"), "names the host `b.example.com`, which is not allowed"),
        (to("127.0.0.1", "https://127.0.0.1/"), "not on the open internet"),
        (to("127.0.0.1", "https://2130706433/"), "leads to `127.0.0.1`"),
        (to("127.0.0.1", "https://0x7f.1/"), "leads to `127.0.0.1`"),
        (to("localhost", "https://localhost/"), "not on the open internet"),
        (to("\"*.localhost\", a.localhost", "https://a.localhost/"), "not on the open internet"),
        (to("169.254.169.254", "https://169.254.169.254/latest"), "not on the open internet"),
        (to("\"[::1]\"", "https://[::1]/"), "not on the open internet"),
        (to("\"[::ffff:a00:1]\"", "https://[::ffff:10.0.0.1]/"), "not on the open internet"),
        (to("a.example.com", "http://a.example.com/"), "is not encrypted"),
        (to("a.example.com", "ftp://a.example.com/"), "is not an `https://` URL"),
        (to("a.example.com", "https://u:hush@a.example.com/"), "holds a user or password"),
        (to("a.example.com", "https://a.example.com/${NONE}"), "`NONE`, which is not set"),
        (to("\"https://a.example.com\"", "https://a.example.com/"), "is no host"),
        (with("a.b", "url: \"https://a.b\", secret_env: \"hush hush\""), "not the name of an environment variable"),
        (with("a.b", "url: \"https://a.b\", secret_env: S, events: [run.blockd]"), "`run.blockd` means no event"),
        (with("a.b", "url: \"https://a.b\""), "secret_env"),
        ("project: flights\nnotify: {allowed_private: [10.0.0.0/99]}\n".to_owned(), "is no range of addresses"),
        ("project: flights\nnotify: {give_up_after: soon}\n".to_owned(), "not a duration"),
        (NOTIFY.replace("name: chat", "name: oncall"), "there are two webhooks `oncall`"),
        (NOTIFY.replace("name: chat", "name: Chat"), "not a valid name"),
    ] {
        let loaded = resolve(&file, None, &[], &[("TOKEN", "x")]);
        let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
        let facts: String = loaded.diagnostics.iter().map(|found| found.title.clone() + "\n").collect();
        assert!(text.contains(expected), "{file}: {text}");
        assert!(!facts.contains("hush"), "{facts}");
        assert!(loaded.settings.is_none(), "{file}");
    }
}

#[test]
fn paths_are_relative_to_the_project_and_variables_are_filled_in() {
    let settings = resolve(FILE, None, &[], &[("DATA", "state")]).settings.unwrap();
    assert_eq!(settings.project.as_str(), "flights");
    assert_eq!(settings.registry, RegistryLocation::Sqlite("/project/state/registry.db".into()));
    assert_eq!(settings.lake, LakeLocation::Directory("/project/.tidegate/lake".into()));
    assert_eq!(settings.online, [target("/srv/online.db", true)]);
    assert_eq!(settings.memory_bytes, 512 << 20);
    assert_eq!(settings.spill_dir, Path::new("/project/.tidegate/spill"));
    assert_eq!(settings.clock.unwrap().speed, 3600.0);
    assert_eq!(settings.allowed_roots, ["s3://bucket/open"]);
    assert_eq!(settings.origins[&SettingKey::Lake], ValueOrigin::Default);
    assert_eq!(settings.origins[&SettingKey::Memory], ValueOrigin::File);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_profile_which_beats_the_file() {
    let env = [("DATA", "state"), ("TIDEGATE_MEMORY", "1GiB"), ("TIDEGATE_LAKE", "env-lake")];
    let settings = resolve(FILE, Some("ci"), &[(SettingKey::Memory, "3GiB")], &env).settings.unwrap();
    assert_eq!((settings.memory_bytes, &settings.origins[&SettingKey::Memory]), (3 << 30, &ValueOrigin::Flag));
    assert_eq!(settings.lake, LakeLocation::Directory("/project/env-lake".into()));
    assert_eq!(settings.origins[&SettingKey::Lake].to_string(), "environment (TIDEGATE_LAKE)");
    assert_eq!(settings.project.as_str(), "flights_ci");
    assert_eq!(settings.origins[&SettingKey::Project], ValueOrigin::Profile("ci".to_owned()));
    assert_eq!(settings.online, [], "`none` turns the online store off");
    assert_eq!(settings.origins[&SettingKey::Registry], ValueOrigin::File);
    let by_variable = resolve(FILE, None, &[], &[("DATA", "state"), ("TIDEGATE_PROFILE", "big")]).settings.unwrap();
    assert_eq!(by_variable.memory_bytes, 64 << 30);
}

#[test]
fn every_setting_can_come_from_its_variable() {
    let env = [
        ("TIDEGATE_PROJECT_NAME", "other"),
        ("TIDEGATE_REGISTRY", "sqlite://r.db"),
        ("TIDEGATE_LAKE", "l"),
        ("TIDEGATE_ONLINE", "sqlite://o.db"),
        ("TIDEGATE_MEMORY", "1GiB"),
        ("TIDEGATE_SPILL_DIR", "/scratch"),
        ("TIDEGATE_CLOCK_START", "2013-01-08T00:00:00Z"),
        ("TIDEGATE_CLOCK_SPEED", "60"),
        ("TIDEGATE_ALLOWED_ROOTS", "s3://a, /b"),
        ("TIDEGATE_RETENTION_SNAPSHOTS", "7d"),
        ("TIDEGATE_RETENTION_MIN_SNAPSHOTS", "5"),
        ("TIDEGATE_RETENTION_LOG", "14d"),
        ("TIDEGATE_RETENTION_STAGED", "2h"),
        ("TIDEGATE_JANITOR_EVERY", "off"),
        ("TIDEGATE_RECONCILE_EVERY", "5s"),
        ("TIDEGATE_STORAGE_ENDPOINT", "http://127.0.0.1:9000"),
        ("TIDEGATE_STORAGE_REGION", "eu-central-1"),
        ("TIDEGATE_STORAGE_PATH_STYLE", "true"),
        ("TIDEGATE_STORAGE_ALLOW_HTTP", "false"),
    ];
    assert_eq!(env.map(|(name, _)| name).to_vec(), SettingKey::ALL.map(SettingKey::variable).to_vec());
    let settings = resolve("memory: 2GiB\n", None, &[], &env).settings.unwrap();
    for key in SettingKey::ALL {
        assert_eq!(settings.origins[&key], ValueOrigin::Environment(key.variable()), "{key:?}");
    }
    assert_eq!(settings.allowed_roots, ["s3://a", "/b"]);
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    let retention = Retention { snapshots: hours(7 * 24), snapshots_min: 5, log: hours(14 * 24), staged: hours(2) };
    assert_eq!((settings.retention, settings.janitor_every), (retention, None));
    assert_eq!(settings.reconcile_every, Some(Duration::from_secs(5)));
}

#[test]
fn retention_is_understood_or_explained() {
    let file = "project: a\nretention: {snapshots: 7d, staged: 30m}\njanitor: {every: 10m}\n\
                profiles:\n  dev: {retention: {min_snapshots: 1}, janitor: {every: off}, reconcile: {every: off}}\n";
    let settings = resolve(file, Some("dev"), &[], &[]).settings.unwrap();
    let expected = Retention {
        snapshots: Duration::from_secs(7 * 86_400),
        snapshots_min: 1,
        staged: Duration::from_secs(1_800),
        ..Retention::default()
    };
    assert_eq!((settings.retention, settings.janitor_every, settings.reconcile_every), (expected, None, None));
    let defaults = resolve("project: a\n", None, &[], &[]).settings.unwrap();
    assert_eq!(defaults.retention, Retention::default(), "the written defaults are the type's");
    assert_eq!(defaults.janitor_every, Some(Duration::from_secs(3_600)));
    assert_eq!(defaults.reconcile_every, Some(Duration::from_secs(60)));
    let file = "project: a\nretention: {snapshots: 30, min_snapshots: 0, log: for ever}\njanitor: {every: 0s}\n\
                reconcile: {every: 0s}\n";
    let loaded = resolve(file, None, &[], &[]);
    insta::assert_snapshot!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()));
}

#[test]
fn what_is_wrong_in_the_environment_is_named_by_its_variable() {
    let loaded = resolve(FILE, Some("ce"), &[], &[("TIDEGATE_MEMORY", "much")]);
    let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
    insta::assert_snapshot!(text);
    assert!(loaded.settings.is_none());
}

#[test]
fn passwords_reach_neither_messages_nor_excerpts_nor_debug_output() {
    let file = "project: flights\nregistry: postgres://tide:hunter2@db/flights\nonline: redis://:${SECRET}@cache\n\
                lake: s3://key:hunter2@bucket/lake\n";
    let env = [("SECRET", "hunter2"), ("TIDEGATE_MEMORY", "mysql://root:hunter2@db")];
    let flags = [(SettingKey::Project, "http://a:hunter2@b")];
    let loaded = resolve(file, None, &flags, &env);
    let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
    assert!(text.contains("holds credentials"), "{text}");
    for shown in [text, format!("{loaded:?}"), tidegate_registry::diagnostics::to_json(&loaded.diagnostics).to_string()]
    {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let options =
        LoadOptions { flags: BTreeMap::from([(SettingKey::Registry, "hunter2".to_owned())]), ..LoadOptions::default() };
    assert!(!format!("{options:?}").contains("hunter2"));
}

#[test]
fn production_parts_are_named_by_urls() {
    let file = "project: flights\nregistry: postgres://tide:${PW}@db:5433/flights\nlake: s3://bucket/lake\n\
                storage: {endpoint: \"http://127.0.0.1:9000\", path_style: true, region: eu-central-1}\n";
    let settings = resolve(file, None, &[], &[("PW", "hunter2")]).settings.unwrap();
    let RegistryLocation::Postgres(url) = &settings.registry else { panic!("{:?}", settings.registry) };
    assert_eq!(url.expose(), "postgres://tide:hunter2@db:5433/flights");
    assert_eq!(settings.registry.to_string(), "postgres://db:5433/flights");
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert_eq!(settings.lake.to_string(), "s3://bucket/lake/");
    assert_eq!(settings.storage.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!((settings.storage.path_style, settings.storage.allow_http), (Some(true), false));
}

#[test]
fn places_that_cannot_be_are_refused_with_what_to_write() {
    for (line, expected) in [
        ("registry: postgres://db", "names no database"),
        ("lake: ftp://host/lake", "names a kind of store that Tidegate does not know"),
        ("lake: s3://bucket/lake?x=1", "holds `?` or `#`"),
        ("lake: \"s3:///lake\"", "names no bucket"),
        ("storage: {endpoint: minio}", "is not an `https://` or `http://` URL"),
        ("storage: {path_style: maybe}", "is neither `true` nor `false`"),
    ] {
        let loaded = resolve(&format!("project: flights\n{line}\n"), None, &[], &[]);
        let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
        assert!(text.contains(expected), "{line}: {text}");
        assert!(loaded.settings.is_none());
    }
}

#[test]
fn redacting_keeps_columns() {
    for (text, redacted) in [
        ("postgres://u:pw@h/d", "postgres://u:**@h/d"),
        ("a: x://:päß@h # y", "a: x://:***@h # y"),
        ("x://u:p@w@h", "x://u:***@h"),
        ("x://h:80/p y://u@h z", "x://h:80/p y://u@h z"),
        ("x://u:${PW}@h", "x://u:${PW}@h"),
        ("://", "://"),
    ] {
        assert_eq!(redact(text), redacted);
        assert_eq!(redact(text).chars().count(), text.chars().count());
    }
}

/// The lines between which docs/settings.md is generated.
const GENERATED: (&str, &str) = (
    "<!-- Generated from `SettingKey`, do not edit: UPDATE_DOCS=1 cargo test -p tidegate-registry --test settings -->\n",
    "<!-- End of what is generated. -->\n",
);

fn table_of_settings() -> String {
    let mut table = "| key in `tidegate.yaml` | variable | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in SettingKey::ALL {
        let default = match key.default() {
            Some(text) => format!("`{text}`"),
            None if key == SettingKey::Project => "required".to_owned(),
            None => "none".to_owned(),
        };
        table += &format!("| `{}` | `{}` | {default} | {} |\n", key.key(), key.variable(), key.meaning());
    }
    table
}

#[test]
#[expect(clippy::disallowed_methods, reason = "UPDATE_DOCS is for this test alone and no setting")]
fn the_page_of_settings_is_generated_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(GENERATED.0).unwrap();
    let (table, after) = rest.split_once(GENERATED.1).unwrap();
    let wanted = table_of_settings();
    if std::env::var("UPDATE_DOCS").is_ok() {
        std::fs::write(&path, [before, GENERATED.0, &wanted, GENERATED.1, after].concat()).unwrap();
    } else {
        assert_eq!(table, wanted, "docs/settings.md is older than the types: UPDATE_DOCS=1 with this test renews it");
    }
}

#[test]
fn the_example_on_the_page_of_settings_is_accepted() {
    let page = include_str!("../../docs/settings.md");
    let example = page.split("```").nth(1).unwrap().strip_prefix("yaml\n").unwrap();
    for profile in [None, Some("ci")] {
        let loaded = resolve(example, profile, &[], &[]);
        assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    }
    let defaults = resolve("project: flights\n", None, &[], &[]).settings.unwrap();
    assert_eq!(defaults.registry, RegistryLocation::Sqlite("/project/.tidegate/registry.db".into()));
    assert_eq!((defaults.memory_bytes, defaults.online, defaults.clock), (2 << 30, vec![], None));
}
