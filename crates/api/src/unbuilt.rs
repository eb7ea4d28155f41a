//! The endpoints of the contract that this release does not have. They are routed and authenticated
//! like the others, so that a client learns what is the matter rather than that "there is no route".

use atoll_core::error::codes;
use axum::extract::{MatchedPath, Request};
use axum::response::{IntoResponse, Response};
use http::{Method, header};

use crate::{
    endpoints::{self, Support},
    error::ApiError,
};

/// The handler of all of them.
pub(crate) async fn unbuilt(path: MatchedPath, request: Request) -> Response {
    let (method, path) = (request.method(), path.as_str());
    if endpoints::find(method, path).is_some_and(|found| found.support == Support::Refused) {
        return secrets_unavailable().into_response();
    }
    let is_multipart = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
    let message = if *method == Method::POST && path == "/templates" && is_multipart {
        "This way of building templates is no longer served; update the E2B CLI.".to_owned()
    } else {
        format!("This release does not have {method} {path}.")
    };
    ApiError::new(codes::NOT_IMPLEMENTED, message).into_response()
}

/// What a deployment without secrets answers on all of their routes.
pub(crate) fn secrets_unavailable() -> ApiError {
    ApiError::fixed(codes::SECRETS_UNAVAILABLE, "Secrets are not available for this team")
}
