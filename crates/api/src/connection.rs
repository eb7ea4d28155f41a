//! One client's connection, and how long it may keep us waiting.
//!
//! HTTP/1.1 and HTTP/2 are told apart by the first bytes. The server library bounds how long a
//! request's head may take only together with how long a connection may idle; clients pool
//! connections for minutes, so the two are told apart here, in the stream under the library:
//!
//! ```text
//!            first byte of a request           the head is complete
//!  Idle ───────────────────────────► Head ──────────────────────────► Serving
//!   ▲  620 s                              10 s                           │ as long as the handler
//!   └────────────────────────────────────────────────────────────────────┘ the answer is made
//! ```
//!
//! A connection starts in `Head`: who connects has something to say. On HTTP/2 bytes are not the
//! beginning of a request, so there each byte only prolongs `Idle`, and pings find dead peers.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use atoll_core::limits::PROXY_IDLE;
use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};
use tower::ServiceExt;

/// How often an HTTP/2 client is asked whether it is there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// Serves one connection until either side ends it.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    head_timeout: Duration,
    watcher: Watcher,
) {
    // A request or an answer is often smaller than a segment; without this it would wait.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "nodelay");
    }
    let progress = Arc::new(Progress::default());
    let stream = Patient::new(stream, progress.clone(), head_timeout);
    let service =
        service_fn(move |request| answer(request, peer, router.clone(), progress.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The timeout of this module stands in for the library's.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    router: Router,
    progress: Arc<Progress>,
) -> Result<Response<Body>, Infallible> {
    let _serving = progress.serving(request.version());
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await
}

/// What the service tells the stream below it.
#[derive(Default)]
struct Progress {
    /// Requests whose answers are being made.
    serving: AtomicUsize,
    /// Requests so far.
    seen: AtomicU64,
    is_http2: AtomicBool,
}

impl Progress {
    fn serving(self: &Arc<Self>, version: Version) -> Serving {
        self.serving.fetch_add(1, Ordering::AcqRel);
        self.seen.fetch_add(1, Ordering::AcqRel);
        self.is_http2.store(version == Version::HTTP_2, Ordering::Release);
        Serving(self.clone())
    }
}

/// Counts a request as being served until it is dropped.
struct Serving(Arc<Progress>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Idle,
    Serving,
}

/// A stream whose reads fail when the client is too slow.
struct Patient {
    stream: TcpStream,
    progress: Arc<Progress>,
    head_timeout: Duration,
    state: State,
    /// Requests seen when `state` was last looked at.
    seen: u64,
    timer: Pin<Box<Sleep>>,
}

impl Patient {
    fn new(stream: TcpStream, progress: Arc<Progress>, head_timeout: Duration) -> Self {
        let timer = Box::pin(sleep(head_timeout));
        Self { stream, progress, head_timeout, state: State::Head, seen: 0, timer }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        let patience = match state {
            State::Head => self.head_timeout,
            State::Idle => PROXY_IDLE,
            State::Serving => return,
        };
        self.timer.as_mut().reset(Instant::now() + patience);
    }

    /// Takes note of what the service did since the last read.
    fn catch_up(&mut self) {
        let seen = self.progress.seen.load(Ordering::Acquire);
        if self.progress.serving.load(Ordering::Acquire) > 0 {
            self.enter(State::Serving);
        } else if self.state == State::Serving || seen != self.seen {
            self.enter(State::Idle);
        }
        self.seen = seen;
    }

    fn note_bytes(&mut self) {
        match self.state {
            State::Idle if self.progress.is_http2.load(Ordering::Acquire) => {
                self.enter(State::Idle)
            }
            State::Idle => self.enter(State::Head),
            State::Head | State::Serving => {}
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.catch_up();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                this.note_bytes();
                Poll::Ready(result)
            }
            Poll::Pending if this.state == State::Serving => Poll::Pending,
            Poll::Pending => {
                ready!(this.timer.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client is too slow")))
            }
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
