//! One slot, in use.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use atoll_core::{Error, Result, error::codes};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Mutex, mpsc},
};

use crate::{
    INNER, dns,
    links::{Group, Links},
    netns::Worker,
    pool::Event,
};

/// What a slot consists of. Dropping it closes the namespaces: the kernel then removes the links,
/// addresses and rules with them, once no process or connection is left inside.
pub(crate) struct Parts {
    pub(crate) index: u32,
    pub(crate) first_uid: u32,
    pub(crate) user_ns: OwnedFd,
    pub(crate) net_ns: Arc<OwnedFd>,
    /// Index of the host end.
    pub(crate) link: u32,
    pub(crate) host: Links,
    pub(crate) dialer: Worker,
    /// Whether DNS answers.
    pub(crate) online: Arc<AtomicBool>,
    /// Held while the link and `online` change together.
    pub(crate) switching: Mutex<()>,
    /// None in a sandbox that serves its port itself.
    pub(crate) _dns: Option<dns::Server>,
}

/// A network slot: what one sandbox plugs into. It is used once; dropping or releasing it tears it
/// down in the background, unless one [leaves](Slot::leave) it.
///
/// All processes in the namespaces must have ended before that: two seconds later the slot's link,
/// address and host ids are another's.
pub struct Slot {
    // In this order: the pool hears of it when the parts are gone.
    parts: Parts,
    retire: Retire,
}

struct Retire {
    index: u32,
    left: bool,
    pool: mpsc::UnboundedSender<Event>,
}

impl Drop for Retire {
    fn drop(&mut self) {
        // A pool that has stopped has removed everything itself.
        let event = if self.left { Event::Left } else { Event::Retired };
        let _ = self.pool.send(event(self.index));
    }
}

impl Slot {
    pub(crate) fn new(parts: Parts, pool: mpsc::UnboundedSender<Event>) -> Self {
        let retire = Retire { index: parts.index, left: false, pool };
        Self { parts, retire }
    }

    /// The slot's number on this node; no two slots in use share one.
    pub fn index(&self) -> u32 {
        self.retire.index
    }

    /// The user namespace.
    pub fn user_ns(&self) -> BorrowedFd<'_> {
        self.parts.user_ns.as_fd()
    }

    /// The network namespace, owned by the user namespace.
    pub fn net_ns(&self) -> BorrowedFd<'_> {
        self.parts.net_ns.as_fd()
    }

    /// Host id of the sandbox's root; [`crate::IDS_PER_SLOT`] ids from here on are the sandbox's.
    pub fn first_uid(&self) -> u32 {
        self.parts.first_uid
    }

    /// Opens or cuts the way out, at once and for connections that are open. A new slot has it
    /// open. Cut, nothing leaves and no name resolves.
    ///
    /// # Errors
    /// `SLOT_FAILED` when the kernel refuses; the slot is then in the more closed of both states,
    /// or as it was.
    pub async fn set_internet(&self, allowed: bool) -> Result<()> {
        let _switching = self.parts.switching.lock().await;
        if !allowed {
            self.parts.online.store(false, Ordering::SeqCst);
        }
        self.parts.host.set_group(self.parts.link, Group::of(allowed)).await.map_err(|error| {
            let verb = if allowed { "open" } else { "close" };
            let message = format!("Cannot {verb} network slot {}: {error}.", self.index());
            Error::new(codes::SLOT_FAILED, message)
        })?;
        self.parts.online.store(allowed, Ordering::SeqCst);
        Ok(())
    }

    /// Connects to a TCP port inside the sandbox, as a process in it would: 127.0.0.1 first, then
    /// ::1, then the address of eth0. The stream has `TCP_NODELAY` set.
    ///
    /// A stream keeps the namespace alive: drop it when the sandbox has ended.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens. There is no time limit here: a server that accepts
    /// nothing keeps this waiting.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let candidates: [IpAddr; 3] =
            [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), INNER.into()];
        for address in candidates {
            match self.connect_to(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) if nobody_there(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let open = move || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        self.parts.dialer.run(&self.parts.net_ns, open).await?.connect(address).await
    }

    /// Gives the slot up. It is not used again: the pool makes another.
    // Async so that callers do not come to rely on teardown being done when this returns.
    pub async fn release(self) {}

    /// Lets go of the slot without tearing it down: its sandbox lives on, with all but names to
    /// resolve. The service leaves its link and its rules in place even at shutdown, and gives its
    /// index to nobody; [`crate::Handle::adopt`] takes it up again, in this run or a later one.
    pub fn leave(mut self) {
        self.retire.left = true;
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("index", &self.index()).finish_non_exhaustive()
    }
}

/// Whether another of the sandbox's addresses is worth trying.
fn nobody_there(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, Unsupported,
    };
    // Unsupported is what a kernel without IPv6 says.
    matches!(
        error.kind(),
        ConnectionRefused | AddrNotAvailable | HostUnreachable | NetworkUnreachable | Unsupported
    ) || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}
