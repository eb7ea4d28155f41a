//! The client proxy: the edge that clients talk to, wherever their sandboxes run.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    Directory, Handle, Location, Target,
    body::{Body, RequestBody},
    engine::{Engine, NodeHop, Visit},
    reply::{self, Failure},
    server::{self, Cleartext, Handler, Lifecycle, Peer},
    wake::{self, Refusal, Wakes},
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
            wakes: Wakes::new(Arc::clone(&options.directory), lifecycle.clone()),
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
    wakes: Arc<Wakes>,
    engine: Engine,
    /// Other nodes' proxies met so far, kept because idle connections belong to them.
    nodes: Mutex<HashMap<SocketAddr, Arc<NodeHop>>>,
}

/// Where a sandbox runs that is awake.
enum Place {
    Here(Arc<dyn Target>),
    Node(Arc<dyn Target>, HeaderValue),
}

impl Edge {
    fn node(&self, address: SocketAddr) -> Arc<dyn Target> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(nodes.entry(address).or_insert_with(|| Arc::new(NodeHop::new(address)))) as _
    }

    /// Where the sandbox runs, woken for this request if it was asleep. Takes as long as that does.
    async fn find(
        &self,
        visit: &Visit,
        headers: &HeaderMap,
    ) -> std::result::Result<Place, Refusal> {
        let id = &visit.destination.sandbox;
        let mut attempts = 0..wake::ATTEMPTS;
        loop {
            match self.directory.locate(id).await.map_err(Refusal::Error)? {
                None => return Err(Refusal::Failure(Failure::NotFound)),
                Some(Location::Here(target)) => return Ok(Place::Here(target)),
                Some(Location::Node { address, token }) => {
                    let token = HeaderValue::from_str(&token).map_err(|_| {
                        tracing::error!(%address, "the token of a node cannot be sent as a header");
                        Refusal::Failure(Failure::NodeUnreachable)
                    })?;
                    return Ok(Place::Node(self.node(address), token));
                }
                Some(Location::Soon) => tokio::time::sleep(wake::LOOK_AGAIN).await,
                Some(Location::Asleep(asleep)) => {
                    if !wake::may_wake(&asleep, visit.destination.port, headers) {
                        return Err(Refusal::Failure(Failure::ResumeDenied));
                    }
                    // It may be paused again before this request comes to it.
                    if attempts.next().is_none() {
                        return Err(Refusal::Failure(Failure::Transitioning));
                    }
                    match self.wakes.wake(id).await {
                        Ok(()) | Err(Refusal::Failure(Failure::Transitioning)) => {}
                        Err(refusal) => return Err(refusal),
                    }
                }
            }
        }
    }
}

impl Handler for Edge {
    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let visit = match Visit::begin(&request, Some(peer)) {
            Ok(visit) => visit,
            Err(answer) => return *answer,
        };
        let found = tokio::time::timeout(wake::HOLD, self.find(&visit, request.headers())).await;
        match found.unwrap_or(Err(Refusal::Failure(Failure::Transitioning))) {
            Ok(Place::Here(target)) => self.engine.to_guest(target, &visit, request).await,
            Ok(Place::Node(node, token)) => {
                self.engine.to_node(node, &token, &visit, request).await
            }
            Err(Refusal::Failure(failure)) => visit.fail(failure),
            Err(Refusal::Error(error)) => {
                tracing::error!(%error, sandbox = %visit.destination.sandbox, "cannot locate or wake");
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
