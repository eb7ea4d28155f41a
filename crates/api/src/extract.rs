//! Reading requests: bodies, path segments and queries, every failure of which is a JSON 4xx.
//!
//! The `Content-Type` of a body is not looked at: clients send several, and what is not JSON is
//! found out by parsing it.

use std::sync::Arc;

use atoll_core::{SandboxId, error::codes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query as AxumQuery, Request};
use bytes::Bytes;
use http::{header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::{
    control::Control,
    error::{ApiError, ApiResult},
};

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body that may be absent or empty, which means the default.
pub(crate) struct OptionalJson<T>(pub(crate) T);

/// The sandbox a path names.
pub(crate) struct SandboxPath(pub(crate) SandboxId);

/// The only segment a path has, unescaped.
pub(crate) struct Segment(pub(crate) String);

/// The segments that a path has, unescaped.
pub(crate) struct Segments<T>(pub(crate) T);

/// A query; unknown parameters are ignored.
pub(crate) struct Query<T>(pub(crate) T);

async fn body(request: Request, control: &Control) -> ApiResult<Bytes> {
    let too_large = || {
        ApiError::new(
            codes::TOO_LARGE,
            format!("A request body may have {} bytes at most.", atoll_core::limits::MAX_BODY),
        )
    };
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|length| length > atoll_core::limits::MAX_BODY as u64) {
        return Err(too_large());
    }
    let limited = Limited::new(request.into_body(), atoll_core::limits::MAX_BODY);
    match tokio::time::timeout(control.read_timeout, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::validation("the body ended before its announced length")),
        Err(_) => Err(ApiError::new(
            codes::REQUEST_TIMEOUT,
            format!(
                "The body did not arrive within {} seconds.",
                control.read_timeout.as_secs_f32()
            ),
        )),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(bytes).map_err(ApiError::validation)
}

impl<T: DeserializeOwned> FromRequest<Arc<Control>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, control: &Arc<Control>) -> ApiResult<Self> {
        let bytes = body(request, control).await?;
        if bytes.trim_ascii().is_empty() {
            return Err(ApiError::validation("a JSON body is required"));
        }
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<Arc<Control>> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, control: &Arc<Control>) -> ApiResult<Self> {
        let bytes = body(request, control).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse::<Option<T>>(&bytes).map(|body| Self(body.unwrap_or_default()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Self(segment)),
            Err(rejection) => Err(ApiError::validation(rejection.body_text())),
        }
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(ApiError::validation(rejection.body_text())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let invalid = || ApiError::fixed(codes::INVALID_REQUEST, "Invalid sandbox ID");
        let segment = Segment::from_request_parts(parts, state).await.map_err(|_| invalid())?;
        SandboxId::parse_segment(&segment.0).map(Self).map_err(|_| invalid())
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match AxumQuery::<T>::from_request_parts(parts, state).await {
            Ok(AxumQuery(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::validation(rejection.body_text())),
        }
    }
}

/// Refuses a negative number of seconds, as the schema does.
pub(crate) fn seconds(field: &str, value: i32) -> ApiResult<u32> {
    u32::try_from(value)
        .map_err(|_| ApiError::validation(format!("{field} must be 0 or more, got {value}")))
}
