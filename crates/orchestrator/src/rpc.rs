//! The node's calls over authenticated HTTP, for a control plane in another process.
//!
//! JSON with the types of [`atoll_wire::node`]: both ends are always Atoll, and one set of types
//! serves the in-process call and the wire. Every request must carry the node's token, on loopback
//! too, since any program on the host can reach a loopback port.

use std::net::SocketAddr;

use atoll_core::{Error, Result, SandboxId, error::codes, lifecycle::Kept};
use atoll_wire::node::{
    BuildSummary, Change, Created, Deadline, EndReason, LogLine, Node, NodeInfo, NodeSandbox,
    Resume, Resumed, Sample, SandboxRecord, Snapshot, Space,
};
use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
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
        .route("/v1/sandboxes/{id}", get(get_one))
        .route("/v1/sandboxes/{id}/kill", post(kill))
        .route("/v1/sandboxes/{id}/end", post(set_end))
        .route("/v1/sandboxes/{id}/pause", post(pause))
        .route("/v1/sandboxes/{id}/resume", post(resume))
        .route("/v1/sandboxes/{id}/snapshot", post(snapshot))
        .route("/v1/sandboxes/{id}/rewind", post(rewind))
        .route("/v1/builds/{id}", delete(delete_build))
        .route("/v1/builds", get(builds))
        .route("/v1/space", post(space))
        .route("/v1/samples", post(sample))
        .route("/v1/changes", get(changes))
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

async fn info(State(shared): State<Shared>) -> Answer<NodeInfo> {
    Ok(Json(shared.node.info().await?))
}

async fn list(State(shared): State<Shared>) -> Answer<Vec<NodeSandbox>> {
    Ok(Json(shared.node.list().await?))
}

async fn get_one(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
) -> Answer<Option<NodeSandbox>> {
    Ok(Json(shared.node.get(&id).await?))
}

async fn create(
    State(shared): State<Shared>,
    Json(record): Json<SandboxRecord>,
) -> Answer<Created> {
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

async fn set_end(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(deadline): Json<Deadline>,
) -> Answer<Option<NodeSandbox>> {
    Ok(Json(shared.node.set_end(&id, deadline).await?))
}

#[derive(Deserialize)]
struct PauseBody {
    memory: bool,
}

async fn pause(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<PauseBody>,
) -> Answer<Option<NodeSandbox>> {
    Ok(Json(shared.node.pause(&id, body.memory).await?))
}

async fn resume(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(resume): Json<Resume>,
) -> Answer<Option<Resumed>> {
    Ok(Json(shared.node.resume(&id, resume).await?))
}

async fn snapshot(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(snapshot): Json<Snapshot>,
) -> Answer<Option<Kept>> {
    Ok(Json(shared.node.snapshot(&id, snapshot).await?))
}

#[derive(Deserialize)]
struct RewindBody {
    build: String,
}

async fn rewind(
    State(shared): State<Shared>,
    Path(id): Path<SandboxId>,
    Json(body): Json<RewindBody>,
) -> Answer<Option<NodeSandbox>> {
    Ok(Json(shared.node.rewind(&id, &body.build).await?))
}

async fn delete_build(State(shared): State<Shared>, Path(build): Path<String>) -> Answer<bool> {
    Ok(Json(shared.node.delete_build(&build).await?))
}

async fn builds(State(shared): State<Shared>) -> Answer<Vec<BuildSummary>> {
    Ok(Json(shared.node.builds().await?))
}

async fn space(State(shared): State<Shared>, Json(ids): Json<Vec<String>>) -> Answer<Vec<Space>> {
    Ok(Json(shared.node.space(&ids).await?))
}

async fn sample(
    State(shared): State<Shared>,
    Json(ids): Json<Vec<SandboxId>>,
) -> Answer<Vec<(SandboxId, Sample)>> {
    Ok(Json(shared.node.sample(&ids).await?))
}

#[derive(Deserialize)]
struct Cursor {
    #[serde(default)]
    cursor: u64,
}

async fn changes(
    State(shared): State<Shared>,
    Query(query): Query<Cursor>,
) -> Answer<(u64, Vec<Change>)> {
    Ok(Json(shared.node.changes(query.cursor).await?))
}

async fn logs(
    State(shared): State<Shared>,
    Query(query): Query<Cursor>,
) -> Answer<(u64, Vec<LogLine>)> {
    Ok(Json(shared.node.logs(query.cursor).await?))
}
