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
        a_sandbox_that_runs_keeps_the_place_of_its_reservation,
        reservations_of_one_sandbox_take_one_place,
        who_has_a_place_gets_it_again_whatever_the_limit,
        the_limit_holds_under_contention,
        a_refusal_says_the_limit_and_who_raises_it,
        teams_do_not_see_or_count_each_other,
        all_count_but_those_that_hold_no_memory,
        the_higher_revision_counts,
        a_change_that_comes_before_its_creator_is_not_lost,
        a_sandbox_that_ends_before_its_creator_hears_never_appears,
        what_has_ended_does_not_come_back,
        what_a_node_has_counts_whatever_the_limit,
        a_repeat_waits_for_the_first_and_gets_its_sandbox,
        a_failed_first_attempt_passes_the_key_on,
        keys_of_two_teams_are_two_keys,
    ];
    memory: MemoryCatalogue::new(),
}
