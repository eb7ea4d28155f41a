//! The table of sandboxes, from the start of the node to its end. `node` has the calls on it.
//!
//! A sandbox is in the table from before anything of it exists until nothing of it is left. Each has
//! a task that owns it (`owner`), so a caller who leaves half-way stops nothing half-way: a create
//! that nobody waits for any more finishes, and its sandbox is ended.

use std::{
    collections::{HashMap, hash_map},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use atoll_core::{
    Error, InstanceId, LayerId, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_isolation::Driver;
use atoll_wire::node::{Created, EndReason, SandboxRecord};
use futures::future::join_all;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    adopt,
    events::Events,
    journal::{Journal, Opened},
    logs::{Logs, SandboxLog},
    owner,
    sandbox::{self, Sandbox, Surroundings, lock},
    start,
};

/// How long a start waits for the sandboxes of an earlier run. What takes longer is being ended, or
/// is in trouble.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);

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
    pub(crate) events: Arc<Events>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) tasks: TaskTracker,
    /// Held by who looks for what is left of a sandbox.
    pub(crate) adopting: Semaphore,
    /// Cancelled when the node shuts down.
    pub(crate) stopping: CancellationToken,
}

/// A running node.
pub struct Service {
    handle: Handle,
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
            events: Arc::default(),
            logs: Arc::default(),
            tasks: TaskTracker::new(),
            adopting: Semaphore::new(adopt::AT_ONCE),
            stopping: CancellationToken::new(),
        });
        let handle = Handle { inner };
        for entry in entries {
            let is_for_build = entry.record.is_for_build;
            let sandbox = adopt::remember(&handle.inner, entry).await;
            handle.table().insert(sandbox.id().clone(), sandbox.clone());
            handle.own(sandbox.clone());
            if is_for_build {
                // Who built in it is gone.
                let end = async move { end(&sandbox, EndReason::Killed).await };
                tokio::spawn(handle.inner.tasks.track_future(end));
            }
        }
        let adopted = handle.all();
        // What a crash left under way is about to be undone or finished: nobody is to hear before
        // then that a sandbox is paused which will run, or not there which can be reached.
        let settled = join_all(adopted.iter().map(|sandbox| sandbox.settled()));
        if tokio::time::timeout(ADOPTED_WITHIN, settled).await.is_err() {
            tracing::warn!("some sandboxes are still being taken up");
        }
        Self { handle }
    }

    /// How others call the node.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends every sandbox that runs and waits until nothing is left. Those that are paused stay, also
    /// when a pause or a resume is under way: of frozen processes the disk.
    pub async fn shutdown(self) {
        // Nothing begins any more, and each owner brings its sandbox to an end.
        self.handle.inner.stopping.cancel();
        self.handle.inner.tasks.close();
        self.handle.inner.tasks.wait().await;
    }
}

impl Inner {
    /// What a pause keeps.
    pub(crate) fn kept(&self, memory: bool) -> Kept {
        if memory { self.driver.memory() } else { Kept::Disk }
    }

    /// What a sandbox uses of the node.
    pub(crate) fn around(&self, record: &SandboxRecord, log: SandboxLog) -> Surroundings {
        let limits = start::limits(self, record);
        Surroundings { limits, log, journal: self.journal.clone(), events: self.events.clone() }
    }
}

/// Ends a sandbox, and waits until nothing of it is left.
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

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.table().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.table().values().cloned().collect()
    }

    pub(crate) fn running(&self) -> Vec<Arc<Sandbox>> {
        let mut all = self.all();
        all.retain(|sandbox| matches!(sandbox.state(), State::Running | State::Snapshotting));
        all
    }

    pub(crate) fn insert(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
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
    pub(crate) async fn run_create(
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
