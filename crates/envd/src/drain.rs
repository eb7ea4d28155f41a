//! Reads on what a handler has left of a request.
//!
//! Whoever is refused may be in the middle of sending. A connection that is closed with unread data
//! is reset, and the reset can overtake the answer: the client would see neither status nor reason.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use futures::StreamExt;
use http::{Version, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};

/// How much is read, and for how long. A client that sends more than that does not listen.
const MAX_BYTES: usize = 64 << 20;
const MAX_TIME: Duration = Duration::from_secs(5);

/// Sees to the body of a request, whatever becomes of it.
pub async fn see_to_body(request: Request) -> Request {
    // HTTP/2 can end one stream by itself; a client that has asked first is told not to send.
    let unasked =
        request.version() < Version::HTTP_2 && !request.headers().contains_key(header::EXPECT);
    if unasked { request.map(|body| Body::new(Drained { body: Some(body) })) } else { request }
}

/// A body that is read on when it is dropped.
struct Drained {
    /// None at its end.
    body: Option<Body>,
}

impl http_body::Body for Drained {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        drop(runtime.spawn(timeout(MAX_TIME, discard(body))));
    }
}

async fn discard(body: Body) {
    let mut left = MAX_BYTES;
    let mut frames = body.into_data_stream();
    while let Some(Ok(frame)) = frames.next().await {
        left = left.saturating_sub(frame.len());
        if left == 0 {
            break;
        }
    }
}
