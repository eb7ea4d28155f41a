//! The table of sandboxes, and the calls on it.
//!
//! A sandbox is in the table from before anything of it exists until nothing of it is left:
//!
//! ```text
//! (absent) ── create ──▶ Starting ── envd answered ──▶ Running ── first process ended ──▶ (absent)
//!                           └────────── failed, or the caller left ────────────────────────▶┘
//! ```
//!
//! Creates run in tasks of their own, so that a caller who leaves half-way stops nothing half-way:
//! the task finishes, sees that nobody waits, and ends the sandbox.

use std::{
    collections::{HashMap, hash_map},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Error, InstanceId, LayerId, Result, SandboxId, error::codes};
use atoll_isolation::Driver;
use atoll_proxy::{Sandboxes, Target};
use atoll_wire::node::{
    Created, EndReason, Ended, LogLine, Node, NodeInfo, NodeSandbox, Sample, SandboxRecord,
};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{events::Events, logs::Logs, sandbox::Sandbox, start};

/// The control plane ends sandboxes on time; the node does so itself this much later, in case
/// there is no control plane any more.
const OVERDUE: SignedDuration = SignedDuration::from_secs(60);
const OVERDUE_CHECK: Duration = Duration::from_secs(15);
const SAMPLES_AT_ONCE: usize = 16;

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

enum Place {
    Starting,
    Running(Arc<Sandbox>),
}

pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) storage: atoll_storage::Handle,
    pub(crate) network: atoll_network::Handle,
    pub(crate) driver: Arc<dyn Driver>,
    sandboxes: Mutex<HashMap<SandboxId, Place>>,
    events: Events,
    logs: Arc<Logs>,
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
    /// Starts the node.
    pub fn start(
        options: Options,
        storage: atoll_storage::Handle,
        network: atoll_network::Handle,
        driver: Arc<dyn Driver>,
    ) -> Self {
        let inner = Arc::new(Inner {
            options,
            storage,
            network,
            driver,
            sandboxes: Mutex::default(),
            events: Events::default(),
            logs: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let handle = Handle { inner };
        let overdue = tokio::spawn(end_overdue(handle.clone()));
        Self { handle, overdue }
    }

    /// How others call the node.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends every sandbox and waits until nothing is left.
    pub async fn shutdown(self) {
        self.overdue.abort();
        // A create under way gives up, or ends its sandbox itself.
        self.handle.inner.stopping.cancel();
        self.handle.inner.tasks.close();
        self.handle.kill_all(EndReason::Shutdown).await;
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
    fn table(&self) -> MutexGuard<'_, HashMap<SandboxId, Place>> {
        self.inner.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A running sandbox.
    pub fn get(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        match self.table().get(id) {
            Some(Place::Running(sandbox)) => Some(sandbox.clone()),
            _ => None,
        }
    }

    fn running(&self) -> Vec<Arc<Sandbox>> {
        self.table()
            .values()
            .filter_map(|place| match place {
                Place::Running(sandbox) => Some(sandbox.clone()),
                Place::Starting => None,
            })
            .collect()
    }

    async fn kill_all(&self, reason: EndReason) {
        let killing =
            self.running().into_iter().map(|sandbox| async move { end(&sandbox, reason).await });
        futures::future::join_all(killing).await;
    }

    fn reserve(&self, id: &SandboxId) -> Result<()> {
        match self.table().entry(id.clone()) {
            hash_map::Entry::Occupied(_) => {
                Err(Error::new(codes::CONFLICT, format!("sandbox {id} is there already.")))
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(Place::Starting);
                Ok(())
            }
        }
    }

    /// The whole of one create; runs to its end whether or not anybody still waits.
    async fn run_create(
        self,
        record: SandboxRecord,
        answer: oneshot::Sender<Result<Created>>,
        accepted: oneshot::Receiver<()>,
    ) {
        let id = record.id.clone();
        let (parts, timings) = match start::start(&self.inner, record).await {
            Ok(started) => started,
            Err(error) => {
                self.table().remove(&id);
                // The caller may have left; there is nothing to undo then.
                let _ = answer.send(Err(error));
                return;
            }
        };
        let created = Created { envd_version: parts.envd_version.clone(), timings };
        let (sandbox, log) = Sandbox::new(parts, self.inner.logs.clone());
        let sandbox = Arc::new(sandbox);
        sandbox.report_start(&created.timings);
        self.table().insert(id.clone(), Place::Running(sandbox.clone()));
        let supervisor =
            self.inner.tasks.track_future(self.clone().supervise(sandbox.clone(), log));
        tokio::spawn(supervisor);
        // An answer that was sent may still be dropped unread with the caller's future.
        let unwanted = answer.send(Ok(created)).is_err()
            || accepted.await.is_err()
            || self.inner.stopping.is_cancelled();
        if unwanted {
            end(&sandbox, EndReason::Killed).await;
        }
    }

    async fn supervise(self, sandbox: Arc<Sandbox>, log: OwnedFd) {
        let reason = sandbox.supervise(log).await;
        let id = sandbox.id();
        self.table().remove(&id);
        sandbox.announce_gone();
        tracing::info!(sandbox = %id, ?reason, "sandbox ended");
        self.inner.events.push(Ended { id, reason });
    }
}

#[async_trait]
impl Sandboxes for Handle {
    async fn find(&self, id: &SandboxId) -> Option<Arc<dyn Target>> {
        Some(self.get(id)? as Arc<dyn Target>)
    }
}

#[async_trait]
impl Node for Handle {
    async fn create(&self, record: SandboxRecord) -> Result<Created> {
        if self.inner.stopping.is_cancelled() {
            return Err(Error::new(codes::NODE_UNAVAILABLE, "the node is shutting down."));
        }
        self.reserve(&record.id)?;
        let (sender, receiver) = oneshot::channel();
        let (accept, accepted) = oneshot::channel();
        let create = self.clone().run_create(record, sender, accepted);
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
        Ok(self.get(id).map(|sandbox| sandbox.set_end(end_at)).is_some())
    }

    async fn list(&self) -> Result<Vec<NodeSandbox>> {
        Ok(self.running().iter().map(|sandbox| sandbox.describe()).collect())
    }

    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>> {
        let sandboxes: Vec<_> = ids.iter().filter_map(|id| self.get(id)).collect();
        let samples = stream::iter(sandboxes)
            .map(|sandbox| async move { Some((sandbox.id(), sandbox.sample().await.ok()?)) })
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
