//! `POST /sandboxes` and `POST /v2/sandboxes`.
//!
//! # A request may be dropped at any point
//! The client may hang up, or the deadline may pass, at each await below. What stands then:
//!
//! ```text
//! claim the idempotency key     dropping the claim frees the key
//! reserve a place               dropping the reservation gives the place back
//! node.create                   a node undoes a create that is dropped (see `Node`)
//! learn, settle, answer         the sandbox is in the catalogue, or will be: the node tells of it
//! ```

use std::sync::Arc;

use atoll_core::{
    Error, SandboxId,
    error::codes,
    lifecycle,
    limits::{DEFAULT_TIMEOUT_V1, DEFAULT_TIMEOUT_V2},
    reference::Reference,
};
use atoll_state::{
    catalogue::{Entry, IdempotentClaim},
    database::Resolved,
    model::Team,
};
use atoll_wire::{
    node::{OnTimeout, Resources, SandboxRecord},
    rest,
};
use axum::{Json as JsonAnswer, extract::State};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::{fields, summary};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, seconds},
    tokens,
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_IDEMPOTENCY_KEY: usize = 255;

type Answer = (StatusCode, JsonAnswer<rest::Sandbox>);

/// What differs between the two routes.
#[derive(Clone, Copy)]
struct Defaults {
    timeout: u32,
    always_secure: bool,
}

/// Starts a sandbox.
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", request_body = rest::NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats return the same sandbox; `[a-z0-9-]{1,255}`")),
    responses(
        (status = 201, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 404, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error), (status = 504, body = rest::Error),
    ))]
pub(crate) async fn create_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    headers: HeaderMap,
    Json(body): Json<rest::NewSandbox>,
) -> ApiResult<Answer> {
    const TIMEOUT: u32 = DEFAULT_TIMEOUT_V1.as_secs() as u32;
    create(&control, &team, &headers, body, Defaults { timeout: TIMEOUT, always_secure: false })
        .await
}

/// Starts a sandbox that always requires its access token.
#[utoipa::path(post, path = "/v2/sandboxes", tag = "sandboxes", request_body = rest::NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats return the same sandbox; `[a-z0-9-]{1,255}`")),
    responses(
        (status = 201, description = "It runs", body = rest::Sandbox),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 403, body = rest::Error), (status = 404, body = rest::Error),
        (status = 429, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error), (status = 504, body = rest::Error),
    ))]
pub(crate) async fn create_sandbox_v2(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    headers: HeaderMap,
    Json(body): Json<rest::NewSandbox>,
) -> ApiResult<Answer> {
    const TIMEOUT: u32 = DEFAULT_TIMEOUT_V2.as_secs() as u32;
    create(&control, &team, &headers, body, Defaults { timeout: TIMEOUT, always_secure: true })
        .await
}

/// A create that has passed every check.
struct Order {
    id: SandboxId,
    resolved: Resolved,
    /// Seconds.
    timeout: u32,
    envd_access_token: Option<String>,
    body: rest::NewSandbox,
}

/// Starts a sandbox from `state`: what a step of the build that is resolved has left, or the build
/// itself. As on the v2 route otherwise.
pub(crate) async fn of_build(
    control: &Arc<Control>,
    team: &Team,
    body: rest::NewSandbox,
    resolved: Resolved,
    state: String,
) -> ApiResult<Answer> {
    const TIMEOUT: u32 = DEFAULT_TIMEOUT_V2.as_secs() as u32;
    let defaults = Defaults { timeout: TIMEOUT, always_secure: true };
    let given = check_labels(&body)?;
    let order = order(control, team, body, resolved, given, defaults)?;
    let record = SandboxRecord { build: state, ..record(team, order) };
    let entry = start(control, team, record).await?;
    Ok((StatusCode::CREATED, JsonAnswer(summary(control, &entry))))
}

async fn create(
    control: &Arc<Control>,
    team: &Team,
    headers: &HeaderMap,
    body: rest::NewSandbox,
    defaults: Defaults,
) -> ApiResult<Answer> {
    let key = idempotency_key(headers)?;
    let order = check(control, team, body, defaults).await?;
    let claim = match key {
        None => None,
        Some(key) => {
            match control.catalogue.idempotent(&team.id.to_string(), key, &order.id).await? {
                IdempotentClaim::First(claim) => Some(claim),
                IdempotentClaim::Repeat(id) => return repeat(control, &id).await,
            }
        }
    };
    let entry = start(control, team, record(team, order)).await?;
    if let Some(claim) = claim {
        claim.settle();
    }
    Ok((StatusCode::CREATED, JsonAnswer(summary(control, &entry))))
}

/// Answers a repeated create with the sandbox that the first one made.
async fn repeat(control: &Control, id: &SandboxId) -> ApiResult<Answer> {
    match control.catalogue.get(id).await? {
        Some(entry) if entry.sandbox.state != lifecycle::State::Ending => {
            Ok((StatusCode::CREATED, JsonAnswer(summary(control, &entry))))
        }
        _ => Err(Error::new(
            codes::SANDBOX_GONE,
            format!("Sandbox \"{id}\", which this Idempotency-Key led to, has ended."),
        )
        .with_fix("Send a new Idempotency-Key to create another.")
        .into()),
    }
}

fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<&str>> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let is_valid = |key: &&str| {
        (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match value.to_str().ok().filter(is_valid) {
        Some(key) => Ok(Some(key)),
        None => Err(ApiError::validation("Idempotency-Key must match [a-z0-9-]{1,255}")),
    }
}

/// All checks, in the contract's order.
async fn check(
    control: &Control,
    team: &Team,
    body: rest::NewSandbox,
    defaults: Defaults,
) -> ApiResult<Order> {
    let given = check_labels(&body)?;
    let reference = Reference::parse(&body.template_id).map_err(|error| {
        ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid template reference: {error}"))
    })?;
    let resolved = control.database.resolve_template(&reference, team).await;
    let resolved = match resolved {
        Ok(resolved) => resolved,
        Err(error) => return Err(template_error(advised(control, &reference, team, error).await)),
    };
    order(control, team, body, resolved, given, defaults)
}

/// The contract's sentence, and for a template that only has to be made, how.
async fn advised(control: &Control, reference: &Reference, team: &Team, mut error: Error) -> Error {
    if error.code == codes::TEMPLATE_NOT_FOUND
        && reference.namespace.is_none()
        && let Some(command) = control.available.get(&reference.name)
        // If it is there, what it lacks is the tag, or a build.
        && let Err(unknown) = control.database.find_template(reference, team).await
        && unknown.code == codes::TEMPLATE_NOT_FOUND
    {
        error.message = format!("{}; its operator builds it with: {command}", error.message);
    }
    error
}

/// Checks what the client says of the sandbox; returns the timeout given, seconds.
fn check_labels(body: &rest::NewSandbox) -> ApiResult<Option<u32>> {
    let given = body.timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
    fields::check_env_vars(body.env_vars.as_ref())?;
    fields::check_size("metadata", body.metadata.as_ref())?;
    fields::check_size("envVars", body.env_vars.as_ref())?;
    Ok(given)
}

/// The checks behind the template's.
fn order(
    control: &Control,
    team: &Team,
    body: rest::NewSandbox,
    resolved: Resolved,
    given: Option<u32>,
    defaults: Defaults,
) -> ApiResult<Order> {
    let timeout = given.unwrap_or(defaults.timeout);
    if timeout == 0 {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Timeout must be greater than 0"));
    }
    check_timeout(team, timeout)?;
    fields::check(&body)?;
    let id = new_id()?;
    let is_secure = defaults.always_secure || body.secure == Some(true);
    let envd_access_token =
        is_secure.then(|| tokens::envd_access_token(&control.seed, &id)).transpose()?;
    Ok(Order { id, resolved, timeout, envd_access_token, body })
}

pub(super) fn new_id() -> ApiResult<SandboxId> {
    SandboxId::generate().map_err(|error| {
        Error::new(codes::INTERNAL, format!("the system gives no randomness: {error}.")).into()
    })
}

/// The sentences on templates are the contract's; those on failures of the database are not.
pub(crate) fn template_error(error: Error) -> ApiError {
    if error.code.status < 500 { ApiError::as_fixed(error) } else { error.into() }
}

/// Refuses a lifetime beyond the tier's.
pub(super) fn check_timeout(team: &Team, timeout: u32) -> ApiResult<()> {
    let hours = team.tier.max_length_hours;
    if timeout > longest(team) {
        return Err(ApiError::fixed(
            codes::INVALID_REQUEST,
            format!("Timeout cannot be greater than {hours} hours"),
        ));
    }
    Ok(())
}

/// The tier's longest run, seconds.
pub(super) fn longest(team: &Team) -> u32 {
    team.tier.max_length_hours.saturating_mul(3600)
}

/// Takes a place and starts the sandbox. A start that is dropped is undone.
pub(super) async fn start(
    control: &Arc<Control>,
    team: &Team,
    record: SandboxRecord,
) -> ApiResult<Entry> {
    let limit = team.tier.concurrent_sandboxes;
    let place = control.catalogue.reserve(&record.team, &record.id, limit).await;
    let place = place.map_err(|error| limit_error(error, team))?;
    let created = control.node.create(record).await.map_err(placement_error)?;
    let entry = control.learn(created.sandbox).await?;
    drop(place);

    let record = &entry.sandbox.record;
    tracing::info!(sandbox = %record.id, timings = ?created.timings, "created");
    let (database, template) = (control.database.clone(), record.template.clone());
    control.tasks.spawn(async move {
        if let Err(error) = database.count_spawn(&template).await {
            tracing::warn!(%template, %error, "a sandbox of the template was not counted");
        }
    });
    Ok(entry)
}

/// The sandbox as the node is asked for it.
fn record(team: &Team, order: Order) -> SandboxRecord {
    let Order { id, resolved, timeout, envd_access_token, body } = order;
    if let Some(servers) = body.mcp.as_ref().and_then(|mcp| mcp.as_object()) {
        tracing::info!(sandbox = %id, servers = ?servers.keys(), "the client is to run MCP servers");
    }
    let on_timeout = match body.auto_pause {
        Some(true) => OnTimeout::Pause { memory: body.auto_pause_memory.unwrap_or(true) },
        _ => OnTimeout::Kill,
    };
    // The node sets both times, when the sandbox is up.
    let now = Timestamp::now();
    SandboxRecord {
        id,
        team: team.id.to_string(),
        template: resolved.template,
        alias: resolved.alias,
        build: resolved.build.id.to_string(),
        resources: Resources {
            vcpu: resolved.build.vcpu,
            memory_mb: resolved.build.memory_mb,
            disk_mb: resolved.build.disk_mb,
        },
        metadata: body.metadata.unwrap_or_default(),
        env_vars: body.env_vars.unwrap_or_default(),
        envd_access_token,
        allow_internet_access: body.allow_internet_access,
        timeout,
        longest: longest(team),
        on_timeout,
        auto_resume: body.auto_resume.and_then(|resume| resume.enabled).unwrap_or(false),
        forked_from: None,
        is_for_build: false,
        started_at: now,
        end_at: now,
    }
}

/// A refusal for want of a place, with what an operator should know.
pub(super) fn limit_error(error: Error, team: &Team) -> Error {
    if error.code != codes::CONCURRENCY_LIMIT {
        return error;
    }
    Error::new(
        error.code,
        format!(
            "Team '{}' already has {} sandboxes running or starting, the most that its tier '{}' \
             allows.",
            team.slug, team.tier.concurrent_sandboxes, team.tier_name
        ),
    )
}

fn placement_error(error: Error) -> ApiError {
    if error.code == codes::CAPACITY {
        return ApiError::fixed(
            error.code,
            "Failed to place sandbox: not enough capacity for the requested resources right now, \
             please retry shortly",
        );
    }
    if error.code.status < 500 {
        return error.into();
    }
    Error { message: format!("Failed to place sandbox: {}", error.message), ..error }.into()
}
