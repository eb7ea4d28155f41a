//! How much of RPC messages is held at a time, over all calls.
//!
//! A message is in memory as a whole, and more than once while it is decoded. Input waits there
//! until the process reads it, for as long as that takes. Beyond the budget calls are refused with
//! `resource_exhausted`; small ones never are, so that however much input waits, a command can be
//! started and another killed.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use connectrpc::ConnectError;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::rpc::{self, STREAM_INPUT};

/// What all calls together may hold, bytes as they came.
const LIMIT: usize = 24 << 20;

/// What each call may hold beside that.
const FREE: usize = 64 << 10;

/// What a stream of compressed messages reserves: what they become shows when it is too late.
const COMPRESSED_STREAM: usize = 1 << 20;

/// The headers that say whether messages are compressed: unary, streaming, gRPC.
const ENCODINGS: [&str; 3] = ["content-encoding", "connect-content-encoding", "grpc-encoding"];

/// What calls hold.
#[derive(Debug, Default)]
pub struct Budget {
    held: AtomicUsize,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let take = |held: usize| held.checked_add(bytes).filter(|held| *held <= LIMIT);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One call's share, given back when the call is over. A handler of a stream finds it among the
/// extensions of its request.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    /// For as long as the call takes.
    reserved: usize,
    /// What has come of the messages in hand.
    received: AtomicUsize,
    refused: AtomicBool,
}

impl Charge {
    fn new(budget: Arc<Budget>, reserved: usize) -> Option<Arc<Self>> {
        let (received, refused) = (AtomicUsize::new(0), AtomicBool::new(false));
        let taken = budget.take(reserved);
        taken.then(|| Arc::new(Self { budget, reserved, received, refused }))
    }

    /// A message of a stream has been dealt with, and what came of it is no longer held.
    pub fn settle(&self) {
        self.budget.give_back(charged(self.received.swap(0, Ordering::Relaxed)));
    }

    /// Accounts for a message in hand that is larger than what came of it, which was compressed.
    ///
    /// # Errors
    /// `resource_exhausted` beyond the budget: the message must not be kept waiting.
    pub fn cover(&self, decoded: usize) -> Result<(), ConnectError> {
        let received = self.received.load(Ordering::Relaxed);
        let covered = self.receive(decoded.saturating_sub(received));
        covered.then_some(()).ok_or_else(too_much)
    }

    fn receive(&self, bytes: usize) -> bool {
        let before = self.received.fetch_add(bytes, Ordering::Relaxed);
        if self.budget.take(charged(before + bytes) - charged(before)) {
            return true;
        }
        self.received.fetch_sub(bytes, Ordering::Relaxed);
        self.refused.store(true, Ordering::Relaxed);
        false
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.settle();
        self.budget.give_back(self.reserved);
    }
}

fn charged(received: usize) -> usize {
    received.saturating_sub(FREE)
}

/// Lets a call through as far as the budget goes.
pub async fn meter(State(budget): State<Arc<Budget>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let compressed_stream = parts.uri.path() == STREAM_INPUT && is_compressed(&parts.headers);
    let reserved = if compressed_stream { COMPRESSED_STREAM } else { 0 };
    let Some(charge) = Charge::new(budget, reserved) else {
        return rpc::refuse(too_much(), &parts.headers);
    };
    parts.extensions.insert(Arc::clone(&charge));
    let headers = parts.headers.clone();
    let body = Body::new(Metered { body, charge: Arc::clone(&charge) });
    let response = next.run(Request::from_parts(parts, body)).await;
    // To the layer below it looked as if the client had broken off.
    let refused = charge.refused.load(Ordering::Relaxed);
    if refused { rpc::refuse(too_much(), &headers) } else { response }
}

fn too_much() -> ConnectError {
    ConnectError::resource_exhausted(
        "too much input is waiting in the sandbox, try again when processes have read it",
    )
}

/// Whether the messages of a request are compressed.
pub fn is_compressed(headers: &HeaderMap) -> bool {
    let values = ENCODINGS.iter().flat_map(|name| headers.get_all(*name));
    values
        .map(|value| value.as_bytes())
        .any(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity"))
}

/// The body of a request, counted.
struct Metered {
    body: Body,
    charge: Arc<Charge>,
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if self.charge.receive(length) {
            Poll::Ready(frame)
        } else {
            Poll::Ready(Some(Err(axum::Error::new("the budget is used up"))))
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(budget: &Arc<Budget>, reserved: usize) -> Option<Arc<Charge>> {
        Charge::new(Arc::clone(budget), reserved)
    }

    #[test]
    fn what_a_call_held_comes_back_with_its_end() {
        let budget = Arc::new(Budget::default());
        let large = charge(&budget, 0).unwrap();
        assert!(large.receive(LIMIT));
        assert!(!large.receive(FREE + 1), "beyond the budget");
        let small = charge(&budget, 0).unwrap();
        assert!(small.receive(FREE), "small calls always pass");
        assert!(!small.receive(FREE + 1));
        drop((large, small));
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stream_holds_one_message_at_a_time() {
        let budget = Arc::new(Budget::default());
        let stream = charge(&budget, 1 << 20).unwrap();
        for _ in 0..100 {
            assert!(stream.receive(LIMIT / 2));
            stream.settle();
        }
        assert!(charge(&budget, LIMIT).is_none(), "the reservation stays");
        drop(stream);
        assert!(charge(&budget, LIMIT).is_some());
    }

    #[test]
    fn a_compressed_message_counts_as_what_it_becomes() {
        let budget = Arc::new(Budget::default());
        let call = charge(&budget, 0).unwrap();
        assert!(call.receive(1000));
        call.cover(LIMIT).unwrap();
        call.cover(LIMIT / 2).unwrap();
        let other = charge(&budget, 0).unwrap();
        assert!(other.receive(1000));
        assert_eq!(other.cover(LIMIT).unwrap_err().code, connectrpc::ErrorCode::ResourceExhausted);
    }

    #[test]
    fn only_a_real_coding_counts_as_compressed() {
        let of = |name: &'static str, value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            is_compressed(&HeaderMap::from_iter([(http::HeaderName::from_static(name), value)]))
        };
        assert!(of("content-encoding", "gzip") && of("grpc-encoding", "gzip"));
        assert!(of("connect-content-encoding", "GZIP"));
        assert!(!of("content-encoding", "identity") && !of("content-encoding", ""));
        assert!(!of("connect-accept-encoding", "gzip"));
    }
}
