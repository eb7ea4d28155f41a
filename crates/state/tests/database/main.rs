//! What every database backend is held to. A backend takes part by implementing
//! [`Fixture`](fixture::Fixture) and with one line below.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accounts;
mod builds;
mod fixture;
mod logs;
mod metrics;
mod snapshots;
mod templates;

macro_rules! suite {
    ($backend:ident, $fixture:ty, [$($part:ident::$case:ident),* $(,)?]) => {
        mod $backend {
            use super::{fixture::Fixture, *};

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let fixture = <$fixture>::start().await;
                    $part::$case(&fixture).await;
                    fixture.stop().await;
                }
            )*
        }
    };
}

macro_rules! backends {
    ($cases:tt; $($backend:ident: $fixture:ty),* $(,)?) => {
        $(suite!($backend, $fixture, $cases);)*
    };
}

backends! {
    [
        accounts::the_seed_makes_a_team_that_its_keys_lead_to,
        accounts::seeding_again_changes_nothing,
        accounts::a_seed_with_other_keys_adds_them,
        accounts::fresh_keys_retire_the_published_ones,
        accounts::published_keys_do_not_pass_for_secret_ones,
        accounts::malformed_keys_are_refused,
        accounts::unknown_keys_lead_nowhere,
        accounts::what_an_operator_changed_survives_the_seed,
        accounts::banned_and_blocked_teams_are_marked,
        accounts::the_default_team_of_a_user_comes_first,
        accounts::the_use_of_a_key_is_recorded,
        templates::a_published_build_is_found_by_its_alias,
        templates::publishing_is_idempotent,
        templates::the_last_published_build_counts,
        templates::only_plain_names_are_published,
        templates::concurrent_publishing_makes_one_template,
        templates::a_bare_name_means_own_then_global_then_id,
        templates::an_explicit_namespace_is_exact,
        templates::tags_and_builds_by_id,
        templates::builds_that_are_not_ready_do_not_count,
        templates::deleted_templates_and_pause_snapshots_are_not_found,
        templates::private_templates_of_others_stay_hidden,
        templates::the_list_has_own_and_global_templates,
        templates::spawns_are_counted,
        snapshots::a_snapshot_is_found_by_its_reference,
        snapshots::the_same_name_again_is_another_build,
        snapshots::names_that_mean_something_else_are_refused,
        snapshots::a_deleted_snapshot_is_gone_and_its_name_is_free,
        builds::a_build_is_registered_started_and_ready,
        builds::a_failed_build_keeps_its_reason,
        builds::what_is_over_does_not_change,
        builds::builds_of_one_tag_take_each_others_place,
        builds::the_limit_counts_what_is_under_way,
        builds::names_that_are_taken_are_refused,
        builds::concurrent_registrations_make_one_template,
        builds::a_deleted_template_ends_its_builds,
        builds::logs_only_grow_and_are_read_from_anywhere,
        builds::a_log_has_an_end,
        builds::old_lines_are_pruned,
        builds::tags_move_and_go,
        builds::a_public_template_may_have_a_global_name,
        metrics::samples_come_back_in_order_within_bounds,
        metrics::another_team_sees_no_samples,
        metrics::a_sample_is_kept_once,
        metrics::large_batches_and_odd_numbers,
        metrics::old_samples_are_pruned,
        metrics::concurrent_writers_wait_their_turn,
        logs::lines_come_back_in_order_in_both_directions,
        logs::pages_lose_no_line_and_repeat_none,
        logs::a_log_is_searched_by_level_text_and_time,
        logs::another_team_sees_no_lines,
        logs::a_line_that_is_delivered_twice_is_kept_once,
        logs::old_lines_and_too_many_are_pruned,
    ];
    sqlite: fixture::SqliteFixture,
}
