//! The client proxy: the edge that clients talk to, wherever their sandboxes run.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    Directory, Handle, Location, Target,
    body::{Body, RequestBody},
    engine::{Engine, NodeHop, Visit},
    reply::{self, Failure},
    server::{self, Cleartext, Handler, Lifecycle, Peer},
};

/// What a client proxy needs.
#[derive(Clone)]
pub struct Options {
    /// Where sandboxes run.
    pub directory: Arc<dyn Directory>,
    /// How long requests under way may take to finish when the proxy stops.
    pub grace: Duration,
}

/// A running client proxy.
pub struct Service {
    handle: Handle,
    edge: Arc<Edge>,
    task: JoinHandle<()>,
}

impl Service {
    /// Serves on `listener`, and tells of the proxy's health on `health`.
    ///
    /// # Errors
    /// `INTERNAL` when a listener is not bound.
    pub fn start(options: Options, listener: TcpListener, health: TcpListener) -> Result<Self> {
        let address = listener.local_addr().map_err(|error| {
            Error::new(
                codes::INTERNAL,
                format!("the client proxy's listener has no address: {error}."),
            )
        })?;
        let lifecycle = Lifecycle::default();
        let edge = Arc::new(Edge {
            directory: options.directory,
            engine: Engine::new(lifecycle.clone()),
            nodes: Mutex::default(),
        });
        let handle = Handle::new(lifecycle.clone(), address);
        let serving = serve(Arc::clone(&edge), listener, health, lifecycle, options.grace);
        let task = tokio::spawn(serving);
        Ok(Self { handle, edge, task })
    }

    /// How others stop it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What answers its clients, for a front that has accepted the connection itself. It shares the
    /// proxy's connections to sandboxes and their limits; what it works on ends with the proxy.
    pub fn edge(&self) -> Arc<Edge> {
        Arc::clone(&self.edge)
    }

    /// Stops it: what is under way may finish until the grace is over. Meanwhile `GET /health`
    /// says 503.
    pub async fn shutdown(self) {
        self.handle.shutdown();
        server::join(self.task).await;
    }
}

async fn serve(
    edge: Arc<Edge>,
    listener: TcpListener,
    health_listener: TcpListener,
    lifecycle: Lifecycle,
    grace: Duration,
) {
    let health = Lifecycle::default();
    let status = Arc::new(Health { of: lifecycle.clone() });
    let told = async {
        tokio::join!(
            server::serve(health_listener, Cleartext, status, health.clone()),
            health.finish(Duration::ZERO)
        );
    };
    let served = async {
        tokio::join!(
            server::serve(listener, Cleartext, edge, lifecycle.clone()),
            lifecycle.finish(grace)
        );
        health.drain.cancel();
    };
    tokio::join!(told, served);
}

/// What answers clients: it finds the sandbox that a request is for and forwards.
pub struct Edge {
    directory: Arc<dyn Directory>,
    engine: Engine,
    /// Other nodes' proxies met so far, kept because idle connections belong to them.
    nodes: Mutex<HashMap<SocketAddr, Arc<NodeHop>>>,
}

impl Edge {
    fn node(&self, address: SocketAddr) -> Arc<dyn Target> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(nodes.entry(address).or_insert_with(|| Arc::new(NodeHop::new(address)))) as _
    }
}

impl Handler for Edge {
    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let visit = match Visit::begin(&request, Some(peer)) {
            Ok(visit) => visit,
            Err(answer) => return *answer,
        };
        match self.directory.locate(&visit.destination.sandbox).await {
            Ok(None) => visit.fail(Failure::NotFound),
            Ok(Some(Location::Here(target))) => self.engine.to_guest(target, &visit, request).await,
            Ok(Some(Location::Node { address, token })) => {
                let Ok(token) = HeaderValue::from_str(&token) else {
                    tracing::error!(%address, "the token of a node cannot be sent as a header");
                    return visit.fail(Failure::NodeUnreachable);
                };
                self.engine.to_node(self.node(address), &token, &visit, request).await
            }
            Err(error) => {
                tracing::error!(%error, sandbox = %visit.destination.sandbox, "cannot locate");
                reply::unlocated(&error)
            }
        }
    }
}

/// Tells balancers whether to send clients here.
struct Health {
    of: Lifecycle,
}

impl Handler for Health {
    async fn handle(&self, request: Request<RequestBody>, _: Peer) -> Response<Body> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        if !read || request.uri().path() != "/health" {
            return reply::plain(StatusCode::NOT_FOUND, "only GET /health is served here");
        }
        if self.of.drain.is_cancelled() {
            return reply::text(StatusCode::SERVICE_UNAVAILABLE, "draining");
        }
        reply::text(StatusCode::OK, "healthy")
    }
}
