//! One connection: HTTP/1.1, or HTTP/2 for a client that begins with it.
//!
//! The SDKs speak HTTP/1.1. HTTP/2 without TLS and without asking first is what gRPC clients speak;
//! nothing is gained by it otherwise, and nothing offers it.

use std::{io, time::Duration};

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// How long a connection may be idle between requests; more than any proxy in front keeps one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(640);

/// How an HTTP/2 connection begins, and no HTTP/1.1 request.
const PREFACE: &[u8] = b"PRI";

/// Connections at a time; each is one process that somebody follows, or a file on its way. Whoever
/// is beyond waits to be accepted: no program in the sandbox can make envd hold memory without end.
pub const MAX_CONNECTIONS: usize = 2048;

/// What an HTTP/1.1 connection may buffer each way, bytes; no head of a request is longer.
const BUFFER: usize = 32 << 10;

/// A client that sends a part of the preface gets this many times this long for the rest.
const PREFACE_TRIES: usize = 100;
const PREFACE_PAUSE: Duration = Duration::from_millis(10);

/// Calls at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// What an HTTP/2 connection may buffer for one stream and in all, bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// An HTTP/2 client that answers no ping is gone: a half-open connection would stay for ever.
const PING_INTERVAL: Duration = Duration::from_secs(120);

/// Serves a connection to its end. A client that goes away is not envd's error.
pub async fn serve(stream: TcpStream, app: Router) {
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let Ok(Ok(http2)) = timeout(IDLE_TIMEOUT, begins_http2(&stream)).await else { return };
    let io = TokioIo::new(stream);
    let service = TowerToHyperService::new(app);
    if http2 {
        let _ = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .keep_alive_interval(PING_INTERVAL)
            .serve_connection(io, service)
            .await;
    } else {
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(BUFFER)
            .serve_connection(io, service)
            .await;
    }
}

/// Looks at the first bytes without taking them.
async fn begins_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut head = [0; PREFACE.len()];
    for _ in 0..PREFACE_TRIES {
        let length = stream.peek(&mut head).await?;
        if length == 0 || !PREFACE.starts_with(&head[..length]) {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        sleep(PREFACE_PAUSE).await;
    }
    Ok(false)
}
