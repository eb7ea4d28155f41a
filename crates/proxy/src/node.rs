//! The node proxy: what client proxies of other processes reach this node's sandboxes through.

use std::{io, sync::Arc, time::Duration};

use atoll_core::{Error, Result, error::codes};
use http::{Request, Response, StatusCode};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::{
    Handle, NODE_TOKEN_HEADER, Sandboxes,
    body::{Body, RequestBody},
    engine::{Engine, Visit},
    reply::{self, Failure},
    server::{Cleartext, Handler, Lifecycle, Peer, Server},
};

/// What a node proxy needs.
#[derive(Clone)]
pub struct Options {
    /// The sandboxes of this node.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// What requests must carry in [`NODE_TOKEN_HEADER`]. Without one the proxy serves anybody who
    /// can connect, and therefore listens on loopback only.
    pub token: Option<String>,
    /// How long requests under way may take to finish when the proxy stops.
    pub grace: Duration,
}

/// A running node proxy.
pub struct Service {
    server: Server,
}

impl Service {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// `BAD_OPTION` when the token is empty, or when there is none and the listener can be reached
    /// from other machines.
    pub fn start(options: Options, listener: TcpListener) -> Result<Self> {
        let unbound = |error: io::Error| {
            let message = format!("the node proxy's listener has no address: {error}.");
            Error::new(codes::INTERNAL, message)
        };
        let address = listener.local_addr().map_err(unbound)?;
        let safe = match &options.token {
            Some(token) => !token.is_empty(),
            None => address.ip().to_canonical().is_loopback(),
        };
        if !safe {
            let message = format!("the node proxy on {address} needs a token.");
            return Err(Error::new(codes::BAD_OPTION, message));
        }
        let lifecycle = Lifecycle::default();
        let node = Node {
            sandboxes: options.sandboxes,
            token: options.token,
            engine: Engine::new(lifecycle.clone()),
        };
        let (node, grace) = (Arc::new(node), options.grace);
        let server = Server::start(listener, Cleartext, node, lifecycle, grace).map_err(unbound)?;
        Ok(Self { server })
    }

    /// How others stop it.
    pub fn handle(&self) -> Handle {
        self.server.handle()
    }

    /// Stops it: what is under way may finish until the grace is over.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }
}

/// What answers client proxies.
struct Node {
    sandboxes: Arc<dyn Sandboxes>,
    token: Option<String>,
    engine: Engine,
}

impl Node {
    fn admits(&self, request: &Request<RequestBody>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(NODE_TOKEN_HEADER);
        given.is_some_and(|given| given.as_bytes().ct_eq(token.as_bytes()).into())
    }
}

impl Handler for Node {
    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        if !self.admits(&request) {
            let message =
                "this port is for Atoll's client proxies: the node token is missing or wrong";
            return reply::plain(StatusCode::UNAUTHORIZED, message);
        }
        // The proxy before this one has recorded the client; without a token, who knows.
        let peer = self.token.is_none().then_some(peer);
        let visit = match Visit::begin(&request, peer) {
            Ok(visit) => visit,
            Err(answer) => return *answer,
        };
        match self.sandboxes.find(&visit.destination.sandbox).await {
            Some(target) => self.engine.to_guest(target, &visit, request).await,
            None => visit.fail(Failure::NotFound),
        }
    }
}
