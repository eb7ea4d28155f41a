//! Serving HTTP/1.1 and HTTP/2 on one port, and stopping without delay.
//!
//! What answers is a [`Handler`]; what a connection is before HTTP is spoken over it, and with whom,
//! is a [`Transport`]: [`Cleartext`] here, TLS elsewhere.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::{
    net::sockopt,
    process::{Resource, getrlimit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::{io::InspectReader, sync::CancellationToken, task::TaskTracker};

use crate::{
    body::{Body, RequestBody},
    patience::{HEAD, HeadTimer, Received},
};

/// How long a client may stay connected without asking for anything. Longer than the 620 s after
/// which balancers in front close theirs, so that it is never this side that closes first.
const IDLE: Duration = Duration::from_secs(640);

/// Requests that one HTTP/2 client may have under way. A stream for each running command of many
/// sandboxes can share a connection, and the one beyond the limit would wait for another to end.
const MAX_STREAMS: u32 = 1000;

/// Fewest connections that are served at once, whatever the limit of open files is.
const MIN_CONNECTIONS: u64 = 1024;

/// How often an HTTP/2 client is asked whether it is there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// Headers of one request, bytes. As much as servers commonly take.
const MAX_HEADERS: u32 = 32 * 1024;

/// How long to wait after a connection could not be accepted, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The life of one service, shared by all that works for it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Lifecycle {
    /// Cancelled to let what runs finish and to accept nothing more.
    pub(crate) drain: CancellationToken,
    /// Cancelled to end what still runs.
    pub(crate) abort: CancellationToken,
    /// Every task that has to end before the service has.
    pub(crate) tasks: TaskTracker,
}

impl Lifecycle {
    /// Waits until the service has been asked to stop and then until all tasks have ended, of
    /// which those that still run after `grace` are aborted.
    pub(crate) async fn finish(&self, grace: Duration) {
        self.drain.cancelled().await;
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.len(), "aborting what is left");
        }
        self.abort.cancel();
        self.tasks.wait().await;
    }
}

/// How others stop a server. Cheap to clone; outlives the service.
#[derive(Clone)]
pub struct Handle {
    lifecycle: Lifecycle,
    address: SocketAddr,
}

impl Handle {
    pub(crate) fn new(lifecycle: Lifecycle, address: SocketAddr) -> Self {
        Self { lifecycle, address }
    }

    /// Starts a graceful shutdown: nothing more is accepted, requests under way may finish until
    /// the service's grace is over. May be called more than once.
    pub fn shutdown(&self) {
        self.lifecycle.drain.cancel();
    }

    /// Waits until somebody has asked for the shutdown.
    pub async fn stopping(&self) {
        self.lifecycle.drain.cancelled().await;
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A running server of one listener.
pub struct Server {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves on `listener` until its handle is told to shut down, and then until all that works
    /// under `lifecycle` has ended, which takes `grace` at most.
    ///
    /// # Errors
    /// When the listener is not bound.
    pub fn start<T: Transport, H: Handler>(
        listener: TcpListener,
        transport: T,
        handler: Arc<H>,
        lifecycle: Lifecycle,
        grace: Duration,
    ) -> io::Result<Self> {
        let handle = Handle::new(lifecycle.clone(), listener.local_addr()?);
        let task = tokio::spawn(async move {
            tokio::join!(
                serve(listener, transport, handler, lifecycle.clone()),
                lifecycle.finish(grace)
            );
        });
        Ok(Self { handle, task })
    }

    /// How others stop it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops it: what is under way may finish until the grace is over.
    pub async fn shutdown(self) {
        self.handle.shutdown();
        join(self.task).await;
    }
}

/// Waits for a service's task to end.
pub(crate) async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a server failed");
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// Whether the connection is encrypted.
    pub secure: bool,
}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The answer to `request`. Dropped when the client leaves.
    fn handle(
        &self,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// A connection over which HTTP can be spoken.
pub struct Opened<S> {
    /// The connection.
    pub stream: S,
    /// Whether it is encrypted.
    pub secure: bool,
}

/// What is done with a connection before HTTP is spoken over it.
pub trait Transport: Send + Sync + 'static {
    /// What comes of it.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits until the client begins to speak and does what has to be done first. How long that may
    /// take is up to the implementation, and has to be bounded.
    fn open(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<Opened<Self::Stream>>> + Send;
}

/// HTTP without TLS.
#[derive(Clone, Copy, Debug)]
pub struct Cleartext;

impl Transport for Cleartext {
    type Stream = TcpStream;

    async fn open(&self, stream: TcpStream) -> io::Result<Opened<TcpStream>> {
        tokio::time::timeout(IDLE, stream.readable()).await??;
        Ok(Opened { stream, secure: false })
    }
}

/// Accepts connections and serves each in a task of its own, until the service is to stop.
pub(crate) async fn serve<T: Transport, H: Handler>(
    listener: TcpListener,
    transport: T,
    handler: Arc<H>,
    life: Lifecycle,
) {
    let places = Arc::new(Semaphore::new(max_connections()));
    accept(listener, Arc::new(transport), handler, life, places).await;
}

/// How many connections one listener serves at once: an eighth of the files that may be open. There
/// are two or three such listeners, a request can take as many again towards its sandbox, and the
/// sandboxes need some for themselves.
fn max_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from((files / 8).max(MIN_CONNECTIONS)).unwrap_or(usize::MAX);
    connections.min(Semaphore::MAX_PERMITS)
}

/// Serves as many connections at once as there are `places`; others wait in the listener's queue.
async fn accept<T: Transport, H: Handler>(
    listener: TcpListener,
    transport: Arc<T>,
    handler: Arc<H>,
    life: Lifecycle,
    places: Arc<Semaphore>,
) {
    loop {
        let place = tokio::select! {
            () = life.drain.cancelled() => return,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        // Nobody closes the semaphore.
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            () = life.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (transport, handler) = (Arc::clone(&transport), Arc::clone(&handler));
                let serving = connection(stream, peer, transport, handler, life.clone(), place);
                life.tasks.spawn(serving);
            }
            Err(error) if is_connections_own(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error of `accept` is of the connection that was to be accepted only.
fn is_connections_own(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

async fn connection<T: Transport, H: Handler>(
    stream: TcpStream,
    address: SocketAddr,
    transport: Arc<T>,
    handler: Arc<H>,
    life: Lifecycle,
    place: OwnedSemaphorePermit,
) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "socket options");
    }
    let opened = tokio::select! {
        opened = transport.open(stream) => opened,
        () = life.drain.cancelled() => return,
    };
    match opened {
        Ok(Opened { stream, secure }) => {
            converse(stream, Peer { address, secure }, handler, life, place).await;
        }
        Err(error) => tracing::debug!(%error, %address, "connection not opened"),
    }
}

/// Answers what comes over one connection.
async fn converse<S, H>(
    stream: S,
    peer: Peer,
    handler: Arc<H>,
    life: Lifecycle,
    place: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let tasks = life.clone();
    let exchanges = Exchanges::default();
    let begun = exchanges.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, exchange) = (Arc::clone(&handler), begun.begin());
        let request = RequestBody::wrap(request, &tasks);
        async move {
            let answer = handler.handle(request, peer).await;
            Ok::<_, std::convert::Infallible>(answer.map(|body| body.holding(exchange)))
        }
    });
    let received = Received::default();
    let builder = builder(received.clone());
    let inspected = received.clone();
    let stream = InspectReader::new(stream, move |bytes| {
        inspected.add(bytes.len());
        // After an upgrade the stream lives on without this task, and so must its place.
        let _ = &place;
    });
    let mut serving =
        std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = &mut serving => result,
        () = received.stalled() => return,
        // An HTTP/2 client may answer pings for ever.
        () = exchanges.idle() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut serving => result,
                () = tokio::time::sleep(HEAD) => return,
            }
        }
        () = life.drain.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut serving => result,
                () = life.abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, peer = %peer.address, "connection ended");
    }
}

/// The requests of one connection that are under way.
#[derive(Clone, Default)]
struct Exchanges {
    /// How many have begun so far.
    begun: Arc<AtomicU64>,
    /// Held by each until its answer is sent.
    open: Arc<()>,
}

impl Exchanges {
    fn begin(&self) -> Arc<()> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.open)
    }

    /// Ends when none has been under way for [`IDLE`], or up to twice as long.
    async fn idle(&self) {
        // One is here and one with the service.
        const NONE: usize = 2;
        loop {
            let none_open = Arc::strong_count(&self.open) <= NONE;
            let before = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(IDLE).await;
            if none_open && self.begun.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

fn builder(received: Received) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(HeadTimer::new(received))
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEADERS as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    builder
}

/// No waiting for more to send; and since nothing else times out, TCP has to notice clients that
/// vanished: after two and a half minutes.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 6)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Ok;

    impl Handler for Ok {
        async fn handle(&self, _: Request<RequestBody>, _: Peer) -> Response<Body> {
            Response::new(Body::whole("ok".into()))
        }
    }

    async fn answer(stream: &mut TcpStream) -> [u8; 12] {
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        status
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_its_last_answer_is_sent_and_long_gone() {
        let exchanges = Exchanges::default();
        let service = exchanges.clone();
        let exchange = service.begin();
        let body = Body::whole("ok".into()).holding(exchange);
        let waited = tokio::time::timeout(IDLE * 5, exchanges.idle()).await;
        assert!(waited.is_err(), "an answer was under way");
        drop(body);
        tokio::time::timeout(IDLE * 2, exchanges.idle()).await.unwrap();
        let busy = async {
            for _ in 0..10 {
                drop(service.begin());
                tokio::time::sleep(IDLE / 2).await;
            }
        };
        let idle = exchanges.idle();
        tokio::select! {
            () = idle => panic!("an answer had been sent not long ago"),
            () = busy => {}
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_others_to_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let life = Lifecycle::default();
        let places = Arc::new(Semaphore::new(1));
        let (transport, handler) = (Arc::new(Cleartext), Arc::new(Ok));
        let accepting = accept(listener, transport, handler, life.clone(), Arc::clone(&places));
        let accepting = tokio::spawn(accepting);
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(request).await.unwrap();
        assert_eq!(&answer(&mut first).await, b"HTTP/1.1 200");
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(request).await.unwrap();
        assert_eq!((life.tasks.len(), places.available_permits()), (1, 0));
        drop(first);
        assert_eq!(&answer(&mut second).await, b"HTTP/1.1 200");
        life.drain.cancel();
        accepting.await.unwrap();
        life.tasks.close();
        life.tasks.wait().await;
        assert_eq!(places.available_permits(), 1);
    }
}
