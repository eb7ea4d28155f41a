//! The cases, each against an empty catalogue.

use std::time::Duration;

use atoll_core::{SandboxId, error::codes};
use atoll_state::catalogue::{Catalogue, Claim, Deadline, IdempotentClaim, Phase};
use futures::{FutureExt, future::join_all, poll};
use jiff::Timestamp;

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
    drop(place);
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_ok());
}

pub(crate) async fn an_id_is_reserved_once(catalogue: &impl Catalogue) {
    let place = catalogue.reserve(TEAM, &id("i1"), LIMIT).await.unwrap();
    let again = catalogue.reserve(TEAM, &id("i1"), LIMIT).await;
    assert_eq!(again.err().unwrap().code, codes::CONFLICT);
    place.commit(entry(TEAM, &id("i1"), after(60)));
    assert!(catalogue.reserve(TEAM, &id("i1"), LIMIT).await.is_err());
    assert_eq!(counted(catalogue, TEAM).await, 1);
}

pub(crate) async fn the_limit_holds_under_contention(catalogue: &impl Catalogue) {
    let ids: Vec<SandboxId> = (0..100).map(|number| id(&format!("i{number}"))).collect();
    let places = join_all(ids.iter().map(|id| catalogue.reserve(TEAM, id, 10))).await;
    assert_eq!(places.iter().filter(|place| place.is_ok()).count(), 10);
    for (id, place) in ids.iter().zip(places) {
        if let Ok(place) = place {
            place.commit(entry(TEAM, id, after(60)));
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
    let mine = start(catalogue, TEAM, "i1").await;
    let theirs = start(catalogue, OTHER_TEAM, "i2").await;
    assert!(listed(catalogue, TEAM).await.iter().eq([&mine]));
    assert!(listed(catalogue, OTHER_TEAM).await.iter().eq([&theirs]));
    assert_eq!(counted(catalogue, TEAM).await, 1);
    let mut all = catalogue.ids().await.unwrap();
    all.sort();
    assert_eq!(all, [mine, theirs]);
}

pub(crate) async fn a_sandbox_being_ended_is_hidden_but_counts(catalogue: &impl Catalogue) {
    let ending = start(catalogue, TEAM, "i1").await;
    assert!(catalogue.begin_kill(&ending).await.unwrap());
    assert!(listed(catalogue, TEAM).await.is_empty());
    assert!(catalogue.ids().await.unwrap().is_empty());
    assert_eq!(catalogue.get(&ending).await.unwrap().unwrap().phase, Phase::Killing);
    assert_eq!(counted(catalogue, TEAM).await, 1);
    catalogue.remove(&ending).await.unwrap();
    assert!(catalogue.get(&ending).await.unwrap().is_none());
    assert_eq!(counted(catalogue, TEAM).await, 0);
}

pub(crate) async fn one_caller_ends_a_sandbox(catalogue: &impl Catalogue) {
    let ending = start(catalogue, TEAM, "i1").await;
    let won = join_all((0..50).map(|_| catalogue.begin_kill(&ending))).await;
    assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1);
    assert!(!catalogue.begin_kill(&id("unknown")).await.unwrap());
    let _place = catalogue.reserve(TEAM, &id("starting"), LIMIT).await.unwrap();
    assert!(!catalogue.begin_kill(&id("starting")).await.unwrap());
}

pub(crate) async fn a_failed_kill_is_reported_again(catalogue: &impl Catalogue) {
    let ending = start_until(catalogue, TEAM, "i1", after(-5)).await;
    let later = start(catalogue, TEAM, "i2").await;
    for _ in 0..2 {
        assert!(in_time(catalogue.expired()).await.unwrap().iter().eq([&ending]));
        assert!(catalogue.begin_kill(&ending).await.unwrap());
        catalogue.abort_kill(&ending).await.unwrap();
        assert_eq!(catalogue.get(&ending).await.unwrap().unwrap().phase, Phase::Running);
    }
    assert!(catalogue.begin_kill(&later).await.unwrap());
    catalogue.abort_kill(&later).await.unwrap();
    assert_eq!(listed(catalogue, TEAM).await, [ending, later]);
}

pub(crate) async fn a_sandbox_that_dies_before_it_is_committed_never_appears(
    catalogue: &impl Catalogue,
) {
    let place = catalogue.reserve(TEAM, &id("i1"), 1).await.unwrap();
    catalogue.remove(&id("i1")).await.unwrap();
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_err(), "its creator still works");
    place.commit(entry(TEAM, &id("i1"), after(60)));
    assert!(catalogue.get(&id("i1")).await.unwrap().is_none());
    assert!(catalogue.reserve(TEAM, &id("i2"), 1).await.is_ok());
}

pub(crate) async fn an_adopted_sandbox_counts_whatever_the_limit(catalogue: &impl Catalogue) {
    for name in ["i1", "i2", "i3"] {
        catalogue.adopt(entry(TEAM, &id(name), after(60))).await.unwrap();
    }
    assert_eq!(listed(catalogue, TEAM).await, [id("i1"), id("i2"), id("i3")]);
    assert!(catalogue.reserve(TEAM, &id("i4"), 2).await.is_err());
    catalogue.adopt(entry(TEAM, &id("i5"), after(-1))).await.unwrap();
    assert_eq!(in_time(catalogue.expired()).await.unwrap(), [id("i5")]);
}

pub(crate) async fn what_is_known_is_not_adopted_again(catalogue: &impl Catalogue) {
    let known = start(catalogue, TEAM, "i1").await;
    let before = catalogue.get(&known).await.unwrap().unwrap();
    catalogue.adopt(entry(TEAM, &known, after(9999))).await.unwrap();
    let after_it = catalogue.get(&known).await.unwrap().unwrap();
    assert_eq!(after_it.record, before.record);
    let place = catalogue.reserve(TEAM, &id("i2"), LIMIT).await.unwrap();
    catalogue.adopt(entry(TEAM, &id("i2"), after(60))).await.unwrap();
    drop(place);
    assert_eq!(listed(catalogue, TEAM).await, [known]);
    assert_eq!(counted(catalogue, TEAM).await, 1);
}

pub(crate) async fn extending_never_shortens(catalogue: &impl Catalogue) {
    let end_at = after(3600);
    let sandbox = start_until(catalogue, TEAM, "i1", end_at).await;
    let sooner = Deadline::Extend(after(60));
    let unchanged = catalogue.set_deadline(&sandbox, sooner).await.unwrap().unwrap();
    assert_eq!(unchanged.record.end_at, end_at);
    let later = after(7200);
    let moved = catalogue.set_deadline(&sandbox, Deadline::Extend(later)).await.unwrap().unwrap();
    assert_eq!(moved.record.end_at, later);
    assert_eq!(catalogue.get(&sandbox).await.unwrap().unwrap().record.end_at, later);
    assert!(catalogue.set_deadline(&id("unknown"), sooner).await.unwrap().is_none());
}

pub(crate) async fn a_deadline_can_be_set_sooner(catalogue: &impl Catalogue) {
    let sandbox = start(catalogue, TEAM, "i1").await;
    let past = after(-1);
    let moved = catalogue.set_deadline(&sandbox, Deadline::Set(past)).await.unwrap().unwrap();
    assert_eq!(moved.record.end_at, past);
    assert_eq!(in_time(catalogue.expired()).await.unwrap(), [sandbox]);
}

pub(crate) async fn the_deadline_of_a_sandbox_being_ended_stays(catalogue: &impl Catalogue) {
    let end_at = after(3600);
    let sandbox = start_until(catalogue, TEAM, "i1", end_at).await;
    assert!(catalogue.begin_kill(&sandbox).await.unwrap());
    let past = Deadline::Set(after(-1));
    let entry = catalogue.set_deadline(&sandbox, past).await.unwrap().unwrap();
    assert_eq!((entry.phase, entry.record.end_at), (Phase::Killing, end_at));
    assert!(catalogue.expired().now_or_never().is_none());
}

pub(crate) async fn expiry_reports_all_that_are_due_at_once(catalogue: &impl Catalogue) {
    start(catalogue, TEAM, "i0").await;
    for name in ["i1", "i2", "i3"] {
        start_until(catalogue, TEAM, name, after(-1)).await;
    }
    let due = async {
        let mut due = in_time(catalogue.expired()).await.unwrap();
        due.sort();
        due
    };
    assert_eq!(due.await, [id("i1"), id("i2"), id("i3")]);
    assert!(catalogue.begin_kill(&id("i1")).await.unwrap());
    catalogue.remove(&id("i2")).await.unwrap();
    assert_eq!(in_time(catalogue.expired()).await.unwrap(), [id("i3")]);
}

pub(crate) async fn expiry_wakes_for_a_sooner_deadline(catalogue: &impl Catalogue) {
    let sandbox = start(catalogue, TEAM, "i1").await;
    let expired = catalogue.expired();
    tokio::pin!(expired);
    assert!(poll!(expired.as_mut()).is_pending());
    let now = Timestamp::now();
    catalogue.set_deadline(&sandbox, Deadline::Set(now)).await.unwrap();
    assert_eq!(in_time(expired).await.unwrap(), [sandbox]);
}

pub(crate) async fn expiry_of_an_empty_catalogue_waits_for_the_first_sandbox(
    catalogue: &impl Catalogue,
) {
    let expired = catalogue.expired();
    tokio::pin!(expired);
    assert!(poll!(expired.as_mut()).is_pending());
    let soon = Timestamp::now() + Duration::from_millis(20);
    let sandbox = start_until(catalogue, TEAM, "i1", soon).await;
    assert_eq!(in_time(expired).await.unwrap(), [sandbox]);
    assert!(Timestamp::now() >= soon, "reported before its time");
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
