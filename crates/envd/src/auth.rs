//! Who may call, and as which user.
//!
//! Two layers run before every route: [`require_token`] checks `X-Access-Token`, then
//! [`select_user`] reads the user named in `Authorization: Basic`. RPC handlers get the result with
//! [`rpc_user`]; the file routes check signatures themselves and take the user from their query.

use std::sync::Arc;

use atoll_wire::guest::CONTROL_ROUTES;
use axum::{
    Json,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{ConnectError, RequestContext};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;

use crate::{
    guest::Guest,
    users::{self, User},
};

/// The header that carries the access token.
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// The user that Basic authentication names, put among the request's extensions by
/// [`select_user`]; without the header there is none, and the sandbox's default applies.
///
/// connectrpc hands the extensions of the HTTP request to the handler, so an RPC finds it with
/// `ctx.extensions().get::<Caller>()`; [`rpc_user`] does that and falls back to the default.
#[derive(Clone, Debug)]
pub struct Caller(pub User);

/// The user an RPC runs as: the one named by the caller, else the sandbox's default.
///
/// # Errors
/// `unauthenticated` when the default user does not exist.
pub fn rpc_user(ctx: &RequestContext, guest: &Guest) -> Result<User, ConnectError> {
    if let Some(Caller(user)) = ctx.extensions().get::<Caller>() {
        return Ok(user.clone());
    }
    let name = guest.default_user();
    match users::lookup(&name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(ConnectError::unauthenticated(format!("invalid default user: '{name}'"))),
        Err(error) => {
            Err(ConnectError::internal(format!("error looking up user '{name}': {error}")))
        }
    }
}

/// Refuses requests without the access token, once one is set.
///
/// The body is not a Connect error, on RPC paths too: clients go by the HTTP status.
pub async fn require_token(
    State(guest): State<Arc<Guest>>,
    request: Request,
    next: Next,
) -> Response {
    let offered = request.headers().get(ACCESS_TOKEN_HEADER).map(|value| value.as_bytes());
    let exempt = exempt_from_token(&guest, request.method(), request.uri().path());
    if exempt || guest.accepts_token(offered) {
        return next.run(request).await;
    }
    rest_error(
        StatusCode::UNAUTHORIZED,
        "unauthorized access, please provide a valid access token or method signing if supported",
    )
}

/// The routes that do without the token, or check something else themselves.
fn exempt_from_token(guest: &Guest, method: &Method, path: &str) -> bool {
    match path {
        "/health" => method == Method::GET,
        "/files" => method == Method::GET || method == Method::POST,
        // Checks the control secret or, where there is none, the token in its body.
        "/init" => method == Method::POST,
        _ => guest.has_control_secret() && CONTROL_ROUTES.contains(&path),
    }
}

/// Looks up the user named in `Authorization: Basic` and refuses names that do not exist.
pub async fn select_user(mut request: Request, next: Next) -> Response {
    let Some(name) = basic_username(request.headers()) else {
        return next.run(request).await;
    };
    match users::lookup(&name) {
        Ok(Some(user)) => {
            request.extensions_mut().insert(Caller(user));
            next.run(request).await
        }
        Ok(None) => unauthenticated(&format!("invalid username: '{name}'")),
        Err(error) => rest_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("error looking up user '{name}': {error}"),
        ),
    }
}

/// The user name in a Basic `Authorization` header; other schemes are none of envd's business.
fn basic_username(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (name, _password) = decoded.split_once(':')?;
    Some(name.to_owned())
}

/// Connect's spelling of 401, which clients expect for a bad user on every route.
fn unauthenticated(message: &str) -> Response {
    let body = json!({ "code": "unauthenticated", "message": message });
    (StatusCode::UNAUTHORIZED, Json(body)).into_response()
}

/// The body of every error outside the RPC services: `{"code": <status>, "message": ...}`.
pub fn rest_error(status: StatusCode, message: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let body = json!({ "code": status.as_u16(), "message": message });
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use atoll_wire::guest::BootConfig;

    use super::*;

    fn authorization(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    // Rules: USER-1
    #[test]
    fn the_password_is_ignored() {
        assert_eq!(basic_username(&authorization("Basic cm9vdDo=")).as_deref(), Some("root"));
        let with_password = format!("basic {}", STANDARD.encode("user:secret:more"));
        assert_eq!(basic_username(&authorization(&with_password)).as_deref(), Some("user"));
    }

    // Rules: USER-8
    #[test]
    fn anything_but_basic_selects_nobody() {
        for value in ["Bearer cm9vdDo=", "Basic", "Basic !!!", "Basic cm9vdA=="] {
            assert_eq!(basic_username(&authorization(value)), None, "{value}");
        }
        assert_eq!(basic_username(&HeaderMap::new()), None);
    }

    // Rules: AUTH-5, AUTH-6
    #[test]
    fn only_the_listed_routes_do_without_the_token() {
        let guest = Guest::new(BootConfig::default());
        let get = |path| exempt_from_token(&guest, &Method::GET, path);
        let post = |path| exempt_from_token(&guest, &Method::POST, path);
        assert!(get("/health") && get("/files") && post("/files") && post("/init"));
        assert!(!get("/envs") && !get("/metrics") && !get("/init") && !post("/files/compose"));
        assert!(!post("/process.Process/Start") && !post("//init") && !post("/freeze"));
    }
}
