//! The rows that callers see.

use atoll_core::{SandboxId, TemplateId, lifecycle::Kept, limits::Tier};
use atoll_wire::log::LogLevel;
use jiff::Timestamp;
use uuid::Uuid;

use crate::builds::BuildStatus;

/// A team: what owns sandboxes and templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    /// Its id.
    pub id: Uuid,
    /// Its display name.
    pub name: String,
    /// Namespace of its templates, `[a-z0-9-]+`.
    pub slug: String,
    /// Name of its tier.
    pub tier_name: String,
    /// What it may use.
    pub tier: Tier,
    /// Answered 403 everywhere.
    pub banned: bool,
    /// May only read and delete; the text is the reason.
    pub blocked: Option<String>,
}

/// A team and whether the key that led to it is the published development key, which is refused
/// from beyond loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOwner {
    /// The team.
    pub team: Team,
    /// The key's row.
    pub key_id: Uuid,
    /// Seeded, published, for development only.
    pub development: bool,
}

/// A user and whether the access token that led to it is the published one, which is refused from
/// beyond loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// The user.
    pub user: Uuid,
    /// Their teams, the default one first.
    pub teams: Vec<Team>,
    /// Seeded, published, for development only.
    pub development: bool,
}

/// A template as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// Its team.
    pub team: Uuid,
    /// Usable by every team.
    pub public: bool,
    /// Bare aliases.
    pub aliases: Vec<String>,
    /// Qualified names (`slug/alias`, or the alias alone in the global namespace).
    pub names: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When a sandbox was last made of it.
    pub last_spawned_at: Option<Timestamp>,
    /// Sandboxes made of it so far.
    pub spawn_count: u64,
    /// Builds so far.
    pub build_count: u32,
    /// The newest ready build; while there is none, the newest of all.
    pub build: Build,
    /// Where the newest build stands.
    pub status: BuildStatus,
}

impl Template {
    /// Whether it came with the deployment: its only names are global ones.
    #[must_use]
    pub fn is_shipped(&self) -> bool {
        !self.names.is_empty() && self.names.iter().all(|name| !name.contains('/'))
    }
}

/// What a sandbox must know of the build that it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Its id; names the layers on the node.
    pub id: Uuid,
    /// Virtual CPUs of its sandboxes.
    pub vcpu: u32,
    /// Memory of its sandboxes, MiB.
    pub memory_mb: u32,
    /// Disk of its sandboxes, MiB.
    pub disk_mb: u32,
    /// envd's version in it.
    pub envd_version: String,
}

/// A snapshot to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The template that it is the first build of, unless its name leads to another.
    pub template: TemplateId,
    /// Its name, without namespace and tag.
    pub name: Option<String>,
    /// Its tag.
    pub tag: String,
    /// The build that it is.
    pub build: Build,
    /// The sandbox that it is a copy of.
    pub sandbox: SandboxId,
    /// The template that the sandbox was made of.
    pub base: TemplateId,
    /// What it holds.
    pub kept: Kept,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The template that it is a build of.
    pub template: TemplateId,
    /// Qualified names of the template.
    pub names: Vec<String>,
    /// Its tag.
    pub tag: String,
    /// The build that it is.
    pub build: Uuid,
    /// The sandbox that it is a copy of.
    pub sandbox: SandboxId,
    /// The template that the sandbox was made of.
    pub base: TemplateId,
    /// What it holds.
    pub kept: Kept,
    /// When it was taken.
    pub created_at: Timestamp,
    /// It is what the tag means; a later one took its place otherwise.
    pub is_current: bool,
}

impl Snapshot {
    /// A reference that leads to exactly this one.
    #[must_use]
    pub fn reference(&self) -> String {
        let name = self.names.first().map_or(self.template.as_str(), String::as_str);
        if self.is_current {
            format!("{name}:{}", self.tag)
        } else {
            format!("{name}:{}", self.build)
        }
    }
}

/// A sample of a sandbox's resource use, as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricRow {
    /// The sandbox's team, as in its record.
    pub team: String,
    /// The sandbox.
    pub sandbox: String,
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

/// From where a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the oldest line on.
    Forward,
    /// From the newest line back.
    Backward,
}

/// Which lines of a sandbox's log are wanted.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// The sandbox's team.
    pub team: String,
    /// The sandbox.
    pub sandbox: String,
    /// The earliest time.
    pub from: Timestamp,
    /// The end of time; lines of exactly then are left out.
    pub until: Timestamp,
    /// The order, and so which lines a limit leaves out.
    pub direction: Direction,
    /// The least level.
    pub level: LogLevel,
    /// What messages must contain, letter for letter.
    pub search: String,
    /// The most lines.
    pub limit: u32,
}
