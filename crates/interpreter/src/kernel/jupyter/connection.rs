//! The sockets of a Jupyter kernel: where they are, and when they can be used.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;
use zeromq::{DealerSocket, Socket, SubSocket, ZmqError};

use crate::kernel::Died;

/// The channels: each has a socket, whose number is in the connection file.
#[derive(Clone, Copy, Debug)]
enum Channel {
    Shell,
    Iopub,
    Stdin,
    Control,
    Heartbeat,
}

/// How many there are.
const CHANNELS: usize = 5;

/// The longest path of a socket, bytes: `sun_path` has 108, with the zero at its end (unix(7)).
const MAX_PATH: usize = 107;

/// How often is looked for sockets while a kernel starts.
const PAUSE: Duration = Duration::from_millis(5);

/// The kernels that were given ports so far: each gets an address of its own.
static ADDRESSES: AtomicU16 = AtomicU16::new(0);

/// The sockets of one kernel.
#[derive(Debug)]
pub(crate) enum Endpoints {
    /// In a directory: what their names begin with. Nobody but root comes near them.
    Ipc(PathBuf),
    /// Ports, for kernels that know nothing else. The address is one of the sandbox's loopback to which
    /// nothing from outside is forwarded: proxies connect to 127.0.0.1. What is not signed with the
    /// kernel's key does nothing, but who is in the sandbox can read what cells print.
    Tcp(Ipv4Addr, [u16; CHANNELS]),
}

/// The channels that are used. Standard input is refused to cells; pidfds tell of deaths better than
/// heartbeats.
pub(crate) struct Channels {
    pub(crate) shell: DealerSocket,
    pub(crate) iopub: SubSocket,
    pub(crate) control: DealerSocket,
}

impl Endpoints {
    /// Those of a kernel that has this directory for itself.
    ///
    /// # Errors
    /// When its path is too long for sockets in it.
    pub(crate) fn ipc(directory: &Path) -> io::Result<Self> {
        let prefix = directory.join("s");
        // A dash, and one digit.
        if prefix.as_os_str().len() + 2 > MAX_PATH {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path is too long"));
        }
        Ok(Self::Ipc(prefix))
    }

    /// Ports that are free now.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn tcp() -> io::Result<Self> {
        let [high, low] = ADDRESSES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        // 127.0.0.0/16 is where servers listen that are to be found.
        let address = Ipv4Addr::new(127, 49, high, low);
        let mut held = Vec::with_capacity(CHANNELS);
        let mut ports = [0; CHANNELS];
        for port in &mut ports {
            let listener = TcpListener::bind((address, 0))?;
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
        Ok(Self::Tcp(address, ports))
    }

    /// Writes the file that tells a kernel where its sockets are to be.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn write(&self, path: &Path, key: &str) -> io::Result<()> {
        let (transport, ip) = match self {
            Self::Ipc(prefix) => ("ipc", prefix.to_string_lossy().into_owned()),
            Self::Tcp(address, _) => ("tcp", address.to_string()),
        };
        let connection = json!({
            "transport": transport, "ip": ip, "shell_port": self.number(Channel::Shell),
            "iopub_port": self.number(Channel::Iopub), "stdin_port": self.number(Channel::Stdin),
            "control_port": self.number(Channel::Control), "hb_port": self.number(Channel::Heartbeat),
            "key": key, "signature_scheme": "hmac-sha256",
        });
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(connection.to_string().as_bytes())
    }

    /// What stands for a port in the connection file.
    fn number(&self, channel: Channel) -> u16 {
        match self {
            Self::Ipc(_) => channel as u16 + 1,
            Self::Tcp(_, ports) => ports[channel as usize],
        }
    }

    /// Waits until the kernel has made its sockets, as far as that can be seen without connecting.
    pub(crate) async fn made(&self) {
        for channel in [Channel::Shell, Channel::Iopub, Channel::Control] {
            self.endpoint(channel).await;
        }
    }

    /// Connects to sockets that the kernel has made, or to ports as soon as it has.
    ///
    /// # Errors
    /// When one does not speak ZeroMQ.
    pub(crate) async fn connect(&self) -> Result<Channels, Died> {
        let (mut shell, mut control) = (DealerSocket::new(), DealerSocket::new());
        self.join(&mut shell, Channel::Shell).await?;
        self.join(&mut control, Channel::Control).await?;
        Ok(Channels { shell, iopub: self.subscribe().await?, control })
    }

    /// Another socket that hears what the kernel publishes, once the kernel knows of it.
    ///
    /// # Errors
    /// When the kernel does not speak ZeroMQ.
    pub(crate) async fn subscribe(&self) -> Result<SubSocket, Died> {
        let mut iopub = SubSocket::new();
        self.join(&mut iopub, Channel::Iopub).await?;
        iopub.subscribe("").await.map_err(broken)?;
        Ok(iopub)
    }

    async fn join(&self, socket: &mut impl Socket, channel: Channel) -> Result<(), Died> {
        socket.connect(&self.endpoint(channel).await).await.map_err(broken)
    }

    /// Where a channel is, as soon as its socket is there.
    async fn endpoint(&self, channel: Channel) -> String {
        loop {
            match self.find(channel) {
                Some(endpoint) => return endpoint,
                None => sleep(PAUSE).await,
            }
        }
    }

    /// Where a channel is; none while its socket is not there. Ports always are.
    fn find(&self, channel: Channel) -> Option<String> {
        let number = self.number(channel);
        match self {
            // Most join the two with a dash; some write all transports alike.
            Self::Ipc(prefix) => ["-", ":"].iter().find_map(|joint| {
                let path = format!("{}{joint}{number}", prefix.display());
                Path::new(&path).exists().then(|| format!("ipc://{path}"))
            }),
            Self::Tcp(address, _) => Some(format!("tcp://{address}:{number}")),
        }
    }
}

/// Why a connection cannot be used any more.
pub(crate) fn broken(error: ZmqError) -> Died {
    Died(format!("the connection to the kernel broke: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written(endpoints: &Endpoints, directory: &Path) -> Value {
        let path = directory.join("connection.json");
        endpoints.write(&path, "secret").unwrap();
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn sockets_are_found_by_either_way_to_name_them() {
        let root = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::ipc(root.path()).unwrap();
        let file = written(&endpoints, root.path());
        assert_eq!((&file["transport"], &file["key"]), (&json!("ipc"), &json!("secret")));
        let prefix = file["ip"].as_str().unwrap();
        for (joint, channel, port) in [
            ("-", Channel::Shell, "shell_port"),
            (":", Channel::Iopub, "iopub_port"),
            ("-", Channel::Control, "control_port"),
        ] {
            assert_eq!(endpoints.find(channel), None);
            let path = format!("{prefix}{joint}{}", file[port]);
            let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
            assert_eq!(endpoints.find(channel), Some(format!("ipc://{path}")));
        }
        endpoints.made().await;
    }

    #[test]
    fn each_kernel_has_an_address_where_nobody_else_is_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::tcp().unwrap();
        let file = written(&endpoints, root.path());
        assert_eq!(file["transport"], "tcp");
        let address: Ipv4Addr = file["ip"].as_str().unwrap().parse().unwrap();
        assert!(address.is_loopback() && address != Ipv4Addr::LOCALHOST);
        let ports =
            ["shell", "iopub", "stdin", "control", "hb"].map(|name| &file[format!("{name}_port")]);
        let different: std::collections::BTreeSet<u64> =
            ports.iter().map(|port| port.as_u64().unwrap()).collect();
        assert_eq!((different.len(), different.contains(&0)), (CHANNELS, false));
        assert_ne!(
            written(&Endpoints::tcp().unwrap(), tempfile::tempdir().unwrap().path())["ip"],
            file["ip"]
        );
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let long = |length| PathBuf::from(format!("/{}", "x".repeat(length - 1)));
        assert!(Endpoints::ipc(&long(MAX_PATH - 4)).is_ok());
        assert!(Endpoints::ipc(&long(MAX_PATH - 3)).is_err());
    }
}
