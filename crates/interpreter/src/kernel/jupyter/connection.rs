//! The sockets of a Jupyter kernel: where they are, and when they can be used.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;
use zeromq::{DealerSocket, Socket, SubSocket, ZmqError};

use crate::kernel::Died;

/// Numbers of the channels: the last part of a socket's name.
const SHELL: u8 = 1;
const IOPUB: u8 = 2;
const STDIN: u8 = 3;
const CONTROL: u8 = 4;
const HEARTBEAT: u8 = 5;

/// The longest path of a socket, bytes: `sun_path` has 108, with the zero at its end (unix(7)).
const MAX_PATH: usize = 107;

/// How often is looked for sockets while a kernel starts.
const PAUSE: Duration = Duration::from_millis(5);

/// The sockets of one kernel, in a directory.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// What their names begin with.
    prefix: PathBuf,
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
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let prefix = directory.join("s");
        // A dash, and one digit.
        if prefix.as_os_str().len() + 2 > MAX_PATH {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path is too long"));
        }
        Ok(Self { prefix })
    }

    /// Writes the file that tells a kernel where its sockets are to be.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn write(&self, path: &Path, key: &str) -> io::Result<()> {
        let connection = json!({
            "transport": "ipc", "ip": self.prefix.to_string_lossy(),
            "shell_port": SHELL, "iopub_port": IOPUB, "stdin_port": STDIN,
            "control_port": CONTROL, "hb_port": HEARTBEAT,
            "key": key, "signature_scheme": "hmac-sha256",
        });
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(connection.to_string().as_bytes())
    }

    fn path(&self, channel: u8) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(format!("-{channel}"));
        path.into()
    }

    /// Waits until the kernel has made its sockets, and connects to them.
    ///
    /// # Errors
    /// When one does not speak ZeroMQ.
    pub(crate) async fn connect(&self) -> Result<Channels, Died> {
        for channel in [SHELL, IOPUB, CONTROL] {
            while !self.path(channel).exists() {
                sleep(PAUSE).await;
            }
        }
        let (mut shell, mut control) = (DealerSocket::new(), DealerSocket::new());
        shell.connect(&self.endpoint(SHELL)).await.map_err(broken)?;
        control.connect(&self.endpoint(CONTROL)).await.map_err(broken)?;
        Ok(Channels { shell, iopub: self.subscribe().await?, control })
    }

    /// Another socket that hears what the kernel publishes, once the kernel knows of it.
    ///
    /// # Errors
    /// When the kernel does not speak ZeroMQ.
    pub(crate) async fn subscribe(&self) -> Result<SubSocket, Died> {
        let mut iopub = SubSocket::new();
        iopub.connect(&self.endpoint(IOPUB)).await.map_err(broken)?;
        iopub.subscribe("").await.map_err(broken)?;
        Ok(iopub)
    }

    fn endpoint(&self, channel: u8) -> String {
        format!("ipc://{}", self.path(channel).display())
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

    #[test]
    fn the_connection_file_names_sockets_in_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::new(root.path()).unwrap();
        let path = root.path().join("connection.json");
        endpoints.write(&path, "secret").unwrap();
        let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        // A kernel joins the two with a dash.
        let shell = format!("{}-{}", file["ip"].as_str().unwrap(), file["shell_port"]);
        assert_eq!(Path::new(&shell), endpoints.path(SHELL));
        assert_eq!((&file["transport"], &file["key"]), (&json!("ipc"), &json!("secret")));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let long = |length| PathBuf::from(format!("/{}", "x".repeat(length - 1)));
        assert!(Endpoints::new(&long(MAX_PATH - 4)).is_ok());
        assert!(Endpoints::new(&long(MAX_PATH - 3)).is_err());
    }
}
