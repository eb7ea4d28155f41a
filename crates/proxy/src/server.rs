//! Serving HTTP/1.1 and HTTP/2 without TLS on one port, and stopping without delay.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

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
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::{io::InspectReader, sync::CancellationToken, task::TaskTracker};

use crate::{
    body::{Body, RequestBody},
    patience::{HeadTimer, Received},
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
const MAX_HEADERS: u32 = 64 * 1024;

/// How long to wait after a connection could not be accepted, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The life of one service, shared by all that works for it.
#[derive(Clone, Default)]
pub(crate) struct Lifecycle {
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

/// How others stop a proxy. Cheap to clone; outlives the service.
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

    /// The address that the proxy listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Waits for a service's task to end.
pub(crate) async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a proxy failed");
    }
}

/// What answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    fn handle(
        &self,
        request: Request<RequestBody>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Accepts connections and serves each in a task of its own, until the service is to stop.
pub(crate) async fn serve<H: Handler>(listener: TcpListener, handler: Arc<H>, life: Lifecycle) {
    accept(listener, handler, life, Arc::new(Semaphore::new(max_connections()))).await;
}

/// How many connections one listener serves at once: a quarter of the files that may be open. A
/// request can take as many again towards its sandbox, and the sandboxes need some for themselves.
fn max_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from((files / 4).max(MIN_CONNECTIONS)).unwrap_or(usize::MAX);
    connections.min(Semaphore::MAX_PERMITS)
}

/// Serves as many connections at once as there are `places`; others wait in the listener's queue.
async fn accept<H: Handler>(
    listener: TcpListener,
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
                let handler = Arc::clone(&handler);
                life.tasks.spawn(connection(stream, peer, handler, life.clone(), place));
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

async fn connection<H: Handler>(
    stream: TcpStream,
    peer: SocketAddr,
    handler: Arc<H>,
    life: Lifecycle,
    place: OwnedSemaphorePermit,
) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "socket options");
    }
    tokio::select! {
        // What limits heads begins with the first byte.
        first = tokio::time::timeout(IDLE, stream.readable()) => {
            if !matches!(first, Ok(Ok(()))) {
                return;
            }
        }
        () = life.drain.cancelled() => return,
    }
    let tasks = life.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        let request = RequestBody::wrap(request, &tasks);
        async move { Ok::<_, std::convert::Infallible>(handler.handle(request, peer).await) }
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
        () = life.drain.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut serving => result,
                () = life.abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, %peer, "connection ended");
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
        async fn handle(&self, _: Request<RequestBody>, _: SocketAddr) -> Response<Body> {
            Response::new(Body::whole("ok".into()))
        }
    }

    async fn answer(stream: &mut TcpStream) -> [u8; 12] {
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        status
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_others_to_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let life = Lifecycle::default();
        let places = Arc::new(Semaphore::new(1));
        let accepting = accept(listener, Arc::new(Ok), life.clone(), Arc::clone(&places));
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
