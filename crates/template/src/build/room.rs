//! The sandbox in which a step is done: made of what the steps before it have left, and gone after it.

use std::{collections::BTreeMap, io};

use atoll_core::{Error, LayerId, Result, SandboxId, error::codes};
use atoll_orchestrator::commands::{Command, Exit, Guest, Output};
use atoll_proxy::Sandboxes;
use atoll_storage::{BuildManifest, Layer};
use atoll_wire::{
    build::BuildSpec,
    node::{EndReason, Node, OnTimeout, SandboxRecord},
};
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;

/// Longest that one may be there, seconds: longer than anything that is done in it.
const LONGEST: u32 = 3 * 60 * 60;

/// What every sandbox has for itself, and no template.
pub(crate) const LEFT_OUT: &[&str] = &["proc", "sys", "dev", "run/e2b"];

/// Bytes that the disk of such a sandbox has: no archive that expands to more can be unpacked there.
pub(crate) fn room_bytes(spec: &BuildSpec) -> u64 {
    u64::from(spec.resources.disk_mb) << 20
}

/// Where builds are done.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) node: atoll_orchestrator::Handle,
    pub(crate) storage: atoll_storage::Handle,
}

/// Such a sandbox. Dropped, it is ended.
pub(crate) struct Room {
    site: Site,
    id: SandboxId,
    pub(crate) guest: Guest,
    disk_bytes: u64,
    is_open: bool,
}

impl Room {
    /// Starts one of `parent`.
    pub(crate) async fn open(
        site: &Site,
        spec: &BuildSpec,
        parent: &BuildManifest,
        has_internet: bool,
    ) -> Result<Self> {
        let no_random = |error: &dyn std::fmt::Display| {
            Error::new(codes::INTERNAL, format!("the system has no random bytes: {error}."))
        };
        let id = SandboxId::generate().map_err(|error| no_random(&error))?;
        let mut token = [0; 32];
        getrandom::fill(&mut token).map_err(|error| no_random(&error))?;
        let token = hex::encode(token);
        let now = Timestamp::now();
        let record = SandboxRecord {
            id: id.clone(),
            team: spec.team.clone(),
            template: spec.template.clone(),
            alias: spec.alias.clone(),
            build: parent.id.clone(),
            resources: spec.resources,
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
            envd_access_token: Some(token.clone()),
            allow_internet_access: (!has_internet).then_some(false),
            timeout: LONGEST,
            longest: LONGEST,
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
            forked_from: None,
            is_for_build: true,
            started_at: now,
            end_at: now,
        };
        site.node.create(record).await?;
        let Some(target) = site.node.find(&id).await else {
            end(site.node.clone(), id).await;
            return Err(gone());
        };
        let guest = Guest::new(target, Some(token));
        let disk_bytes = u64::from(spec.resources.disk_mb) << 20;
        Ok(Self { site: site.clone(), id, guest, disk_bytes, is_open: true })
    }

    /// Its id.
    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Runs a command of envd's own, as root: it needs nothing of the template.
    pub(crate) async fn tool(
        &self,
        args: &[&str],
        input: Option<impl Stream<Item = io::Result<Bytes>> + Send + 'static>,
        output: impl FnMut(Output, &[u8]) + Send,
    ) -> Result<Exit> {
        let command = Command {
            // In a sandbox that has just begun it is the node's, whatever the template holds.
            program: "/usr/bin/envd".to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            user: Some("root".to_owned()),
            directory: Some("/".to_owned()),
            env_vars: BTreeMap::new(),
        };
        self.guest.run(command, input, output).await
    }

    /// Ends it, and makes a layer of what was written in it, or below `part` of its root; none if that
    /// is nothing.
    pub(crate) async fn close(
        mut self,
        part: &'static str,
        layer: Layer,
    ) -> Result<Option<LayerId>> {
        let name = self.id.as_str().to_owned();
        let paused = self.site.node.pause(&self.id, false).await;
        let is_gone = |error: &Error| error.code == codes::SANDBOX_GONE;
        paused.map_err(|error| if is_gone(&error) { gone() } else { error })?.ok_or_else(gone)?;
        let saved = self.site.storage.saved(&name).await?.ok_or_else(gone)?;
        let made = self.site.storage.layer_of(&saved, self.disk_bytes, part, LEFT_OUT, layer).await;
        self.end().await;
        made
    }

    /// Ends it and waits for that.
    pub(crate) async fn end(&mut self) {
        self.is_open = false;
        end(self.site.node.clone(), self.id.clone()).await;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.is_open {
            // A future of this crate is dropped in a runtime; what is left if not, the next start ends.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(end(self.site.node.clone(), self.id.clone()));
            }
        }
    }
}

/// It has ended before its time.
pub(crate) fn gone() -> Error {
    let message = "the sandbox of the step ended before what it left could be kept.";
    Error::new(codes::STEP_FAILED, message)
        .with_fix("Build again; if it needs much memory, give the template more.")
}

async fn end(node: atoll_orchestrator::Handle, id: SandboxId) {
    if let Err(error) = node.kill(&id, EndReason::Killed).await {
        tracing::warn!(sandbox = %id, %error, "the sandbox of a build was not ended");
    }
}
