//! `POST /init` and the other routes that only the node may call.
//!
//! A node proves itself with the control secret. An envd without one (started by hand, without a
//! node) falls back to the access token: whoever knows the current one may replace it.
//!
//! The node repeats `/init` until one succeeds, and may give up on any of them: applying one has no
//! await in it, so it happens wholly or not at all, and doing it twice is doing it once.

use std::sync::{Arc, Mutex, PoisonError};

use atoll_wire::guest::{CONTROL_HEADER, InitRequest};
use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use buffa_types::google::protobuf::Timestamp;
use http::StatusCode;

use crate::{VERSION, auth::rest_error, guest::Guest, trust::TrustStore};

/// Control routes of other hypervisors' envd: freezing and upgrading are the node's business here.
const NOT_HERE: [&str; 6] =
    ["/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"];

/// What `/init` works on.
struct Control {
    guest: Arc<Guest>,
    /// One at a time.
    trust: Mutex<TrustStore>,
}

/// The control routes.
pub fn router(guest: Arc<Guest>) -> Router {
    let control =
        Arc::new(Control { guest: Arc::clone(&guest), trust: Mutex::new(TrustStore::system()) });
    let mut router = Router::new().route("/init", post(init)).with_state(control);
    for path in NOT_HERE {
        router = router.route(path, post(not_here));
    }
    router.route_layer(middleware::from_fn_with_state(guest, require_control))
}

/// Refuses requests without the control secret, where there is one.
async fn require_control(
    State(guest): State<Arc<Guest>>,
    request: Request,
    next: Next,
) -> Response {
    let offered = request.headers().get(CONTROL_HEADER).map(|value| value.as_bytes());
    if guest.accepts_control(offered) {
        return next.run(request).await;
    }
    rest_error(StatusCode::UNAUTHORIZED, "this route needs the control secret of the sandbox")
}

async fn not_here() -> Response {
    rest_error(StatusCode::NOT_IMPLEMENTED, "not supported by this envd: the node does this itself")
}

async fn init(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    match control.apply(&body) {
        Ok(()) => (StatusCode::NO_CONTENT, [("x-envd-version", VERSION)]).into_response(),
        Err((status, message)) => rest_error(status, &message),
    }
}

type Refusal = (StatusCode, String);

impl Control {
    fn apply(&self, body: &[u8]) -> Result<(), Refusal> {
        let request = parse(body)?;
        let timestamp = request.timestamp.as_deref().map(parse_timestamp).transpose()?;
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_token(&request)?;
        if timestamp.is_some_and(|timestamp| self.guest.is_stale(timestamp)) {
            return Ok(());
        }
        if let Some(pem) = &request.ca_bundle {
            trust.install(pem).map_err(|error| {
                (StatusCode::BAD_REQUEST, format!("error installing caBundle: {error}"))
            })?;
        }
        self.guest.apply(request, timestamp);
        Ok(())
    }

    fn check_token(&self, request: &InitRequest) -> Result<(), Refusal> {
        let offered = request.access_token.as_deref().filter(|token| !token.is_empty());
        if self.guest.has_control_secret() || self.guest.accepts_token(offered.map(str::as_bytes)) {
            return Ok(());
        }
        let message = match offered {
            Some(_) => "access token validation failed",
            None => "access token reset not authorized",
        };
        Err((StatusCode::UNAUTHORIZED, message.to_owned()))
    }
}

fn parse(body: &[u8]) -> Result<InitRequest, Refusal> {
    if body.is_empty() {
        return Ok(InitRequest::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("failed to decode request: {error}")))
}

/// RFC 3339 to seconds and nanoseconds, which compare as the times do.
fn parse_timestamp(text: &str) -> Result<(i64, i32), Refusal> {
    let parsed: Result<Timestamp, _> = serde_json::from_value(text.into());
    parsed
        .map(|timestamp| (timestamp.seconds, timestamp.nanos))
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("invalid timestamp: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_compare_across_zones_and_fractions() {
        let at = |text| parse_timestamp(text).unwrap();
        assert_eq!(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00+01:00"));
        assert!(at("2026-01-01T00:00:00.000000001Z") > at("2026-01-01T00:00:00Z"));
        assert!(parse_timestamp("yesterday").is_err());
    }
}
