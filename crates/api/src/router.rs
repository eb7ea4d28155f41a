//! Routes and what stands around them.
//!
//! From the outside in: CORS; `Cache-Control` of the secrets routes; the handler deadline;
//! authentication; the handler. Paths are matched while still percent-encoded, so `%2F` stays inside
//! its segment. Whatever fails answers JSON.

use std::sync::Arc;

use atoll_core::error::codes;
use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on},
};
use http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{Any, CorsLayer};
use utoipa::openapi::OpenApi;

use crate::{
    auth::authenticate, control::Control, endpoints::ENDPOINTS, error::ApiError,
    openapi::built_routes, unbuilt::unbuilt,
};

const ALLOWED_HEADERS: [&str; 18] = [
    "origin",
    "content-length",
    "content-type",
    "user-agent",
    "authorization",
    "x-api-key",
    "x-team-id",
    "browser",
    "lang",
    "lang_version",
    "machine",
    "os",
    "package_version",
    "processor",
    "publisher",
    "release",
    "sdk_runtime",
    "system",
];

const EXPOSED_HEADERS: [&str; 6] = [
    "x-next-token",
    "x-total-running",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "retry-after",
];

/// The whole API. It wants the peer's address as `ConnectInfo<SocketAddr>` among the extensions of a
/// request, and takes a request without one for a foreign one.
pub(crate) fn router(control: Arc<Control>) -> Router {
    let (mut router, openapi) = built_routes().split_for_parts();
    for endpoint in ENDPOINTS.iter().filter(|endpoint| !endpoint.is_served()) {
        router = router.route(endpoint.path, on(filter(endpoint.method), unbuilt));
    }
    router
        .route("/openapi.json", get(move || openapi_document(openapi.clone())))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(control.clone(), authenticate))
        .layer(from_fn_with_state(control.clone(), deadline))
        .layer(from_fn(secrets_are_not_stored))
        .layer(cors())
        .with_state(control)
}

fn filter(method: &str) -> MethodFilter {
    match method {
        "GET" => MethodFilter::GET,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::POST,
    }
}

async fn openapi_document(openapi: OpenApi) -> Json<OpenApi> {
    Json(openapi)
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    if path.starts_with("/instances") || path.starts_with("/envs") {
        return ApiError::new(
            codes::ROUTE_NOT_FOUND,
            format!("{path} is of a very old SDK, which is no longer served; update the SDK."),
        );
    }
    ApiError::new(codes::ROUTE_NOT_FOUND, format!("There is no route {method} {path}."))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(codes::METHOD_NOT_ALLOWED, format!("{} does not take {method}.", uri.path()))
}

/// Ends a handler that takes too long. Handlers may be dropped at any point. An upload takes as long
/// as it goes on: it has deadlines of its own.
async fn deadline(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    if request.method() == Method::PUT && request.uri().path().starts_with("/upload/") {
        return next.run(request).await;
    }
    let is_create = request.method() == Method::POST
        && ["/sandboxes", "/v2/sandboxes"].contains(&request.uri().path());
    match tokio::time::timeout(control.handler_deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) if is_create => ApiError::fixed(
            codes::PLACEMENT_TIMEOUT,
            "Failed to place sandbox: placement timed out, please retry",
        )
        .into_response(),
        Err(_) => ApiError::new(
            codes::HANDLER_TIMEOUT,
            format!(
                "The request took longer than {} seconds.",
                control.handler_deadline.as_secs_f32()
            ),
        )
        .into_response(),
    }
}

/// No answer of a secrets route may be kept by a cache, not even a refusal.
async fn secrets_are_not_stored(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_secrets = path == "/secrets" || path.starts_with("/secrets/");
    let mut response = next.run(request).await;
    if is_secrets {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(ALLOWED_HEADERS.map(HeaderName::from_static))
        .expose_headers(EXPOSED_HEADERS.map(HeaderName::from_static))
}
