//! The front: one port for every name of a deployment, with TLS and without.
//!
//! ```text
//!                     ┌─ first byte ── TLS ──┐
//!  api.<domain>  ─────┤                      ├─ HTTP/1.1, HTTP/2 ── Host ─┬─ the API
//!  <port>-<id>.<domain>                      │                            ├─ the client proxy
//!  <domain>      ─────┴─ cleartext ──────────┘                            └─ a page of its own
//! ```
//!
//! - `domain`: what a deployment is called. `route`: which part of it a host name means. Both pure.
//! - `handler`: finds the part a request is for and hands it over; answers what is for nobody.
//! - `transport`: tells TLS from cleartext. `identity`: the certificate in use, and its renewal.
//! - `authority`: the local certificate authority. `certificate`: certificates given by an operator.
//!
//! It is built on the server of `atoll-proxy`: limits, timeouts, streaming and the way a body fails
//! when its sandbox dies are the same whichever way a client comes.
//!
//! A request is routed by its host alone. What TLS was asked for (SNI) plays no part: all names are
//! covered by one certificate, clients rightly use one connection for several of them, and no name
//! has rights that another lacks.

mod authority;
mod certificate;
mod domain;
mod handler;
mod identity;
mod route;
mod transport;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use atoll_core::{Error, Result, error::codes};
use atoll_proxy::{Handle, Lifecycle, Server, client::Edge};
use axum::Router;
use tokio::{net::TcpListener, task::JoinHandle};

pub use authority::Authority;
pub use domain::Domain;
pub use identity::Identity;

use handler::Front;
use transport::Sniffing;

/// Where the certificate comes from.
pub enum Certificates {
    /// Issued by this authority, and renewed in time.
    Local(Box<Authority>),
    /// An operator's files, in PEM form; read again when they change.
    Files {
        /// The certificate, followed by those between it and its root.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// How a front is configured.
pub struct Options {
    /// Where it listens; already bound.
    pub listener: TcpListener,
    /// What the deployment is called, and how that is proved.
    pub identity: Identity,
    /// The API. It gets the client's address as `ConnectInfo<SocketAddr>` among the extensions.
    pub api: Router,
    /// The client proxy.
    pub edge: Arc<Edge>,
    /// How long requests under way may take to finish when the front stops.
    pub grace: Duration,
}

/// A running front.
pub struct Service {
    server: Server,
    renewing: JoinHandle<()>,
}

impl Service {
    /// Serves.
    ///
    /// # Errors
    /// `INTERNAL` when the listener is not bound, or TLS cannot be set up.
    pub fn start(options: Options) -> Result<Self> {
        let identity = Arc::new(options.identity);
        let transport = Sniffing::new(Arc::clone(&identity))?;
        let domain = identity.domain().clone();
        let front = Arc::new(Front::new(domain, options.api, options.edge));
        let lifecycle = Lifecycle::default();
        let server = Server::start(options.listener, transport, front, lifecycle, options.grace)
            .map_err(|error: io::Error| {
                let message = format!("the front's listener has no address: {error}.");
                Error::new(codes::INTERNAL, message)
            })?;
        let renewing = tokio::spawn(identity::renew(identity));
        Ok(Self { server, renewing })
    }

    /// How others stop it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.server.handle()
    }

    /// Stops it: what is under way may finish until the grace is over.
    pub async fn shutdown(self) {
        self.renewing.abort();
        self.server.shutdown().await;
    }
}
