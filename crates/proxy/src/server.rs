//! Serving HTTP/1.1 and HTTP/2 without TLS on one port, and stopping without delay.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::body::{Body, RequestBody};

/// How long a client may stay connected without asking for anything. Longer than the 620 s after
/// which balancers in front close theirs, so that it is never this side that closes first.
const IDLE: Duration = Duration::from_secs(640);

/// Requests that one HTTP/2 client may have under way. A stream for each running command of many
/// sandboxes can share a connection, and the one beyond the limit would wait for another to end.
const MAX_STREAMS: u32 = 1000;

/// Headers of one request, bytes, in HTTP/2. As much as HTTP/1.1 servers commonly take.
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
    loop {
        let accepted = tokio::select! {
            () = life.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, Arc::clone(&handler), life.clone());
                life.tasks.spawn(connection);
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
) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "socket options");
    }
    tokio::select! {
        // hyper's own limit begins with the first byte.
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
    let builder = builder();
    let mut serving =
        std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = &mut serving => result,
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

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder.http2().max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADERS);
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
