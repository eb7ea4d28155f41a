//! Sandboxes to put into a catalogue.

use std::collections::BTreeMap;

use atoll_core::{SandboxId, limits::DEVELOPMENT_TIER};
use atoll_state::catalogue::{Catalogue, Entry, Phase};
use atoll_wire::node::{Resources, SandboxRecord};
use jiff::{SignedDuration, Timestamp};

pub(crate) const TEAM: &str = "6c1f4d52-8f0e-4b7a-9a35-d04be1a7c3f8";
pub(crate) const OTHER_TEAM: &str = "0e1c5b0e-2a61-4a5f-b2c4-6f8c1f0a9d11";
pub(crate) const LIMIT: u32 = DEVELOPMENT_TIER.concurrent_sandboxes;

pub(crate) fn id(name: &str) -> SandboxId {
    name.parse().unwrap()
}

/// The moment `seconds` from now, past when negative.
pub(crate) fn after(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

pub(crate) fn entry(team: &str, id: &SandboxId, end_at: Timestamp) -> Entry {
    Entry {
        record: SandboxRecord {
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
            started_at: end_at - SignedDuration::from_secs(300),
            end_at,
        },
        envd_version: "0.6.4".to_owned(),
        phase: Phase::Running,
        node: "abcdef".to_owned(),
    }
}

/// A sandbox that runs for an hour.
pub(crate) async fn start(catalogue: &impl Catalogue, team: &str, name: &str) -> SandboxId {
    start_until(catalogue, team, name, after(3600)).await
}

pub(crate) async fn start_until(
    catalogue: &impl Catalogue,
    team: &str,
    name: &str,
    end_at: Timestamp,
) -> SandboxId {
    let id = id(name);
    let place = catalogue.reserve(team, &id, LIMIT).await.unwrap();
    place.commit(entry(team, &id, end_at));
    id
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

/// Ids of the running sandboxes of `team`, sorted.
pub(crate) async fn listed(catalogue: &impl Catalogue, team: &str) -> Vec<SandboxId> {
    let entries = catalogue.list(team).await.unwrap();
    let mut ids: Vec<SandboxId> = entries.into_iter().map(|entry| entry.record.id).collect();
    ids.sort();
    ids
}
