//! The node's calls over authenticated HTTP, for a control plane in another process.
//!
//! JSON with the types of [`atoll_wire::node`]: both ends are always Atoll, and one set of types
//! serves the in-process call and the wire. Every request must carry the node's token, on loopback
//! too, since any program on the host can reach a loopback port.

use std::net::SocketAddr;

use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_wire::node::{EndReason, Node, SandboxRecord};
use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::Handle;

/// Configuration of the RPC server.
pub struct Options {
    /// Where it listens.
    pub listener: TcpListener,
    /// What callers must send as `Authorization: Bearer`.
    pub token: String,
}

/// The running RPC server.
pub struct Service {
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    node: Handle,
    token: String,
}

/// An error as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireError {
    /// Number of the code.
    pub code: u16,
    /// What happened.
    pub message: String,
    /// What to do.
    pub fix: String,
}

struct Failure(Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Error { code, message, fix } = self.0;
        let status = StatusCode::from_u16(code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(WireError { code: code.number, message, fix })).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl Service {
    /// Serves `node`.
    ///
    /// # Errors
    /// `PORT_IN_USE` when the listener has no address.
    pub fn start(options: Options, node: Handle) -> Result<Self> {
        let address = options.listener.local_addr().map_err(|error| {
            Error::new(codes::PORT_IN_USE, format!("the node's RPC port cannot be used: {error}."))
        })?;
        let stop = CancellationToken::new();
        let app = router(Shared { node, token: options.token });
        let server = axum::serve(options.listener, app)
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(cause) = server.await {
                tracing::error!(%cause, "the node's RPC server ended");
            }
        });
        Ok(Self { address, stop, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it; long polls are cut.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.server.abort();
        // Aborted: the only outcome is that it has ended.
        let _ = self.server.await;
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/sandboxes", get(list).post(create))
        .route("/v1/sandboxes/{id}/kill", post(kill))
        .route("/v1/sandboxes/{id}/end", post(set_end))
        .route("/v1/sandboxes/{id}/pause", post(pause))
        .route("/v1/sandboxes/{id}/resume", post(resume))
        .route("/v1/samples", post(sample))
        .route("/v1/ended", get(ended))
        .route("/v1/logs", get(logs))
        .layer(middleware::from_fn_with_state(shared.clone(), authenticate))
        .with_state(shared)
}

async fn authenticate(
    State(shared): State<Shared>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let presented = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    if bool::from(presented.as_bytes().ct_eq(shared.token.as_bytes())) {
        next.run(request).await
    } else {
        let error = Error::new(codes::UNAUTHENTICATED, "the node's token is missing or wrong.")
            .with_fix("Send the node token of this cluster as a bearer token.");
        Failure(error).into_response()
    }
}

type Answer<T> = std::result::Result<Json<T>, Failure>;

async fn info(State(shared): State<Shared>) -> Answer<atoll_wire::node::NodeInfo> {
    Ok(Json(shared.node.info().await?))
}

async fn list(State(shared): State<Shared>) -> Answer<Vec<atoll_wire::node::NodeSandbox>> {
    Ok(Json(shared.node.list().await?))
}

async fn create(
    State(shared): State<Shared>,
    Json(record): Json<SandboxRecord>,
) -> Answer<atoll_wire::node::Created> {
    Ok(Json(shared.node.create(record).await?))
}

#[derive(Deserialize)]
struct KillBody {
    reason: EndReason,
}

async fn kill(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<KillBody>,
) -> Answer<bool> {
    Ok(Json(shared.node.kill(&id, body.reason).await?))
}

#[derive(Deserialize)]
struct EndBody {
    end_at: Timestamp,
}

async fn set_end(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<EndBody>,
) -> Answer<bool> {
    Ok(Json(shared.node.set_end(&id, body.end_at).await?))
}

#[derive(Deserialize)]
struct PauseBody {
    memory: bool,
}

async fn pause(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<PauseBody>,
) -> Answer<bool> {
    Ok(Json(shared.node.pause(&id, body.memory).await?))
}

async fn resume(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<EndBody>,
) -> Answer<bool> {
    Ok(Json(shared.node.resume(&id, body.end_at).await?))
}

async fn sample(
    State(shared): State<Shared>,
    Json(ids): Json<Vec<SandboxId>>,
) -> Answer<Vec<(SandboxId, atoll_wire::node::Sample)>> {
    Ok(Json(shared.node.sample(&ids).await?))
}

#[derive(Deserialize)]
struct Cursor {
    #[serde(default)]
    cursor: u64,
}

async fn ended(
    State(shared): State<Shared>,
    Query(query): Query<Cursor>,
) -> Answer<(u64, Vec<atoll_wire::node::Ended>)> {
    Ok(Json(shared.node.ended(query.cursor).await?))
}

async fn logs(
    State(shared): State<Shared>,
    Query(query): Query<Cursor>,
) -> Answer<(u64, Vec<atoll_wire::node::LogLine>)> {
    Ok(Json(shared.node.logs(query.cursor).await?))
}
