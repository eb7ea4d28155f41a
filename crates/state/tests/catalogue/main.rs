//! What every catalogue backend is held to. A backend takes part with one line below.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cases;
mod histories;
mod memory_only;
mod values;

use atoll_state::MemoryCatalogue;

macro_rules! suite {
    ($backend:ident, $make:expr, [$($case:ident),* $(,)?]) => {
        mod $backend {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    cases::$case(&$make).await;
                }
            )*

            #[test]
            fn any_history_keeps_the_counts_exact() {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                histories::any_history_keeps_the_counts_exact(&runtime.unwrap(), || $make);
            }
        }
    };
}

macro_rules! backends {
    ($cases:tt; $($backend:ident: $make:expr),* $(,)?) => { $(suite!($backend, $make, $cases);)* };
}

backends! {
    [
        a_reserved_place_is_given_back_when_dropped,
        an_id_is_reserved_once,
        the_limit_holds_under_contention,
        a_refusal_says_the_limit_and_who_raises_it,
        teams_do_not_see_or_count_each_other,
        a_sandbox_being_ended_is_hidden_but_counts,
        one_caller_ends_a_sandbox,
        a_failed_kill_is_reported_again,
        a_sandbox_that_dies_before_it_is_committed_never_appears,
        an_adopted_sandbox_counts_whatever_the_limit,
        what_is_known_is_not_adopted_again,
        extending_never_shortens,
        a_deadline_can_be_set_sooner,
        the_deadline_of_a_sandbox_being_ended_stays,
        expiry_reports_all_that_are_due_at_once,
        expiry_wakes_for_a_sooner_deadline,
        expiry_of_an_empty_catalogue_waits_for_the_first_sandbox,
        a_repeat_waits_for_the_first_and_gets_its_sandbox,
        a_failed_first_attempt_passes_the_key_on,
        keys_of_two_teams_are_two_keys,
    ];
    memory: MemoryCatalogue::new(),
}
