//! The Connect services as a part of the router: Connect, gRPC and gRPC-Web, in JSON and binary.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::any,
};
use connectrpc::{ConnectError, ConnectRpcService, Limits};
use http::HeaderMap;
use tower::Service;

use crate::{
    budget::{self, Budget},
    legacy,
};

/// The largest message in general, and of those that come compressed; the usual limit of gRPC.
/// Arguments and variables of a process cannot be longer together.
const MAX_MESSAGE: usize = 4 << 20;

/// The largest message of input. Streams of them have no end, and files do not come this way.
const MAX_INPUT: usize = 24 << 20;

/// The method that takes a stream of input.
pub const STREAM_INPUT: &str = "/process.Process/StreamInput";

/// The methods that take input.
const INPUT: [&str; 2] = ["/process.Process/SendInput", STREAM_INPUT];

const TIMEOUT: &str = "connect-timeout-ms";

/// The longest timeout that the protocol can express, in digits.
const MAX_TIMEOUT_DIGITS: usize = 10;

/// Routes to the services that `services` makes.
pub fn router(services: impl Fn() -> connectrpc::Router) -> Router {
    let limits =
        |size| Limits::default().with_max_message_size(size).with_max_request_body_size(size);
    let service = |services| ConnectRpcService::new(services).with_limits(limits(MAX_MESSAGE));
    let compressed = service(services());
    let plain = INPUT
        .into_iter()
        .fold(services(), |services, method| services.with_route_limits(method, limits(MAX_INPUT)));
    let plain = service(plain);
    let call = any(move |request: Request| {
        let compressed = budget::is_compressed(request.headers()).then(|| compressed.clone());
        compressed.unwrap_or_else(|| plain.clone()).call(request)
    });
    Router::new()
        .route("/process.Process/{method}", call.clone())
        .route("/filesystem.Filesystem/{method}", call)
        .layer(from_fn_with_state(Arc::new(Budget::default()), budget::meter))
        .layer(from_fn(check_timeout))
        .layer(from_fn(legacy::mark))
}

/// An error in the protocol of the request.
pub fn refuse(error: ConnectError, request: &HeaderMap) -> Response {
    error.into_http_response(request).into_response()
}

/// Refuses a timeout that is not a number. One of 0 means none; the layer below would take it for
/// one that has passed.
async fn check_timeout(mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    if let Some(value) = headers.get(TIMEOUT) {
        let digits = value.as_bytes();
        let number = digits.iter().all(u8::is_ascii_digit);
        if !number || digits.is_empty() || digits.len() > MAX_TIMEOUT_DIGITS {
            let shown = String::from_utf8_lossy(digits);
            let error = ConnectError::invalid_argument(format!("invalid {TIMEOUT}: '{shown}'"));
            return refuse(error, headers);
        }
        if digits.iter().all(|digit| *digit == b'0') {
            headers.remove(TIMEOUT);
        }
    }
    next.run(request).await
}
