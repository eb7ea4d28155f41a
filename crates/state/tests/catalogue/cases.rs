//! The cases, each against an empty catalogue.

use std::time::Duration;

use atoll_core::{
    SandboxId,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_state::catalogue::{Catalogue, Claim, IdempotentClaim};
use futures::{future::join_all, poll};

use crate::values::*;

/// Far longer than anything here takes: only a test that would hang forever meets it.
const FOREVER: Duration = Duration::from_secs(60);

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOREVER, future).await.expect("what was awaited never happened")
}

pub(crate) async fn a_reserved_place_is_given_back_when_dropped(catalogue: &impl Catalogue) {
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_err());
    assert!(catalogue.get(&id("i1")).await.unwrap().is_none(), "a starting sandbox shows");
    assert!(catalogue.ids().await.unwrap().is_empty());
    drop(place);
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_ok());
    assert!(catalogue.reserve(TEAM, &id("i2"), 0).await.is_err());
}

pub(crate) async fn a_sandbox_that_runs_keeps_the_place_of_its_reservation(
    catalogue: &impl Catalogue,
) {
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    put(catalogue, TEAM, "i1", State::Running).await;
    assert_eq!(counted(catalogue, TEAM).await, 1);
    drop(place);
    assert_eq!(counted(catalogue, TEAM).await, 1);
}

pub(crate) async fn reservations_of_one_sandbox_take_one_place(catalogue: &impl Catalogue) {
    put(catalogue, TEAM, "i1", PAUSED).await;
    let sandbox = id("i1");
    let places: Vec<_> = join_all((0..3).map(|_| catalogue.reserve(TEAM, &sandbox, 1))).await;
    assert!(places.iter().all(Result::is_ok));
    assert_eq!(counted(catalogue, TEAM).await, 1);
    let mut places = places.into_iter();
    drop(places.next());
    assert_eq!(counted(catalogue, TEAM).await, 1, "the others still hold it");
    drop(places);
    assert_eq!(counted(catalogue, TEAM).await, 0);
}

pub(crate) async fn who_has_a_place_gets_it_again_whatever_the_limit(catalogue: &impl Catalogue) {
    put(catalogue, TEAM, "i1", State::Running).await;
    put(catalogue, TEAM, "i2", State::Running).await;
    put(catalogue, TEAM, "i3", PAUSED).await;
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    // It is paused while somebody wants it to run.
    catalogue.update(entry(TEAM, &id("i1"), PAUSED, 2)).await.unwrap();
    assert_eq!(counted(catalogue, TEAM).await, 2);
    let refused = catalogue.reserve(TEAM, &id("i3"), 2).await.err().unwrap();
    assert_eq!(refused.code, codes::CONCURRENCY_LIMIT);
    drop(place);
    assert_eq!(counted(catalogue, TEAM).await, 1);
}

pub(crate) async fn the_limit_holds_under_contention(catalogue: &impl Catalogue) {
    let ids: Vec<SandboxId> = (0..100).map(|number| id(&format!("i{number}"))).collect();
    let places = join_all(ids.iter().map(|id| catalogue.reserve(TEAM, id, 10))).await;
    assert_eq!(places.iter().filter(|place| place.is_ok()).count(), 10);
    for (id, place) in ids.iter().zip(places) {
        if place.is_ok() {
            catalogue.update(entry(TEAM, id, State::Running, 1)).await.unwrap();
        }
    }
    assert_eq!(catalogue.list(TEAM).await.unwrap().len(), 10);
    assert!(catalogue.reserve(TEAM, &id("probe"), 10).await.is_err());
}

pub(crate) async fn a_refusal_says_the_limit_and_who_raises_it(catalogue: &impl Catalogue) {
    let _places = [
        catalogue.reserve(TEAM, &id("i1"), 2).await.unwrap(),
        catalogue.reserve(TEAM, &id("i2"), 2).await.unwrap(),
    ];
    let error = catalogue.reserve(TEAM, &id("i3"), 2).await.err().unwrap();
    assert_eq!(error.code, codes::CONCURRENCY_LIMIT);
    assert!(error.message.contains("limit of 2 sandboxes"), "{error}");
    assert!(error.message.contains("operator"), "{error}");
    assert!(error.message.contains("concurrent_instances"), "{error}");
}

pub(crate) async fn teams_do_not_see_or_count_each_other(catalogue: &impl Catalogue) {
    put(catalogue, TEAM, "i1", State::Running).await;
    put(catalogue, OTHER_TEAM, "i2", State::Running).await;
    assert_eq!(listed(catalogue, TEAM).await, [id("i1")]);
    assert_eq!(listed(catalogue, OTHER_TEAM).await, [id("i2")]);
    assert_eq!(counted(catalogue, TEAM).await, 1);
    let mut all = catalogue.ids().await.unwrap();
    all.sort();
    assert_eq!(all, [id("i1"), id("i2")]);
}

pub(crate) async fn all_count_but_those_that_hold_no_memory(catalogue: &impl Catalogue) {
    let kept = Kept::Frozen;
    let states = [
        State::Starting,
        State::Running,
        State::Snapshotting,
        State::Pausing(kept),
        State::Resuming(kept),
        State::Ending,
        State::Paused(kept),
        State::Paused(Kept::Disk),
    ];
    for (number, state) in states.into_iter().enumerate() {
        put(catalogue, TEAM, &format!("i{number}"), state).await;
    }
    assert_eq!(counted(catalogue, TEAM).await, 7);
    let shown = [1, 2, 3, 4, 6, 7].map(|number| id(&format!("i{number}")));
    assert_eq!(listed(catalogue, TEAM).await, shown);
    assert_eq!(catalogue.ids().await.unwrap().len(), 8);
}

pub(crate) async fn the_higher_revision_counts(catalogue: &impl Catalogue) {
    let all =
        [(3, State::Running), (2, PAUSED), (3, State::Ending), (7, PAUSED), (5, State::Running)];
    let mut shown = Vec::new();
    for (revision, state) in all {
        catalogue.update(entry(TEAM, &id("i1"), state, revision)).await.unwrap();
        shown.push(known(catalogue, "i1").await.unwrap());
    }
    let (first, last) = ((State::Running, 3), (PAUSED, 7));
    assert_eq!(shown, [first, first, first, last, last]);
}

pub(crate) async fn a_change_that_comes_before_its_creator_is_not_lost(catalogue: &impl Catalogue) {
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    catalogue.update(entry(TEAM, &id("i1"), PAUSED, 2)).await.unwrap();
    // The creator hears of how it was when it was made.
    put(catalogue, TEAM, "i1", State::Running).await;
    drop(place);
    assert_eq!(known(catalogue, "i1").await, Some((PAUSED, 2)));
    assert_eq!(counted(catalogue, TEAM).await, 0);
}

pub(crate) async fn a_sandbox_that_ends_before_its_creator_hears_never_appears(
    catalogue: &impl Catalogue,
) {
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    catalogue.remove(&id("i1")).await.unwrap();
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_err(), "its creator still works");
    put(catalogue, TEAM, "i1", State::Running).await;
    drop(place);
    assert_eq!(known(catalogue, "i1").await, None);
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_ok());
}

pub(crate) async fn what_has_ended_does_not_come_back(catalogue: &impl Catalogue) {
    put(catalogue, TEAM, "i1", State::Running).await;
    catalogue.remove(&id("i1")).await.unwrap();
    catalogue.update(entry(TEAM, &id("i1"), State::Running, 9)).await.unwrap();
    assert_eq!(known(catalogue, "i1").await, None);
    assert!(listed(catalogue, TEAM).await.is_empty());
    assert!(catalogue.ids().await.unwrap().is_empty());
    assert_eq!(counted(catalogue, TEAM).await, 0);
}

pub(crate) async fn what_a_node_has_counts_whatever_the_limit(catalogue: &impl Catalogue) {
    for name in ["i1", "i2", "i3"] {
        put(catalogue, TEAM, name, State::Running).await;
    }
    assert_eq!(listed(catalogue, TEAM).await, [id("i1"), id("i2"), id("i3")]);
    assert!(catalogue.reserve(TEAM, &id("i4"), 2).await.is_err());
}

async fn claim_first(catalogue: &impl Catalogue, team: &str, name: &str) -> Box<dyn Claim> {
    match in_time(catalogue.idempotent(team, "key", &id(name))).await.unwrap() {
        IdempotentClaim::First(claim) => claim,
        IdempotentClaim::Repeat(other) => panic!("the key leads to {other}"),
    }
}

async fn repeated(catalogue: &impl Catalogue, team: &str) -> SandboxId {
    match in_time(catalogue.idempotent(team, "key", &id("other"))).await.unwrap() {
        IdempotentClaim::First(_) => panic!("the key leads nowhere"),
        IdempotentClaim::Repeat(id) => id,
    }
}

pub(crate) async fn a_repeat_waits_for_the_first_and_gets_its_sandbox(catalogue: &impl Catalogue) {
    let first = claim_first(catalogue, TEAM, "i1").await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut repeat = Box::pin(repeated(catalogue, TEAM));
        assert!(poll!(repeat.as_mut()).is_pending());
        waiting.push(repeat);
    }
    first.settle();
    assert!(join_all(waiting).await.iter().all(|found| *found == id("i1")));
    assert_eq!(repeated(catalogue, TEAM).await, id("i1"));
}

pub(crate) async fn a_failed_first_attempt_passes_the_key_on(catalogue: &impl Catalogue) {
    let first = claim_first(catalogue, TEAM, "i1").await;
    let mut second = Box::pin(claim_first(catalogue, TEAM, "i2"));
    assert!(poll!(second.as_mut()).is_pending());
    let mut given_up = Box::pin(claim_first(catalogue, TEAM, "i3"));
    assert!(poll!(given_up.as_mut()).is_pending());
    drop(given_up);
    drop(first);
    second.await.settle();
    assert_eq!(repeated(catalogue, TEAM).await, id("i2"));
}

pub(crate) async fn keys_of_two_teams_are_two_keys(catalogue: &impl Catalogue) {
    claim_first(catalogue, TEAM, "i1").await.settle();
    claim_first(catalogue, OTHER_TEAM, "i2").await.settle();
    assert_eq!(repeated(catalogue, TEAM).await, id("i1"));
    assert_eq!(repeated(catalogue, OTHER_TEAM).await, id("i2"));
}
