//! What the control plane asks of a node.
//!
//! [`Node`] is a trait so that one process needs no socket between the two; a remote node is the
//! same trait over authenticated HTTP with these bodies as JSON. The node owns what runs; the
//! control plane owns who may ask. A [`SandboxRecord`] holds all that either must know after the
//! other restarted.

use std::collections::BTreeMap;

use async_trait::async_trait;
use atoll_core::{Result, SandboxId, TemplateId, lifecycle::State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::log::LogLevel;

/// What a sandbox may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Writable disk, MiB.
    pub disk_mb: u32,
}

/// All that defines a sandbox. Written by the control plane, kept by the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The sandbox's id.
    pub id: SandboxId,
    /// The owning team.
    pub team: String,
    /// The template it was created from.
    pub template: TemplateId,
    /// The template's first alias, bare.
    pub alias: Option<String>,
    /// The build of that template: names the layers on the node.
    pub build: String,
    /// Limits.
    pub resources: Resources,
    /// The client's labels.
    pub metadata: BTreeMap<String, String>,
    /// Variables for every process in it.
    pub env_vars: BTreeMap<String, String>,
    /// What clients must send to envd; none when created with `secure: false`.
    pub envd_access_token: Option<String>,
    /// Echo of `allow_internet_access`; `Some(false)` cuts the sandbox off.
    pub allow_internet_access: Option<bool>,
    /// Start of this run.
    pub started_at: Timestamp,
    /// When the sandbox is to be ended.
    pub end_at: Timestamp,
}

/// A sandbox as the node reports it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSandbox {
    /// What defines it.
    pub record: SandboxRecord,
    /// What its envd reported as version.
    pub envd_version: String,
    /// Where it is in its life.
    pub state: State,
}

/// Where the time of one create went, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct CreateTimings {
    /// Taking a network slot and a disk.
    pub take_us: u64,
    /// From driver start to the first process running.
    pub start_us: u64,
    /// From there to envd having answered `/init`.
    pub init_us: u64,
}

/// Answer of [`Node::create`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// What envd reported as version.
    pub envd_version: String,
    /// Where the time went.
    pub timings: CreateTimings,
}

/// A sample of a sandbox's resource use; units as the REST API prints them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unix seconds.
    pub timestamp: i64,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// 0 to 100 over all the sandbox's CPUs.
    pub cpu_used_pct: f64,
    /// Bytes.
    pub mem_used: u64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes.
    pub mem_cache: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
}

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// A client asked.
    Killed,
    /// Its time was up.
    Expired,
    /// Its first process ended by itself or was killed from outside.
    Died,
    /// The node shut down.
    Shutdown,
}

/// Something that happened on a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Which sandbox.
    pub id: SandboxId,
    /// Why.
    pub reason: EndReason,
}

/// A line of a sandbox's log: what its envd said, or the node of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Whose log.
    pub sandbox: SandboxId,
    /// The sandbox's team, as in its record.
    pub team: String,
    /// When.
    pub timestamp: Timestamp,
    /// Orders lines of one time; no line of a sandbox has the timestamp and the number of another.
    pub sequence: u64,
    /// How much it matters.
    pub level: LogLevel,
    /// Which part said it.
    pub logger: String,
    /// What it said.
    pub message: String,
    /// All else, as text.
    pub fields: BTreeMap<String, String>,
}

/// A node as the control plane sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id: the instance's.
    pub id: String,
    /// Atoll's version.
    pub version: String,
    /// Sandboxes running.
    pub running: u32,
    /// Name of the isolation driver in force.
    pub driver: String,
}

/// One node. All calls are idempotent and may be dropped at any point: a dropped create leaves
/// nothing behind.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Starts a sandbox and returns when its envd has taken its settings.
    async fn create(&self, record: SandboxRecord) -> Result<Created>;

    /// Ends a sandbox; returns whether it was there. It is gone from the host, and no connection to
    /// it is alive, when this returns.
    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool>;

    /// Moves a sandbox's deadline, so that a node whose control plane is gone still ends it.
    async fn set_end(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool>;

    /// Pauses a sandbox; returns whether it was there. With `memory` its processes are frozen, and go
    /// on when it is resumed; without, its disk is all that is kept, and it boots anew. Connections
    /// to it end. If it fails, the sandbox runs on.
    ///
    /// # Errors
    /// `CONFLICT` when it does not run.
    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<bool>;

    /// Lets a paused sandbox run again, until `end_at`; returns whether it was there. One that runs
    /// is left as it is. If it fails, the sandbox stays paused.
    async fn resume(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool>;

    /// All sandboxes that somebody was told of and that have not ended, with their states.
    async fn list(&self) -> Result<Vec<NodeSandbox>>;

    /// The present resource use of each sandbox named; unknown ids are left out.
    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>>;

    /// Waits for sandboxes to end and returns those that did since `cursor`, with the next cursor.
    /// Returns empty after about 20 seconds, so that a poll over HTTP ends.
    async fn ended(&self, cursor: u64) -> Result<(u64, Vec<Ended>)>;

    /// Waits for lines of sandboxes' logs and returns some of those from `cursor` on, in order, with
    /// the next cursor. Asking with that is to say that they are stored: the node may forget them.
    /// Returns empty after about 20 seconds. A cursor of an earlier run of the node counts as 0.
    async fn logs(&self, cursor: u64) -> Result<(u64, Vec<LogLine>)>;

    /// The node itself.
    async fn info(&self) -> Result<NodeInfo>;
}
