//! A client proxy for the time of a measurement, which sends everything to one node's proxy: the
//! way of a request when the client's machine is not the sandbox's.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_proxy::{Directory, Location, client};
use tokio::net::TcpListener;

use super::failed;

/// Every sandbox is on this node.
struct Node {
    address: SocketAddr,
    token: String,
}

#[async_trait]
impl Directory for Node {
    async fn locate(&self, _: &SandboxId) -> Result<Option<Location>> {
        Ok(Some(Location::Node { address: self.address, token: self.token.clone() }))
    }
}

/// Starts one on a free port of the loopback.
///
/// # Errors
/// When no port can be had.
pub(super) async fn start(address: SocketAddr, token: String) -> Result<client::Service> {
    let bind = async || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        listener.map_err(|error| failed("cannot listen on loopback", error))
    };
    let options = client::Options {
        directory: std::sync::Arc::new(Node { address, token }),
        grace: Duration::ZERO,
    };
    client::Service::start(options, bind().await?, bind().await?)
}
