//! The routes that only the node may call, behind the control secret.
//!
//! `/init` is its own module. The others are the steps around a checkpoint of the sandbox. The node
//! freezes and thaws the processes itself, from outside; envd, which goes on running, is told, so
//! that it starts nothing meanwhile, and writes to disk what the sandbox's file systems hold.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_wire::guest::CONTROL_HEADER;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, Request, State, rejection::QueryRejection},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

use crate::{VERSION, auth::rest_error, disk, guest::Guest, init, mounts, trust::TrustStore};

/// How long a flush may take until the node is told to come back.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// What the routes work on.
struct Control {
    guest: Arc<Guest>,
    trust: Mutex<TrustStore>,
    /// One flush at a time.
    flush: Arc<Semaphore>,
}

/// The control routes.
pub fn router(guest: Arc<Guest>) -> Router {
    let control = Arc::new(Control {
        guest: Arc::clone(&guest),
        trust: Mutex::new(TrustStore::system()),
        flush: Arc::new(Semaphore::new(1)),
    });
    Router::new()
        .route("/init", post(initialize))
        .route("/freeze", post(freeze))
        .route("/unfreeze", post(unfreeze))
        .route("/fsfreeze", post(flush))
        .route("/fsthaw", post(async || StatusCode::NO_CONTENT))
        .route("/collapse", post(async || not_here("memory is the node's to give back")))
        .route(
            "/upgrade",
            post(async || not_here("a sandbox gets another envd with its next start")),
        )
        .with_state(control)
        .route_layer(middleware::from_fn_with_state(guest, require_control))
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

fn not_here(why: &str) -> Response {
    rest_error(StatusCode::NOT_IMPLEMENTED, &format!("not supported by this envd: {why}"))
}

async fn initialize(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    match init::apply(&control.guest, &control.trust, &body) {
        Ok(()) => (StatusCode::NO_CONTENT, [("x-envd-version", VERSION)]).into_response(),
        Err((status, message)) => rest_error(status, &message),
    }
}

/// Query of `/freeze`. How many groups to freeze at most is the node's business.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FreezeQuery {
    mode: FreezeMode,
    max_wait_ms: Option<u64>,
}

impl Default for FreezeQuery {
    fn default() -> Self {
        Self { mode: FreezeMode::Legacy, max_wait_ms: None }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FreezeMode {
    Legacy,
    Hierarchy,
}

/// What a caller who wanted to wait is told: how many groups of processes envd looked at and froze.
/// All of these are none, the node does that, and so there is nothing to wait for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FreezeReport {
    mode: FreezeMode,
    visited: u32,
    allowlisted: u32,
    truncated: bool,
    pre_frozen: u32,
    requested: u32,
    frozen: u32,
    not_frozen: u32,
    failed: u32,
    unobservable: u32,
    sweep_ms: u64,
    wait_ms: u64,
}

/// From now on nothing is started.
async fn freeze(
    State(control): State<Arc<Control>>,
    query: Result<Query<FreezeQuery>, QueryRejection>,
) -> Response {
    let Query(FreezeQuery { mode, max_wait_ms }) = match query {
        Ok(query) => query,
        Err(rejection) => return rest_error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    control.guest.set_frozen(true);
    if max_wait_ms.is_none() {
        return StatusCode::NO_CONTENT.into_response();
    }
    Json(FreezeReport {
        mode,
        visited: 0,
        allowlisted: 0,
        truncated: false,
        pre_frozen: 0,
        requested: 0,
        frozen: 0,
        not_frozen: 0,
        failed: 0,
        unobservable: 0,
        sweep_ms: 0,
        wait_ms: 0,
    })
    .into_response()
}

async fn unfreeze(State(control): State<Arc<Control>>) -> StatusCode {
    control.guest.set_frozen(false);
    StatusCode::NO_CONTENT
}

/// Writes everything to disk. Writers are not held up: they are frozen by then.
async fn flush(State(control): State<Arc<Control>>) -> Response {
    let Ok(permit) = Arc::clone(&control.flush).try_acquire_owned() else {
        return rest_error(StatusCode::SERVICE_UNAVAILABLE, "a flush is under way");
    };
    let flush = disk::blocking(move || {
        let _permit = permit;
        mounts::flush()
    });
    match timeout(FLUSH_TIMEOUT, flush).await {
        Ok(Ok(Ok(()))) => StatusCode::NO_CONTENT.into_response(),
        Ok(Ok(Err(error)) | Err(error)) => {
            let message = format!("error writing to disk: {error}");
            rest_error(StatusCode::INTERNAL_SERVER_ERROR, &message)
        }
        Err(_) => rest_error(StatusCode::SERVICE_UNAVAILABLE, "the flush takes its time"),
    }
}
