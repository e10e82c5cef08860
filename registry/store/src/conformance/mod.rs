//! What every [`Store`] must keep, one function per promise.
//!
//! An implementation stamps all of them onto itself with [`conformance!`](crate::conformance!), giving a function that
//! makes a [`Fixture`]: an empty registry of its own for each promise. A promise is kept when its function returns.

#![allow(clippy::unwrap_used, reason = "these are tests, exported for the crates that implement the trait")]

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use tidegate_registry::store::Store;

pub mod approvals;
pub mod audit;
pub mod care;
pub mod datasets;
pub mod decisions;
pub mod definitions;
pub mod drills;
pub mod figures;
pub mod firings;
pub mod histories;
pub mod notices;
pub mod placement;
pub mod planning;
pub mod processes;
pub mod publishing;
pub mod recording;
pub mod restoring;
pub mod runs;
pub mod switches;
pub mod tasks;
pub(crate) mod world;

/// An empty registry, opened twice as if by two processes, and what must live as long as it (a folder, a server).
pub struct Fixture {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// The same registry through connections of its own.
    pub twin: Arc<dyn Store>,
    /// Dropped last.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Makes a test of every promise. Takes the path of an `async fn() -> Fixture`, seen from the crate's root.
#[macro_export]
macro_rules! conformance {
    ($fixture:path) => {
        $crate::conformance! { @each $fixture;
            restoring {
                what_a_view_was_is_known_of_every_moment,
                a_restore_moves_ledger_and_states_and_can_be_undone,
                one_run_is_taken_back_and_its_interval_returns_to_the_run_before,
                a_restore_stops_what_writes_or_reads_its_views,
                a_plan_that_is_outdated_begins_nothing,
                nothing_of_a_held_view_gets_an_intent_until_it_is_resumed,
                a_hold_stays_while_its_restore_is_under_way,
                the_last_good_snapshot_is_no_restore_and_not_bad,
                what_a_restore_goes_back_to_stays,
            }
            figures {
                figures_count_what_is_there,
            }
            firings {
                what_was_before_the_first_look_triggers_nothing,
                what_happens_triggers_a_recipe_once,
                what_a_recipe_does_triggers_none,
                a_triggered_recipe_is_moved_by_one_at_a_time,
            }
            definitions {
                before_the_first_apply_the_project_is_empty,
                an_apply_on_an_outdated_plan_changes_nothing,
                a_registry_serves_one_project,
                every_version_of_a_definition_is_kept,
                an_apply_makes_every_touched_dag_due,
                a_dag_that_returns_goes_on_with_its_grid,
                a_view_begins_with_its_empty_table,
                an_added_view_needs_a_table,
            }
            planning {
                due_dags_come_longest_waiting_first,
                a_plan_holds_only_on_what_it_was_made_on,
                planning_stores_ticks_and_runs_together,
                a_plan_with_ticks_out_of_order_changes_nothing,
                plans_of_many_dags_are_judged_each_for_itself,
                an_unpaused_dag_is_due_at_once,
            }
            runs {
                a_run_exists_once,
                a_run_of_an_unknown_view_is_not_created,
                runs_are_listed_newest_interval_first,
                the_latest_run_of_each_interval_speaks_for_it,
                a_run_is_found_by_the_beginning_of_its_id,
                only_admitted_runs_are_claimed,
                a_run_is_cancelled_before_its_intent,
                a_run_is_not_cancelled_after_its_intent,
                a_run_that_came_to_nothing_is_made_anew,
                a_retry_uses_the_newest_definitions,
            }
            decisions {
                a_blocked_run_is_let_through_by_a_run_that_says_who_and_why,
                only_what_checks_of_authors_stopped_is_let_through,
                what_was_published_or_redefined_since_is_not_let_through,
                an_intent_takes_no_decision_that_nobody_made,
                rows_are_readmitted_once_and_only_while_they_are_set_aside,
            }
            tasks {
                each_task_is_claimed_once,
                tasks_come_after_what_they_read,
                tasks_claimed_together_get_their_own_inputs,
                runs_already_begun_come_first,
                a_lost_lease_does_nothing,
                ending_an_attempt_twice_is_harmless,
                an_expired_lease_is_taken_over,
                a_renewed_lease_is_kept,
                the_last_attempt_lost_fails_the_run,
                a_failed_attempt_is_tried_again_after_its_delay,
                used_up_attempts_fail_the_run,
                an_error_that_stays_is_not_tried_again,
                a_released_task_keeps_its_attempt,
                a_dead_process_costs_no_attempt,
                a_task_that_kills_its_process_fails_in_the_end,
                a_changed_file_starts_the_run_again_once,
                a_check_that_fails_ends_the_run,
                a_task_leaves_only_what_fits_it,
                lines_are_kept_in_order,
            }
            publishing {
                an_intent_takes_all_views_or_none,
                an_intent_is_taken_once,
                an_intent_rests_on_the_history_it_was_judged_by,
                nothing_that_a_check_stops_gets_an_intent,
                after_its_intent_a_run_only_rolls_forward,
                a_lost_worker_after_the_intent_is_replaced_for_ever,
                an_overtaken_run_lets_its_views_go,
                an_older_interval_does_not_go_online,
                every_intent_takes_the_next_number,
            }
            recording {
                a_run_goes_from_pin_to_record,
                recording_twice_is_harmless,
                nothing_is_recorded_without_an_intent,
                a_snapshot_id_names_one_run,
                a_snapshot_is_live_until_every_view_moves_on,
                the_ledger_lists_newest_intervals_first,
                what_was_recorded_is_found_by_interval_and_season,
                seasons_are_those_of_the_clock_on_the_wall,
                what_a_run_read_is_found_by_interval_and_by_when_it_was_recorded,
                verdicts_are_listed_newest_run_first,
                verdicts_against_history_are_kept_when_they_stop_a_run,
                verdicts_on_sources_are_kept_when_they_stop_a_run,
            }
            histories {
                no_history_breaks_the_rules,
            }
            care {
                live_and_pinned_snapshots_never_expire,
                what_must_be_kept_is_read_at_once,
                a_duty_is_one_process_at_a_time,
                a_compaction_takes_a_number_while_nobody_publishes,
                old_lines_and_outputs_are_removed,
                a_copy_brings_everything_back,
                only_an_empty_registry_takes_another_id,
                a_lost_registry_is_made_anew,
                an_old_copy_is_brought_up_to_the_lake,
                what_the_lake_lost_leaves_the_ledger,
            }
            placement {
                several_tasks_are_claimed_at_once,
                a_worker_gets_only_tasks_of_its_queues,
                a_pool_is_never_overdrawn,
                a_full_pool_stands_in_nobodys_way,
                a_slot_of_a_pool_ends_with_its_lease,
                a_pool_is_as_large_as_it_is_defined_now,
                a_priority_moves_a_run_ahead,
                a_retry_keeps_its_priority,
                a_drained_worker_claims_nothing,
                waiting_tasks_say_what_they_wait_for,
                whoever_listens_is_told_of_changes,
            }
            audit {
                parallel_appends_make_one_chain,
                events_say_who_did_what_and_what_it_changed,
                events_are_found_by_what_they_tell,
                a_head_that_was_noted_is_found_again,
            }
            notices {
                a_run_that_comes_to_nothing_tells_so,
                a_notice_with_a_key_is_written_once,
                a_notice_goes_to_whoever_asked_for_its_event,
                a_delivery_is_claimed_by_one_at_a_time,
                a_lost_delivery_is_claimed_again,
                a_failed_delivery_is_tried_again_until_it_is_given_up,
                old_notices_are_removed,
                a_published_run_is_told_to_whom_its_dag_names,
                what_no_sender_knows_a_webhook_for_is_given_up,
            }
            switches {
                a_switch_stays_until_it_is_lifted,
                a_switch_is_later_than_every_store,
            }
            approvals {
                a_request_waits_for_one_approval_and_is_used_once,
                the_age_of_what_is_taken_back_is_that_of_its_oldest_snapshot,
            }
            drills {
                a_drill_is_written_down_when_it_begins_and_when_it_ends,
                the_newest_drill_in_which_a_view_came_back_is_what_is_proven,
            }
            datasets {
                a_dataset_is_found_by_name_and_by_what_it_was_built_from,
                a_pinned_dataset_keeps_its_snapshots,
            }
            processes {
                two_processes_work_on_one_registry,
                a_closed_registry_is_unavailable,
                a_worker_is_alive_while_it_is_heard_of,
                whoever_asks_first_anchors_the_clock,
            }
        }
    };
    (@each $fixture:path; $($module:ident { $($promise:ident),* $(,)? })*) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture().await;
                $crate::conformance::$module::$promise(&fixture).await;
                drop(fixture);
            })*
        })*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_stamped() {
        let list = include_str!("mod.rs");
        for text in [
            include_str!("approvals.rs"),
            include_str!("audit.rs"),
            include_str!("care.rs"),
            include_str!("datasets.rs"),
            include_str!("definitions.rs"),
            include_str!("drills.rs"),
            include_str!("histories.rs"),
            include_str!("notices.rs"),
            include_str!("placement.rs"),
            include_str!("planning.rs"),
            include_str!("processes.rs"),
            include_str!("publishing.rs"),
            include_str!("recording.rs"),
            include_str!("runs.rs"),
            include_str!("switches.rs"),
            include_str!("tasks.rs"),
        ] {
            let mut promises = text.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next());
            assert!(promises.clone().count() > 0);
            let missing = promises.find(|promise| !list.contains(&format!("                {promise},\n")));
            assert_eq!(missing, None, "a promise that no implementation runs");
        }
    }
}
