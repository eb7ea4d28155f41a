//! `POST /sandboxes/{sandboxID}/fork`, and ours for paused sandboxes.
//!
//! The sandbox is copied once, to a build that nobody knows of, and the forks are made of that. It is
//! deleted when they are there: each has what it needs of it.

use std::sync::Arc;

use atoll_core::{
    Error, SandboxId,
    error::codes,
    limits::{DEFAULT_TIMEOUT_V1, MOST_FORKS},
};
use atoll_state::{catalogue::Entry, model::Team};
use atoll_wire::{
    node::{EndReason, SandboxRecord, Snapshot},
    rest::{self, ForkResult},
};
use axum::{Json, extract::State};
use http::StatusCode;
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use uuid::Uuid;

use super::{
    create::{check_timeout, longest, new_id, start},
    find,
    refusal::{Refusal, answered},
    summary,
};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{OptionalJson, SandboxPath, seconds},
    tokens,
};

/// Most forks of one request that start at once.
const AT_ONCE: usize = 8;

type Answer = (StatusCode, Json<Vec<ForkResult>>);

/// Starts copies of a running sandbox, which goes on.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/fork", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<rest::ForkRequest>,
    responses(
        (status = 201, description = "What became of each", body = Vec<ForkResult>),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error), (status = 503, body = rest::Error),
    ))]
pub(crate) async fn fork_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::ForkRequest>,
) -> ApiResult<Answer> {
    fork(&control, &team, &id, &body, false).await
}

/// Starts copies of a sandbox that runs or is paused, and leaves it so. Not of E2B's protocol.
#[utoipa::path(post, path = "/atoll/sandboxes/{sandboxID}/fork", tag = "atoll",
    params(("sandboxID" = String, Path)), request_body = Option<rest::ForkRequest>,
    responses(
        (status = 201, description = "What became of each", body = Vec<ForkResult>),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error), (status = 503, body = rest::Error),
    ))]
pub(crate) async fn fork_any_sandbox(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::ForkRequest>,
) -> ApiResult<Answer> {
    fork(&control, &team, &id, &body, true).await
}

/// A fork that has passed every check.
struct Order {
    control: Arc<Control>,
    team: Team,
    source: SandboxRecord,
    /// Seconds.
    timeout: u32,
    count: u32,
    of_paused: bool,
}

/// What became of each fork.
type Forks = Vec<ApiResult<Entry>>;

async fn fork(
    control: &Arc<Control>,
    team: &Team,
    id: &SandboxId,
    body: &rest::ForkRequest,
    of_paused: bool,
) -> ApiResult<Answer> {
    const DEFAULT: i32 = DEFAULT_TIMEOUT_V1.as_secs() as i32;
    let timeout = seconds("timeout", body.timeout.unwrap_or(DEFAULT))?;
    let count = count(team, body.count.unwrap_or(1))?;
    let source = find(control, team, id).await?.sandbox.record;
    if timeout == 0 {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Timeout must be greater than 0"));
    }
    check_timeout(team, timeout)?;
    let order =
        Order { control: control.clone(), team: team.clone(), source, timeout, count, of_paused };
    let forks = order.carry_out().await?.map_err(|refusal| match refusal {
        Refusal::Paused => ApiError::fixed(
            codes::SANDBOX_PAUSED,
            format!("Sandbox '{id}' is paused and cannot be forked; resume it first"),
        ),
        refusal => refusal.told_of("forked", id),
    })?;
    let result = |fork: ApiResult<Entry>| match fork {
        Ok(entry) => ForkResult { sandbox: Some(summary(control, &entry)), error: None },
        Err(error) => ForkResult { sandbox: None, error: Some(error.body()) },
    };
    Ok((StatusCode::CREATED, Json(forks.into_iter().map(result).collect())))
}

fn count(team: &Team, count: i32) -> ApiResult<u32> {
    let limit = team.tier.concurrent_sandboxes;
    match u32::try_from(count) {
        Ok(count) if (1..=MOST_FORKS).contains(&count) => {
            if count < limit {
                return Ok(count);
            }
            // The sandbox itself has a place.
            Err(ApiError::fixed(
                codes::INVALID_REQUEST,
                format!("count must be less than the team's limit of {limit} sandboxes at once"),
            ))
        }
        _ => Err(ApiError::validation(format!("count must be 1 to {MOST_FORKS}, got {count}"))),
    }
}

impl Order {
    /// Forks, in a task: the copy is deleted whatever becomes of the caller, and forks that nobody
    /// was told of are ended.
    async fn carry_out(self) -> ApiResult<Result<Forks, Refusal>> {
        let (tell, told) = oneshot::channel();
        let control = self.control.clone();
        self.control.clone().tasks.spawn(async move {
            let Err(Ok(unheard)) = tell.send(self.copy_and_start().await) else { return };
            for entry in unheard.into_iter().flatten() {
                let id = &entry.sandbox.record.id;
                if let Err(error) = control.kill(id, EndReason::Killed).await {
                    tracing::warn!(sandbox = %id, %error, "a fork nobody was told of was not ended");
                }
            }
        });
        told.await.map_err(|_| Error::new(codes::INTERNAL, "a fork did not finish.").into())
    }

    async fn copy_and_start(&self) -> Result<Forks, Refusal> {
        let (control, id) = (&self.control, &self.source.id);
        let build = Uuid::new_v4().to_string();
        let snapshot = Snapshot {
            build: build.clone(),
            template: self.source.template.clone(),
            of_paused: self.of_paused,
        };
        let forks = match answered(control, id, control.node.snapshot(id, snapshot).await).await {
            Ok(_) => Ok(self.start(&build).await),
            Err(refusal) => Err(refusal),
        };
        // Also after an error: a kill in the meantime is one, and the copy may be there.
        control.delete_builds(&[build]).await;
        forks
    }

    async fn start(&self, build: &str) -> Forks {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut starts = JoinSet::new();
        for _ in 0..self.count {
            let (control, team, places) = (self.control.clone(), self.team.clone(), places.clone());
            let record = self.record(build);
            starts.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire().await;
                start(&control, &team, record?).await
            });
        }
        let mut forks = Vec::new();
        while let Some(fork) = starts.join_next().await {
            forks.push(fork.unwrap_or_else(|error| {
                let message = format!("a fork did not finish: {error}.");
                Err(Error::new(codes::INTERNAL, message).into())
            }));
        }
        forks
    }

    /// A fork as the node is asked for it: as its source, but for who it is.
    fn record(&self, build: &str) -> ApiResult<SandboxRecord> {
        let id = new_id()?;
        let is_secure = self.source.envd_access_token.is_some();
        let token = is_secure.then(|| tokens::envd_access_token(&self.control.seed, &id));
        let now = Timestamp::now();
        Ok(SandboxRecord {
            id,
            build: build.to_owned(),
            envd_access_token: token.transpose()?,
            timeout: self.timeout,
            longest: longest(&self.team),
            forked_from: Some(self.source.id.clone()),
            is_for_build: false,
            started_at: now,
            end_at: now,
            ..self.source.clone()
        })
    }
}
