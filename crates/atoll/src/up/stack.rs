//! The services of one machine, wired together.
//!
//! Each is started with handles of those it stands on, and stopped in the opposite order:
//!
//! ```text
//! storage ─┬─ base template ┐
//!          │                ├─ orchestrator ─┬─ node RPC, node proxy
//! network ─┴─ isolation ────┘                ├─ builds of templates
//!                                            └─ API ── database, catalogue
//!                                                └─ client proxy, which wakes sandboxes
//!
//! front: over the API and the client proxy
//! ```

use std::{sync::Arc, time::Duration};

use atoll_core::{Error, Result, error::codes, lifecycle::Kept};
use atoll_front::Identity;
use atoll_isolation::{
    Driver, Place,
    container::{self, Container},
};
use atoll_orchestrator::rpc;
use atoll_state::{Database, MemoryCatalogue, SqliteDatabase, database::NewBuild, model::Build};
use atoll_storage::BuildManifest;
use atoll_template::image::Registries;
use atoll_wire::{build::Builder, node::Node};
use clap::ValueEnum;
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use super::{
    Arguments, ca_bundle, claim, claim::Claim, data_dir::DataDir, directory::OneNode,
    environment::Environment, farewell, keys::Keys, ports::Listeners,
};
use crate::{
    helpers::{self, Launcher},
    template::Shipped,
    terminal::Progress,
};

const GIB: u64 = 1024 * 1024 * 1024;
/// Bound on the processes of one sandbox: thousands run, a fork bomb does not hurt the host.
const MAX_PROCESSES: u32 = 8192;
/// Template builds that run at a time: each may keep some processors busy.
const BUILDS: usize = 4;
/// How long answers under way may take when stopping; streams to sandboxes are cut.
const GRACE: Duration = Duration::from_secs(1);
/// What is saved while CRIU is tried, and room for it: a program and envd's size of memory.
const PROBE: &str = "probe";
const PROBE_BYTES: u64 = 64 * 1024 * 1024;

/// What a deployment is.
pub(crate) struct Settings<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) directory: &'a DataDir,
    pub(crate) keys: &'a Keys,
    pub(crate) environment: &'a Environment,
}

/// Running services. Fields are filled in as things start, so that whatever has started can be
/// stopped when something after it fails.
#[derive(Default)]
pub(crate) struct Stack {
    claim: Option<Claim>,
    /// Kept open: it is run through its descriptor.
    launcher: Option<Launcher>,
    storage: Part<atoll_storage::Service>,
    network: Part<atoll_network::Service>,
    driver: Option<Arc<Container>>,
    /// What a pause keeps here, in plain words.
    memory: String,
    /// On the layer with envd, which every new sandbox needs.
    runtime: Option<atoll_storage::Lease>,
    database: Option<Arc<SqliteDatabase>>,
    orchestrator: Option<atoll_orchestrator::Service>,
    builds: Option<atoll_template::Builds>,
    rpc: Option<rpc::Service>,
    node_proxy: Option<atoll_proxy::node::Service>,
    client_proxy: Option<atoll_proxy::client::Service>,
    api: Option<atoll_api::Service>,
    front: Option<atoll_front::Service>,
}

/// A service whose start changes the host: mounts, rules. It starts in a task, because such a change
/// cannot be stopped half-way, and has to be undone when the start is given up.
struct Part<S> {
    starting: Option<JoinHandle<Result<S>>>,
    running: Option<S>,
}

impl<S> Default for Part<S> {
    fn default() -> Self {
        Self { starting: None, running: None }
    }
}

impl<S: Send + 'static> Part<S> {
    async fn start(
        &mut self,
        start: impl Future<Output = Result<S>> + Send + 'static,
    ) -> Result<&S> {
        let outcome = self.starting.insert(tokio::spawn(start)).await;
        // Whatever came of it: a task is not to be waited for twice.
        self.starting = None;
        Ok(self.running.insert(joined(outcome)?))
    }

    /// The service, if it runs or comes to run.
    async fn take(&mut self) -> Option<S> {
        match self.starting.take() {
            Some(task) => joined(task.await).ok(),
            None => self.running.take(),
        }
    }
}

fn joined<S>(outcome: std::result::Result<Result<S>, JoinError>) -> Result<S> {
    outcome.unwrap_or_else(|error| Err(Error::new(codes::INTERNAL, format!("{error}."))))
}

impl Stack {
    /// Starts everything.
    ///
    /// # Errors
    /// Those of the services; what had started is left for [`shutdown`](Self::shutdown).
    pub(crate) async fn start(
        &mut self,
        settings: &Settings<'_>,
        identity: Identity,
        listeners: Listeners,
    ) -> Result<()> {
        let Settings { arguments, directory, keys, .. } = *settings;
        let launcher = self.launcher.insert(Launcher::install(&directory.join("bin"))?).path();
        let claim = self.claim.insert(Claim::take(directory.instance())?);
        let journal = atoll_orchestrator::Journal::open(directory.path())?;
        let keep = journal.keep();
        let is_damaged = journal.is_damaged();

        // First: storage and network cannot let go of what a leftover sandbox holds, and the driver
        // ends those. What the journal knows lives on.
        let driver = Arc::new(
            Container::start(container::Options {
                instance: directory.instance().clone(),
                launcher: launcher.clone(),
                staging: directory.join("staging"),
                ready: arguments.ready,
                keep: keep.groups,
                criu: arguments.criu.clone(),
            })
            .await?,
        );
        self.driver = Some(driver.clone());

        let options = atoll_storage::Options {
            data_dir: directory.path().to_path_buf(),
            pool_bytes: arguments.pool_gib.map(|size| size.saturating_mul(GIB)),
            disks: arguments.ready,
            keep: keep.disks,
        };
        let storage = self.storage.start(atoll_storage::Service::start(options)).await?.handle();

        let options = atoll_network::Options {
            instance: directory.instance().clone(),
            launcher,
            first_uid: claim.first_uid(),
            slots: claim::SLOTS,
            pool: arguments.ready,
            network: arguments.sandbox_network,
            dns: Vec::new(),
            deny: arguments.deny_network.clone(),
            keep: keep.slots,
        };
        let network = self.network.start(atoll_network::Service::start(options)).await?.handle();
        self.memory = probe_memory(&driver, &network, &storage).await;

        let database = Arc::new(SqliteDatabase::open(&directory.join("atoll.db")).await?);
        self.database = Some(database.clone());
        let team = database.seed(&keys.seed()).await?;

        let template = atoll_template::Handle::new(
            atoll_template::Options {
                ca_bundle: ca_bundle(&arguments.ca_bundle),
                envd: helpers::ENVD,
                interpreter: helpers::INTERPRETER,
                envd_version: atoll_envd::VERSION.to_owned(),
            },
            storage.clone(),
        );
        let runtime_layer = template.ensure_runtime_layer().await?;
        self.runtime = Some(storage.lease(std::slice::from_ref(&runtime_layer)).await?);
        let progress = Progress::new("Building the base template (once)");
        let base = template.ensure_base(&progress).await;
        progress.finish();
        let (base, _) = base?;
        database.publish_global_template(&new_build(&base)?, team.id).await?;

        let orchestrator = atoll_orchestrator::Service::start(
            atoll_orchestrator::Options {
                instance: directory.instance().clone(),
                runtime_layer,
                max_processes: MAX_PROCESSES,
            },
            journal,
            storage.clone(),
            network,
            driver,
        )
        .await;
        // Nothing is being built yet, and what runs has been taken up.
        if is_damaged {
            tracing::warn!("layers are kept that a sandbox may need of which the file is damaged");
        } else if let Err(error) = storage.sweep().await {
            tracing::warn!(%error, "layers that nothing uses are left");
        }
        let node = self.orchestrator.insert(orchestrator).handle();
        let options = atoll_template::BuildOptions {
            data_dir: directory.path().to_path_buf(),
            ca_bundle: ca_bundle(&arguments.ca_bundle),
            envd_version: atoll_envd::VERSION.to_owned(),
            registries: Registries::parse(&arguments.registry)?,
            base: base.id,
            at_once: BUILDS,
        };
        let builds = atoll_template::Builds::start(options, node.clone(), storage)?;
        let builder = Arc::new(self.builds.insert(builds).handle());
        self.serve(settings, identity, listeners, node, database, builder).await
    }

    async fn serve(
        &mut self,
        settings: &Settings<'_>,
        identity: Identity,
        listeners: Listeners,
        node: atoll_orchestrator::Handle,
        database: Arc<SqliteDatabase>,
        builder: Arc<dyn Builder>,
    ) -> Result<()> {
        let Settings { arguments, directory, environment, .. } = *settings;
        let token = directory.secret("node-token")?;
        let options = rpc::Options { listener: listeners.rpc, token: token.clone() };
        self.rpc = Some(rpc::Service::start(options, node.clone())?);

        let options = atoll_proxy::node::Options {
            sandboxes: Arc::new(node.clone()),
            token: Some(token),
            grace: GRACE,
        };
        self.node_proxy = Some(atoll_proxy::node::Service::start(options, listeners.node_proxy)?);

        let mut options = atoll_api::Options::new(listeners.api, directory.secret("seed")?);
        options.admin_token.clone_from(&arguments.admin_token);
        options.domain = Some(environment.domain.to_string());
        let shipped = Shipped::value_variants().iter();
        options.available = shipped.map(|one| (one.alias().to_owned(), one.command())).collect();
        let catalogue = Arc::new(MemoryCatalogue::default());
        let service = Arc::new(node.clone());
        let api = atoll_api::Service::start(options, database, catalogue, service, builder).await?;
        let api = self.api.insert(api).handle();

        let directory = Arc::new(OneNode { node, api: api.clone() });
        let options = atoll_proxy::client::Options { directory, grace: GRACE };
        let proxy = self.client_proxy.insert(atoll_proxy::client::Service::start(
            options,
            listeners.proxy,
            listeners.proxy_health,
        )?);

        self.front = Some(atoll_front::Service::start(atoll_front::Options {
            listener: listeners.front,
            identity,
            api: api.router(),
            edge: proxy.edge(),
            grace: GRACE,
        })?);
        Ok(())
    }

    /// What isolates sandboxes here, in plain words.
    pub(crate) fn isolation(&self) -> String {
        let limits = self
            .driver
            .as_ref()
            .map(|driver| driver.cgroups().hierarchies().describe())
            .unwrap_or_default();
        format!(
            "container: namespaces, own user ids, seccomp, no capability on this host; limits on {limits}"
        )
    }

    /// What a pause keeps here, in plain words.
    pub(crate) fn memory(&self) -> &str {
        &self.memory
    }

    /// The storage of what templates keep, if that is memory too.
    pub(crate) fn keeper(&self) -> Option<atoll_storage::Handle> {
        let keeps = self.driver.as_ref().is_some_and(|driver| driver.memory() == Kept::Checkpoint);
        self.storage.running.as_ref().filter(|_| keeps).map(atoll_storage::Service::handle)
    }

    /// What becomes of the sandboxes there are when it stops, in plain words.
    pub(crate) async fn farewell(&self) -> String {
        let Some(orchestrator) = &self.orchestrator else { return "Stopping.".to_owned() };
        let states = match orchestrator.handle().list().await {
            Ok(all) => all.into_iter().map(|sandbox| sandbox.state).collect::<Vec<_>>(),
            Err(error) => {
                tracing::warn!(%error, "the sandboxes cannot be counted");
                Vec::new()
            }
        };
        farewell::text(&states)
    }

    /// Stops everything that has started, the newest first; sandboxes that run end.
    pub(crate) async fn shutdown(&mut self) {
        if let Some(front) = self.front.take() {
            front.shutdown().await;
        }
        if let Some(proxy) = self.client_proxy.take() {
            proxy.shutdown().await;
        }
        if let Some(api) = self.api.take() {
            api.shutdown().await;
        }
        if let Some(builds) = self.builds.take() {
            builds.shutdown().await;
        }
        if let Some(proxy) = self.node_proxy.take() {
            proxy.shutdown().await;
        }
        if let Some(rpc) = self.rpc.take() {
            rpc.shutdown().await;
        }
        if let Some(orchestrator) = self.orchestrator.take() {
            orchestrator.shutdown().await;
        }
        self.runtime = None;
        if let Some(network) = self.network.take().await
            && let Err(error) = network.shutdown().await
        {
            tracing::error!(%error, "the network could not be removed");
        }
        if let Some(storage) = self.storage.take().await {
            storage.shutdown().await;
        }
        if let Some(database) = self.database.take() {
            database.close().await;
        }
        if let Some(driver) = self.driver.take() {
            driver.shutdown().await;
        }
        self.claim = None;
    }
}

/// Finds out whether memory can be saved here, and says so in plain words. What keeps it from being
/// found out does not keep Atoll from starting.
async fn probe_memory(
    driver: &Container,
    network: &atoll_network::Handle,
    storage: &atoll_storage::Handle,
) -> String {
    let found = try_memory(driver, network, storage).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "checkpoints cannot be tried");
        None
    });
    match found {
        Some(version) => format!(
            "keeps processes and files on disk (CRIU {version}): both outlive Atoll and the machine"
        ),
        None => {
            let how = "keeps files on disk, and processes frozen in memory until Atoll is stopped";
            format!(
                "{how}\n                 (`atoll doctor` says what it takes to keep them on disk)"
            )
        }
    }
}

/// Saves the memory of a sandbox, and restores it; the version of CRIU that did, if one can. The
/// driver has logged why none can.
async fn try_memory(
    driver: &Container,
    network: &atoll_network::Handle,
    storage: &atoll_storage::Handle,
) -> Result<Option<String>> {
    let slot = network.take().await?;
    let scratch = storage.begin_saved(PROBE, PROBE_BYTES, PROBE_BYTES).await?;
    let found = driver.probe_memory(Place::from(&slot), &scratch).await;
    storage.drop_saved(PROBE).await?;
    Ok(found.ok().map(|version| version.to_string()))
}

fn new_build(manifest: &BuildManifest) -> Result<NewBuild> {
    let id = Uuid::parse_str(&manifest.id).map_err(|error| {
        Error::new(
            codes::LAYER_CORRUPT,
            format!("build {} has no proper id: {error}.", manifest.id),
        )
    })?;
    Ok(NewBuild {
        alias: manifest.alias.clone().unwrap_or_else(|| manifest.template.to_string()),
        build: Build {
            id,
            vcpu: manifest.vcpu,
            memory_mb: manifest.memory_mb,
            disk_mb: manifest.disk_mb,
            envd_version: manifest.envd_version.clone(),
        },
    })
}
