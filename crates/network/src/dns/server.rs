//! The sockets of one slot, and the tasks that serve them.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    message::{Code, Incoming, Query},
    upstream::{Transport, Upstreams, read_message, write_message},
};
use crate::NAME_SERVER;

/// Queries of one slot that may be under way over UDP. More wait in the socket's buffer.
const MOST_QUERIES: usize = 16;
/// TCP connections of one slot. More wait to be accepted.
const MOST_CONNECTIONS: usize = 10;
/// How long a TCP client may take for its next query, or to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Largest query over UDP, bytes; real ones are far smaller.
const LARGEST_QUERY: usize = 4096;
const PORT: u16 = 53;

/// Open sockets that no task serves yet.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Opens the sockets in the calling thread's network namespace.
pub(crate) fn open() -> io::Result<Sockets> {
    let address = SocketAddr::new(NAME_SERVER.into(), PORT);
    let sockets = Sockets { udp: UdpSocket::bind(address)?, tcp: TcpListener::bind(address)? };
    sockets.udp.set_nonblocking(true)?;
    sockets.tcp.set_nonblocking(true)?;
    Ok(sockets)
}

/// A slot's name server. Dropping it ends its tasks and closes its sockets.
pub(crate) struct Server {
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What both tasks answer from.
struct Slot {
    upstreams: Arc<Upstreams>,
    online: Arc<AtomicBool>,
}

impl Slot {
    /// The answer to `message`, if it deserves one.
    async fn answer(&self, message: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let query = match Incoming::parse(message) {
            Incoming::Query(query) => query,
            Incoming::Answer(answer) => return Some(answer),
            Incoming::Garbage => return None,
        };
        if !self.online() {
            return Some(query.answer(Code::Refused));
        }
        let answer = self.upstreams.resolve(&query, transport).await;
        Some(self.final_answer(&query, answer))
    }

    /// The way out may have been cut in the meantime.
    fn final_answer(&self, query: &Query, answer: Option<Vec<u8>>) -> Vec<u8> {
        match answer {
            _ if !self.online() => query.answer(Code::Refused),
            Some(answer) => answer,
            None => query.answer(Code::ServerFailure),
        }
    }

    fn online(&self) -> bool {
        self.online.load(Ordering::SeqCst)
    }
}

/// Serves `sockets` for as long as `online` is set; else every query is refused.
pub(crate) fn serve(
    sockets: Sockets,
    upstreams: Arc<Upstreams>,
    online: Arc<AtomicBool>,
) -> io::Result<Server> {
    let udp = tokio::net::UdpSocket::from_std(sockets.udp)?;
    let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
    let slot = Arc::new(Slot { upstreams, online });
    let tasks = [
        tokio::spawn(serve_udp(Arc::new(udp), Arc::clone(&slot))),
        tokio::spawn(serve_tcp(tcp, slot)),
    ];
    Ok(Server { tasks })
}

async fn serve_udp(socket: Arc<tokio::net::UdpSocket>, slot: Arc<Slot>) {
    let room = Arc::new(Semaphore::new(MOST_QUERIES));
    // Ends with this task, and its members with it.
    let mut queries = JoinSet::new();
    loop {
        while queries.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let mut message = Vec::with_capacity(LARGEST_QUERY);
        let client = match socket.recv_buf_from(&mut message).await {
            Ok((_, client)) => client,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let (socket, slot) = (Arc::clone(&socket), Arc::clone(&slot));
        queries.spawn(async move {
            if let Some(answer) = slot.answer(message, Transport::Udp).await {
                // A client that is gone needs no answer.
                let _ = socket.send_to(&answer, client).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(listener: tokio::net::TcpListener, slot: Arc<Slot>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let slot = Arc::clone(&slot);
        connections.spawn(async move {
            if let Err(error) = serve_connection(stream, &slot).await {
                tracing::debug!(%error, "DNS over TCP");
            }
            drop(permit);
        });
    }
}

/// One query after the other, until the client closes, errs or idles.
async fn serve_connection(mut stream: TcpStream, slot: &Slot) -> io::Result<()> {
    loop {
        let message = timeout(IDLE, read_message(&mut stream)).await??;
        let Some(answer) = slot.answer(message, Transport::Tcp).await else { return Ok(()) };
        timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
}

/// An error of a listening socket is of the moment (no descriptors, no memory): do not spin on it.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a slot's name server");
    sleep(Duration::from_millis(100)).await;
}
