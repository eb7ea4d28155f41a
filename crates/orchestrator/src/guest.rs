//! HTTP to a sandbox's envd, over a socket opened inside the sandbox.

use std::time::Duration;

use atoll_core::{Error, Result, error::codes};
use atoll_network::Slot;
use atoll_wire::guest::{CONTROL_HEADER, ENVD_PORT, InitRequest};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

/// envd answers within milliseconds; a machine that swaps may need seconds.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

fn unreachable(cause: impl std::fmt::Display) -> Error {
    Error::new(codes::GUEST_UNREACHABLE, format!("envd in the sandbox does not answer: {cause}."))
}

/// Hands envd its settings and returns the version it reports.
pub(crate) async fn init(slot: &Slot, secret: &str, settings: &InitRequest) -> Result<String> {
    let body = serde_json::to_vec(settings).map_err(unreachable)?;
    let request = Request::post("/init")
        .header(http::header::HOST, "localhost")
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(CONTROL_HEADER, secret)
        .body(Full::new(Bytes::from(body)))
        .map_err(unreachable)?;
    let response = tokio::time::timeout(INIT_TIMEOUT, send(slot, request))
        .await
        .map_err(|_| unreachable(format!("no answer in {} seconds", INIT_TIMEOUT.as_secs())))??;
    if response.status() != StatusCode::NO_CONTENT {
        return Err(unreachable(format!("/init was answered {}", response.status())));
    }
    response
        .headers()
        .get("x-envd-version")
        .and_then(|value| value.to_str().ok())
        .filter(|version| is_version(version))
        .map(str::to_owned)
        .ok_or_else(|| unreachable("/init reported no version"))
}

/// What a sandbox says of itself goes on to clients: only what a version can be.
fn is_version(text: &str) -> bool {
    const LONGEST: usize = 64;
    !text.is_empty()
        && text.len() <= LONGEST
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
}

async fn send(slot: &Slot, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
    let stream = slot.connect(ENVD_PORT).await.map_err(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let exchange = sender.send_request(request);
    tokio::pin!(exchange);
    tokio::select! {
        response = &mut exchange => response.map_err(unreachable),
        ended = connection => {
            ended.map_err(unreachable)?;
            exchange.await.map_err(unreachable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_version;

    #[test]
    fn versions() {
        assert!(is_version("0.6.13"));
        assert!(is_version("1.0.0-rc.1+x"));
        for bad in ["", "1 0", "<b>", "1\n2"] {
            assert!(!is_version(bad), "{bad:?}");
        }
        assert!(!is_version(&"1".repeat(65)));
    }
}
