//! Sandboxes (control-plane contract, section 5).
//!
//! - [`create`]: new sandboxes, and [`fields`]: what of the request this release can honour.
//! - [`get`], [`list`] with its [`filter`]s, [`metrics`], [`logs`], [`lineage`]: looking.
//! - [`deadline`]: when its time is up. [`pause`], [`resume`], [`kill`], [`rewind`].
//! - [`fork`]: copies that run. `snapshots` beside this module: copies that are kept.
//! - [`refusal`]: what clients are told when a sandbox is in no state for what they ask.

pub(crate) mod create;
pub(crate) mod deadline;
mod fields;
mod filter;
pub(crate) mod fork;
pub(crate) mod get;
pub(crate) mod kill;
pub(crate) mod lineage;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod pause;
pub(crate) mod refusal;
pub(crate) mod resume;
pub(crate) mod rewind;

use atoll_core::{
    SandboxId,
    id::CLIENT_ID,
    lifecycle::{self, State},
};
use atoll_state::{catalogue::Entry, model::Team};
use atoll_wire::{node, rest};

use crate::{
    control::Control,
    error::{ApiError, ApiResult},
};

/// The sandbox as create and connect return it.
fn summary(control: &Control, entry: &Entry) -> rest::Sandbox {
    let record = &entry.sandbox.record;
    rest::Sandbox {
        template_id: record.template.to_string(),
        sandbox_id: record.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        alias: record.alias.clone(),
        envd_version: entry.sandbox.envd_version.clone(),
        envd_access_token: record.envd_access_token.clone(),
        traffic_access_token: None,
        domain: control.domain.clone(),
    }
}

/// The sandbox as lists show it.
fn listed(entry: &Entry) -> rest::ListedSandbox {
    let record = &entry.sandbox.record;
    rest::ListedSandbox {
        template_id: record.template.to_string(),
        sandbox_id: record.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        alias: record.alias.clone(),
        started_at: record.started_at,
        end_at: record.end_at,
        cpu_count: record.resources.vcpu,
        memory_mb: record.resources.memory_mb,
        disk_size_mb: record.resources.disk_mb,
        state: shown_state(entry.sandbox.state),
        envd_version: entry.sandbox.envd_version.clone(),
        metadata: record.metadata.clone(),
        volume_mounts: Vec::new(),
    }
}

/// The sandbox in full.
fn detail(control: &Control, entry: &Entry) -> rest::SandboxDetail {
    let record = &entry.sandbox.record;
    let on_timeout = match record.on_timeout {
        node::OnTimeout::Kill => rest::OnTimeout::Kill,
        node::OnTimeout::Pause { .. } => rest::OnTimeout::Pause,
    };
    rest::SandboxDetail {
        listed: listed(entry),
        envd_access_token: record.envd_access_token.clone(),
        allow_internet_access: record.allow_internet_access,
        domain: control.domain.clone(),
        lifecycle: rest::SandboxLifecycle { auto_resume: record.auto_resume, on_timeout },
        kept: kept_of(entry.sandbox.state),
    }
}

/// The two states that clients know. Those that are being made or ended are not shown at all.
pub(crate) fn shown_state(state: State) -> rest::SandboxState {
    match state {
        State::Pausing(_) | State::Paused(_) | State::Resuming(_) => rest::SandboxState::Paused,
        State::Starting | State::Running | State::Snapshotting | State::Ending => {
            rest::SandboxState::Running
        }
    }
}

/// What one that is paused goes on from.
fn kept_of(state: State) -> Option<rest::Kept> {
    match state {
        State::Pausing(kept) | State::Paused(kept) | State::Resuming(kept) => {
            Some(shown_kept(kept))
        }
        _ => None,
    }
}

fn shown_kept(kept: lifecycle::Kept) -> rest::Kept {
    match kept {
        lifecycle::Kept::Disk => rest::Kept::Disk,
        lifecycle::Kept::Frozen => rest::Kept::Frozen,
        lifecycle::Kept::Checkpoint => rest::Kept::Checkpoint,
    }
}

/// The team's sandbox of this id, in whichever state.
pub(crate) async fn find(control: &Control, team: &Team, id: &SandboxId) -> ApiResult<Entry> {
    match control.catalogue.get(id).await? {
        Some(entry) if entry.sandbox.record.team == team.id.to_string() => Ok(entry),
        _ => Err(ApiError::sandbox_not_found(id)),
    }
}

/// The team's sandbox of this id, to be looked at: one that is being ended is gone.
async fn find_shown(control: &Control, team: &Team, id: &SandboxId) -> ApiResult<Entry> {
    let entry = find(control, team, id).await?;
    match entry.sandbox.state {
        State::Starting | State::Ending => Err(ApiError::sandbox_not_found(id)),
        _ => Ok(entry),
    }
}
