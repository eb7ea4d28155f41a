//! Forks, snapshots, and what is told of where a sandbox came from (control-plane contract, sections
//! 5.11 and 8, and routes of our own).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Error, Kept, Sandbox, SandboxState};

/// Body of `POST /sandboxes/{sandboxID}/fork` and `POST /atoll/sandboxes/{sandboxID}/fork`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ForkRequest {
    /// Lifetime of each fork in seconds, from when it is up; 15 by default.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// How many; 1 by default.
    #[schema(minimum = 1, maximum = 100)]
    pub count: Option<i32>,
}

/// What became of one fork: one of the two is there.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ForkResult {
    /// The new sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Body of `POST /sandboxes/{sandboxID}/snapshots`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct SnapshotRequest {
    /// `[namespace/]name[:tag]`. A name that leads to a snapshot already leads to the new one then.
    pub name: Option<String>,
    /// Whether it holds the processes, too; true by default, and what the host can.
    pub memory: Option<bool>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// What it is called as `templateID` of a new sandbox, tag included.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Qualified names, without tags.
    pub names: Vec<String>,
}

/// Body of `POST /atoll/sandboxes/{sandboxID}/rewind`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct RewindRequest {
    /// One of the sandbox's own snapshots.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
}

/// What something in a lineage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LineageKind {
    /// A sandbox.
    Sandbox,
    /// A snapshot.
    Snapshot,
    /// A template.
    Template,
}

/// A sandbox, snapshot or template in a lineage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LineageEntry {
    /// Which of them.
    pub kind: LineageKind,
    /// The sandbox's, snapshot's or template's id.
    pub id: String,
    /// Its first name; left out for one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When a snapshot or template was made, and when a sandbox's present or last run began; null
    /// for what is gone.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created_at: Option<Timestamp>,
    /// Whether a sandbox runs; left out for all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SandboxState>,
    /// What a snapshot or a paused sandbox holds; left out for all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// Bytes on disk that would be free if this and nothing else were deleted; null where that is
    /// not known.
    pub unique_bytes: Option<u64>,
    /// Whether it has been deleted or has ended.
    pub gone: bool,
}

/// Answer of `GET /atoll/sandboxes/{sandboxID}/lineage`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SandboxLineage {
    /// The sandbox.
    pub sandbox: LineageEntry,
    /// What it came from, nearest first: fork parents, snapshots and their sandboxes, a template.
    pub ancestors: Vec<LineageEntry>,
    /// Its own snapshots, newest first.
    pub snapshots: Vec<LineageEntry>,
    /// Its forks that are there, newest first.
    pub forks: Vec<LineageEntry>,
}
