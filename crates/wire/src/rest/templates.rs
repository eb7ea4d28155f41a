//! Templates and their builds (control-plane contract, section 10, and routes of our own).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::log::LogLevel;

/// Where a template's newest build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// Not started.
    Waiting,
    /// Under way.
    Building,
    /// Usable.
    Ready,
    /// Failed.
    Error,
}

/// A user, where a listing names one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserReference {
    /// UUID.
    pub id: String,
    /// Address.
    pub email: String,
}

/// A template as lists show it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its newest ready build, a UUID; while there is none, its newest.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Virtual CPUs of its sandboxes.
    pub cpu_count: u32,
    /// Memory of its sandboxes, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk of its sandboxes, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// Usable by every team.
    pub public: bool,
    /// Bare aliases; deprecated for `names`.
    pub aliases: Vec<String>,
    /// Qualified names.
    pub names: Vec<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Who made it; null when nobody is on record.
    pub created_by: Option<UserReference>,
    /// When a sandbox was last made of it; null for never.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_spawned_at: Option<Timestamp>,
    /// Sandboxes made of it so far.
    pub spawn_count: u64,
    /// Builds so far.
    pub build_count: u32,
    /// Version of the envd in it; empty while no build is ready.
    pub envd_version: String,
    /// Where its newest build stands.
    pub build_status: BuildStatus,
    /// Whether it came with the deployment.
    pub is_default: bool,
}

/// Answer of `GET /templates/aliases/{alias}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateAlias {
    /// The template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Usable by every team.
    pub public: bool,
}

/// A template with its builds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateWithBuilds {
    /// What lists show, too.
    #[serde(flatten)]
    pub template: Template,
    /// A page of its builds, newest first.
    pub builds: Vec<TemplateBuild>,
}

/// A build of a template.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    /// Its id, a UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Where it stands.
    pub status: BuildStatus,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When it was ready, or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Virtual CPUs of its sandboxes.
    pub cpu_count: u32,
    /// Memory of its sandboxes, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk of its sandboxes, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// Version of the envd in it, of one that is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_version: Option<String>,
}

/// Body of `POST /v3/templates` and `POST /v2/templates`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateRequest {
    /// `[namespace/]alias[:tag]`.
    pub name: Option<String>,
    /// The same; deprecated for `name`.
    pub alias: Option<String>,
    /// Tags besides that of the name; `default` if there is none at all.
    pub tags: Option<Vec<String>>,
    /// Virtual CPUs of its sandboxes: 1 or an even number; 2 by default.
    pub cpu_count: Option<i64>,
    /// Memory of its sandboxes, MiB, even; 1024 by default.
    #[serde(rename = "memoryMB")]
    pub memory_mb: Option<i64>,
    /// The team; deprecated: it is the key's.
    #[serde(rename = "teamID")]
    pub team_id: Option<String>,
}

/// Answer of `POST /v3/templates`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredTemplate {
    /// The template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build that waits to be started.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Usable by every team.
    pub public: bool,
    /// Qualified names of the template.
    pub names: Vec<String>,
    /// Tags that will mean the build.
    pub tags: Vec<String>,
    /// Bare aliases of the template; deprecated for `names`.
    pub aliases: Vec<String>,
}

/// Answer of `GET /templates/{templateID}/files/{hash}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FilesUpload {
    /// Whether the team has uploaded them already.
    pub present: bool,
    /// Where to upload them, for 30 minutes and without credentials.
    pub url: String,
}

/// Body of `POST /v2/templates/{templateID}/builds/{buildID}`. It is made from exactly one of the
/// first three.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildRequest {
    /// An image of a registry.
    pub from_image: Option<String>,
    /// A template or snapshot: `[namespace/]alias-or-id[:tag]`.
    pub from_template: Option<String>,
    /// An uploaded archive of an image, by its files hash. Atoll's own.
    pub from_archive: Option<String>,
    /// Credentials for the registry of `fromImage`.
    pub from_image_registry: Option<RegistryCredentials>,
    /// Uses nothing of earlier builds.
    pub force: Option<bool>,
    /// What is done to that, in order.
    pub steps: Option<Vec<BuildStep>>,
    /// A command that runs in every sandbox of the template.
    pub start_cmd: Option<String>,
    /// A command that succeeds once what `startCmd` began can be used.
    pub ready_cmd: Option<String>,
}

/// Credentials for a registry.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RegistryCredentials {
    /// Of Amazon's.
    #[serde(rename_all = "camelCase")]
    Aws {
        /// Id of the access key.
        aws_access_key_id: String,
        /// The access key.
        aws_secret_access_key: String,
        /// Region of the registry.
        aws_region: String,
    },
    /// Of Google's.
    #[serde(rename_all = "camelCase")]
    Gcp {
        /// The key file of a service account.
        service_account_json: String,
    },
    /// Of all others.
    Registry {
        /// Name.
        username: String,
        /// Password or token.
        password: String,
    },
}

impl std::fmt::Debug for RegistryCredentials {
    /// No secrets.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RegistryCredentials")
    }
}

/// A step of a build.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildStep {
    /// `RUN`, `COPY`, `ADD`, `ENV`, `ARG`, `WORKDIR` or `USER`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its arguments.
    pub args: Option<Vec<String>>,
    /// Of a COPY: the hash of its files.
    pub files_hash: Option<String>,
    /// It and those after it are done again.
    pub force: Option<bool>,
}

/// A line of a build's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildLogEntry {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// What was said.
    pub message: String,
    /// How much it matters.
    pub level: LogLevel,
    /// `base`, the number of a step from `1` on, or `finalize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// Why a build failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatusReason {
    /// What happened.
    pub message: String,
    /// The step that failed, as in [`BuildLogEntry::step`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Lines of this page that tell of it.
    #[serde(default)]
    pub log_entries: Vec<BuildLogEntry>,
    /// The code of the reason, with a page in `docs/errors/`. Atoll's own.
    pub code: String,
}

/// Answer of `GET /templates/{templateID}/builds/{buildID}/status`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuildInfo {
    /// The template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Where it stands.
    pub status: BuildStatus,
    /// Always empty: lines are in `logEntries`.
    pub logs: Vec<String>,
    /// A page of its log.
    pub log_entries: Vec<BuildLogEntry>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildStatusReason>,
}

/// Answer of `GET /templates/{templateID}/builds/{buildID}/logs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildLogs {
    /// A page of the build's log.
    pub logs: Vec<BuildLogEntry>,
}

/// Body of `PATCH /v2/templates/{templateID}` and `PATCH /templates/{templateID}`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct TemplateUpdate {
    /// Whether every team may use it.
    pub public: Option<bool>,
}

/// Answer of `PATCH /v2/templates/{templateID}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateNames {
    /// Qualified names of the template.
    pub names: Vec<String>,
}

/// Body of `POST /templates/tags`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct AssignTags {
    /// Which build: `[namespace/]name[:tag]`.
    pub target: String,
    /// The tags that are to mean it.
    pub tags: Vec<String>,
}

/// Answer of `POST /templates/tags`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AssignedTags {
    /// The tags.
    pub tags: Vec<String>,
    /// The build that they mean, a UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
}

/// Body of `DELETE /templates/tags`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DeleteTags {
    /// The template, without a tag.
    pub name: String,
    /// The tags that are to mean nothing any more.
    pub tags: Vec<String>,
}

/// A tag of a template.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateTag {
    /// The tag.
    pub tag: String,
    /// The build that it means, a UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// When it was given to it.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Answer of `GET /templates/{templateID}/tags/count`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TagsCount {
    /// How many tags mean a build that is ready.
    pub total: u64,
}

/// Answer of `GET /templates/{templateID}/tags/exists`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagExists {
    /// Whether it means a build that is ready.
    pub exists: bool,
    /// The tag as it is stored.
    pub normalized_tag: String,
}

/// That a tag was given to a build.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagAssignment {
    /// Its id, a UUID.
    pub assignment_id: String,
    /// The build, a UUID.
    pub build_id: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub assigned_at: Timestamp,
    /// When the build was registered.
    #[schema(value_type = String, format = DateTime)]
    pub build_created_at: Timestamp,
    /// When the build was ready; null where that is not known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub build_finished_at: Option<Timestamp>,
}

/// Answer of `GET /templates/{templateID}/tags/{tag}/assignments`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagAssignments {
    /// A page of what the tag has meant, the last first.
    pub data: Vec<TagAssignment>,
    /// `cursor` of the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// A tag, and what it has meant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagGroup {
    /// The tag.
    pub tag: String,
    /// What it has meant, the last first.
    pub assignments: Vec<TagAssignment>,
    /// Whether there is more of that.
    pub has_more: bool,
}

/// Answer of `GET /templates/{templateID}/tags/groups`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagGroups {
    /// A page of tags.
    pub tags: Vec<TagGroup>,
    /// `tagsCursor` of the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// Body of `POST /atoll/templates/builds/{buildID}/shell`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShellRequest {
    /// Lifetime in seconds, counted from when the sandbox is up; 300 by default.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// The client's labels.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Variables for every process in it.
    pub env_vars: Option<BTreeMap<String, String>>,
}

/// Answer of `POST /atoll/templates/prune`: what builds had left and is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedTemplates {
    /// Results of steps, with the bytes of each that nothing else held.
    pub steps: BTreeMap<String, u64>,
    /// How many archives.
    pub archives: u64,
    /// Their bytes.
    pub archive_bytes: u64,
}
