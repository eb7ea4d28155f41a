//! What the tests of this crate share.

use atoll_core::lifecycle::State;
use atoll_storage::BuildManifest;
use atoll_wire::node::{OnTimeout, Resources, SandboxRecord};
use jiff::Timestamp;

use crate::journal::Entry;

/// A build of a template.
pub(crate) fn build() -> BuildManifest {
    BuildManifest {
        id: "7f6d5c6e-0b5e-4d39-9d3e-0d8f5f6f7a10".to_owned(),
        template: "base".parse().unwrap(),
        alias: Some("base".to_owned()),
        layers: vec!["layer".parse().unwrap()],
        envd_version: "0.1.0".to_owned(),
        vcpu: 2,
        memory_mb: 512,
        disk_mb: 1024,
        default_user: "user".to_owned(),
        default_workdir: None,
        created_at: "2026-05-05T12:00:00Z".parse().unwrap(),
        recipe_digest: "digest".to_owned(),
        step: None,
        parent: None,
        env_vars: Default::default(),
        start: None,
        snapshot: None,
        stack: Vec::new(),
        control_secret: None,
    }
}

/// What the journal may hold of a sandbox with a lifetime of five minutes.
pub(crate) fn entry(state: State) -> Entry {
    let record = SandboxRecord {
        id: "i1".parse().unwrap(),
        team: "team".to_owned(),
        template: "base".parse().unwrap(),
        alias: Some("base".to_owned()),
        build: build().id,
        resources: Resources { vcpu: 2, memory_mb: 512, disk_mb: 1024 },
        metadata: [("line".to_owned(), "one\ntwo\n".to_owned())].into(),
        env_vars: [("A".to_owned(), "é\"\u{0}".to_owned())].into(),
        envd_access_token: Some("token".to_owned()),
        allow_internet_access: Some(false),
        timeout: 300,
        longest: 3600,
        on_timeout: OnTimeout::Kill,
        auto_resume: true,
        forked_from: Some("isource".parse().unwrap()),
        is_for_build: false,
        started_at: "2026-05-05T12:00:00.123456789Z".parse().unwrap(),
        end_at: Timestamp::MAX,
    };
    Entry { state, ..Entry::new(record, build()) }
}
