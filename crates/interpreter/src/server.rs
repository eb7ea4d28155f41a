//! The HTTP side: routes, what they read and answer (contract, section B.2).

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State, rejection::BytesRejection},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
    serve::ListenerExt,
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

use crate::{
    context::{Cell, Deleted, Job, is_valid},
    contexts::{Contexts, Error},
    envd::{self, Envd, Variables},
    home::Home,
    languages, log, output,
};

/// The longest body of an execution, bytes: a cell with its data in it.
const MAX_EXECUTION: usize = 64 << 20;

/// The longest of all other bodies, bytes. Nobody needs a token for them.
const MAX_BODY: usize = 64 << 10;

/// How long the body of an execution may take: the longest at 2 Mbit/s or so.
const EXECUTION_BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// How long all other bodies may take, of which a second is plenty. Whoever sends nothing holds one of
/// the connections that all share who come through the proxy.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The languages whose contexts are there from the start.
const EARLY: [&str; 2] = [languages::DEFAULT, "javascript"];

/// The id by which an execution can name the default context of Python, whatever that one's own is.
const DEFAULT_ID: &str = "default";

/// What the server needs to run.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// Where envd is, such as `http://127.0.0.1:49983`.
    pub(crate) envd: String,
}

struct Server {
    contexts: Contexts,
    envd: Envd,
}

type Shared = State<Arc<Server>>;

/// Serves until it is asked to end, by SIGTERM. Kernels end with it.
///
/// # Errors
/// When it cannot listen, or write to its directory.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    // One thread: kernels are to be killed when it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            result = serve(options) => result,
            _ = terminated.recv() => Ok(()),
        }
    })
}

async fn serve(options: &Options) -> io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    // Events are small and must not wait for each other.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let home = Arc::new(Home::create(&options.directory)?);
    let envd = Envd::new(&options.envd)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let server = Arc::new(Server { contexts: Contexts::new(Arc::clone(&home)), envd });
    log(&format!("serves {address}"));
    let early = tokio::spawn(report(make_early(&server).await, home));
    let served = axum::serve(listener, router(server)).await;
    early.abort();
    served
}

/// What hears of the start of a kernel.
type Start = oneshot::Receiver<Result<(), String>>;

/// Makes the contexts that most clients want, whose kernels start at once.
async fn make_early(server: &Server) -> Vec<(&'static str, Start)> {
    let mut starts = Vec::new();
    for name in EARLY {
        if let Ok(language) = languages::find(name).await
            && let (_, Some(started)) = server.contexts.make_default(language)
        {
            starts.push((name, started));
        }
    }
    starts
}

/// Says that the server is ready when their kernels have started. Python's has to.
async fn report(starts: Vec<(&str, Start)>, home: Arc<Home>) {
    for (name, started) in starts {
        if let Ok(Err(why)) = started.await {
            log(&format!("no {name} kernel: {why}"));
            if name == languages::DEFAULT {
                return;
            }
        }
    }
    if let Err(error) = home.set_ready() {
        log(&format!("cannot say that it is ready: {error}"));
    }
}

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/health", get(async || Json("OK")))
        .route("/execute", post(execute).layer(DefaultBodyLimit::max(MAX_EXECUTION)))
        .route("/contexts", get(list).post(create))
        .route("/contexts/{id}", delete(remove))
        .route("/contexts/{id}/restart", post(restart))
        .route("/contexts/{id}/interrupt", post(interrupt))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(cors))
        .with_state(server)
}

/// Lets pages of every origin call: what they may is the token's business.
async fn cors(request: Request, next: Next) -> Response {
    const ANY: HeaderValue = HeaderValue::from_static("*");
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        let allowed = [header::ACCESS_CONTROL_ALLOW_METHODS, header::ACCESS_CONTROL_ALLOW_HEADERS];
        (StatusCode::NO_CONTENT, allowed.map(|name| (name, ANY))).into_response()
    } else {
        next.run(request).await
    };
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    response
}

/// Body of `/execute`.
#[derive(Deserialize)]
struct Execution {
    code: String,
    context_id: Option<String>,
    language: Option<String>,
    env_vars: Option<Variables>,
}

async fn execute(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    // First of all: for strangers nothing is held in memory, nor started.
    let variables = server.envd.variables(request.headers().get(envd::TOKEN)).await?;
    let Execution { code, context_id, language, env_vars } =
        read(request, EXECUTION_BODY_TIMEOUT).await?;
    let own_variables = env_vars.unwrap_or_default();
    if let Some((name, _)) = own_variables.iter().find(|(name, value)| !is_valid(name, value)) {
        return Err(Refusal::malformed("env_vars", &format!("{name:?} cannot be a variable")));
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let context = match (filled(context_id), filled(language)) {
        (Some(_), Some(_)) => return Err(Refusal::BothGiven),
        (Some(id), None) if id != DEFAULT_ID => server.contexts.get(&id)?,
        (_, language) => server.contexts.default(&language.unwrap_or_default()).await?,
    };
    let cell = Arc::new(Cell { code, variables, own_variables });
    let queued = Arc::downgrade(&cell);
    let (output, body) = output::channel(cell);
    context
        .run(Job { cell: queued, output })
        .map_err(|Deleted| Error::NotFound(context.description.id.clone()))?;
    Ok((stream_headers(), body).into_response())
}

/// Nothing on the way is to keep lines back, or to change them.
fn stream_headers() -> [(http::HeaderName, &'static str); 2] {
    [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")]
}

async fn list(State(server): Shared) -> Response {
    Json(server.contexts.list()).into_response()
}

/// Body of `POST /contexts`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Creation {
    language: Option<String>,
    cwd: Option<PathBuf>,
}

async fn create(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    let Creation { language, cwd } = read(request, BODY_TIMEOUT).await?;
    let cwd = cwd.filter(|cwd| !cwd.as_os_str().is_empty());
    let language = language.unwrap_or_default();
    Ok(Json(server.contexts.create(&language, cwd.as_deref()).await?).into_response())
}

async fn remove(State(server): Shared, Path(id): Path<String>) -> Result<Json<()>, Refusal> {
    Ok(Json(server.contexts.delete(&id)?))
}

async fn restart(State(server): Shared, Path(id): Path<String>) -> Result<Json<()>, Refusal> {
    let context = server.contexts.get(&id)?;
    match context.restart().await {
        Ok(Ok(())) => Ok(Json(())),
        Ok(Err(why)) => {
            let language = context.description.language.clone();
            Err(Error::Start { language, why }.into())
        }
        Err(Deleted) => Err(Error::NotFound(id).into()),
    }
}

async fn interrupt(State(server): Shared, Path(id): Path<String>) -> Result<Json<()>, Refusal> {
    let answer = server.contexts.get(&id)?.interrupt().await;
    answer.map(Json).map_err(|Deleted| Error::NotFound(id).into())
}

/// Reads a body, whatever it says that it is.
async fn read<T: DeserializeOwned>(request: Request, limit: Duration) -> Result<T, Refusal> {
    let body = timeout(limit, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| Refusal::Late(limit))??;
    serde_json::from_slice(&body).map_err(|error| Refusal::malformed("body", &error.to_string()))
}

/// Why a request is not served.
#[derive(Debug)]
enum Refusal {
    BothGiven,
    Malformed(serde_json::Value),
    Unreadable(BytesRejection),
    /// Its body did not come in this time.
    Late(Duration),
    Unauthorized(envd::Error),
    NotFound(Error),
    Failed(String),
}

impl Refusal {
    fn malformed(place: &str, what: &str) -> Self {
        Self::Malformed(json!({"detail": [{"type": "invalid", "loc": [place], "msg": what}]}))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) => Self::NotFound(error),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<BytesRejection> for Refusal {
    fn from(error: BytesRejection) -> Self {
        Self::Unreadable(error)
    }
}

impl From<envd::Error> for Refusal {
    fn from(error: envd::Error) -> Self {
        match error {
            envd::Error::Unauthorized => Self::Unauthorized(error),
            error @ envd::Error::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Malformed(detail) => {
                return (StatusCode::UNPROCESSABLE_ENTITY, Json(detail)).into_response();
            }
            Self::Unreadable(error) => return error.into_response(),
            Self::Late(limit) => (
                StatusCode::REQUEST_TIMEOUT,
                format!("The body of the request did not come in {limit:?}"),
            ),
            Self::BothGiven => (
                StatusCode::BAD_REQUEST,
                "Only one of context_id or language can be provided".to_owned(),
            ),
            Self::Unauthorized(error) => (StatusCode::UNAUTHORIZED, error.to_string()),
            Self::NotFound(error) => (StatusCode::NOT_FOUND, error.to_string()),
            Self::Failed(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
        };
        (status, Body::from(text)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    /// A request of which no more comes than this.
    fn stalled(begins: &'static str) -> Request {
        let begins = stream::iter([Ok::<_, Infallible>(Bytes::from_static(begins.as_bytes()))]);
        let body = futures::StreamExt::chain(begins, stream::pending());
        Request::new(Body::from_stream(body))
    }

    // Rules: INT-11
    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let home = Arc::new(Home::create(directory.path()).unwrap());
        let envd = Envd::new("http://127.0.0.1:1").unwrap();
        let server = Arc::new(Server { contexts: Contexts::new(home), envd });
        let refusal = create(State(Arc::clone(&server)), stalled("{}")).await.unwrap_err();
        let response = refusal.into_response();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "The body of the request did not come in 30s");
        assert!(server.contexts.list().is_empty());
        let late = read::<Execution>(stalled("{\"code\":"), EXECUTION_BODY_TIMEOUT).await;
        assert!(matches!(late, Err(Refusal::Late(_))));
    }
}
