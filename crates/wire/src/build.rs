//! What the control plane asks of who builds templates.
//!
//! [`Builder`] is a trait for the same reason as [`Node`](crate::node::Node). The control plane owns
//! names, tags and who may ask, and keeps what is to be known of a build; the builder owns builds
//! that are under way and layers. A build that was under way when its builder was killed is over:
//! [`Builder::running`] does not have it any more.

use std::collections::BTreeMap;

use async_trait::async_trait;
use atoll_core::{Result, TemplateId};
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{log::LogLevel, node::Resources};

/// All that a build is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildSpec {
    /// Its id: a UUID. What the node knows the finished build by.
    pub id: String,
    /// The template it is a build of.
    pub template: TemplateId,
    /// The template's first alias, bare.
    pub alias: Option<String>,
    /// The owning team: nothing of one team's builds is used for those of another.
    pub team: String,
    /// What it starts from.
    pub from: From,
    /// Uses nothing of earlier builds.
    pub force: bool,
    /// What is done to that, in order.
    pub steps: Vec<Step>,
    /// A command that runs in every sandbox of the template.
    pub start: Option<String>,
    /// A command that succeeds once what [`start`](Self::start) began can be used.
    pub ready: Option<String>,
    /// Limits of the template's sandboxes, and of those in which it is built.
    pub resources: Resources,
    /// Whether the last USER and WORKDIR are those of the template's sandboxes: otherwise they begin
    /// as `user` in its home, as clients before 2.3.0 expect (control-plane contract, section 10.6).
    pub keeps_user: bool,
}

/// What a build starts from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// An image of a registry.
    Image {
        /// Its reference, as people write it: `python:3.11`, `ghcr.io/a/b@sha256:…`.
        reference: String,
        /// Credentials for the registry.
        credentials: Option<Credentials>,
    },
    /// An image in an archive that the team has uploaded: an OCI layout, or what `docker save` writes.
    Archive {
        /// Its hash, as in [`Builder::put_files`].
        files: String,
    },
    /// A build that the node has, of a template or a snapshot.
    Build {
        /// Its id.
        id: String,
        /// How it was called, for the log.
        name: String,
    },
}

/// Credentials for a registry.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// Those of most.
    Basic {
        /// Name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// Of Amazon's, which gives out passwords for an hour for these.
    Aws {
        /// Id of the access key.
        access_key_id: String,
        /// The access key.
        secret_access_key: String,
        /// Region of the registry.
        region: String,
    },
}

impl std::fmt::Debug for Credentials {
    /// No secrets.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials")
    }
}

/// A step of a build (control-plane contract, section 10.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `RUN`, `COPY`, `ADD`, `ENV`, `ARG`, `WORKDIR`, `USER`; others fail the build.
    pub kind: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Of a COPY: which archive.
    pub files: Option<String>,
    /// It and those after it are done again.
    pub force: bool,
}

/// A line of a build's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLine {
    /// When.
    pub timestamp: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// `base`, a step's number from `1` on, or `finalize`.
    pub step: Option<String>,
    /// What was said.
    pub message: String,
}

/// Why a build failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// As in [`BuildLine::step`].
    pub step: Option<String>,
    /// The code of the reason, `ATL-…`.
    pub code: String,
    /// What happened: the command, its exit code, its last lines.
    pub message: String,
    /// The build that holds what the steps before it made: a sandbox of it is how the failed step
    /// found things. None if there is nothing yet.
    pub parent: Option<String>,
}

/// Something that happened to a build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildEvent {
    /// It said something.
    Line(BuildLine),
    /// It is finished: the node has it.
    Ready {
        /// Version of envd in it.
        envd_version: String,
    },
    /// It failed, or was cancelled.
    Failed(BuildFailure),
}

/// Who builds templates.
///
/// Calls are idempotent and may be dropped at any point; what was begun goes on.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Begins a build, which goes on by itself; it waits while as many run as may. One that is
    /// begun already goes on.
    async fn start(&self, spec: BuildSpec) -> Result<()>;

    /// Stops a build, which then fails with that reason; false if it is not under way.
    async fn cancel(&self, build: &str, reason: &str) -> Result<bool>;

    /// The builds under way.
    async fn running(&self) -> Result<Vec<String>>;

    /// Waits for events and returns those since `cursor`, each with its build, in order, with the
    /// next cursor. Asking with that is to say that they are stored: the builder may forget them.
    /// Returns empty after about 20 seconds. A cursor of an earlier run counts as 0.
    async fn events(&self, cursor: u64) -> Result<(u64, Vec<(String, BuildEvent)>)>;

    /// Whether a team has uploaded an archive of this hash.
    async fn has_files(&self, team: &str, hash: &str) -> Result<bool>;

    /// Stores an archive of a team, in place of one with that hash: whole, or not at all.
    ///
    /// # Errors
    /// `TOO_LARGE`, `DISK_FULL`, or `INVALID_REQUEST` when it is not an archive or its stream fails.
    async fn put_files(
        &self,
        team: &str,
        hash: &str,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<()>;

    /// Deletes what builds left for later ones and nothing needs any more: steps of the team that
    /// lead to no build, and archives. Says what.
    async fn prune(&self, team: &str) -> Result<Pruned>;
}

/// What a prune has deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Results of steps, with the bytes of each that nothing else held.
    pub steps: BTreeMap<String, u64>,
    /// How many archives.
    pub archives: u64,
    /// Their bytes.
    pub archive_bytes: u64,
}
