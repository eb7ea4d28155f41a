//! Bodies on their way through a proxy. Frames pass as they come; what these types add is how a
//! body ends: a response whose sandbox is gone must fail rather than finish, and a request that
//! nobody reads to its end must not keep the client from reading the answer.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use tokio::runtime;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{pool::Lease, server::Lifecycle};

/// How long an unread request is read and thrown away. Closing a TCP connection with unread data
/// resets it, and the reset can overtake the answer.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a body failed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body, as a client sends it.
pub struct RequestBody {
    inner: Option<Incoming>,
    finished: Arc<AtomicBool>,
    lifecycle: Lifecycle,
    /// Whether the client sends on without having been told to.
    unasked: bool,
}

impl RequestBody {
    /// Takes over the body of a request that the server received.
    pub(crate) fn wrap(request: Request<Incoming>, lifecycle: &Lifecycle) -> Request<Self> {
        // HTTP/2 can refuse the rest of one stream by itself.
        let unasked =
            request.version() < Version::HTTP_2 && !request.headers().contains_key(header::EXPECT);
        request.map(|inner| Self {
            finished: Arc::new(AtomicBool::new(inner.is_end_stream())),
            inner: Some(inner),
            lifecycle: lifecycle.clone(),
            unasked,
        })
    }

    /// No body.
    pub(crate) fn empty(lifecycle: &Lifecycle) -> Self {
        let finished = Arc::new(AtomicBool::new(true));
        Self { inner: None, finished, lifecycle: lifecycle.clone(), unasked: false }
    }

    /// Becomes true when all of it has been read.
    pub(crate) fn finished(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.finished)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        if frame.is_none() || inner.is_end_stream() {
            self.finished.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.unasked && !self.finished.load(Ordering::Acquire);
        let (Some(mut rest), true) = (self.inner.take(), unread) else { return };
        let Ok(runtime) = runtime::Handle::try_current() else { return };
        let abort = self.lifecycle.abort.clone();
        let drain = async move {
            let read = async { while let Some(Ok(_)) = rest.frame().await {} };
            tokio::select! {
                () = read => {}
                () = tokio::time::sleep(DRAIN) => {}
                () = abort.cancelled() => {}
            }
        };
        self.lifecycle.tasks.spawn_on(drain, &runtime);
    }
}

/// A response's body.
pub struct Body {
    source: Source,
    /// Held until the answer is sent or given up.
    _exchange: Option<Arc<()>>,
}

/// Where a response's body comes from.
enum Source {
    /// Atoll itself.
    Whole(Full<Bytes>),
    /// Another service of this process.
    Service(UnsyncBoxBody<Bytes, BoxError>),
    /// A guest.
    Guest(GuestBody),
}

impl Body {
    /// A body that is all there.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self::from(Source::Whole(Full::new(bytes)))
    }

    /// The body of an answer that another service of this process gave.
    pub fn of_service<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::from(Source::Service(body.map_err(Into::into).boxed_unsync()))
    }

    /// What a guest sends.
    pub(crate) fn guest(body: GuestBody) -> Self {
        Self::from(Source::Guest(body))
    }

    /// The same body, which holds `exchange` as long as it lasts.
    pub(crate) fn holding(mut self, exchange: Arc<()>) -> Self {
        self._exchange = Some(exchange);
        self
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Self { source, _exchange: None }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().source {
            Source::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Source::Service(body) => Pin::new(body).poll_frame(cx),
            Source::Guest(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(body) => body.is_end_stream(),
            Source::Service(body) => body.is_end_stream(),
            Source::Guest(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(body) => body.size_hint(),
            Source::Service(body) => body.size_hint(),
            Source::Guest(body) => body.inner.size_hint(),
        }
    }
}

/// The body of a guest's response. Holds the connection it comes from, so that dropping the one
/// closes the other.
pub(crate) struct GuestBody {
    inner: Incoming,
    lease: Option<Lease>,
    ended: CancellationToken,
    until_ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl GuestBody {
    /// The body `inner`, which comes over `lease` from what `ended` tells the end of.
    pub(crate) fn new(inner: Incoming, lease: Lease, ended: CancellationToken) -> Self {
        let until_ended = Box::pin(ended.clone().cancelled_owned());
        let mut body = Self { inner, lease: Some(lease), ended, until_ended };
        if body.inner.is_end_stream() {
            body.complete();
        }
        body
    }

    fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First the end of the sandbox: a body delimited by the end of its connection would
        // otherwise seem complete.
        if self.ended.is_cancelled() || self.until_ended.as_mut().poll(cx).is_ready() {
            self.lease = None;
            return Poll::Ready(Some(Err("the sandbox ended".into())));
        }
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            match &frame {
                // Some HTTP/2 clients give up on a connection that carries many empty frames.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
                Some(Ok(_)) if !self.inner.is_end_stream() => {}
                Some(Ok(_)) => self.complete(),
                Some(Err(_)) => self.lease = None,
                None if self.ended.is_cancelled() => {
                    self.lease = None;
                    return Poll::Ready(Some(Err("the sandbox ended".into())));
                }
                None => self.complete(),
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
    }
}
