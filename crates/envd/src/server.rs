//! The HTTP side of envd: routes, the layers in front of them, and the accept loop.
//!
//! Layers run outside in: CORS, access token, user, route. HTTP/1.1 only, which is all that the
//! proxy in front speaks to it.

use std::{net::TcpListener as StdListener, sync::Arc, time::Duration};

use atoll_wire::guest::BootConfig;
use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{from_fn, from_fn_with_state, map_request},
    response::{IntoResponse, Response},
    routing::get,
};
use connectrpc::{ConnectRpcService, Limits};
use http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::Rlimit;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    auth::{self, rest_error},
    cors::cors,
    files,
    filesystem::FilesystemService,
    guest::Guest,
    init, metrics,
    process::{Processes, service::ProcessService},
    reaper::Reaper,
};

/// How long a connection may be idle between requests; more than any proxy in front keeps one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(640);

/// The largest RPC message, so that input can be sent in large pieces. Files do not come this way.
const MAX_MESSAGE: usize = 64 << 20;

/// Pause after a failed accept: the cause, too many open files, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What envd needs to run.
pub struct Options {
    /// Bound and listening.
    pub listener: StdListener,
    /// What the node said at boot.
    pub boot: BootConfig,
    /// The limit of open files that commands get; none leaves envd's own.
    pub open_files: Option<Rlimit>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the listener or SIGCHLD cannot be used.
pub async fn serve(options: Options) -> std::io::Result<()> {
    options.listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(options.listener)?;
    let reaper = Arc::new(Reaper::default());
    let app = router(Guest::new(options.boot), Arc::clone(&reaper), options.open_files);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve_connection(stream, app.clone()))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    tokio::select! {
        result = reaper.run() => result,
        () = accept => Ok(()),
    }
}

async fn serve_connection(stream: TcpStream, app: Router) {
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    // A client that goes away is not envd's error.
    let _ = connection.await;
}

/// Everything envd answers.
fn router(guest: Arc<Guest>, reaper: Arc<Reaper>, open_files: Option<Rlimit>) -> Router {
    let rpc = rpc_service(&guest, reaper, open_files);
    let rpc = Router::new()
        .route_service("/process.Process/{method}", rpc.clone())
        .route_service("/filesystem.Filesystem/{method}", rpc)
        .layer(map_request(drop_zero_timeout));
    Router::new()
        .route("/health", get(health))
        .route("/envs", get(envs))
        .with_state(Arc::clone(&guest))
        .merge(metrics::router())
        .merge(init::router(Arc::clone(&guest)))
        .merge(files::router(Arc::clone(&guest)))
        .merge(rpc)
        .fallback(async || rest_error(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            rest_error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(from_fn(auth::select_user))
        .layer(from_fn_with_state(guest, auth::require_token))
        .layer(from_fn(cors))
}

fn rpc_service(
    guest: &Arc<Guest>,
    reaper: Arc<Reaper>,
    open_files: Option<Rlimit>,
) -> ConnectRpcService {
    let processes = Processes::new(reaper);
    let process = ProcessService::new(Arc::clone(guest), processes, open_files);
    let filesystem = Arc::new(FilesystemService::new(Arc::clone(guest)));
    let services = connectrpc::Router::new().add_service(process).add_service(filesystem);
    let limits = Limits::default()
        .with_max_message_size(MAX_MESSAGE)
        .with_max_request_body_size(MAX_MESSAGE);
    ConnectRpcService::new(services).with_limits(limits)
}

/// A timeout of 0 means none; the RPC layer would take it for one that has passed.
async fn drop_zero_timeout(mut request: Request) -> Request {
    const TIMEOUT: &str = "connect-timeout-ms";
    let headers = request.headers_mut();
    let zero = |value: &[u8]| !value.is_empty() && value.iter().all(|byte| *byte == b'0');
    if headers.get(TIMEOUT).is_some_and(|value| zero(value.as_bytes())) {
        headers.remove(TIMEOUT);
    }
    request
}

async fn health() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

async fn envs(State(guest): State<Arc<Guest>>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(guest.env_vars())).into_response()
}
