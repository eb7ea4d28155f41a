//! Builds of templates: steps in sandboxes, each on what those before it have left.
//!
//! ```text
//! BuildSpec ─► base: FROM ─► step ─► step ─► … ─► finish ─► the template's manifest
//!               │             │ a sandbox of the parent's layers: do it, pause it,
//!               │             │ and what it wrote becomes a layer
//!               │             ▼
//!               │        manifest of the result, under an id that follows from the step's key:
//!               │        an equal step on an equal parent finds it, and is not done again
//!               ▼
//!        an image of a registry or an archive, unpacked in a sandbox without a network (`unpack`),
//!        or another build
//! ```
//!
//! - here: the [`Builder`], which runs a few builds at a time and says what happens to them.
//! - `job`: one build. `base`, `work`, `finish`: its parts. `step`: what steps are. `context`: what they
//!   run with. `room`: the sandbox of one.
//! - `log`, `events`: what a build says. `files`: what clients have uploaded. `prune`: what may go.

mod base;
mod context;
mod events;
mod files;
mod finish;
mod job;
mod log;
mod prune;
mod room;
mod step;
mod unpack;
mod work;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use atoll_core::{Error, Result, error::codes, limits::BUILD_WINDOW};
use atoll_wire::{
    build::{BuildEvent, BuildFailure, BuildSpec, Builder, Pruned},
    log::LogLevel,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{RwLock, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{events::Events, files::Files, job::Progress, log::Log, room::Site};
use crate::{CaBundle, image::Registries};

/// Configuration of the builds.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The data directory; uploads are kept in it.
    pub data_dir: PathBuf,
    /// Certificates that templates are to trust.
    pub ca_bundle: CaBundle,
    /// Version of envd, as the API reports it.
    pub envd_version: String,
    /// Registries that images may be fetched from beside the public ones.
    pub registries: Registries,
    /// Id of the build of `base`, in whose sandboxes images are unpacked.
    pub base: String,
    /// Builds that run at a time; others wait.
    pub at_once: usize,
}

/// What all builds share.
pub(crate) struct Shared {
    pub(crate) site: Site,
    pub(crate) files: Files,
    pub(crate) events: Events,
    pub(crate) envd_version: String,
    pub(crate) ca_bundle: CaBundle,
    pub(crate) registries: Registries,
    pub(crate) base: String,
    turns: Semaphore,
    running: Mutex<HashMap<String, Running>>,
    /// By team: held together by its builds, and alone by whoever deletes what they begin from.
    gates: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A build that was begun and has not ended.
struct Running {
    cancelled: CancellationToken,
    /// Why, once it is.
    reason: Option<String>,
}

/// The builds of a node.
pub struct Builds {
    handle: BuildsHandle,
}

/// How others call them; cheap to clone.
#[derive(Clone)]
pub struct BuildsHandle {
    shared: Arc<Shared>,
}

impl Builds {
    /// Builds in sandboxes of `node`.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when there is no place for uploads.
    pub fn start(
        options: BuildOptions,
        node: atoll_orchestrator::Handle,
        storage: atoll_storage::Handle,
    ) -> Result<Self> {
        let BuildOptions { data_dir, ca_bundle, envd_version, registries, base, at_once } = options;
        let shared = Shared {
            site: Site { node, storage },
            files: Files::open(&data_dir)?,
            events: Events::default(),
            envd_version,
            ca_bundle,
            registries,
            base,
            turns: Semaphore::new(at_once.max(1)),
            running: Mutex::default(),
            gates: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        Ok(Self { handle: BuildsHandle { shared: Arc::new(shared) } })
    }

    /// How others call them.
    pub fn handle(&self) -> BuildsHandle {
        self.handle.clone()
    }

    /// Ends those that are under way, and waits for that. The node must still run.
    pub async fn shutdown(self) {
        let shared = &self.handle.shared;
        shared.stopping.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps a team's builds and the deletion of their results apart.
    fn gate(&self, team: &str) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry(team.to_owned()).or_default())
    }

    /// The whole of a build.
    async fn run(&self, spec: &BuildSpec, cancelled: &CancellationToken) -> BuildEvent {
        let begun = Instant::now();
        let progress = Mutex::new(Progress::default());
        let gate = self.gate(&spec.team);
        let work = async {
            let _begun = gate.read().await;
            let _turn = match self.turns.try_acquire() {
                Ok(turn) => turn,
                Err(_) => {
                    Log::new(self, &spec.id).note("waiting for other builds to end");
                    let closed = |_| Error::new(codes::INTERNAL, "no builds are run any more.");
                    self.turns.acquire().await.map_err(closed)?
                }
            };
            job::run(self, spec, &progress).await
        };
        let done = tokio::select! {
            done = work => done,
            () = cancelled.cancelled() => Err(self.why_cancelled(&spec.id)),
            () = self.stopping.cancelled() => Err(interrupted()),
            // It counts for its team's limit no longer, and is not to hold a turn for longer either:
            // each step is bounded, but a build may have thousands.
            () = tokio::time::sleep(BUILD_WINDOW) => Err(endless()),
        };
        let mut log = Log::new(self, &spec.id);
        log.at("finalize", "[finalize]");
        match done {
            Ok(()) => {
                let seconds = begun.elapsed().as_secs_f64();
                log.say(LogLevel::Info, format!("Build finished, took {seconds:.1}s"));
                BuildEvent::Ready { envd_version: self.envd_version.clone() }
            }
            Err(error) => {
                // Cancelled at its very end, it may have left a template of which nobody hears.
                if let Err(error) = self.site.storage.delete_build(&spec.id).await {
                    tracing::warn!(build = spec.id, %error, "what a build has left stays");
                }
                BuildEvent::Failed(self.failed(&progress, &error, log).await)
            }
        }
    }

    async fn failed(
        &self,
        progress: &Mutex<Progress>,
        error: &Error,
        mut log: Log<'_>,
    ) -> BuildFailure {
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failure = progress.failure(error);
        if let Some(step) = &failure.step {
            log.at(step, step);
        }
        log.say(LogLevel::Error, format!("Build failed: {}", failure.message));
        failure
    }

    fn why_cancelled(&self, build: &str) -> Error {
        let running = self.running();
        let reason = running.get(build).and_then(|running| running.reason.clone());
        let message = reason.unwrap_or_else(|| "The build was cancelled.".to_owned());
        Error::new(codes::BUILD_CANCELLED, message).with_fix("")
    }
}

fn endless() -> Error {
    let hours = BUILD_WINDOW.as_secs() / 3600;
    Error::new(codes::BUILD_FAILED, format!("the build did not end within {hours} hours."))
}

fn interrupted() -> Error {
    Error::new(codes::BUILD_INTERRUPTED, "Atoll was stopped during the build.")
}

#[async_trait]
impl Builder for BuildsHandle {
    async fn start(&self, spec: BuildSpec) -> Result<()> {
        if self.shared.stopping.is_cancelled() {
            return Err(interrupted());
        }
        let cancelled = CancellationToken::new();
        {
            let mut running = self.shared.running();
            if running.contains_key(&spec.id) {
                return Ok(());
            }
            let build = Running { cancelled: cancelled.clone(), reason: None };
            running.insert(spec.id.clone(), build);
        }
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let event = shared.run(&spec, &cancelled).await;
            // First the news: who finds it not running any more finds out how it ended.
            shared.events.push(&spec.id, event);
            shared.running().remove(&spec.id);
        });
        Ok(())
    }

    async fn cancel(&self, build: &str, reason: &str) -> Result<bool> {
        let mut running = self.shared.running();
        let Some(build) = running.get_mut(build) else { return Ok(false) };
        build.reason.get_or_insert_with(|| reason.to_owned());
        build.cancelled.cancel();
        Ok(true)
    }

    async fn running(&self) -> Result<Vec<String>> {
        Ok(self.shared.running().keys().cloned().collect())
    }

    async fn events(&self, cursor: u64) -> Result<(u64, Vec<(String, BuildEvent)>)> {
        Ok(self.shared.events.wait(cursor).await)
    }

    async fn has_files(&self, team: &str, hash: &str) -> Result<bool> {
        self.shared.files.has(team, hash)
    }

    async fn put_files(
        &self,
        team: &str,
        hash: &str,
        archive: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<()> {
        self.shared.files.put(team, hash, archive).await
    }

    async fn prune(&self, team: &str) -> Result<Pruned> {
        prune::prune(&self.shared, team).await
    }
}
