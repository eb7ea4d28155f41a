//! Starting, serving and shutting down.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    limits::{HANDLER_DEADLINE, READ_TIMEOUT},
};
use atoll_state::{Catalogue, Database};
use atoll_wire::{
    build::Builder,
    node::{Node, NodeSandbox},
};
use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    archivist, connection, control::Control, foreman, router::router, sampler, wake, watcher,
};

/// How long requests under way, and then background work, may take to finish at shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Pause after a connection could not be accepted, most likely for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How the control plane is configured.
pub struct Options {
    /// Where it listens; already bound, so that a port in use is found out before anything starts.
    pub listener: TcpListener,
    /// Key of the sandboxes' access tokens. Must stay the same for a deployment: sandboxes that run
    /// keep the tokens made with it.
    pub seed: Vec<u8>,
    /// What administrators send as `X-Admin-Token`; none shuts them out.
    pub admin_token: Option<String>,
    /// What clients are to use in sandbox URLs, perhaps with a port; none leaves it to them.
    pub domain: Option<String>,
    /// Names of templates that an operator can have, each with the command that makes it: what a client
    /// is told that asks for one before. Only the first team can publish a template by such a name.
    pub available: BTreeMap<String, String>,
    /// Longest a handler may take.
    pub handler_deadline: Duration,
    /// Longest a client may take to send a request's head, and again its body; of an upload, each
    /// piece of it.
    pub read_timeout: Duration,
}

impl Options {
    /// The defaults, with what has none.
    pub fn new(listener: TcpListener, seed: impl Into<Vec<u8>>) -> Self {
        Self {
            listener,
            seed: seed.into(),
            admin_token: None,
            domain: None,
            available: BTreeMap::new(),
            handler_deadline: HANDLER_DEADLINE,
            read_timeout: READ_TIMEOUT,
        }
    }
}

/// The running control plane.
pub struct Service {
    handle: Handle,
    control: Arc<Control>,
    /// Cuts connections that outlast the grace.
    abort: CancellationToken,
    accepting: JoinHandle<()>,
}

/// How the rest of the process reaches the control plane.
#[derive(Clone)]
pub struct Handle {
    address: SocketAddr,
    router: Router,
    control: Arc<Control>,
}

impl Handle {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The API as a service, for a front that has accepted the connection itself. It must put the
    /// client's own address as `ConnectInfo<SocketAddr>` among each request's extensions: the
    /// development key is refused without it.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Lets a paused sandbox run again because of traffic to it, and answers with it once it runs;
    /// one that runs already is answered as it is. Whether the traffic may do so (auto-resume is on,
    /// its credentials are right) is for the caller to have checked. However many call, it is
    /// resumed once. A caller that goes away does not stop it.
    ///
    /// # Errors
    /// - `codes::NOT_FOUND`: there is no such sandbox (any more).
    /// - `codes::CONCURRENCY_LIMIT`: its team has as many running as it may.
    /// - `codes::SANDBOX_BUSY`: it is still between two states.
    /// - `codes::FORBIDDEN`: its team is banned or blocked.
    /// - the node's, when it could not be resumed: it is paused as before.
    pub async fn wake(&self, id: &SandboxId) -> Result<NodeSandbox> {
        wake::wake(&self.control, id).await
    }
}

impl Service {
    /// Takes in what there is on the node and which builds are under way, then serves.
    ///
    /// # Errors
    /// - the node's, the builder's or the catalogue's, when that cannot be taken in.
    /// - `codes::BAD_OPTION`: the seed is empty, or the listener has no address.
    pub async fn start(
        options: Options,
        database: Arc<dyn Database>,
        catalogue: Arc<dyn Catalogue>,
        node: Arc<dyn Node>,
        builder: Arc<dyn Builder>,
    ) -> Result<Self> {
        if options.seed.is_empty() {
            return Err(Error::new(codes::BAD_OPTION, "the seed of access tokens is empty."));
        }
        let address = options.listener.local_addr().map_err(|error| {
            Error::new(codes::BAD_OPTION, format!("the API's listener has no address: {error}."))
        })?;
        let control = Arc::new(Control {
            database,
            catalogue,
            node_id: node.info().await?.id,
            node,
            builder,
            seed: options.seed,
            admin_token: options.admin_token,
            domain: options.domain,
            available: options.available,
            handler_deadline: options.handler_deadline,
            read_timeout: options.read_timeout,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let adopted = watcher::adopt(&control).await?;
        foreman::adopt(&control).await?;
        watcher::sweep(&control).await?;
        control.tasks.spawn(watcher::run(control.clone()));
        control.tasks.spawn(sampler::run(control.clone()));
        control.tasks.spawn(archivist::run(control.clone()));
        control.tasks.spawn(foreman::run(control.clone()));

        let router = router(control.clone());
        let abort = CancellationToken::new();
        let accepting =
            tokio::spawn(accept(options.listener, router.clone(), control.clone(), abort.clone()));
        tracing::info!(%address, adopted, "the API is up");
        Ok(Self {
            handle: Handle { address, router, control: control.clone() },
            control,
            abort,
            accepting,
        })
    }

    /// How others reach it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes no more requests, lets those under way finish, and ends the background tasks. Sandboxes
    /// are left as they are.
    pub async fn shutdown(mut self) {
        self.control.stopping.cancel();
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "the API's listener failed");
        }
        self.abort.cancel();
        self.control.tasks.close();
        if timeout(GRACE, self.control.tasks.wait()).await.is_err() {
            tracing::warn!("background work of the API did not finish in time");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.control.stopping.cancel();
        self.abort.cancel();
    }
}

/// Accepts connections until the service stops, then lets those there are finish.
async fn accept(
    listener: TcpListener,
    router: Router,
    control: Arc<Control>,
    abort: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = match control.stopping.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(accepted) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let serve = connection::serve(
                    stream,
                    peer,
                    router.clone(),
                    control.read_timeout,
                    graceful.watcher(),
                );
                let abort = abort.clone();
                tokio::spawn(async move { abort.run_until_cancelled(serve).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    if timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were under way for too long and are cut off");
    }
}
