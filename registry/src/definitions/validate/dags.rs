//! DAGs: schedules, and which versions of which views they run.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;

use super::{Catalog, Context, Written, owner_ref, parse_name, tags};
use crate::cron::Cron;
use crate::definitions::read::{At, Field, nearest};
use crate::definitions::written::{DagFile, Named, OnPublishedFile, RetriesFile, ScheduleFile};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::{DagName, ViewId, ViewName};
use crate::model::{Dag, OnPublished, Retries, Schedule};

/// A DAG and where each of its views is named.
pub(super) struct ParsedDag {
    pub(super) dag: Dag,
    pub(super) views: Vec<(ViewId, Origin)>,
}

/// All DAGs of `written` that can be read. Reports views that stand in two of them or in none.
pub(super) fn dags(
    written: &Written,
    context: &Context<'_>,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Vec<ParsedDag> {
    let mut homes: HashMap<ViewId, (String, Origin)> = HashMap::new();
    let mut names: HashSet<DagName> = HashSet::new();
    let mut dags: Vec<ParsedDag> = Vec::new();
    for file in &written.dags {
        let views = views(file, catalog, &mut homes, out);
        if let Some(dag) = dag(file, context, catalog, &views, out)
            && names.insert(dag.name.clone())
        {
            dags.push(ParsedDag { dag, views });
        }
    }
    without_dag(catalog, &homes, out);
    dags
}

fn without_dag(catalog: &Catalog, homes: &HashMap<ViewId, (String, Origin)>, out: &mut Vec<Diagnostic>) {
    let mut lonely: Vec<(ViewId, &Origin)> = Vec::new();
    for (name, versions) in &catalog.views {
        let Ok(name) = ViewName::new(name.clone()) else { continue };
        let ids = versions.iter().map(|(version, origin)| (ViewId::new(name.clone(), *version), origin));
        lonely.extend(ids.filter(|(id, _)| !homes.contains_key(id)));
    }
    lonely.sort_by(|a, b| a.0.cmp(&b.0));
    for (id, origin) in lonely {
        out.push(
            Diagnostic::warning(ids::VIEW_WITHOUT_DAG, origin.clone(), format!("no DAG runs feature view `{id}`"))
                .with_label("will never be computed")
                .with_help(format!("add `{id}` to the `views:` of a DAG")),
        );
    }
}

fn views(
    file: &At<DagFile>,
    catalog: &Catalog,
    homes: &mut HashMap<ViewId, (String, Origin)>,
    out: &mut Vec<Diagnostic>,
) -> Vec<(ViewId, Origin)> {
    let Some(written) = file.views.get() else { return Vec::new() };
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), "a DAG needs at least one view")
                .with_help("write for example `views: [carrier_delays]`"),
        );
    }
    let dag = file.name.value().unwrap_or_default();
    let mut views = Vec::new();
    for name in written.iter() {
        for id in view_refs(name, catalog, out) {
            let label = if name.value.contains('@') { format!("{id}") } else { name.value.clone() };
            match homes.get(&id) {
                Some((other, first)) => {
                    let title = if *other == dag {
                        format!("DAG `{dag}` names feature view `{label}` twice")
                    } else {
                        format!("feature view `{id}` is in two DAGs, `{other}` and `{dag}`")
                    };
                    out.push(
                        Diagnostic::error(ids::VIEW_IN_TWO_DAGS, name.origin.clone(), title)
                            .with_label("again here")
                            .with_related(first.clone(), "first named here")
                            .with_help("a view belongs to exactly one DAG: remove it from one; other DAGs may read it"),
                    );
                }
                None => {
                    homes.insert(id.clone(), (dag.clone(), name.origin.clone()));
                    views.push((id, name.origin.clone()));
                }
            }
        }
    }
    views
}

/// The versions that `name` (or `name@vN`) stands for.
fn view_refs(name: &At<String>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Vec<ViewId> {
    let bare = name.value.split('@').next().unwrap_or_default();
    let versions = catalog.views.get(bare);
    let mut unknown =
        Diagnostic::error(ids::UNKNOWN_VIEW, name.origin.clone(), format!("there is no feature view `{}`", name.value))
            .with_label("no feature view with this name");
    let Some(versions) = versions else {
        let help = nearest(bare, catalog.views.keys().map(String::as_str)).map_or_else(
            || "add it to `feature_views:`, or name one that is there".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        out.push(unknown.with_help(help));
        return Vec::new();
    };
    // A bad name is reported where the view is defined.
    let Ok(view) = ViewName::new(bare) else { return Vec::new() };
    if !name.value.contains('@') {
        return versions.keys().map(|version| ViewId::new(view.clone(), *version)).collect();
    }
    match ViewId::from_str(&name.value) {
        Ok(id) if versions.contains_key(&id.version) => vec![id],
        Ok(_) => {
            let list = versions.keys().map(|version| format!("`{bare}@v{version}`")).collect::<Vec<_>>().join(", ");
            unknown.label = "no such version".to_owned();
            out.push(unknown.with_help(format!("choose from {list}")));
            Vec::new()
        }
        Err(_) => {
            unknown.label = "not a version".to_owned();
            out.push(unknown.with_help(format!("write `{bare}` for every version, or `{bare}@v1` for one")));
            Vec::new()
        }
    }
}

fn dag(
    file: &At<DagFile>,
    context: &Context<'_>,
    catalog: &Catalog,
    views: &[(ViewId, Origin)],
    out: &mut Vec<Diagnostic>,
) -> Option<Dag> {
    let name = parse_name(&file.name, DagName::new, out);
    context.rules.name("DAG", &file.name, out);
    context.rules.tags("DAG", &file.name, &file.tags, &file.origin, out);
    let owner = owner_ref(&file.owner, catalog, out);
    let schedule = file.schedule.get().and_then(|schedule| self::schedule(schedule, out));
    let retries = retries(&file.retries, out);
    if let Some(timeout) = file.timeout.get().filter(|timeout| timeout.0.is_zero()) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, timeout.origin.clone(), "no task can finish within `0s`")
                .with_help("write for example `timeout: 15m`, or leave it out"),
        );
    }
    if let Some(max) = file.max_active_runs.get().filter(|max| max.value == 0) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, max.origin.clone(), "`max_active_runs: 0` would never run anything")
                .with_help("write at least 1; `tidegate dags pause` stops a DAG"),
        );
    }
    Some(Dag {
        name: name?,
        owner: owner?,
        description: file.description.value(),
        tags: tags(&file.tags),
        schedule: schedule?,
        views: views.iter().map(|(id, _)| id.clone()).collect(),
        retries,
        timeout: file.timeout.value().map(Duration::from),
        priority: priority(&file.priority, out),
        max_active_runs: file.max_active_runs.value().unwrap_or(4),
        in_order: false,
        on_blocked: file.on_blocked.value().unwrap_or_default(),
        publish: file.publish.value().unwrap_or_default(),
        on_published: on_published(&file.on_published, context.webhooks, out),
        origin: file.name.origin_or(&file.origin),
    })
}

/// Larger ones than this crowd out what a notice says of the run.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;

fn on_published(
    field: &Field<Vec<At<OnPublishedFile>>>,
    webhooks: &[String],
    out: &mut Vec<Diagnostic>,
) -> Vec<OnPublished> {
    let mut named: HashMap<&str, &Origin> = HashMap::new();
    let mut told = Vec::new();
    for file in field.get().into_iter().flat_map(|list| &list.value) {
        let Some(webhook) = file.webhook.get() else { continue };
        if !webhooks.contains(&webhook.value) {
            let known = webhooks.iter().map(String::as_str);
            let help = nearest(&webhook.value, known).map_or_else(
                || "add it to `webhooks:` under `notify:` in tidegate.yaml, or name one that is there".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            out.push(
                Diagnostic::error(
                    ids::UNKNOWN_WEBHOOK,
                    webhook.origin.clone(),
                    format!("there is no webhook `{}`", webhook.value),
                )
                .with_label("no webhook with this name")
                .with_help(help),
            );
            continue;
        }
        if let Some(first) = named.insert(&webhook.value, &webhook.origin) {
            out.push(
                Diagnostic::error(
                    ids::DUPLICATE_NAME,
                    webhook.origin.clone(),
                    format!("webhook `{}` is named twice", webhook.value),
                )
                .with_label("again here")
                .with_related(first.clone(), "first named here")
                .with_help("a webhook is told once of a run: put what it needs into one `payload:`"),
            );
            continue;
        }
        told.push(OnPublished { webhook: webhook.value.clone(), payload: payload(&file.payload, out) });
    }
    told
}

fn payload(
    field: &Field<Named<serde_json::Value>>,
    out: &mut Vec<Diagnostic>,
) -> serde_json::Map<String, serde_json::Value> {
    let Some(written) = field.get() else { return serde_json::Map::new() };
    let payload: serde_json::Map<_, _> =
        written.0.iter().map(|(name, value)| (name.value.clone(), value.value.clone())).collect();
    let bytes: usize = payload.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    if bytes > PAYLOAD_BYTES_MAX {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, written.origin.clone(), "this payload is larger than 16 KiB")
                .with_help("keep it to a few fields: the receiver is told where the tables are"),
        );
    }
    payload
}

fn retries(field: &Field<RetriesFile>, out: &mut Vec<Diagnostic>) -> Retries {
    let mut retries = Retries { max: 2, backoff: Duration::from_secs(30) };
    let Some(file) = field.get() else { return retries };
    if let Some(max) = file.max.get() {
        if max.value > 100 {
            out.push(
                Diagnostic::error(ids::OUT_OF_RANGE, max.origin.clone(), "at most 100 retries")
                    .with_help("a task that failed so often needs a person"),
            );
        }
        retries.max = max.value;
    }
    retries.backoff = file.backoff.value().map_or(retries.backoff, Duration::from);
    retries
}

fn schedule(file: &At<ScheduleFile>, out: &mut Vec<Diagnostic>) -> Option<Schedule> {
    let cron = cron(&file.cron, out);
    let timezone = timezone(&file.timezone, out);
    let zone = timezone.unwrap_or(Tz::UTC);
    let start = file.start.get().map(|start| start.value.resolve(zone));
    let end = file.end.get().map(|end| end.value.resolve(zone));
    if let (Some(from), Some(to), Some(written)) = (start, end, file.end.get())
        && from >= to
    {
        out.push(
            Diagnostic::error(ids::START_AFTER_END, written.origin.clone(), "`end` is not after `start`")
                .with_label("no interval would be left")
                .with_related(file.start.origin_or(&file.origin), "the start")
                .with_help("intervals whose start lies in [`start`, `end`) are computed"),
        );
        return None;
    }
    Some(Schedule {
        cron: cron?,
        timezone: timezone?,
        start: start?,
        end,
        catchup: file.catchup.value().unwrap_or_default(),
        gap: file.gap.value(),
        overlap: file.overlap.value(),
    })
}

pub(super) fn cron(field: &Field<String>, out: &mut Vec<Diagnostic>) -> Option<String> {
    let cron = field.get()?;
    match Cron::parse(&cron.value) {
        Ok(_) => Some(cron.value.clone()),
        Err(error) => {
            out.push(
                Diagnostic::error(
                    ids::BAD_CRON,
                    cron.origin.clone(),
                    format!("`{}` is not a cron schedule", cron.value),
                )
                .with_label(error.to_string())
                .with_help("five fields: minute, hour, day of month, month, day of week, as in `15 2 * * *`"),
            );
            None
        }
    }
}

pub(super) fn timezone(field: &Field<String>, out: &mut Vec<Diagnostic>) -> Option<Tz> {
    let name = match field {
        Field::Missing => return Some(Tz::UTC),
        Field::Bad => return None,
        Field::Is(name) => name,
    };
    if let Ok(zone) = Tz::from_str(&name.value) {
        return Some(zone);
    }
    let zones = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
    let same = zones.clone().find(|zone| zone.eq_ignore_ascii_case(&name.value));
    let city = zones.clone().find(|zone| {
        zone.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(&name.value.replace(' ', "_")))
    });
    // Abbreviations are all near to each other.
    let near = || nearest(&name.value, zones).filter(|_| name.value.len() > 4);
    let help = same.or(city).or_else(near).map_or_else(
        || "write a name of the IANA time zone database, as in `Europe/Berlin`, or `UTC`".to_owned(),
        |near| format!("did you mean `{near}`?"),
    );
    out.push(
        Diagnostic::error(
            ids::UNKNOWN_TIMEZONE,
            name.origin.clone(),
            format!("there is no time zone `{}`", name.value),
        )
        .with_label("not in the time zone database")
        .with_help(help),
    );
    None
}

fn priority(field: &Field<i32>, out: &mut Vec<Diagnostic>) -> i32 {
    let Some(priority) = field.get() else { return 0 };
    if !(-100..=100).contains(&priority.value) {
        out.push(
            Diagnostic::error(
                ids::OUT_OF_RANGE,
                priority.origin.clone(),
                format!("`priority: {}` is not between -100 and 100", priority.value),
            )
            .with_help("each point counts like a minute of waiting, so that nothing waits for ever"),
        );
    }
    priority.value
}
