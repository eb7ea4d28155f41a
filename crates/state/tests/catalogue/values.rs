//! Sandboxes to put into a catalogue.

use std::collections::BTreeMap;

use atoll_core::{
    SandboxId,
    lifecycle::{Kept, State},
    limits::DEVELOPMENT_TIER,
};
use atoll_state::catalogue::{Catalogue, Entry};
use atoll_wire::node::{NodeSandbox, OnTimeout, Resources, SandboxRecord};
use jiff::{SignedDuration, Timestamp};

pub(crate) const TEAM: &str = "6c1f4d52-8f0e-4b7a-9a35-d04be1a7c3f8";
pub(crate) const OTHER_TEAM: &str = "0e1c5b0e-2a61-4a5f-b2c4-6f8c1f0a9d11";
pub(crate) const LIMIT: u32 = DEVELOPMENT_TIER.concurrent_sandboxes;
pub(crate) const PAUSED: State = State::Paused(Kept::Checkpoint);

pub(crate) fn id(name: &str) -> SandboxId {
    name.parse().unwrap()
}

/// What a node says of a sandbox.
pub(crate) fn entry(team: &str, id: &SandboxId, state: State, revision: u64) -> Entry {
    let now = Timestamp::now();
    let record = SandboxRecord {
        id: id.clone(),
        team: team.to_owned(),
        template: "base0000000000000000".parse().unwrap(),
        alias: Some("base".to_owned()),
        build: "b6a4be3c-6f0a-4f5e-9d43-0a4f1f0b8a11".to_owned(),
        resources: Resources { vcpu: 2, memory_mb: 512, disk_mb: 1024 },
        metadata: BTreeMap::from([("purpose".to_owned(), "test".to_owned())]),
        env_vars: BTreeMap::new(),
        envd_access_token: Some("token".to_owned()),
        allow_internet_access: None,
        timeout: 300,
        longest: 3600,
        on_timeout: OnTimeout::Kill,
        auto_resume: false,
        forked_from: None,
        is_for_build: false,
        started_at: now,
        end_at: now + SignedDuration::from_secs(300),
    };
    let sandbox = NodeSandbox { record, envd_version: "0.6.4".to_owned(), state, revision };
    Entry { sandbox, node: "abcdef".to_owned() }
}

/// Lets a sandbox that nobody knows yet be in a state.
pub(crate) async fn put(catalogue: &impl Catalogue, team: &str, name: &str, state: State) {
    catalogue.update(entry(team, &id(name), state, 1)).await.unwrap();
}

/// State and revision of a sandbox that is known.
pub(crate) async fn known(catalogue: &impl Catalogue, name: &str) -> Option<(State, u64)> {
    let entry = catalogue.get(&id(name)).await.unwrap();
    entry.map(|entry| (entry.sandbox.state, entry.sandbox.revision))
}

/// Sandboxes of `team` that count towards its limit, found as a client would: by asking for one
/// more place under ever higher limits.
pub(crate) async fn counted(catalogue: &impl Catalogue, team: &str) -> u32 {
    for limit in 1..=LIMIT {
        if catalogue.reserve(team, &id("probe"), limit).await.is_ok() {
            return limit - 1;
        }
    }
    panic!("no place is free below the limit")
}

/// Ids of the sandboxes of `team` that clients see, sorted.
pub(crate) async fn listed(catalogue: &impl Catalogue, team: &str) -> Vec<SandboxId> {
    let entries = catalogue.list(team).await.unwrap();
    let mut ids: Vec<SandboxId> =
        entries.into_iter().map(|entry| entry.sandbox.record.id).collect();
    ids.sort();
    ids
}
