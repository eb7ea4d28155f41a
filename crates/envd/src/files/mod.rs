//! The file routes: `GET /files`, `POST /files` and `POST /files/compose`.
//!
//! | module | what it does |
//! |---|---|
//! | [`download`] | reading: encodings, ranges, conditional requests |
//! | [`conditional`], [`content_type`] | its decisions, as pure functions |
//! | [`upload`] | writing: raw and multipart bodies |
//! | [`body`], [`multipart`], [`disposition`] | taking an upload's body apart |
//! | [`sink`] | the write itself, in the order that watchers see |
//! | [`metadata`] | a file's user metadata, kept in extended attributes |
//! | [`compose`] | joining uploaded parts |
//!
//! Files are read and written as root. The selected user decides where relative paths start and
//! who owns what is created. Bodies are streamed: no request holds more than a few chunks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::auth::{ACCESS_TOKEN_HEADER, rest_error};
use crate::guest::Guest;
use crate::log;
use crate::paths;
use crate::signature::{self, Claim, Operation};
use crate::users::{self, User};

pub mod body;
pub mod compose;
pub mod conditional;
pub mod content_type;
pub mod disposition;
pub mod download;
pub mod encoding;
pub mod metadata;
pub mod multipart;
pub mod sink;
pub mod upload;

/// The file routes. `/files` checks token or signature itself; `/files/compose` relies on the
/// token layer in front.
pub fn router(guest: Arc<Guest>) -> Router {
    Router::new()
        .route("/files", get(download::download).post(upload::upload))
        .route("/files/compose", post(compose::compose))
        .with_state(guest)
}

/// Query of the `/files` routes, form-decoded. An absent string is an empty one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct FileQuery {
    /// Path as the client wrote it.
    pub path: String,
    /// User to act as.
    pub username: String,
    /// See [`signature`].
    pub signature: Option<String>,
    /// Unix seconds.
    pub signature_expiration: Option<i64>,
}

/// An error of a file route: a status and the sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestError {
    /// Clients choose their exception by it.
    pub status: StatusCode,
    /// What happened.
    pub message: String,
}

impl RestError {
    /// An error with this status and sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        rest_error(self.status, &self.message)
    }
}

/// Checks token or signature.
fn authorize(
    guest: &Guest,
    headers: &HeaderMap,
    query: &FileQuery,
    operation: Operation,
) -> Result<(), RestError> {
    let claim = Claim {
        path: &query.path,
        operation,
        username: &query.username,
        expiration: query.signature_expiration,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    signature::authorize(
        guest.access_token().as_deref(),
        headers.get(ACCESS_TOKEN_HEADER).map(|value| value.as_bytes()),
        query.signature.as_deref(),
        &claim,
        i64::try_from(now).unwrap_or(i64::MAX),
    )
    .map_err(|refusal| RestError::new(StatusCode::UNAUTHORIZED, refusal.to_string()))
}

/// The user named in the request, or the sandbox's default.
fn select_user(guest: &Guest, username: &str) -> Result<User, RestError> {
    let name = if username.is_empty() { guest.default_user() } else { username.to_owned() };
    if name.is_empty() {
        return Err(RestError::bad_request("username not provided"));
    }
    match users::lookup(&name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(RestError::new(
            StatusCode::UNAUTHORIZED,
            format!("error looking up user '{name}': unknown user"),
        )),
        Err(error) => Err(RestError::internal(format!("error looking up user '{name}': {error}"))),
    }
}

/// Says in envd's log what was done with which file.
fn log_event(event: &str, message: &str, path: &Path, user: &User) {
    log::info("files", message)
        .text("event_type", event)
        .text("path", &path.to_string_lossy())
        .text("user", &user.name)
        .send();
}

/// The path of the sandbox that a client's path means.
fn resolve(guest: &Guest, path: &str, user: &User) -> Result<PathBuf, RestError> {
    paths::resolve(path, user, guest.default_workdir().as_deref())
        .map_err(|error| RestError::bad_request(error.to_string()))
}
