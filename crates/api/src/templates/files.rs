//! Files that builds copy (control-plane contract, section 10.3): an address to upload them to, and
//! what is behind it.
//!
//! Uploads carry no credentials: the address is signed, for one archive of one team and half an hour.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use atoll_core::{error::codes, limits::UPLOAD_LIFETIME};
use atoll_state::model::Team;
use atoll_wire::rest;
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, try_unfold};
use http::{HeaderMap, StatusCode, header, request::Parts, uri::Authority, uri::Scheme};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::{check_hash, parse_reference, team_of};
use crate::{
    auth::{Principal, check_standing},
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, Segments},
    sandboxes::create::template_error,
    tokens,
};

/// Tells whether the team has uploaded these files, and where to.
#[utoipa::path(get, path = "/templates/{templateID}/files/{hash}", tag = "templates",
    params(("templateID" = String, Path), ("hash" = String, Path, description = "64 lower-case hexadecimal characters")),
    responses(
        (status = 201, body = rest::FilesUpload), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn files_upload(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segments((template, hash)): Segments<(String, String)>,
    request: Request,
) -> ApiResult<(StatusCode, Json<rest::FilesUpload>)> {
    check_hash(&hash)?;
    let team = team_of(&principal, None)?;
    let reference = parse_reference(&template)?;
    let named = control.database.find_template(&reference, team).await.map_err(template_error)?;
    if !named.is_own {
        let message = "User does not have access to the template";
        return Err(ApiError::fixed(codes::FORBIDDEN, message));
    }
    let present = control.builder.has_files(&team.id.to_string(), &hash).await?;
    let (parts, _) = request.into_parts();
    let url = format!("{}{}", origin(&control, &parts)?, signed(&control, team, &hash)?);
    Ok((StatusCode::CREATED, Json(rest::FilesUpload { present, url })))
}

fn signed(control: &Control, team: &Team, hash: &str) -> ApiResult<String> {
    let lifetime = i64::try_from(UPLOAD_LIFETIME.as_secs()).unwrap_or(0);
    let expires = Timestamp::now().as_second() + lifetime;
    let team = team.id.to_string();
    let signature = tokens::upload_signature(&control.seed, &team, hash, expires)?;
    Ok(format!("/upload/{team}/{hash}?expires={expires}&signature={signature}"))
}

/// How the client has reached this API, which is how it will reach it again.
fn origin(control: &Control, parts: &Parts) -> ApiResult<String> {
    let text = |name: &str| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        value.split(',').next().map(str::trim).filter(|value| !value.is_empty())
    };
    let host = text("x-forwarded-host")
        .or_else(|| text("host"))
        .or_else(|| parts.uri.authority().map(Authority::as_str));
    let is_host = |host: &&str| host.parse::<Authority>().is_ok() && !host.contains('@');
    let Some(host) = host.filter(is_host) else {
        return match &control.domain {
            Some(domain) => Ok(format!("https://api.{domain}")),
            None => Err(ApiError::validation("the request names no host")),
        };
    };
    let is_secure = parts.extensions.get::<Scheme>() == Some(&Scheme::HTTPS)
        || text("x-forwarded-proto") == Some("https");
    Ok(format!("{}://{host}", if is_secure { "https" } else { "http" }))
}

/// What a signed address carries.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Signature {
    expires: i64,
    signature: String,
}

/// Takes in files of a build.
#[utoipa::path(put, path = "/upload/{teamID}/{hash}", tag = "templates",
    params(
        ("teamID" = String, Path), ("hash" = String, Path),
        ("expires" = i64, Query, description = "As in the address that was handed out"),
        ("signature" = String, Query, description = "As in the address that was handed out"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A tar archive, plain or compressed"),
    responses(
        (status = 204, description = "It is stored"), (status = 400, body = rest::Error),
        (status = 403, body = rest::Error), (status = 413, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(()))]
pub(crate) async fn upload_files(
    State(control): State<Arc<Control>>,
    Segments((team, hash)): Segments<(String, String)>,
    Query(query): Query<Signature>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<StatusCode> {
    check_hash(&hash)?;
    let team = admitted(&control, &team, &hash, &query).await?;
    let limit = u64::from(team.tier.disk_mb).saturating_mul(1024 * 1024);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|value| value.parse::<u64>().ok()).is_some_and(|it| it > limit) {
        return Err(too_large(limit));
    }
    let failure = Arc::new(OnceLock::new());
    let archive = pieces(body, limit, control.read_timeout, failure.clone());
    match control.builder.put_files(&team.id.to_string(), &hash, archive).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // It knows only that the stream failed.
        Err(error) => Err(failure.get().cloned().unwrap_or_else(|| error.into())),
    }
}

/// The team whose files may be uploaded with this signature.
async fn admitted(control: &Control, team: &str, hash: &str, query: &Signature) -> ApiResult<Team> {
    let refused = || {
        ApiError::new(
            codes::FORBIDDEN,
            "This address for an upload is wrong, or older than 30 minutes: ask for a new one.",
        )
    };
    let id = Uuid::parse_str(team).map_err(|_| refused())?;
    let expected = tokens::upload_signature(&control.seed, team, hash, query.expires)?;
    if !tokens::equal(&expected, &query.signature) || query.expires < Timestamp::now().as_second() {
        return Err(refused());
    }
    let team = control.database.team(id).await?.ok_or_else(refused)?;
    check_standing(&team, false)?;
    Ok(team)
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(
        codes::TOO_LARGE,
        format!("Files of a build may have {limit} bytes at most, the disk of the team's tier."),
    )
}

/// The body in pieces. One that is too large, or stops coming, ends with an error, and `failure` says
/// which.
fn pieces(
    body: Body,
    limit: u64,
    patience: Duration,
    failure: Arc<OnceLock<ApiError>>,
) -> BoxStream<'static, io::Result<Bytes>> {
    let fail = move |error: ApiError| {
        let error = failure.get_or_init(|| error);
        io::Error::other(error.body().message)
    };
    let next = move |(mut body, received): (Body, u64)| {
        let fail = fail.clone();
        async move {
            loop {
                let frame = timeout(patience, body.frame()).await.map_err(|_| {
                    fail(ApiError::new(
                        codes::REQUEST_TIMEOUT,
                        format!(
                            "Nothing of the files arrived for {} seconds.",
                            patience.as_secs_f32()
                        ),
                    ))
                })?;
                let Some(frame) = frame else { return Ok(None) };
                let frame = frame.map_err(|_| {
                    fail(ApiError::validation("the files ended before their announced length"))
                })?;
                let Ok(bytes) = frame.into_data() else { continue };
                let received = received + bytes.len() as u64;
                if received > limit {
                    return Err(fail(too_large(limit)));
                }
                return Ok(Some((bytes, (body, received))));
            }
        }
    };
    try_unfold((body, 0), next).boxed()
}
