//! The client proxy and the node proxy: one routing and forwarding engine.
//!
//! A request comes in for a port of a sandbox ([`route`]). The [`client`] proxy, the edge, asks a
//! [`Directory`] where that sandbox runs: in this process, and then the request goes straight to
//! it, or on another node, and then it goes to that node's [`node`] proxy, which finds the sandbox
//! among its own ([`Sandboxes`]). Both forward with the same engine, which treats a node as one
//! more thing that can be dialled. A request for a sandbox that is asleep is held until the
//! directory has woken it.
//!
//! What accepts connections and serves HTTP over them ([`Server`]) is also for others: it takes any
//! [`Handler`], over any [`Transport`].
//!
//! What the engine promises:
//! - Nothing is buffered or changed on the way, and nothing times out: a frame that one side sends
//!   is written to the other at once, and a stream may be silent for hours.
//! - When a sandbox ends, everything that goes to or from it ends, as a failure that the client can
//!   see: never a body that looks complete and is not.
//! - When a client leaves, the sandbox sees its connection close.
//! - No connection to one run of a sandbox is ever used for another.

mod body;
pub mod client;
mod connection;
mod control;
mod engine;
mod headers;
pub mod node;
mod patience;
mod pool;
mod reply;
pub mod route;
mod server;
mod wake;

use std::{io, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use atoll_core::{Error, Result, SandboxId, error::codes};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub use body::{Body, BoxError, RequestBody};
pub use patience::HEAD as HEAD_TIMEOUT;
pub use server::{Cleartext, Handle, Handler, Lifecycle, Opened, Peer, Server, Transport};

/// The header that authenticates a client proxy to a node proxy.
pub const NODE_TOKEN_HEADER: &str = "x-atoll-node-token";

/// A running sandbox on this node.
#[async_trait]
pub trait Target: Send + Sync {
    /// Connects to a TCP port inside it.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there; others when the sandbox is going away.
    async fn dial(&self, port: u16) -> io::Result<TcpStream>;

    /// Cancelled when this run of the sandbox is over. To be cancelled *before* its processes are
    /// killed: a body without a length that ends because its sender was killed looks like one that
    /// is complete.
    fn ended(&self) -> CancellationToken;

    /// Who may reach it, and under which name.
    fn access(&self) -> Access;
}

/// What a sandbox asks of requests to ports other than envd's.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What `e2b-traffic-access-token` must be; anyone may come in when there is none.
    pub traffic_token: Option<String>,
    /// What the server is to see as Host, `${PORT}` standing for the port; the original goes into
    /// `X-Forwarded-Host`.
    pub mask_host: Option<String>,
}

/// The sandboxes that run on this node.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// The sandbox with this id. To be the same `Arc` for as long as one run lasts: idle
    /// connections are kept per `Arc`.
    async fn find(&self, id: &SandboxId) -> Option<Arc<dyn Target>>;
}

/// Where sandboxes run.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Where the sandbox is now; `None` when there is none that requests could reach.
    ///
    /// # Errors
    /// When that cannot be found out.
    async fn locate(&self, id: &SandboxId) -> Result<Option<Location>>;

    /// Makes a sandbox that is [`Location::Asleep`] run, and returns when it does; one that runs is
    /// left as it is. Whether it may be woken has been checked. Called once at a time for one
    /// sandbox, and may be dropped at any point. Not for directories in which nothing sleeps.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is gone, `CONCURRENCY_LIMIT` when it may not run beside those that do,
    /// `SANDBOX_BUSY` when it is between two states still. It is asleep as before then.
    async fn wake(&self, id: &SandboxId) -> Result<()> {
        Err(Error::new(codes::INTERNAL, format!("nothing here wakes sandbox {id}.")))
    }
}

/// Answer of [`Directory::locate`].
#[derive(Clone)]
pub enum Location {
    /// In this process. The same `Arc` for as long as one run lasts, as [`Sandboxes::find`] has it.
    Here(Arc<dyn Target>),
    /// On another node.
    Node {
        /// That node's proxy.
        address: SocketAddr,
        /// The secret that it asks for in [`NODE_TOKEN_HEADER`].
        token: String,
    },
    /// Nowhere, but a request may wake it: it is paused, or on the way there or back.
    Asleep(Asleep),
    /// Nowhere for a moment, after which it runs on: a copy of it is being taken.
    Soon,
}

/// What a request must know to wake a sandbox.
#[derive(Clone, Debug, Default)]
pub struct Asleep {
    /// What `X-Access-Token` must be on envd's port; anyone may when there is none.
    pub envd_token: Option<String>,
    /// What `e2b-traffic-access-token` must be on other ports; anyone may when there is none.
    pub traffic_token: Option<String>,
}
