//! Restore policy, recipes and drills: that they mean something that exists, and can be carried out.

use std::collections::HashMap;

use chrono::NaiveTime;

use super::dags::{cron, timezone};
use super::{Catalog, Written, define, parse_name, unknown};
use crate::definitions::read::{At, Field, nearest};
use crate::definitions::written::{
    ApprovalWord, CascadeWord, DisableFile, DrillFile, HoursFile, MatchFile, RecipeFile, RestoreRuleFile, StepFile,
};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::{DrillName, OwnerName, RecipeName, RuleName};
use crate::model::{
    COOLDOWN_SECS, FeatureView, Hours, Matching, PolicyRule, Project, Recipe, RecipeStep, ScheduledDrill, Trigger, glob,
};
use crate::switches::{BUCKETS, Serve};

/// Adds the rules, recipes and drills that are right to `project`, whose views are known.
pub(super) fn recovery(written: &Written, project: &mut Project, catalog: &Catalog, out: &mut Vec<Diagnostic>) {
    let (mut rules, mut recipes, mut drills) = (HashMap::new(), HashMap::new(), HashMap::new());
    for file in &written.restore_policy {
        define("restore rule", &file.name, &mut rules, out);
        if let Some(rule) = rule(file, catalog, out) {
            project.restore_policy.entry(rule.name.clone()).or_insert(rule);
        }
    }
    for file in &written.recipes {
        define("recipe", &file.name, &mut recipes, out);
        if let Some(recipe) = recipe(file, project, catalog, out) {
            project.recipes.entry(recipe.name.clone()).or_insert(recipe);
        }
    }
    for file in &written.drills {
        define("drill", &file.name, &mut drills, out);
        if let Some(drill) = drill(file, project, catalog, out) {
            project.drills.entry(drill.name.clone()).or_insert(drill);
        }
    }
}

fn rule(file: &At<RestoreRuleFile>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<PolicyRule> {
    let name = parse_name(&file.name, RuleName::new, out);
    let matching = matching(&file.r#match, catalog, out);
    let actors = patterns(&file.actors, "`actors: []` would let nobody restore anything", out);
    let hours = match &file.hours {
        Field::Missing => Some(None),
        Field::Bad => None,
        Field::Is(written) => hours(written, out).map(Some),
    };
    if let Some(age) = file.max_age.get().filter(|age| age.value.0.is_zero()) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, age.origin.clone(), "nothing is younger than this")
                .with_help("write how old what is taken back may be, as in `7d`; leave it out for no limit"),
        );
        return None;
    }
    Some(PolicyRule {
        name: name?,
        description: file.description.value(),
        matching: matching?,
        actors: actors?,
        max_age_secs: file.max_age.get().map(|age| age.value.0.as_secs()),
        hours: hours?,
        second_person: file.approval.value() == Some(ApprovalWord::Required),
        origin: file.name.origin_or(&file.origin),
    })
}

/// A list of patterns, which may be missing and must not be empty.
fn patterns(field: &Field<Vec<At<String>>>, when_empty: &str, out: &mut Vec<Diagnostic>) -> Option<Vec<String>> {
    let written = match field {
        Field::Missing => return Some(Vec::new()),
        Field::Bad => return None,
        Field::Is(written) => written,
    };
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), when_empty)
                .with_help("name somebody, as in `[ana, \"oncall-*\"]`, or leave it out for anybody"),
        );
        return None;
    }
    Some(written.iter().map(|pattern| pattern.value.clone()).collect())
}

fn hours(file: &At<HoursFile>, out: &mut Vec<Diagnostic>) -> Option<Hours> {
    let mut minutes = |field: &Field<String>| -> Option<u32> {
        let text = field.get()?;
        let time = NaiveTime::parse_from_str(&text.value, "%H:%M").ok().filter(|_| text.value.len() == 5);
        if time.is_none() {
            out.push(
                Diagnostic::error(
                    ids::BAD_TIME,
                    text.origin.clone(),
                    format!("`{}` is not a time of the day", text.value),
                )
                .with_label("expected hours and minutes")
                .with_help("write for example `\"08:00\"` or `\"18:30\"`"),
            );
        }
        use chrono::Timelike as _;
        time.map(|time| time.hour() * 60 + time.minute())
    };
    let (from, to) = (minutes(&file.from), minutes(&file.to));
    let timezone = timezone(&file.timezone, out);
    let hours = Hours { from_minutes: from?, to_minutes: to?, timezone: timezone? };
    if hours.from_minutes == hours.to_minutes {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, file.origin.clone(), "these hours begin when they end")
                .with_help("leave `hours:` out for the whole day"),
        );
        return None;
    }
    Some(hours)
}

fn matching(field: &Field<MatchFile>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<Matching> {
    let file = match field {
        Field::Missing => return Some(Matching::default()),
        Field::Bad => return None,
        Field::Is(file) => file,
    };
    let mut good = true;
    let mut list = |field: &Field<Vec<At<String>>>, out: &mut Vec<Diagnostic>| -> Vec<String> {
        good &= !matches!(field, Field::Bad);
        let Some(list) = field.get() else { return Vec::new() };
        if list.is_empty() {
            good = false;
            out.push(
                Diagnostic::error(ids::EMPTY_LIST, list.origin.clone(), "an empty list would mean no view")
                    .with_help("leave it out to mean all"),
            );
        }
        list.iter().map(|item| item.value.clone()).collect()
    };
    let (views, tags, checks) = (list(&file.views, out), list(&file.tags, out), list(&file.checks, out));
    let _ = list(&file.owners, out);
    for view in file.views.get().into_iter().flat_map(|views| views.iter()) {
        let named = |name: &str, versions: &std::collections::BTreeMap<u32, Origin>| {
            glob(&view.value, name) || versions.keys().any(|version| glob(&view.value, &format!("{name}@v{version}")))
        };
        if !catalog.views.iter().any(|(name, versions)| named(name, versions)) {
            let known = catalog.views.keys().map(String::as_str);
            unknown(ids::UNKNOWN_VIEW, "feature view", view, known, "feature_views", out);
            good = false;
        }
    }
    let mut owners = Vec::new();
    for owner in file.owners.get().into_iter().flat_map(|owners| owners.iter()) {
        if catalog.owners.contains_key(&owner.value) {
            // A bad name is reported where it is defined.
            owners.extend(OwnerName::new(owner.value.clone()).ok());
        } else {
            unknown(ids::UNKNOWN_OWNER, "owner", owner, catalog.owners.keys().map(String::as_str), "owners", out);
            good = false;
        }
    }
    good.then_some(Matching { views, owners, tags, checks })
}

fn recipe(file: &At<RecipeFile>, project: &Project, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<Recipe> {
    let name = parse_name(&file.name, RecipeName::new, out);
    let matching = matching(&file.r#match, catalog, out);
    let written = file.steps.get()?;
    let origin = file.name.origin_or(&file.origin);
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), "a recipe needs at least one step")
                .with_help("write for example `steps: [{restore: {to: last_good}}]`"),
        );
        return None;
    }
    let matching = matching?;
    let all_known = all_known(project, catalog);
    let views = views_meant("recipe", &matching, &origin, all_known, project, out)?;
    let on = triggers(file, out);
    let cooldown_secs = file.cooldown.get().map_or(COOLDOWN_SECS, |cooldown| cooldown.value.0.as_secs());
    let steps: Vec<Option<RecipeStep>> = written.iter().map(|at| step(at, &views, all_known, out)).collect();
    Some(Recipe {
        name: name?,
        description: file.description.value()?,
        matching,
        on: on?,
        cooldown_secs,
        steps: steps.into_iter().collect::<Option<_>>()?,
        origin,
    })
}

/// With a mistake in a view nobody knows what would be meant.
fn all_known(project: &Project, catalog: &Catalog) -> bool {
    catalog.views.values().map(std::collections::BTreeMap::len).sum::<usize>() == project.views.len()
}

/// The views that `matching` means; `None`, and said so, when there is none.
fn views_meant<'a>(
    kind: &str,
    matching: &Matching,
    origin: &Origin,
    all_known: bool,
    project: &'a Project,
    out: &mut Vec<Diagnostic>,
) -> Option<Vec<&'a FeatureView>> {
    let views: Vec<&FeatureView> = project.views.values().filter(|view| matching.means(view)).collect();
    if views.is_empty() && all_known {
        out.push(
            Diagnostic::error(ids::UNKNOWN_VIEW, origin.clone(), format!("the {kind} is for no view"))
                .with_label("no view has all of what `match` says")
                .with_help("`tidegate views list` shows names, owners and tags, `tidegate views show` checks"),
        );
    }
    (!views.is_empty()).then_some(views)
}

fn drill(
    file: &At<DrillFile>,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<ScheduledDrill> {
    let name = parse_name(&file.name, DrillName::new, out);
    let matching = matching(&file.r#match, catalog, out);
    let schedule = file.schedule.get().map(|schedule| (cron(&schedule.cron, out), timezone(&schedule.timezone, out)));
    let scenarios = match &file.scenarios {
        Field::Missing => Some(Vec::new()),
        Field::Bad => None,
        Field::Is(written) => Some(written.iter().map(|scenario| scenario.value).collect()),
    };
    let (matching, origin) = (matching?, file.name.origin_or(&file.origin));
    views_meant("drill", &matching, &origin, all_known(project, catalog), project, out)?;
    let (cron, timezone) = schedule?;
    Some(ScheduledDrill {
        name: name?,
        description: file.description.value(),
        matching,
        cron: cron?,
        timezone: timezone?,
        scenarios: scenarios?,
        origin,
    })
}

fn triggers(file: &RecipeFile, out: &mut Vec<Diagnostic>) -> Option<Vec<Trigger>> {
    let on = match &file.on {
        Field::Is(on) => on,
        Field::Bad => return None,
        Field::Missing => {
            if let Some(cooldown) = file.cooldown.get() {
                out.push(
                    Diagnostic::error(ids::BAD_RECIPE, cooldown.origin.clone(), "nothing triggers this recipe")
                        .with_label("so it never has to cool down")
                        .with_help("say what does, as in `on: [marked_bad]`, or leave `cooldown` out"),
                );
                return None;
            }
            return Some(Vec::new());
        }
    };
    if on.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, on.origin.clone(), "an empty list triggers nothing")
                .with_help("leave `on` out for a recipe that only people run"),
        );
        return None;
    }
    let mut triggers: Vec<Trigger> = Vec::new();
    for trigger in on.iter() {
        let known = trigger.value.0?;
        if !triggers.contains(&known) {
            triggers.push(known);
        }
    }
    Some(triggers)
}

fn step(at: &At<StepFile>, views: &[&FeatureView], all_known: bool, out: &mut Vec<Diagnostic>) -> Option<RecipeStep> {
    Some(match &at.value {
        StepFile::Disable(file) => disable(file, views, all_known, out)?,
        StepFile::Restore(file) => {
            file.to.get()?;
            RecipeStep::Restore {
                cascade: file.cascade.value() == Some(CascadeWord::With),
                while_held: file.while_held.value().unwrap_or_default(),
            }
        }
        StepFile::Hold(file) => RecipeStep::Hold { while_held: file.while_held.value().unwrap_or_default() },
        StepFile::Validate(file) => {
            if let Some(sample) = file.sample.get().filter(|sample| sample.value == 0) {
                out.push(
                    Diagnostic::error(ids::OUT_OF_RANGE, sample.origin.clone(), "`sample: 0` would compare nothing")
                        .with_help("write at least 1, or leave it out for all"),
                );
                return None;
            }
            RecipeStep::Validate { sample: file.sample.value() }
        }
        StepFile::Notify(file) => RecipeStep::Notify { message: file.message.value()? },
        StepFile::RequireApproval(file) => {
            RecipeStep::RequireApproval { by: patterns(&file.by, "`by: []` would let nobody approve", out)? }
        }
    })
}

fn disable(
    file: &DisableFile,
    views: &[&FeatureView],
    all_known: bool,
    out: &mut Vec<Diagnostic>,
) -> Option<RecipeStep> {
    let (feature, serve) = (file.feature.get()?, file.serve.get()?);
    let having: Vec<_> = views
        .iter()
        .filter_map(|view| Some((*view, view.features.iter().find(|known| known.name == feature.value)?)))
        .collect();
    let title = if having.is_empty() {
        if !all_known {
            return None;
        }
        let known = views.iter().flat_map(|view| view.features.iter().map(|feature| feature.name.as_str()));
        let help = nearest(&feature.value, known)
            .map_or_else(|| "name a feature of its views".to_owned(), |near| format!("did you mean `{near}`?"));
        Some((format!("no view of this recipe has a feature `{}`", feature.value), &feature.origin, help))
    } else if let Some((view, _)) = having.iter().find(|(view, _)| view.online.is_none()) {
        let help = "only features online can be switched off: match other views, or publish this one".to_owned();
        Some((format!("`{}` is not published online", view.id), &feature.origin, help))
    } else if let Some((view, _)) =
        having.iter().find(|(_, known)| serve.value == Serve::Default && known.default.is_none())
    {
        let help = "write `serve: null`, or give the feature a `default:`".to_owned();
        Some((format!("`{}.{}` has no default", view.id, feature.value), &serve.origin, help))
    } else {
        None
    };
    if let Some((title, origin, help)) = title {
        out.push(Diagnostic::error(ids::BAD_RECIPE, origin.clone(), title).with_help(help));
        return None;
    }
    let percent = file.percent.get();
    let share = percent.map_or(100.0, |percent| percent.value) * f64::from(BUCKETS) / 100.0;
    let below = (0..=BUCKETS).find(|below| (f64::from(*below) - share).abs() < 1e-6).filter(|below| *below > 0);
    if let (None, Some(percent)) = (below, percent) {
        out.push(
            Diagnostic::error(
                ids::OUT_OF_RANGE,
                percent.origin.clone(),
                format!("`percent: {}` is no share", percent.value),
            )
            .with_help("write a number above 0 and up to 100 with at most two decimals"),
        );
    }
    Some(RecipeStep::Disable { feature: feature.value.clone(), serve: serve.value, below: below? })
}
