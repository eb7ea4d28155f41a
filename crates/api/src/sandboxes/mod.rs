//! Sandboxes (control-plane contract, section 5).
//!
//! - [`create`]: new sandboxes, and [`fields`]: what of the request this release can honour.
//! - [`get`], [`list`] with its [`filter`]s, [`metrics`], [`logs`]: looking.
//! - [`lifecycle`]: deadlines, connect, kill.

pub(crate) mod create;
mod fields;
mod filter;
pub(crate) mod get;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;

use atoll_core::{SandboxId, id::CLIENT_ID};
use atoll_state::{
    catalogue::{Entry, Phase},
    model::Team,
};
use atoll_wire::rest;

use crate::{
    control::Control,
    error::{ApiError, ApiResult},
};

/// The sandbox as create and connect return it.
fn summary(control: &Control, entry: &Entry) -> rest::Sandbox {
    let record = &entry.record;
    rest::Sandbox {
        template_id: record.template.to_string(),
        sandbox_id: record.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        alias: record.alias.clone(),
        envd_version: entry.envd_version.clone(),
        envd_access_token: record.envd_access_token.clone(),
        traffic_access_token: None,
        domain: control.domain.clone(),
    }
}

/// The sandbox as lists show it.
fn listed(entry: &Entry) -> rest::ListedSandbox {
    let record = &entry.record;
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
        state: rest::SandboxState::Running,
        envd_version: entry.envd_version.clone(),
        metadata: record.metadata.clone(),
        volume_mounts: Vec::new(),
    }
}

/// The team's sandbox of this id, in whichever phase.
async fn find(control: &Control, team: &Team, id: &SandboxId) -> ApiResult<Entry> {
    match control.catalogue.get(id).await? {
        Some(entry) if entry.record.team == team.id.to_string() => Ok(entry),
        _ => Err(ApiError::sandbox_not_found(id)),
    }
}

/// The team's sandbox of this id, to be changed: 409 while it is being ended.
async fn find_running(control: &Control, team: &Team, id: &SandboxId) -> ApiResult<Entry> {
    let entry = find(control, team, id).await?;
    match entry.phase {
        Phase::Running => Ok(entry),
        Phase::Killing => Err(ApiError::being_killed(id)),
    }
}
