//! The bodies of the public REST API, named as the contract names them (control-plane contract,
//! sections 5, 9 to 11 and 16.6).
//!
//! Three rules hold throughout. A required list is present even when empty, because generated
//! clients fail on `null`. An optional object is left out rather than sent as `null`, for the same
//! reason; the few fields that clients expect as `null` say so. In a request every optional field
//! may be absent or `null`, and unknown fields are ignored.

mod copies;
mod templates;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{copies::*, templates::*};
use crate::log::LogLevel;

/// The body of every failure.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// The HTTP status. Clients decide by this number, not by the status line.
    pub code: u16,
    /// What happened, and what to do about it.
    pub message: String,
    /// A stable name of the failure: the contract's where it has one, else one such as `ATL-2001`
    /// with a page in `docs/errors/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}

/// Body of `POST /sandboxes` and `POST /v2/sandboxes`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// A template reference: `[namespace/]alias-or-id[:tag]`.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Lifetime in seconds, counted from when the sandbox is up; 15 by default on the v1 route, 300
    /// on the v2 route.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// Pause instead of kill when the time is up.
    pub auto_pause: Option<bool>,
    /// Whether that pause keeps memory; true by default.
    pub auto_pause_memory: Option<bool>,
    /// Wake on traffic.
    pub auto_resume: Option<AutoResume>,
    /// Require the access token on envd; false by default on the v1 route, always true on v2.
    pub secure: Option<bool>,
    /// False cuts the sandbox off from the internet.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// Rules for traffic in and out.
    pub network: Option<NetworkConfig>,
    /// The client's labels.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Variables for every process in the sandbox.
    pub env_vars: Option<BTreeMap<String, String>>,
    /// What the client is going to run as MCP gateway. For the log only: the client starts it.
    #[schema(value_type = Option<Object>)]
    pub mcp: Option<serde_json::Value>,
    /// Workload identity.
    pub iam: Option<Iam>,
    /// Volumes to mount.
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// Whether traffic wakes a paused sandbox.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct AutoResume {
    /// False by default.
    pub enabled: Option<bool>,
}

/// Rules for a sandbox's traffic.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Whether anyone may reach the sandbox's ports; true by default.
    pub allow_public_traffic: Option<bool>,
    /// Destinations that are allowed whatever `denyOut` says.
    pub allow_out: Option<Vec<String>>,
    /// Destinations that are refused.
    pub deny_out: Option<Vec<String>>,
    /// Name servers that stay reachable where `allowOut` holds a domain.
    pub dns_servers: Option<Vec<String>>,
    /// Ports whose servers in the sandbox speak TLS.
    pub https_ports: Option<Vec<u16>>,
    /// SOCKS5 proxy for outgoing traffic.
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<serde_json::Value>,
    /// `Host` that servers in the sandbox see.
    pub mask_request_host: Option<String>,
    /// Headers to inject, by domain.
    #[schema(value_type = Option<Object>)]
    pub rules: Option<BTreeMap<String, serde_json::Value>>,
}

/// Workload identity of a sandbox.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Iam {
    /// Tokens by name.
    #[schema(value_type = Option<Object>)]
    pub tokens: Option<BTreeMap<String, serde_json::Value>>,
}

/// A volume in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// The volume's name.
    pub name: String,
    /// Where it appears.
    pub path: String,
}

/// A sandbox as create and connect return it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Raw id of the template it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// A constant; deprecated, yet required.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// The template's first alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Version of the envd in it; clients switch features by it.
    pub envd_version: String,
    /// What to send to envd as `X-Access-Token`; present iff the sandbox is secure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Needed to reach a sandbox without public traffic; null for the others.
    #[serde(default)]
    pub traffic_access_token: Option<String>,
    /// What clients are to use in sandbox URLs instead of their configured domain; null to keep it.
    #[serde(default)]
    pub domain: Option<String>,
}

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

/// A sandbox as lists show it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// Raw id of the template it was made from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// A constant; deprecated, yet required.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// The template's first alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Start of this run, or of the last one.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When its time is up; of a paused one, when it was paused.
    #[schema(value_type = String, format = DateTime)]
    pub end_at: Timestamp,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// Whether it runs.
    pub state: SandboxState,
    /// Version of the envd in it.
    pub envd_version: String,
    /// The client's labels.
    pub metadata: BTreeMap<String, String>,
    /// Volumes in it.
    pub volume_mounts: Vec<VolumeMount>,
}

/// What happens when a sandbox's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is killed.
    Kill,
    /// It is paused.
    Pause,
}

/// How a sandbox ends and wakes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLifecycle {
    /// Whether traffic wakes it.
    pub auto_resume: bool,
    /// What happens when its time is up.
    pub on_timeout: OnTimeout,
}

/// A sandbox in full.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// What lists show, too.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// What to send to envd as `X-Access-Token`; present iff the sandbox is secure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Echo of what was asked for; null when nothing was.
    #[serde(default)]
    pub allow_internet_access: Option<bool>,
    /// As in [`Sandbox::domain`].
    #[serde(default)]
    pub domain: Option<String>,
    /// How it ends and wakes.
    pub lifecycle: SandboxLifecycle,
    /// What a paused sandbox goes on from. Atoll's own; left out for one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What a paused sandbox or a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// Its files: it boots anew.
    Disk,
    /// Its files, and its processes in the node's memory until the node stops.
    Frozen,
    /// Its files and its processes.
    Checkpoint,
}

/// Body of `POST /sandboxes/{sandboxID}/timeout`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TimeoutRequest {
    /// Seconds from now; 0 ends the sandbox at once.
    #[schema(minimum = 0)]
    pub timeout: i32,
}

/// Body of `POST /sandboxes/{sandboxID}/connect` and `POST /v2/sandboxes/{sandboxID}/connect`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ConnectRequest {
    /// Seconds from now. Required on the v1 route; 300 by default on the v2 route.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// Whether a paused sandbox is resumed with its memory.
    pub memory: Option<bool>,
}

/// Body of `POST /sandboxes/{sandboxID}/pause`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PauseRequest {
    /// Whether its processes go on when it is resumed; true by default. False keeps its files only.
    pub memory: Option<bool>,
    /// Whether to refuse when envd does not answer.
    pub require_healthy_guest: Option<bool>,
}

/// Body of `POST /sandboxes/{sandboxID}/resume`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResumeRequest {
    /// Seconds from when it runs; 15 by default.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// Replaces whether it is paused instead of killed when its time is up.
    pub auto_pause: Option<bool>,
    /// Whether it is resumed with its memory.
    pub memory: Option<bool>,
}

/// Body of `POST /sandboxes/{sandboxID}/refreshes`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct RefreshRequest {
    /// Seconds from now; 15 by default and at least.
    #[schema(minimum = 0, maximum = 3600)]
    pub duration: Option<i32>,
}

/// A sample of a sandbox's resource use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxMetric {
    /// The time of the sample; deprecated for `timestampUnix`.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The same in Unix seconds.
    pub timestamp_unix: i64,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// 0 to 100 over all the sandbox's CPUs, with two decimals.
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

/// The newest sample of each of several sandboxes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SandboxesMetrics {
    /// By sandbox id; sandboxes without a sample are left out.
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}

/// A line of a sandbox's log, as one text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLog {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// A JSON object with `timestamp`, `level`, `logger`, `message` and the line's other fields.
    pub line: String,
}

/// A line of a sandbox's log, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLogEntry {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// What was said.
    pub message: String,
    /// All else, `logger` among it.
    pub fields: BTreeMap<String, String>,
}

/// A sandbox's log, in both shapes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLogs {
    /// As texts.
    pub logs: Vec<SandboxLog>,
    /// The same, taken apart.
    pub log_entries: Vec<SandboxLogEntry>,
}

/// A sandbox's log.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SandboxLogsV2Response {
    /// Its lines.
    pub logs: Vec<SandboxLogEntry>,
}

/// A team of the caller, with a key for it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// UUID.
    #[serde(rename = "teamID")]
    pub team_id: String,
    /// Display name.
    pub name: String,
    /// A new key for this team: raw keys are not kept, so an older one cannot be shown.
    pub api_key: String,
    /// The one to use when the user names none.
    pub is_default: bool,
}
