//! The name servers that queries are forwarded to.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message::{Query, is_failure};

/// How long one name server may take, over UDP and over TCP.
const UDP_DEADLINE: Duration = Duration::from_secs(2);
const TCP_DEADLINE: Duration = Duration::from_secs(4);
/// How often every name server is tried over UDP: datagrams get lost.
const UDP_ROUNDS: usize = 2;
/// Name servers used, as by the C library.
const MOST_SERVERS: usize = 3;
/// Largest message, bytes.
const LARGEST: usize = 65_535;
const PORT: u16 = 53;

/// How a query travels on: as it came, so that a truncated answer makes the client, and then us,
/// repeat it over TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A list of name servers, fixed or that of the host.
pub(crate) struct Upstreams {
    source: Source,
    /// Which one answered last: the next query begins there.
    preferred: AtomicUsize,
}

enum Source {
    Fixed(Vec<SocketAddr>),
    File { path: PathBuf, read: Mutex<Read> },
}

/// The file as last read.
#[derive(Default)]
struct Read {
    stamp: Option<(SystemTime, u64)>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    /// `fixed` name servers, or those of `/etc/resolv.conf` when there are none.
    pub(crate) fn new(fixed: Vec<SocketAddr>) -> Self {
        let source = if fixed.is_empty() {
            Source::File { path: "/etc/resolv.conf".into(), read: Mutex::default() }
        } else {
            Source::Fixed(fixed)
        };
        Self { source, preferred: AtomicUsize::new(0) }
    }

    /// The name servers at present. A file is read again when it has changed.
    pub(crate) fn servers(&self) -> Vec<SocketAddr> {
        match &self.source {
            Source::Fixed(servers) => servers.clone(),
            Source::File { path, read } => {
                let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
                // While it is being replaced, what was read last is still right.
                if let Ok(stamp) =
                    fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len())))
                    && read.stamp != Some(stamp)
                    && let Ok(text) = fs::read_to_string(path)
                {
                    *read = Read { stamp: Some(stamp), servers: parse(&text) };
                }
                read.servers.clone()
            }
        }
    }

    /// Forwards `query`. The answer is the client's as it stands; `None` when no name server gives
    /// one in time. A server that fails or refuses makes way for the next.
    pub(crate) async fn resolve(&self, query: &Query, transport: Transport) -> Option<Vec<u8>> {
        let servers = self.servers();
        let count = servers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let rounds = if transport == Transport::Udp { UDP_ROUNDS } else { 1 };
        let mut failure = None;
        for step in 0..count * rounds {
            let at = (first + step) % count;
            match ask(servers[at], query, transport).await {
                Ok(response) if !is_failure(&response) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Some(response);
                }
                Ok(response) => failure = Some(response),
                Err(error) => tracing::debug!(server = %servers[at], %error, "name server"),
            }
            // One word from every server is enough.
            if failure.is_some() && step + 1 >= count {
                break;
            }
        }
        failure
    }
}

async fn ask(server: SocketAddr, query: &Query, transport: Transport) -> io::Result<Vec<u8>> {
    let id =
        u16::try_from(getrandom::u32().map_err(io::Error::other)? & 0xffff).unwrap_or_default();
    match transport {
        Transport::Udp => timeout(UDP_DEADLINE, ask_udp(server, query, id)).await?,
        Transport::Tcp => timeout(TCP_DEADLINE, ask_tcp(server, query, id)).await?,
    }
}

async fn ask_udp(server: SocketAddr, query: &Query, id: u16) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for each query: a random port, and once connected, this server's datagrams only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query.with_id(id)).await?;
    loop {
        let mut response = Vec::with_capacity(LARGEST);
        socket.recv_buf(&mut response).await?;
        if let Some(response) = query.accept(response, id) {
            return Ok(response);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Query, id: u16) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, &query.with_id(id)).await?;
    let response = read_message(&mut stream).await?;
    query.accept(response, id).ok_or_else(|| io::Error::other("an answer to something else"))
}

/// Reads a message behind its length, as DNS over TCP has it.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message behind its length, in one segment where it fits.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// The name servers of a `resolv.conf`. Scoped link-local addresses are left out.
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
            Some(SocketAddr::new(address.parse().ok()?, PORT))
        })
        .take(MOST_SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.1 # trailing\n\
                    nameserver fe80::1%eth0\n nameserver\t2001:db8::1\nnameserverx 9.9.9.9\n";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_is_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let source = Source::File { path: path.clone(), read: Mutex::default() };
        let upstreams = Upstreams { source, preferred: AtomicUsize::new(0) };
        let server = |text: &str| vec![format!("{text}:53").parse::<SocketAddr>().unwrap()];
        assert_eq!(upstreams.servers(), server("192.0.2.1"));
        fs::write(&path, "nameserver 192.0.2.22\n").unwrap();
        assert_eq!(upstreams.servers(), server("192.0.2.22"));
        fs::remove_file(&path).unwrap();
        assert_eq!(upstreams.servers(), server("192.0.2.22"));
    }
}
