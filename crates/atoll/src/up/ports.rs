//! The ports, all bound before anything else starts: a port in use is said at once, not after
//! minutes.

use std::{
    fs, io, iter,
    net::{IpAddr, SocketAddr},
};

use atoll_core::{Error, Result, error::codes};
use tokio::net::TcpListener;

/// Where the front listens if nobody says otherwise: where URLs without a port lead, else at the first
/// of these that is free.
const FRONT: (u16, std::ops::Range<u16>) = (443, 8443..8543);

/// Port numbers, as E2B's operators know them.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Ports {
    /// REST API.
    #[arg(long, default_value_t = 3000)]
    pub(crate) api_port: u16,
    /// Front: API and sandboxes by name, with TLS and without [default: 443, or 8443 and up].
    #[arg(long)]
    pub(crate) front_port: Option<u16>,
    /// Client proxy: traffic to sandboxes.
    #[arg(long, default_value_t = 3002)]
    pub(crate) proxy_port: u16,
    /// Health of the client proxy.
    #[arg(long, default_value_t = 3003)]
    pub(crate) proxy_health_port: u16,
    /// Node RPC.
    #[arg(long, default_value_t = 5008)]
    pub(crate) rpc_port: u16,
    /// Node proxy.
    #[arg(long, default_value_t = 5007)]
    pub(crate) node_proxy_port: u16,
}

impl Ports {
    fn require_distinct(&self) -> Result<()> {
        let mut named = vec![
            (self.api_port, "--api-port"),
            (self.proxy_port, "--proxy-port"),
            (self.proxy_health_port, "--proxy-health-port"),
            (self.rpc_port, "--rpc-port"),
            (self.node_proxy_port, "--node-proxy-port"),
        ];
        named.extend(self.front_port.map(|port| (port, "--front-port")));
        named.sort_unstable();
        let Some(pair) = named.windows(2).find(|pair| pair[0].0 == pair[1].0) else {
            return Ok(());
        };
        let ((port, first), (_, second)) = (pair[0], pair[1]);
        let message = format!("{first} and {second} are both {port}.");
        Err(Error::new(codes::BAD_OPTION, message).with_fix("Give each service a port of its own."))
    }
}

/// Bound listeners, one a service.
pub(crate) struct Listeners {
    pub(crate) api: TcpListener,
    pub(crate) proxy: TcpListener,
    pub(crate) proxy_health: TcpListener,
    pub(crate) rpc: TcpListener,
    pub(crate) node_proxy: TcpListener,
    pub(crate) front: TcpListener,
}

impl Listeners {
    /// Binds all of them. What only other parts of Atoll call stays on loopback whatever `address`.
    ///
    /// # Errors
    /// `BAD_OPTION` when two services are given one port; `PORT_IN_USE`, naming the port, what it is for and, where it can be seen, who has it.
    pub(crate) async fn bind(address: IpAddr, ports: &Ports) -> Result<Self> {
        ports.require_distinct()?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        Ok(Self {
            api: bind(address, ports.api_port, "the API", "--api-port").await?,
            proxy: bind(address, ports.proxy_port, "the client proxy", "--proxy-port").await?,
            proxy_health: bind(
                address,
                ports.proxy_health_port,
                "the client proxy's health",
                "--proxy-health-port",
            )
            .await?,
            rpc: bind(loopback, ports.rpc_port, "the node's RPC", "--rpc-port").await?,
            node_proxy: bind(
                loopback,
                ports.node_proxy_port,
                "the node proxy",
                "--node-proxy-port",
            )
            .await?,
            // Last: it takes what the others leave.
            front: bind_front(address, ports.front_port).await?,
        })
    }

    /// The port that the front has.
    ///
    /// # Errors
    /// `INTERNAL` when the system does not say.
    pub(crate) fn front_port(&self) -> Result<u16> {
        self.front.local_addr().map(|address| address.port()).map_err(|error| {
            Error::new(codes::INTERNAL, format!("the front's listener has no address: {error}."))
        })
    }
}

async fn bind_front(address: IpAddr, port: Option<u16>) -> Result<TcpListener> {
    const PURPOSE: (&str, &str) = ("the front", "--front-port");
    if let Some(port) = port {
        return bind(address, port, PURPOSE.0, PURPOSE.1).await;
    }
    for port in iter::once(FRONT.0).chain(FRONT.1) {
        match listen(SocketAddr::new(address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => tracing::debug!(%error, port, "not for the front"),
        }
    }
    // None of them: the last error is as good as any.
    bind(address, FRONT.1.start, PURPOSE.0, PURPOSE.1).await
}

async fn bind(address: IpAddr, port: u16, purpose: &str, option: &str) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    listen(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder_of(port).map(|name| format!(" by {name}")).unwrap_or_default();
            Error::new(
                codes::PORT_IN_USE,
                format!("port {port}, for {purpose}, is in use{holder}."),
            )
            .with_fix(format!("Stop what listens there, or choose another port with {option}."))
        }
        _ => Error::new(codes::BAD_OPTION, format!("cannot listen on {address}: {error}."))
            .with_fix("Give an address of this host with --listen."),
    })
}

/// Listens, with room for a thousand clients that connect at once: tokio's room is 128, and the
/// kernel resets some of those that find none.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 4096;
    let listener = TcpListener::bind(address).await?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The process that listens on a TCP port, as `name (pid N)`.
fn holder_of(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        fs::read_to_string(table).ok()?.lines().find_map(|line| listening_inode(line, port))
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        // Not `self`, which is a process that is there by its number, too.
        if pid.to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|link| link.to_string_lossy() == wanted)
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!(
                "{} (pid {})",
                name.trim(),
                process.file_name().to_string_lossy()
            ));
        }
    }
    None
}

fn listening_inode(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = fields.get(1)?.rsplit_once(':')?.1;
    let listens = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
    listens.then(|| fields.get(9)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_port_for_two_services_is_refused() {
        let ports = Ports {
            api_port: 3000,
            front_port: None,
            proxy_port: 3002,
            proxy_health_port: 3000,
            rpc_port: 5008,
            node_proxy_port: 5007,
        };
        let error = Listeners::bind([127, 0, 0, 1].into(), &ports).await.err().unwrap();
        assert_eq!(error.code, codes::BAD_OPTION);
        assert!(error.message.contains("--api-port and --proxy-health-port"), "{error}");
    }

    #[tokio::test]
    async fn a_front_port_that_was_asked_for_is_that_or_none() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind_front([127, 0, 0, 1].into(), Some(port)).await.unwrap_err();
        assert_eq!(error.code, codes::PORT_IN_USE);
        let (first, second) = (
            bind_front([127, 0, 0, 1].into(), None).await.unwrap(),
            bind_front([127, 0, 0, 1].into(), None).await.unwrap(),
        );
        assert_ne!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind([127, 0, 0, 1].into(), port, "the API", "--api-port").await.unwrap_err();
        assert_eq!(error.code, codes::PORT_IN_USE);
        assert!(error.message.contains(&format!("port {port}, for the API, is in use by ")));
        assert!(error.message.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.fix.contains("--api-port"));
    }
}
