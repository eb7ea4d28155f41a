//! The table of sandboxes, and the calls on it.
//!
//! A sandbox is in the table from before anything of it exists until nothing of it is left. Each has
//! a task that owns it (`owner`), so a caller who leaves half-way stops nothing half-way: a create
//! that nobody waits for any more finishes, and its sandbox is ended.

use std::{
    collections::{HashMap, hash_map},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{
    Error, InstanceId, LayerId, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, Request, State},
};
use atoll_isolation::Driver;
use atoll_proxy::{Sandboxes, Target};
use atoll_wire::node::{
    Created, EndReason, Ended, LogLine, Node, NodeInfo, NodeSandbox, Sample, SandboxRecord,
};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    adopt,
    events::Events,
    journal::{Journal, Opened},
    logs::{Logs, SandboxLog},
    owner,
    sandbox::{self, Sandbox, lock},
    start,
};

/// The control plane ends sandboxes on time; the node does so itself this much later, in case
/// there is no control plane any more.
const OVERDUE: SignedDuration = SignedDuration::from_secs(60);
const OVERDUE_CHECK: Duration = Duration::from_secs(15);
const SAMPLES_AT_ONCE: usize = 16;
const ADOPTED_AT_ONCE: usize = 16;

/// Configuration of a node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose node this is; its id in the cluster too.
    pub instance: InstanceId,
    /// The layer with envd, put above every template's.
    pub runtime_layer: LayerId,
    /// Most processes and threads of one sandbox.
    pub max_processes: u32,
}

pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) storage: atoll_storage::Handle,
    pub(crate) network: atoll_network::Handle,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) journal: Journal,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    pub(crate) events: Events,
    pub(crate) logs: Arc<Logs>,
    tasks: TaskTracker,
    /// Cancelled when the node shuts down.
    pub(crate) stopping: CancellationToken,
}

/// A running node.
pub struct Service {
    handle: Handle,
    overdue: JoinHandle<()>,
}

/// How others call the node.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Service {
    /// Starts the node, and takes up what an earlier run of it left in the journal. The services
    /// must have been started with what that says is to be kept.
    pub async fn start(
        options: Options,
        journal: Opened,
        storage: atoll_storage::Handle,
        network: atoll_network::Handle,
        driver: Arc<dyn Driver>,
    ) -> Self {
        let Opened { journal, entries, .. } = journal;
        let inner = Arc::new(Inner {
            options,
            storage,
            network,
            driver,
            journal,
            sandboxes: Mutex::default(),
            events: Events::default(),
            logs: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let adopted: Vec<_> = stream::iter(entries)
            .map(|entry| adopt::adopt(&inner, entry))
            .buffer_unordered(ADOPTED_AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let handle = Handle { inner };
        for sandbox in adopted {
            handle.table().insert(sandbox.id().clone(), sandbox.clone());
            handle.own(sandbox);
        }
        let overdue = tokio::spawn(end_overdue(handle.clone()));
        Self { handle, overdue }
    }

    /// How others call the node.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends every sandbox that has processes and waits until nothing is left. Of a paused one its
    /// disk stays.
    pub async fn shutdown(self) {
        self.overdue.abort();
        // No create begins any more.
        self.handle.inner.stopping.cancel();
        self.handle.inner.tasks.close();
        self.handle.end_all().await;
        self.handle.inner.tasks.wait().await;
    }
}

async fn end_overdue(handle: Handle) {
    let mut ticks = tokio::time::interval(OVERDUE_CHECK);
    loop {
        ticks.tick().await;
        let now = Timestamp::now();
        for sandbox in handle.running() {
            if now.duration_since(sandbox.end_at()) > OVERDUE {
                tracing::warn!(sandbox = %sandbox.id(), "ending a sandbox that is overdue");
                // One that cannot be ended must not keep the others alive.
                tokio::spawn(async move { end(&sandbox, EndReason::Expired).await });
            }
        }
    }
}

async fn end(sandbox: &Sandbox, reason: EndReason) {
    if let Err(cause) = sandbox.kill(reason).await {
        tracing::error!(sandbox = %sandbox.id(), %cause, "cannot end a sandbox");
    }
}

impl Handle {
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        lock(&self.inner.sandboxes)
    }

    fn get(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.table().get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<Sandbox>> {
        self.table().values().cloned().collect()
    }

    fn running(&self) -> Vec<Arc<Sandbox>> {
        let mut all = self.all();
        all.retain(|sandbox| sandbox.state() == State::Running);
        all
    }

    async fn end_all(&self) {
        let ending = self.all().into_iter().map(|sandbox| async move {
            if let State::Resuming(_) = sandbox.state() {
                // If that fails, it is paused as before.
                let _ = sandbox.ask(Request::Resume).await;
            }
            match sandbox.state() {
                // Its owner sees the end, and saves the disk.
                State::Paused(_) => {
                    if let Some(run) = sandbox.run() {
                        run.kill();
                    }
                }
                _ => end(&sandbox, EndReason::Shutdown).await,
            }
        });
        futures::future::join_all(ending).await;
    }

    fn insert(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        match self.table().entry(sandbox.id().clone()) {
            hash_map::Entry::Occupied(place) => {
                let message = format!("sandbox {} is there already.", place.key());
                Err(Error::new(codes::CONFLICT, message))
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(sandbox.clone());
                Ok(())
            }
        }
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        self.table().remove(id);
    }

    fn own(&self, sandbox: Arc<Sandbox>) {
        let owner = owner::own(self.clone(), sandbox);
        tokio::spawn(self.inner.tasks.track_future(owner));
    }

    /// The whole of one create; runs to its end whether or not anybody still waits.
    async fn run_create(
        self,
        sandbox: Arc<Sandbox>,
        answer: oneshot::Sender<Result<Created>>,
        accepted: oneshot::Receiver<()>,
    ) {
        let expected = sandbox.expect_create();
        self.own(sandbox.clone());
        if let Err(error) = sandbox::answered(expected).await {
            // The caller may have left; there is nothing to undo then.
            let _ = answer.send(Err(error));
            return;
        }
        // An answer that was sent may still be dropped unread with the caller's future.
        let unwanted = answer.send(Ok(sandbox.created())).is_err()
            || accepted.await.is_err()
            || self.inner.stopping.is_cancelled();
        if unwanted {
            end(&sandbox, EndReason::Killed).await;
        }
    }
}

#[async_trait]
impl Sandboxes for Handle {
    async fn find(&self, id: &SandboxId) -> Option<Arc<dyn Target>> {
        Some(self.get(id)?.door()? as Arc<dyn Target>)
    }
}

#[async_trait]
impl Node for Handle {
    async fn create(&self, record: SandboxRecord) -> Result<Created> {
        if self.inner.stopping.is_cancelled() {
            return Err(Error::new(codes::NODE_UNAVAILABLE, "the node is shutting down."));
        }
        let log = SandboxLog::new(self.inner.logs.clone(), record.id.clone(), record.team.clone());
        let limits = start::limits(&self.inner, &record);
        let sandbox = Arc::new(Sandbox::create(record, limits, self.inner.journal.clone(), log));
        self.insert(&sandbox)?;
        let (sender, receiver) = oneshot::channel();
        let (accept, accepted) = oneshot::channel();
        let create = self.clone().run_create(sandbox, sender, accepted);
        tokio::spawn(self.inner.tasks.track_future(create));
        let answer = receiver.await.unwrap_or_else(|_| {
            Err(Error::new(codes::INTERNAL, "the create ended without an answer."))
        });
        // Nothing is awaited from here on. The other side is gone after a failure.
        let _ = accept.send(());
        answer
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool> {
        let Some(sandbox) = self.get(id) else { return Ok(false) };
        sandbox.kill(reason).await.map_err(|error| {
            Error::new(codes::INTERNAL, format!("sandbox {id} could not be ended: {error}."))
        })?;
        Ok(true)
    }

    async fn set_end(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool> {
        match self.get(id) {
            Some(sandbox) => sandbox.set_end(end_at).await,
            None => Ok(false),
        }
    }

    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<bool> {
        let Some(sandbox) = self.get(id) else { return Ok(false) };
        let kept = if memory { Kept::Frozen } else { Kept::Disk };
        sandbox.ask(Request::Pause(kept)).await.map(|()| true)
    }

    async fn resume(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool> {
        let Some(sandbox) = self.get(id) else { return Ok(false) };
        let begin = |known: &mut sandbox::Known| {
            (known.record.started_at, known.record.end_at) = (Timestamp::now(), end_at);
        };
        sandbox.ask_with(Request::Resume, begin).await.map(|()| true)
    }

    async fn list(&self) -> Result<Vec<NodeSandbox>> {
        Ok(self.all().iter().filter_map(|sandbox| sandbox.describe()).collect())
    }

    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>> {
        let sandboxes: Vec<_> = ids.iter().filter_map(|id| self.get(id)).collect();
        let samples = stream::iter(sandboxes)
            .map(|sandbox| async move {
                let run = sandbox.run().filter(|_| sandbox.door().is_some())?;
                Some((sandbox.id().clone(), run.sample().await.ok()?))
            })
            .buffer_unordered(SAMPLES_AT_ONCE)
            .filter_map(std::future::ready);
        Ok(samples.collect().await)
    }

    async fn ended(&self, cursor: u64) -> Result<(u64, Vec<Ended>)> {
        Ok(self.inner.events.wait(cursor).await)
    }

    async fn logs(&self, cursor: u64) -> Result<(u64, Vec<LogLine>)> {
        Ok(self.inner.logs.wait(cursor).await)
    }

    async fn info(&self) -> Result<NodeInfo> {
        Ok(NodeInfo {
            id: self.inner.options.instance.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running: u32::try_from(self.running().len()).unwrap_or(u32::MAX),
            driver: self.inner.driver.name().to_owned(),
        })
    }
}
