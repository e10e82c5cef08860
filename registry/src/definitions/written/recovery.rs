//! What may be written of restore policy, recipes and drills.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{At, Field, Node, Read, check_keys, described, key_name, missing, record};
use crate::definitions::read::{nearest, one_key, scalar, schema_of, words};
use crate::definitions::scalars::WrittenDuration;
use crate::definitions::yaml::Value;
use crate::diagnostics::{Diagnostic, ids};
use crate::drill::Scenario;
use crate::model::Trigger;
use crate::restore::HoldPolicy;
use crate::switches::Serve;

record! {
    /// Which views are meant; every key that is there must mean the view.
    MatchFile "match" {
        /// Names, as `name` or `name@v2`; a `*` stands for any text.
        views: optional Vec<At<String>>,
        /// Names from `owners:`.
        owners: optional Vec<At<String>>,
        /// Tags, one of which the view or one of its features has.
        tags: optional Vec<At<String>>,
        /// Names of checks, one of which the view has; a `*` stands for any text.
        checks: optional Vec<At<String>>,
    }
}

record! {
    /// Who may restore what. A restore must keep every rule that means one of its views.
    RestoreRuleFile "restore rule" {
        /// The name by which a refusal calls it.
        name: required String,
        /// Free text.
        description: optional String,
        /// The views; all when left out.
        r#match: optional MatchFile,
        /// Who may restore and approve: patterns of `user` or `user@host`, in which a `*` stands for any text; anybody when left out.
        actors: optional Vec<At<String>>,
        /// What is taken back may be as old as this, by when it was published.
        max_age: optional WrittenDuration,
        /// When it may be done.
        hours: optional HoursFile,
        /// `required`: a second person must approve; `none` (default).
        approval: optional ApprovalWord,
    }
}

record! {
    /// Hours of the day.
    HoursFile "hours" {
        /// From, as in `08:00`.
        from: required String,
        /// Until before, as in `18:30`; over midnight when it is earlier than `from`.
        to: required String,
        /// On whose wall clock, as in `Europe/Berlin`; `UTC` when left out.
        timezone: optional String,
    }
}

record! {
    /// A named way back, for `tidegate recipe run`.
    RecipeFile "recipe" {
        /// Its name.
        name: required String,
        /// When to use it.
        description: required String,
        /// The views that it is for; all when left out.
        r#match: optional MatchFile,
        /// What triggers it by itself; only people run it when this is left out.
        on: optional Vec<At<TriggerWord>>,
        /// Triggered for a view, it is not triggered for it again within this time; `1h` when left out.
        cooldown: optional WrittenDuration,
        /// What is done, in this order.
        steps: required Vec<At<StepFile>>,
    }
}

record! {
    /// A restore that is rehearsed regularly, on a copy of what is live: see `tidegate drill`.
    DrillFile "drill" {
        /// Its name.
        name: required String,
        /// Free text.
        description: optional String,
        /// The views that take part; all when left out.
        r#match: optional MatchFile,
        /// When.
        schedule: required DrillScheduleFile,
        /// What is rehearsed: any of `bad_deploy`, `partial_data`, `tag_mismatch`, `training_set_out_of_step`, `online_store_lost`;
        /// everything that makes sense when left out or empty.
        scenarios: optional Vec<At<Scenario>>,
    }
}

record! {
    /// When a drill is carried out.
    DrillScheduleFile "schedule" {
        /// crontab(5): five fields, or `@daily` and its kin.
        cron: required String,
        /// The zone on whose wall clock the fields are read, as in `Europe/Berlin`; `UTC` when left out.
        timezone: optional String,
    }
}

one_key! {
    /// One step of a recipe.
    StepFile "step" {
        /// Switches a feature off online.
        Disable = "disable": DisableFile,
        /// Takes the views back.
        Restore = "restore": RestoreFile,
        /// Keeps the views from being published.
        Hold = "hold": HoldFile,
        /// Compares what is online with the lake; a difference ends the recipe.
        Validate = "validate": ValidateFile,
        /// Tells whoever listens.
        Notify = "notify": NotifyFile,
        /// Goes on only when a second person has approved.
        RequireApproval = "require_approval": RequireApprovalFile,
    }
}

record! {
    /// Switches a feature off online.
    DisableFile "disable" {
        /// The feature, of every view that has it.
        feature: required String,
        /// What readers get: `default` or `null`.
        serve: required Serve,
        /// For so many percent of the entities; 100 when left out.
        percent: optional f64,
    }
}

record! {
    /// Takes the views back.
    RestoreFile "restore" {
        /// `last_good`: what was live before, restores and bad snapshots aside.
        to: required LastGoodWord,
        /// `with` takes what was computed from the views back with them; `without` (default).
        cascade: optional CascadeWord,
        /// What becomes of runs while the views are held: `skip_runs` (default) or `stage_only`.
        while_held: optional HoldPolicy,
    }
}

record! {
    /// Keeps the views from being published.
    HoldFile "hold" {
        /// What becomes of runs meanwhile: `skip_runs` (default) or `stage_only`.
        while_held: optional HoldPolicy,
    }
}

record! {
    /// Compares what is online with the lake.
    ValidateFile "validate" {
        /// About so many entities of each view; all when left out.
        sample: optional u64,
    }
}

record! {
    /// Tells whoever listens.
    NotifyFile "notify" {
        /// The sentence.
        message: required String,
    }
}

record! {
    /// Goes on only when a second person has approved.
    RequireApprovalFile "require_approval" {
        /// Who may: patterns of `user` or `user@host`, in which a `*` stands for any text; anybody else when left out.
        by: optional Vec<At<String>>,
    }
}

/// `approval:` as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum ApprovalWord {
    Required,
    None,
}

/// `to:` as a word: what else could be written here is known only when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum LastGoodWord {
    LastGood,
}

/// `cascade:` as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum CascadeWord {
    With,
    Without,
}

words!(ApprovalWord, "a kind of approval" { "required" => Self::Required, "none" => Self::None, });
words!(LastGoodWord, "a place to go back to" { "last_good" => Self::LastGood, });
words!(CascadeWord, "a choice for what is downstream" { "with" => Self::With, "without" => Self::Without, });
words!(Scenario, "a scenario" {
    "bad_deploy" => Self::BadDeploy,
    "partial_data" => Self::PartialData,
    "tag_mismatch" => Self::TagMismatch,
    "training_set_out_of_step" => Self::TrainingSetOutOfStep,
    "online_store_lost" => Self::OnlineStoreLost,
});
/// One of `on:`. A word that is none is reported where it is read, and stays, lest its list look empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) struct TriggerWord(pub(in crate::definitions) Option<Trigger>);

impl Read for TriggerWord {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        Some(Self(Trigger::read(node, out)))
    }
}

words!(Trigger, "something that triggers a recipe" {
    "check_failed_after_publish" => Self::CheckFailedAfterPublish,
    "validation_failed" => Self::ValidationFailed,
    "online_differs" => Self::OnlineDiffers,
    "marked_bad" => Self::MarkedBad,
    "incident" => Self::Incident,
});
words!(HoldPolicy, "a choice for runs" { "skip_runs" => Self::SkipRuns, "stage_only" => Self::StageOnly, });

schema_of!(Scenario, "scenario", {
    "enum": ["bad_deploy", "partial_data", "tag_mismatch", "training_set_out_of_step", "online_store_lost"]
});
schema_of!(ApprovalWord, "approval", { "enum": ["required", "none"] });
schema_of!(LastGoodWord, "to", { "enum": ["last_good"] });
schema_of!(CascadeWord, "cascade", { "enum": ["with", "without"] });
schema_of!(Serve, "serve", { "enum": ["default", "null"] });
schema_of!(TriggerWord, "trigger", {
    "enum": ["check_failed_after_publish", "validation_failed", "online_differs", "marked_bad", "incident"]
});
schema_of!(HoldPolicy, "while_held", { "enum": ["skip_runs", "stage_only"] });

/// `null` is what it says, also where YAML takes it for nothing.
impl Read for Serve {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = match &node.value {
            Value::Scalar(scalar) if scalar.text == "null" => return Some(Self::Null),
            _ => &scalar(node, "`default` or `null`", out)?.text,
        };
        if text == "default" {
            return Some(Self::Default);
        }
        let title = format!("`{text}` is not something to serve");
        out.push(
            Diagnostic::error(ids::UNKNOWN_WORD, node.origin.clone(), title)
                .with_label("expected one of `default`, `null`"),
        );
        None
    }
}
