//! Closes a sandbox's TCP connections that a checkpoint cannot keep: those to outside, and those that
//! the daemon has opened into it. Connections within the sandbox are left alone.
//!
//! To be done before a dump, so that the other ends hear of it; and after a restore, for connections
//! that have come back without their other ends.
//!
//! The kernel lists and ends sockets over netlink (sock_diag(7)), in the network namespace that the
//! calling thread is in. So a thread goes there for it, and ends.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use atoll_network::{IDS_PER_SLOT, INNER};
use rustix::{
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::oneshot;

/// From the kernel's `linux/sock_diag.h`, `netlink.h` and `in.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const IPPROTO_TCP: u8 = 6;
/// All but listening sockets and those that only wait for their time to be over.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Sizes and places in netlink's header and in `linux/inet_diag.h`, bytes.
const HEADER: usize = 16;
const ID: usize = 48;
const ID_AT: usize = 4;
const REMOTE_AT: usize = 20;
const UID_AT: usize = ID_AT + ID + 12;
const ANSWER: usize = UID_AT + 8;

/// Closes them, and says how many there were. `first_uid` is the sandbox's first host id.
///
/// # Errors
/// When the kernel refuses; some may be closed then.
pub async fn close(net_ns: BorrowedFd<'_>, first_uid: u32) -> io::Result<usize> {
    let net_ns = net_ns.try_clone_to_owned()?;
    let (done, closed) = oneshot::channel();
    thread::Builder::new().name("connections".to_owned()).spawn(move || {
        // Nobody waits any more when this fails.
        let _ = done.send(close_here(&net_ns, first_uid));
    })?;
    closed.await.map_err(|_| io::Error::other("the thread has ended"))?
}

fn close_here(net_ns: &OwnedFd, first_uid: u32) -> io::Result<usize> {
    move_into_link_name_space(net_ns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = family.unsigned_abs() as u8;
        for connection in list(&socket, family)? {
            if connection.is_kept(first_uid) {
                continue;
            }
            match destroy(&socket, &connection) {
                Ok(()) => closed += 1,
                // It has ended by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(closed)
}

/// A socket, as the kernel describes it.
struct Connection {
    family: u8,
    id: [u8; ID],
    uid: u32,
}

impl Connection {
    fn parse(answer: &[u8]) -> Option<Self> {
        let answer: &[u8; ANSWER] = answer.first_chunk()?;
        let id = answer[ID_AT..].first_chunk()?;
        let uid = u32::from_ne_bytes(*answer[UID_AT..].first_chunk()?);
        Some(Self { family: answer[0], id: *id, uid })
    }

    fn remote(&self) -> Option<IpAddr> {
        let address = &self.id[REMOTE_AT..];
        if i32::from(self.family) == libc::AF_INET {
            return Some(IpAddr::from(*address.first_chunk::<4>()?));
        }
        let address = Ipv6Addr::from(*address.first_chunk::<16>()?);
        Some(address.to_canonical())
    }

    fn is_kept(&self, first_uid: u32) -> bool {
        let sandboxes = (first_uid..first_uid.saturating_add(IDS_PER_SLOT)).contains(&self.uid);
        let inside = self.remote().is_some_and(|it| it.is_loopback() || it == IpAddr::from(INNER));
        sandboxes && inside
    }
}

fn list(socket: &OwnedFd, family: u8) -> io::Result<Vec<Connection>> {
    ask(socket, SOCK_DIAG_BY_FAMILY, DUMP, family, &[0; ID])?;
    let mut found = Vec::new();
    // Larger than what the kernel sends at once.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (received, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..received];
        while let Some((kind, payload, next)) = message(rest) {
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    refused(payload)?;
                    return Ok(found);
                }
                _ => found.extend(Connection::parse(payload)),
            }
            rest = next;
        }
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn destroy(socket: &OwnedFd, connection: &Connection) -> io::Result<()> {
    ask(socket, SOCK_DESTROY, ACK, connection.family, &connection.id)?;
    let mut buffer = [0; 1024];
    let (received, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    match message(&buffer[..received]) {
        Some((ERROR, payload, _)) => refused(payload),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> io::Result<()> {
    let mut request = Vec::with_capacity(HEADER + 8 + ID);
    request.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((REQUEST | flags).to_ne_bytes());
    // Sequence and port: one question at a time, and the kernel fills in the port.
    request.extend([0; 8]);
    request.extend([family, IPPROTO_TCP, 0, 0]);
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(id);
    send(socket, &request, SendFlags::empty())?;
    Ok(())
}

/// The first message's kind and content, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An acknowledgement is an error of number zero.
fn refused(payload: &[u8]) -> io::Result<()> {
    let number = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(*number) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let mut two = Vec::new();
        for kind in [SOCK_DIAG_BY_FAMILY, DONE] {
            two.extend(18u32.to_ne_bytes());
            two.extend(kind.to_ne_bytes());
            two.extend([0; 10]);
            two.extend([7, 8, 0, 0]);
        }
        let (kind, payload, rest) = message(&two).unwrap();
        assert_eq!((kind, payload), (SOCK_DIAG_BY_FAMILY, &[7, 8][..]));
        let (kind, _, rest) = message(rest).unwrap();
        assert_eq!((kind, rest), (DONE, &[][..]));
        for length in 0..18 {
            assert!(message(&two[..length]).is_none());
        }
        assert!(message(&[0; HEADER]).is_none(), "shorter than its header");
    }

    #[test]
    fn what_is_kept() {
        let connection = |family: i32, remote: &[u8], uid: u32| {
            let mut id = [0; ID];
            id[REMOTE_AT..][..remote.len()].copy_from_slice(remote);
            Connection { family: family as u8, id, uid }
        };
        let inet6 = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
        let sandboxes = 65_536;
        for (family, remote, uid, kept) in [
            (libc::AF_INET, &[127, 0, 0, 1][..], sandboxes, true),
            (libc::AF_INET, &INNER.octets(), sandboxes + 1000, true),
            (libc::AF_INET, &[192, 0, 2, 1], sandboxes, false),
            (libc::AF_INET, &[127, 0, 0, 1], 0, false),
            (libc::AF_INET6, &inet6("::1"), sandboxes, true),
            (libc::AF_INET6, &inet6("::ffff:127.0.0.1"), sandboxes, true),
            (libc::AF_INET6, &inet6("2001:db8::1"), sandboxes, false),
        ] {
            let connection = connection(family, remote, uid);
            assert_eq!(connection.is_kept(65_536), kept, "{remote:?} of {uid}");
        }
    }
}
