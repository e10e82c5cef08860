//! Whether a restore may be done: [`judge`] decides over the rules, [`admit`] is the one place that commands go through.
//!
//! Who acts is the operating-system user that the command was told of, so a rule keeps people from mistakes, not an intruder
//! who can write the registry, the lake or the online store: `docs/restore-policy.md` says so.

use async_trait::async_trait;
use chrono::Timelike as _;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::json;

use crate::audit::NewAuditEvent;
use crate::definitions::scalars::format_duration;
use crate::ids::{ApprovalId, RuleName, SnapshotId, ViewId};
use crate::model::{Hours, PolicyRule, Project, glob};
use crate::notice::{NewNotice, NoticeEvent};
use crate::restore::ViewRestore;
use crate::restore::plan::Planned;
use crate::store::{Result, Store, StoreError};
use crate::time::{Instant, format_instant};

/// For how long an approval can be used.
pub const APPROVAL_LASTS: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// A rule that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The rule.
    pub rule: RuleName,
    /// The view that it means.
    pub view: ViewId,
    /// How it is not kept, as in "may be restored from 08:00 to 18:00".
    pub why: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the rule `{}` stands against it for `{}`: {}", self.rule, self.view, self.why)
    }
}

/// What the rules say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Rules that are not kept.
    pub refusals: Vec<Refusal>,
    /// Rules that want a second person.
    pub approval: Vec<RuleName>,
}

impl Judgement {
    /// The rules that stand against it or want a second person, each once.
    pub fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> = Vec::new();
        for rule in self.refusals.iter().map(|refusal| &refusal.rule).chain(&self.approval) {
            if !rules.contains(&rule.to_string()) {
                rules.push(rule.to_string());
            }
        }
        rules
    }
}

/// The person of an actor, whatever the machine.
pub fn person(actor: &str) -> &str {
    actor.split_once('@').map_or(actor, |(person, _)| person)
}

/// Whether `actor` is one of those that `patterns` say; anybody is when there are none.
pub fn is_one_of(actor: &str, patterns: &[String]) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| glob(pattern, actor) || glob(pattern, person(actor)))
}

/// What the rules of `project` say of `actor` taking back `views` at `now`, each with when the oldest of what is taken back
/// was published (`None` when nothing is).
pub fn judge(project: &Project, actor: &str, views: &IndexMap<ViewId, Option<Instant>>, now: Instant) -> Judgement {
    let mut judgement = Judgement::default();
    for rule in project.restore_policy.values() {
        for (id, oldest) in views {
            // What is defined no more is meant by rules for everything.
            let meant = match project.views.get(id) {
                Some(view) => rule.matching.means(view),
                None => rule.matching == crate::model::Matching::default(),
            };
            if !meant {
                continue;
            }
            for why in broken(rule, actor, *oldest, now) {
                judgement.refusals.push(Refusal { rule: rule.name.clone(), view: id.clone(), why });
            }
            if rule.second_person && !judgement.approval.contains(&rule.name) {
                judgement.approval.push(rule.name.clone());
            }
        }
    }
    judgement
}

fn broken(rule: &PolicyRule, actor: &str, oldest: Option<Instant>, now: Instant) -> Vec<String> {
    let mut broken = Vec::new();
    if !is_one_of(actor, &rule.actors) {
        broken.push(format!("{actor} is none of {}", rule.actors.join(", ")));
    }
    if let (Some(max), Some(oldest)) = (rule.max_age_secs, oldest) {
        let age = u64::try_from((now - oldest).num_seconds()).unwrap_or(0);
        if age > max {
            broken.push(format!(
                "it takes back what was published at {}, and only what is at most {} old may be",
                format_instant(oldest),
                format_duration(std::time::Duration::from_secs(max))
            ));
        }
    }
    if let Some(hours) = rule.hours.filter(|hours| !are_on(*hours, now)) {
        let time = |minutes: u32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let (from, to) = (time(hours.from_minutes), time(hours.to_minutes));
        broken.push(format!("it may be done from {from} to {to} in {}", hours.timezone));
    }
    broken
}

fn are_on(hours: Hours, now: Instant) -> bool {
    let local = now.with_timezone(&hours.timezone);
    let minutes = local.hour() * 60 + local.minute();
    if hours.from_minutes <= hours.to_minutes {
        (hours.from_minutes..hours.to_minutes).contains(&minutes)
    } else {
        minutes >= hours.from_minutes || minutes < hours.to_minutes
    }
}

/// A request for a second person's approval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// Exactly what is asked for, the state that it goes back to included: an approval holds for nothing else.
    pub ask: String,
    /// The same in short.
    pub summary: String,
    /// The views, for who may approve.
    pub views: Vec<ViewId>,
    /// Who else may approve, beside what rules say: patterns; empty for anybody.
    pub approvers: Vec<String>,
    /// Who asks.
    pub requester: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub requested_at: Instant,
    /// Who approved it; `None` while it waits.
    pub approved_by: Option<String>,
    /// When, in project time.
    pub approved_at: Option<Instant>,
    /// What it was used for; `None` while it was not.
    pub used_for: Option<String>,
}

impl Approval {
    /// Whether it waits for somebody.
    pub fn is_waiting(&self) -> bool {
        self.approved_by.is_none() && self.used_for.is_none()
    }

    /// Whether it can still be used at `now` by `actor` for `ask`.
    pub fn serves(&self, ask: &str, actor: &str, now: Instant) -> bool {
        let lasts = chrono::Duration::seconds(i64::try_from(APPROVAL_LASTS.as_secs()).unwrap_or(i64::MAX));
        self.ask == ask
            && person(&self.requester) == person(actor)
            && self.used_for.is_none()
            && self.approved_at.is_some_and(|at| now - at <= lasts)
    }

    /// Why `actor` may not approve it; `None` when they may.
    pub fn refuses(&self, actor: &str, project: &Project) -> Option<String> {
        if person(actor) == person(&self.requester) {
            return Some(format!("{} asked for it: a second person has to approve", self.requester));
        }
        if !is_one_of(actor, &self.approvers) {
            return Some(format!("{actor} is none of {}", self.approvers.join(", ")));
        }
        let views = self.views.iter().filter_map(|view| project.views.get(view));
        let views: Vec<_> = views.collect();
        let rules = project.restore_policy.values();
        let mut against = rules.filter(|rule| views.iter().any(|view| rule.matching.means(view)));
        against.find(|rule| !is_one_of(actor, &rule.actors)).map(|rule| {
            format!("the rule `{}` stands against it: {actor} is none of {}", rule.name, rule.actors.join(", "))
        })
    }
}

/// The part of the registry that keeps approvals; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Approving {
    /// Asks for approval, with an audit event and a notice. Asking again for what the same person waits for changes nothing;
    /// returns the request that stands.
    async fn approval_request(&self, request: &Approval) -> Result<Approval>;

    /// All requests, the newest first; at most `limit` (0: all).
    async fn approvals(&self, limit: u32) -> Result<Vec<Approval>>;

    /// Approves a request, with an audit event and a notice. Whether `actor` may is decided before.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`]; [`crate::store::StoreError::Conflict`] when somebody approved it already.
    async fn approve(&self, id: ApprovalId, actor: &str, now: Instant) -> Result<()>;

    /// Notes that an approval was used.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Conflict`] when it was used for something else, or never approved.
    async fn approval_use(&self, id: ApprovalId, used_for: &str) -> Result<()>;

    /// When the oldest of these snapshots was recorded, in project time; `None` when none of them is known.
    async fn oldest_recorded(&self, snapshots: &[SnapshotId]) -> Result<Option<Instant>>;
}

/// Something that policy is asked about.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// When.
    pub now: Instant,
    /// Exactly what: see [`Approval::ask`].
    pub ask: String,
    /// The same in short.
    pub summary: String,
    /// Per view the snapshots of what is taken back.
    pub takes_back: IndexMap<ViewId, Vec<SnapshotId>>,
    /// To go ahead whatever the rules say.
    pub break_glass: bool,
    /// Whether a second person has approved what this is a part of.
    pub approved: bool,
}

impl<'a> Ask<'a> {
    /// To carry out `planned`.
    ///
    /// # Errors
    /// When the plan cannot be written as JSON.
    pub fn of(planned: &Planned, cascade: bool, actor: &'a str, reason: &'a str, now: Instant) -> Result<Self> {
        let plan = &planned.request.plan;
        let names: Vec<String> = plan.views.keys().map(ToString::to_string).collect();
        let summary = format!("restore {} {}", names.join(", "), plan.asked);
        let mut ask = format!("{summary} cascade={cascade} {}", plan.hold_policy);
        for (view, what) in &plan.views {
            let table = serde_json::to_string(&what.table).map_err(|source| StoreError::Internal {
                doing: "writing a plan as JSON".to_owned(),
                source: source.into(),
            })?;
            ask.push_str(&format!(" {view}={table}"));
        }
        let snapshots = |what: &ViewRestore| what.leaves.iter().map(|slice| slice.snapshot).collect();
        let takes_back = plan.views.iter().map(|(view, what)| (view.clone(), snapshots(what))).collect();
        Ok(Self { actor, reason, now, ask, summary, takes_back, break_glass: false, approved: false })
    }
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// It may be done; when done, [`Approving::approval_use`] notes the approval that let it.
    Go(Option<ApprovalId>),
    /// Rules stand against it.
    Refused(Vec<Refusal>),
    /// It waits for a second person.
    Waiting(Box<Approval>),
}

/// What the rules would say, without asking anybody.
///
/// # Errors
/// When the registry cannot be read.
pub async fn preview(store: &dyn Store, project: &Project, ask: &Ask<'_>) -> Result<Judgement> {
    let mut views = IndexMap::new();
    for (view, snapshots) in &ask.takes_back {
        views.insert(view.clone(), store.oldest_recorded(snapshots).await?);
    }
    Ok(judge(project, ask.actor, &views, ask.now))
}

/// Whether what is asked for may be done. Breaking the glass is written down and told before anything is done.
///
/// # Errors
/// When the registry cannot be read or written.
pub async fn admit(store: &dyn Store, project: &Project, ask: &Ask<'_>) -> Result<Admission> {
    let judgement = preview(store, project, ask).await?;
    let wants_second = !judgement.approval.is_empty() && !ask.approved;
    if judgement.refusals.is_empty() && !wants_second {
        return Ok(Admission::Go(None));
    }
    if ask.break_glass {
        announce(store, ask, &judgement.rules()).await?;
        return Ok(Admission::Go(None));
    }
    if !judgement.refusals.is_empty() {
        return Ok(Admission::Refused(judgement.refusals));
    }
    second_person(store, ask, &[]).await
}

/// Whether a second person has approved; asks for it when nobody has.
///
/// # Errors
/// When the registry cannot be read or written.
pub async fn second_person(store: &dyn Store, ask: &Ask<'_>, approvers: &[String]) -> Result<Admission> {
    let known = store.approvals(0).await?;
    if let Some(approval) = known.into_iter().find(|approval| approval.serves(&ask.ask, ask.actor, ask.now)) {
        return Ok(Admission::Go(Some(approval.id)));
    }
    let request = Approval {
        id: ApprovalId::generate(),
        ask: ask.ask.clone(),
        summary: ask.summary.clone(),
        views: ask.takes_back.keys().cloned().collect(),
        approvers: approvers.to_vec(),
        requester: ask.actor.to_owned(),
        reason: ask.reason.to_owned(),
        requested_at: ask.now,
        approved_by: None,
        approved_at: None,
        used_for: None,
    };
    Ok(Admission::Waiting(Box::new(store.approval_request(&request).await?)))
}

/// Writes down and tells that somebody goes ahead against `rules`, before anything is done.
///
/// # Errors
/// When the registry cannot be written.
pub async fn announce(store: &dyn Store, ask: &Ask<'_>, rules: &[String]) -> Result<()> {
    let detail = json!({ "rules": rules, "summary": ask.summary });
    let subject = ask.takes_back.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("{} breaks the glass of {}: {} ({})", ask.actor, rules.join(", "), ask.summary, ask.reason);
    let notice = NewNotice::new(NoticeEvent::PolicyOverridden, &subject, ask.now, message);
    store.notify(notice.by(ask.actor).with(detail.clone())).await?;
    let event = NewAuditEvent::new(ask.now, ask.actor, "restore_break_glass", subject);
    store.audit(event.because(ask.reason).with(detail)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Matching;

    fn at(text: &str) -> Instant {
        text.parse().unwrap()
    }

    fn rule() -> PolicyRule {
        PolicyRule {
            name: RuleName::new("core").unwrap(),
            description: None,
            matching: Matching::default(),
            actors: vec!["ana".to_owned(), "oncall-*@ops*".to_owned()],
            max_age_secs: Some(86_400),
            hours: Some(Hours { from_minutes: 480, to_minutes: 1_080, timezone: chrono_tz::Europe::Berlin }),
            second_person: false,
            origin: crate::diagnostics::Origin::default(),
        }
    }

    fn why(rule: PolicyRule, actor: &str, oldest: &str, now: &str) -> Vec<String> {
        let mut project = Project::empty("shop".parse().unwrap());
        project.restore_policy.insert(rule.name.clone(), rule);
        let views = [("gone@v1".parse().unwrap(), Some(at(oldest)))].into();
        judge(&project, actor, &views, at(now)).refusals.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_that_is_not_kept_is_named_with_every_reason() {
        let (young, noon) = ("2013-01-08T10:00:00Z", "2013-01-08T11:00:00Z");
        assert_eq!(why(rule(), "ana@laptop", young, noon), [] as [&str; 0]);
        assert_eq!(why(rule(), "oncall-3@ops7", young, noon), [] as [&str; 0]);
        let all = why(rule(), "eve@laptop", "2013-01-07T10:00:00Z", "2013-01-08T18:00:00Z");
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|why| why.starts_with("the rule `core` stands against it for `gone@v1`: ")), "{all:?}");
        assert!(all[0].ends_with("eve@laptop is none of ana, oncall-*@ops*"), "{all:?}");
        assert!(all[1].ends_with("only what is at most 1d old may be"), "{all:?}");
        assert!(all[2].ends_with("from 08:00 to 18:00 in Europe/Berlin"), "{all:?}");
    }

    #[test]
    fn hours_may_go_over_midnight_on_their_own_clock() {
        let night = Hours { from_minutes: 1_320, to_minutes: 360, timezone: chrono_tz::America::New_York };
        for (now, on) in [
            ("2013-01-08T03:00:00Z", true),
            ("2013-01-08T10:59:59Z", true),
            ("2013-01-08T11:00:00Z", false),
            // Summer: the same hours are another UTC.
            ("2013-07-08T02:00:00Z", true),
            ("2013-07-08T10:00:00Z", false),
        ] {
            assert_eq!(are_on(night, at(now)), on, "{now}");
        }
    }

    fn approval() -> Approval {
        Approval {
            id: ApprovalId::generate(),
            ask: "x".to_owned(),
            summary: "x".to_owned(),
            views: Vec::new(),
            approvers: Vec::new(),
            requester: "ana@laptop".to_owned(),
            reason: "odd".to_owned(),
            requested_at: at("2013-01-08T00:00:00Z"),
            approved_by: None,
            approved_at: None,
            used_for: None,
        }
    }

    #[test]
    fn nobody_approves_what_they_asked_for_on_whatever_machine() {
        let project = Project::empty("shop".parse().unwrap());
        assert!(approval().refuses("ana@server", &project).is_some());
        assert_eq!(approval().refuses("ben@laptop", &project), None);
        let named = Approval { approvers: vec!["carol".to_owned()], ..approval() };
        assert!(named.refuses("ben@laptop", &project).is_some());
        assert_eq!(named.refuses("carol@laptop", &project), None);
    }

    #[test]
    fn an_approval_serves_its_ask_once_and_for_a_day() {
        let approved_at = Some(at("2013-01-08T00:00:00Z"));
        let given = Approval { approved_by: Some("ben@laptop".to_owned()), approved_at, ..approval() };
        let (soon, late) = (at("2013-01-09T00:00:00Z"), at("2013-01-09T00:00:01Z"));
        assert!(given.serves("x", "ana@server", soon));
        assert!(!given.serves("x", "ana@server", late));
        assert!(!given.serves("y", "ana@server", soon));
        assert!(!given.serves("x", "eve@server", soon));
        assert!(!approval().serves("x", "ana@server", soon));
        let used = Approval { used_for: Some("r".to_owned()), ..given };
        assert!(!used.serves("x", "ana@server", soon));
    }
}
