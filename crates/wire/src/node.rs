//! What the control plane asks of a node.
//!
//! [`Node`] is a trait so that one process needs no socket between the two; a remote node is the
//! same trait over authenticated HTTP with these bodies as JSON. The node owns its sandboxes: their
//! states, and their deadlines, which it enforces by itself. The control plane owns who may ask, and
//! follows what the node says. A [`SandboxRecord`] holds all that either must know after the other
//! restarted.

use std::collections::BTreeMap;

use async_trait::async_trait;
use atoll_core::{
    Result, SandboxId, TemplateId,
    lifecycle::{Kept, State},
};
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
    /// Lifetime that was asked for at create, seconds.
    pub timeout: u32,
    /// Longest run, seconds: no deadline goes beyond that, counted from `started_at`.
    pub longest: u32,
    /// What becomes of it when its time is up.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes it when it is paused.
    pub auto_resume: bool,
    /// The sandbox that it is a fork of.
    pub forked_from: Option<SandboxId>,
    /// A template is built in it: nobody hears of it, and it does not outlive its node's process.
    #[serde(default)]
    pub is_for_build: bool,
    /// Start of this run, or of the last one. The node's to set: a create counts from when it is up.
    pub started_at: Timestamp,
    /// When its time is up; of a paused one, when it was paused. The node's to set.
    pub end_at: Timestamp,
}

/// What becomes of a sandbox when its time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It is ended.
    #[default]
    Kill,
    /// It is paused.
    Pause {
        /// As in [`Node::pause`].
        memory: bool,
    },
}

/// How a deadline is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deadline {
    /// To so many seconds from now, even if that is sooner.
    In(u32),
    /// To so many seconds from now unless that is sooner.
    AtLeastIn(u32),
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
    /// Grows with each change of this sandbox: of two descriptions the higher one is news. Also
    /// across restarts of the node.
    pub revision: u64,
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
    /// The sandbox as it now is.
    pub sandbox: NodeSandbox,
    /// Where the time went.
    pub timings: CreateTimings,
}

/// Answer of [`Node::resume`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// The sandbox as it now is.
    pub sandbox: NodeSandbox,
    /// Whether it was paused; false when it ran already.
    pub was_paused: bool,
}

/// How a sandbox is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Lifetime from then, seconds; a sandbox that runs already lives at least that long.
    pub timeout: u32,
    /// Replaces what becomes of it when its time is up.
    pub on_timeout: Option<OnTimeout>,
}

/// A copy of a sandbox to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Id of the build that it is to be, a UUID: what [`SandboxRecord::build`] names then.
    pub build: String,
    /// The template that the build is of.
    pub template: TemplateId,
    /// Whether a paused sandbox will do.
    pub of_paused: bool,
}

/// A build of a template, or one that is a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSummary {
    /// Its id.
    pub build: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Bytes that would be free if one thing were deleted and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Id of the sandbox, or of the build of a snapshot.
    pub id: String,
    /// Of its disk and of what is saved of it; of its memory what lies on disk.
    pub unique_bytes: u64,
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

/// Something that happened to a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "most are of the large one")]
pub enum Change {
    /// It has come to be, or has changed, and is so now.
    Now(NodeSandbox),
    /// Nothing is left of it.
    Ended {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: EndReason,
    },
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
    /// What a pause with memory keeps here: a checkpoint, or frozen processes.
    pub memory: Kept,
}

/// One node. All calls are idempotent and may be dropped at any point: a dropped create leaves
/// nothing behind, and all else that was begun is brought to its end.
///
/// What an answer says is durable: it holds after the node was killed and started again.
///
/// Where a sandbox is in a state that does not allow what is asked, the error is
/// `SANDBOX_PAUSED`, `SANDBOX_BUSY` or `SANDBOX_ENDING`.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Starts a sandbox of a build and returns when its envd has taken its settings. Of a build that
    /// is a [`snapshot`](Self::snapshot) with memory, its processes go on from there.
    async fn create(&self, record: SandboxRecord) -> Result<Created>;

    /// Ends a sandbox, whatever its state; returns whether it was there. It is gone from the host,
    /// and no connection to it is alive, when this returns.
    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool>;

    /// Moves the deadline of a sandbox that runs; none if there is no such sandbox.
    async fn set_end(&self, id: &SandboxId, deadline: Deadline) -> Result<Option<NodeSandbox>>;

    /// Pauses a sandbox; none if there is no such sandbox. With `memory` its processes go on when it
    /// is resumed; without, its disk is all that is kept, and it boots anew. Connections to it end.
    /// If it fails, the sandbox runs on.
    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<Option<NodeSandbox>>;

    /// Lets a paused sandbox run again; none if there is no such sandbox. Waits for a pause under
    /// way, and shares the outcome of a resume under way. If it fails, the sandbox stays paused.
    async fn resume(&self, id: &SandboxId, resume: Resume) -> Result<Option<Resumed>>;

    /// Copies a sandbox, its memory too where the driver can, to a build, and lets it go on; says
    /// what is in the copy; none if there is no such sandbox. The copy is independent of it.
    async fn snapshot(&self, id: &SandboxId, snapshot: Snapshot) -> Result<Option<Kept>>;

    /// Takes a running sandbox back to a snapshot; none if there is no such sandbox. If it fails
    /// after its processes were ended, it is paused, as the snapshot has it.
    ///
    /// # Errors
    /// `TEMPLATE_MISSING` when the build is not there or no snapshot.
    async fn rewind(&self, id: &SandboxId, build: &str) -> Result<Option<NodeSandbox>>;

    /// Deletes a build with all that nothing else uses; returns whether it was there. Sandboxes that
    /// were made of it go on.
    async fn delete_build(&self, build: &str) -> Result<bool>;

    /// All builds, of templates and snapshots; results of steps are none.
    async fn builds(&self) -> Result<Vec<BuildSummary>>;

    /// What each of these sandboxes and snapshots has for itself; unknown ids are left out, and those
    /// with more files than can be looked at. Takes time.
    async fn space(&self, ids: &[String]) -> Result<Vec<Space>>;

    /// A sandbox that somebody was told of and that has not ended.
    async fn get(&self, id: &SandboxId) -> Result<Option<NodeSandbox>>;

    /// All such sandboxes.
    async fn list(&self) -> Result<Vec<NodeSandbox>>;

    /// The present resource use of each sandbox named that runs; other ids are left out.
    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>>;

    /// Waits for changes and returns those since `cursor`, with the next cursor. Returns empty after
    /// about 20 seconds, so that a poll over HTTP ends. Old ones may have been forgotten: compare
    /// with [`list`](Self::list) now and then.
    async fn changes(&self, cursor: u64) -> Result<(u64, Vec<Change>)>;

    /// Waits for lines of sandboxes' logs and returns some of those from `cursor` on, in order, with
    /// the next cursor. Asking with that is to say that they are stored: the node may forget them.
    /// Returns empty after about 20 seconds. A cursor of an earlier run of the node counts as 0.
    async fn logs(&self, cursor: u64) -> Result<(u64, Vec<LogLine>)>;

    /// The node itself.
    async fn info(&self) -> Result<NodeInfo>;
}
