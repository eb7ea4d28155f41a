//! The HTTP bodies between a node and the envd of its sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The port envd listens on inside every sandbox.
pub const ENVD_PORT: u16 = 49983;

/// The header that carries the control secret on envd's control routes.
///
/// The secret is known to the node and to envd only; it is not the access token, so a fork or a
/// resume can rotate tokens.
pub const CONTROL_HEADER: &str = "x-atoll-control";

/// envd's routes that only the node may call; the proxies refuse them in any spelling.
pub const CONTROL_ROUTES: [&str; 7] =
    ["/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"];

/// What envd reads from standard input, once, before it serves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BootConfig {
    /// Secret that control routes must carry in [`CONTROL_HEADER`].
    pub control_secret: String,
    /// Becomes `E2B_SANDBOX_ID`.
    pub sandbox_id: String,
    /// Becomes `E2B_TEMPLATE_ID`.
    pub template_id: String,
    /// What the sandbox may use, where that is less than the machine it sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<GuestLimits>,
}

/// The limits of a sandbox that sees a larger machine than it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLimits {
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory, bytes.
    pub memory: u64,
}

/// Body of `POST /init`. Every field is optional; an absent one leaves things as they are, apart
/// from `access_token`, whose absence clears the token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// Replaces all user variables when present; `{}` clears them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The token that clients of the sandbox must send from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// RFC 3339; a request that is not newer than the last one applied changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// User for requests that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory for commands that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// PEM certificates to trust in addition to the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Volumes that the sandbox is to have. The node mounts them; envd checks that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Replaces [`BootConfig::sandbox_id`], for what comes from a checkpoint and may be another
    /// sandbox than then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Replaces [`BootConfig::template_id`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Replaces [`BootConfig::control_secret`]: from the answer on the old one, which this request
    /// carries, is void. A request with another secret than the present one begins a new life, and is
    /// applied whatever its `timestamp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_secret: Option<String>,
    /// Replaces [`BootConfig::limits`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<GuestLimits>,
}

/// A volume in [`InitRequest`]. What backs it is no business of envd's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Where it is mounted in the sandbox, absolute.
    pub path: String,
}

/// Answer of envd's `GET /metrics`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestMetrics {
    /// Unix seconds.
    pub ts: i64,
    /// Processors the sandbox sees.
    pub cpu_count: u32,
    /// 0 to 100 over all processors, since the previous call.
    pub cpu_used_pct: f64,
    /// MiB.
    pub mem_total_mib: u64,
    /// MiB.
    pub mem_used_mib: u64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes.
    pub mem_used: u64,
    /// Bytes.
    pub mem_cache: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
}
