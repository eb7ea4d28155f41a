//! `GET /health`.

use std::{sync::Arc, time::Duration};

use atoll_core::error::codes;
use axum::extract::State;

use crate::{
    control::Control,
    error::{ApiError, ApiResult},
};

/// Longest that the node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers 200 while the service takes requests and its node answers.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses(
    (status = 200, description = "The service takes requests", body = String, content_type = "text/plain"),
    (status = 503, description = "Shutting down, or no node is ready", body = atoll_wire::rest::Error),
))]
pub(crate) async fn health(State(control): State<Arc<Control>>) -> ApiResult<&'static str> {
    let node_answers = match tokio::time::timeout(PATIENCE, control.node.info()).await {
        Ok(info) => info.is_ok(),
        Err(_) => false,
    };
    if control.stopping.is_cancelled() || !node_answers {
        return Err(ApiError::fixed(codes::NODE_UNAVAILABLE, "Service is unavailable"));
    }
    Ok("Health check successful")
}
