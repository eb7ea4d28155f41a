//! The calls on the node.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, Lifecycle, Request, State},
};
use atoll_proxy::{Sandboxes, Target};
use atoll_storage::{BuildManifest, Lease};
use atoll_wire::node::{
    BuildSummary, Change, Created, Deadline, EndReason, LogLine, Node, NodeInfo, NodeSandbox,
    Resume, Resumed, Sample, SandboxRecord, Snapshot, Space,
};
use futures::{StreamExt, stream};
use tokio::sync::oneshot;

use crate::{
    Handle,
    journal::{Entry, needs},
    known::{Doing, Known},
    logs::SandboxLog,
    sandbox::{Came, How, Sandbox, lock},
    start,
};

const SAMPLES_AT_ONCE: usize = 16;

#[async_trait]
impl Sandboxes for Handle {
    async fn find(&self, id: &SandboxId) -> Option<Arc<dyn Target>> {
        Some(self.sandbox(id)?.door()? as Arc<dyn Target>)
    }
}

impl Handle {
    /// The sandbox that something new is asked of.
    fn find_for_change(&self, id: &SandboxId) -> Result<Option<Arc<Sandbox>>> {
        if self.inner().stopping.is_cancelled() {
            return Err(start::stopping());
        }
        Ok(self.sandbox(id))
    }

    /// A build of which a sandbox is to be made.
    async fn build(&self, record: &SandboxRecord) -> Result<BuildManifest> {
        self.inner().storage.build(&record.build).await?.ok_or_else(|| {
            let SandboxRecord { build, template, .. } = record;
            let message = format!("the node does not have build {build} of template {template}.");
            Error::new(codes::TEMPLATE_MISSING, message)
        })
    }

    async fn new_sandbox(&self, record: SandboxRecord) -> Result<Arc<Sandbox>> {
        let inner = self.inner();
        let build = self.build(&record).await?;
        let lease = self.lease(&build).await?;
        // What a build says goes into the build's log.
        let logs = if record.is_for_build { Arc::default() } else { inner.logs.clone() };
        let log = SandboxLog::new(logs, record.id.clone(), record.team.clone());
        let around = inner.around(&record, log);
        let entry = Entry::new(record, build);
        Ok(Arc::new(Sandbox::new(entry, Lifecycle::create(), Some(lease), around)))
    }

    /// A snapshot, and what there is of it.
    async fn snapshot_of(&self, build: &str) -> Result<(BuildManifest, Kept)> {
        let found = self.inner().storage.build(build).await?;
        found.and_then(|found| found.snapshot.map(|kept| (found, kept))).ok_or_else(|| {
            let message = format!("the node does not have a snapshot {build}.");
            Error::new(codes::TEMPLATE_MISSING, message)
        })
    }

    /// A lease of what a build needs.
    async fn lease(&self, build: &BuildManifest) -> Result<Lease> {
        let inner = self.inner();
        inner.storage.lease(&needs(build, &inner.options.runtime_layer)).await
    }

    /// What a sandbox has for itself; none if it is unknown.
    async fn space_of(&self, id: &str) -> Result<Option<Space>> {
        let storage = &self.inner().storage;
        let sandbox = id.parse().ok().and_then(|id| self.sandbox(&id));
        let unique_bytes = match sandbox {
            Some(sandbox) => {
                let disk = match sandbox.run() {
                    Some(run) => storage.unique_bytes(&run.entry().disk).await?,
                    None => None,
                };
                let saved = storage.unique_bytes(id).await?;
                Some(disk.unwrap_or_default() + saved.unwrap_or_default())
            }
            None if storage.builds().await.iter().any(|build| build.id == id) => {
                storage.unique_bytes(id).await?
            }
            None => None,
        };
        Ok(unique_bytes.map(|unique_bytes| Space { id: id.to_owned(), unique_bytes }))
    }
}

#[async_trait]
impl Node for Handle {
    async fn create(&self, record: SandboxRecord) -> Result<Created> {
        if self.inner().stopping.is_cancelled() {
            return Err(start::stopping());
        }
        let sandbox = self.new_sandbox(record).await?;
        self.insert(&sandbox)?;
        let (sender, receiver) = oneshot::channel();
        let (accept, accepted) = oneshot::channel();
        let create = self.clone().run_create(sandbox, sender, accepted);
        tokio::spawn(self.inner().tasks.track_future(create));
        let answer = receiver.await.unwrap_or_else(|_| {
            Err(Error::new(codes::INTERNAL, "the create ended without an answer."))
        });
        // Nothing is awaited from here on. The other side is gone after a failure.
        let _ = accept.send(());
        answer
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool> {
        let Some(sandbox) = self.sandbox(id) else { return Ok(false) };
        sandbox.kill(reason).await?;
        Ok(true)
    }

    async fn set_end(&self, id: &SandboxId, deadline: Deadline) -> Result<Option<NodeSandbox>> {
        let Some(sandbox) = self.find_for_change(id)? else { return Ok(None) };
        sandbox.set_end(deadline).await.map(Some)
    }

    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<Option<NodeSandbox>> {
        let Some(sandbox) = self.find_for_change(id)? else { return Ok(None) };
        let reply = sandbox.pause(self.inner().kept(memory)).await?;
        Ok(Some(reply.sandbox))
    }

    async fn resume(&self, id: &SandboxId, resume: Resume) -> Result<Option<Resumed>> {
        let Some(sandbox) = self.find_for_change(id)? else { return Ok(None) };
        loop {
            let begin = |known: &mut Known| known.doing = Doing::Resume(resume);
            let Came { reply, how } = sandbox.ask(Request::Resume, begin).await?;
            let was_paused = how != How::WasSo;
            let resumed = |sandbox| Ok(Some(Resumed { sandbox, was_paused }));
            if how == How::Begun {
                return resumed(reply.sandbox);
            }
            match sandbox.set_end(Deadline::AtLeastIn(resume.timeout)).await {
                Ok(sandbox) => return resumed(sandbox),
                // It was paused in between.
                Err(error) if error.code == codes::SANDBOX_PAUSED => {}
                Err(error) if error.code == codes::SANDBOX_BUSY => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn snapshot(&self, id: &SandboxId, snapshot: Snapshot) -> Result<Option<Kept>> {
        let Some(sandbox) = self.find_for_change(id)? else { return Ok(None) };
        let request = Request::Snapshot { of_paused: snapshot.of_paused };
        let begin = |known: &mut Known| {
            known.doing = Doing::Snapshot(snapshot.clone(), None);
        };
        Ok(sandbox.ask(request, begin).await?.reply.copied)
    }

    async fn rewind(&self, id: &SandboxId, build: &str) -> Result<Option<NodeSandbox>> {
        let Some(sandbox) = self.find_for_change(id)? else { return Ok(None) };
        let (snapshot, kept) = self.snapshot_of(build).await?;
        let lease = Mutex::new(Some(self.lease(&snapshot).await?));
        let begin = |known: &mut Known| {
            known.doing = Doing::Rewind(Box::new(snapshot.clone()));
            // Beside those of its run, until that has ended.
            known.leases.extend(lock(&lease).take());
        };
        let came = sandbox.ask(Request::Rewind(kept), begin).await?;
        Ok(Some(came.reply.sandbox))
    }

    async fn delete_build(&self, build: &str) -> Result<bool> {
        self.inner().storage.delete_build(build).await
    }

    async fn builds(&self) -> Result<Vec<BuildSummary>> {
        let builds = self.inner().storage.builds().await;
        let builds = builds.into_iter().filter(|build| build.step.is_none());
        let shown =
            |build: BuildManifest| BuildSummary { build: build.id, created_at: build.created_at };
        Ok(builds.map(shown).collect())
    }

    async fn space(&self, ids: &[String]) -> Result<Vec<Space>> {
        let mut spaces = Vec::new();
        for id in ids {
            match self.space_of(id).await {
                Ok(space) => spaces.extend(space),
                Err(error) if error.code == codes::TOO_LARGE => {}
                Err(error) => return Err(error),
            }
        }
        Ok(spaces)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<NodeSandbox>> {
        Ok(self.sandbox(id).and_then(|sandbox| sandbox.describe()))
    }

    async fn list(&self) -> Result<Vec<NodeSandbox>> {
        Ok(self.all().iter().filter_map(|sandbox| sandbox.describe()).collect())
    }

    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>> {
        let sandboxes: Vec<_> = ids.iter().filter_map(|id| self.sandbox(id)).collect();
        let samples = stream::iter(sandboxes)
            .map(|sandbox| async move {
                let run = sandbox.run().filter(|_| sandbox.state() == State::Running)?;
                Some((sandbox.id().clone(), run.sample().await.ok()?))
            })
            .buffer_unordered(SAMPLES_AT_ONCE)
            .filter_map(std::future::ready);
        Ok(samples.collect().await)
    }

    async fn changes(&self, cursor: u64) -> Result<(u64, Vec<Change>)> {
        Ok(self.inner().events.wait(cursor).await)
    }

    async fn logs(&self, cursor: u64) -> Result<(u64, Vec<LogLine>)> {
        Ok(self.inner().logs.wait(cursor).await)
    }

    async fn info(&self) -> Result<NodeInfo> {
        let inner = self.inner();
        Ok(NodeInfo {
            id: inner.options.instance.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: u32::try_from(self.running().len()).unwrap_or(u32::MAX),
            driver: inner.driver.name().to_owned(),
            memory: inner.driver.memory(),
        })
    }
}
