//! What a failed request is answered with: always JSON, always with a numeric `code`.
//!
//! Clients read `code` from the body rather than the status line, and generated ones crash on an
//! empty or textual body, so nothing in this crate answers a failure in another way.

use atoll_core::{Code, Error, SandboxId, error::codes};
use atoll_wire::rest;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode};

/// Tells the published clients whether to repeat a request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Shorthand for what handlers return.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

/// A failure on its way to a client.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    error: Error,
    /// The contract fixes the sentence: no advice is added to it.
    fixed: bool,
}

impl ApiError {
    /// A failure whose sentence the contract fixes.
    pub(crate) fn fixed(code: Code, message: impl Into<String>) -> Self {
        Self { error: Error::new(code, message), fixed: true }
    }

    /// A failure in our own words; the code's advice is added to them.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { error: Error::new(code, message), fixed: false }
    }

    /// A request that does not fit the schema.
    pub(crate) fn validation(detail: impl std::fmt::Display) -> Self {
        Self::fixed(codes::INVALID_REQUEST, format!("validation error: {detail}"))
    }

    /// A field of the contract that this release cannot honour.
    pub(crate) fn unsupported(field: &str) -> Self {
        Self::new(
            codes::UNSUPPORTED_FIELD,
            format!("This release does not support the field '{field}' with the value given."),
        )
    }

    /// An error whose message is the contract's already.
    pub(crate) fn as_fixed(error: Error) -> Self {
        Self { error, fixed: true }
    }

    /// No such sandbox, or another team's: a client cannot tell the two apart.
    pub(crate) fn sandbox_not_found(id: &SandboxId) -> Self {
        Self::fixed(
            codes::NOT_FOUND,
            format!("Sandbox \"{id}\" doesn't exist or you don't have access to it"),
        )
    }

    /// The sandbox is on its way out.
    pub(crate) fn being_killed(id: &SandboxId) -> Self {
        Self::fixed(codes::SANDBOX_ENDING, format!("Sandbox \"{id}\" is being killed"))
    }

    /// Which failure it is.
    pub(crate) fn code(&self) -> Code {
        self.error.code
    }

    /// The error for another part of this process.
    pub(crate) fn into_error(self) -> Error {
        self.error
    }

    /// What a client reads.
    pub(crate) fn body(&self) -> rest::Error {
        let code = self.code();
        rest::Error {
            code: code.status,
            message: self.message(),
            error_code: Some(code.wire.map_or_else(|| code.to_string(), str::to_owned)),
        }
    }

    fn message(&self) -> String {
        if self.fixed || self.error.fix.is_empty() {
            self.error.message.clone()
        } else {
            format!("{} {}", self.error.message, self.error.fix)
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self { error, fixed: false }
    }
}

/// True for failures that the same request will meet again, whose status would make clients repeat
/// it all the same.
fn is_permanent(code: Code) -> bool {
    [codes::CONCURRENCY_LIMIT, codes::NOT_IMPLEMENTED].contains(&code)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.code();
        let status = StatusCode::from_u16(code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() && code != codes::NOT_IMPLEMENTED {
            tracing::error!(%code, message = %self.error.message, "a request failed");
        }
        let mut response = (status, Json(self.body())).into_response();
        if is_permanent(code) {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
