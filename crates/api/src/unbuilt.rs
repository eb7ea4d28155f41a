//! The endpoints of the contract that this release does not have, for now or for good. They are
//! routed and authenticated like the others, so that a client learns what is the matter rather than
//! that "there is no route".

use atoll_core::error::codes;
use axum::extract::{MatchedPath, Request};
use axum::response::{IntoResponse, Response};

use crate::{
    endpoints::{self, Support},
    error::ApiError,
};

/// The handler of all of them.
pub(crate) async fn unbuilt(path: MatchedPath, request: Request) -> Response {
    let (method, path) = (request.method(), path.as_str());
    let support = endpoints::find(method, path).map(|found| found.support);
    if support == Some(Support::Refused) {
        return secrets_unavailable().into_response();
    }
    let message = if support == Some(Support::Replaced) {
        format!(
            "{method} {path} is of builds whose images are pushed with Docker, which are not \
             served: update the E2B CLI and use `template create`, or POST /v3/templates and \
             POST /v2/templates/{{templateID}}/builds/{{buildID}}."
        )
    } else {
        format!("This release does not have {method} {path}.")
    };
    ApiError::new(codes::NOT_IMPLEMENTED, message).into_response()
}

/// What a deployment without secrets answers on all of their routes.
pub(crate) fn secrets_unavailable() -> ApiError {
    ApiError::fixed(codes::SECRETS_UNAVAILABLE, "Secrets are not available for this team")
}
