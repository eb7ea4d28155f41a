//! The HTTP side of envd: routes, the layers in front of them, and the accept loop.
//!
//! Layers run outside in: CORS, access token, user, route.

use std::{net::TcpListener as StdListener, sync::Arc, time::Duration};

use atoll_wire::guest::BootConfig;
use axum::{
    Json, Router,
    extract::State,
    middleware::{from_fn, from_fn_with_state, map_request},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use rustix::process::Rlimit;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    auth::{self, rest_error},
    connection, control,
    cors::cors,
    drain::see_to_body,
    files,
    filesystem::FilesystemService,
    guest::Guest,
    metrics,
    process::{
        Processes,
        service::ProcessService,
        spawner::{Forked, Spawner},
    },
    reaper::Reaper,
    rpc,
};

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
    /// Who forks commands; none leaves that to envd.
    pub spawner: Option<Forked>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the listener or SIGCHLD cannot be used.
pub async fn serve(options: Options) -> std::io::Result<()> {
    options.listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(options.listener)?;
    let reaper = Arc::new(Reaper::default());
    let spawner = options.spawner.map(Spawner::new).transpose()?;
    let processes = Processes::new(Arc::clone(&reaper), spawner);
    let app = router(Guest::new(options.boot), processes, options.open_files);
    let places = Arc::new(Semaphore::new(connection::MAX_CONNECTIONS));
    let accept = async {
        // Never closed, so there is always a place, sooner or later.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = connection::serve(stream, app.clone());
                    tokio::spawn(async {
                        connection.await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    tokio::select! {
        result = reaper.run() => result,
        () = accept => Ok(()),
    }
}

/// Everything envd answers.
fn router(guest: Arc<Guest>, processes: Arc<Processes>, open_files: Option<Rlimit>) -> Router {
    let process = ProcessService::new(Arc::clone(&guest), processes, open_files);
    let filesystem = Arc::new(FilesystemService::new(Arc::clone(&guest)));
    let rpc = rpc::router(|| {
        let services = connectrpc::Router::new().add_service(Arc::clone(&process));
        services.add_service(Arc::clone(&filesystem))
    });
    Router::new()
        .route("/health", get(health))
        .route("/envs", get(envs))
        .with_state(Arc::clone(&guest))
        .merge(metrics::router(Arc::clone(&guest)))
        .merge(control::router(Arc::clone(&guest)))
        .merge(files::router(Arc::clone(&guest)))
        .merge(rpc)
        .fallback(async || rest_error(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            rest_error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(from_fn(auth::select_user))
        .layer(from_fn_with_state(guest, auth::require_token))
        .layer(from_fn(cors))
        .layer(map_request(see_to_body))
}

async fn health() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

async fn envs(State(guest): State<Arc<Guest>>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(guest.env_vars())).into_response()
}
