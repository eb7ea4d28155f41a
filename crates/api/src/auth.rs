//! Who asks (control-plane contract, section 2).
//!
//! One middleware authenticates every route before anything else of the request is looked at. The
//! schemes that a route takes come from the table in [`endpoints`](crate::endpoints); they are tried
//! in order and the first success counts. When none succeeds, the verdict on a banned or blocked team
//! wins, then the error of the first scheme whose header was there, then "header is missing".
//!
//! The published development key is everybody's, so it is good only where nobody else can use it: on
//! this machine, and not from a web page. See [`local`](crate::local).

use std::{net::SocketAddr, sync::Arc};

use atoll_core::{error::codes, key};
use atoll_state::model::Team;
use axum::{
    body::to_bytes,
    extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, request::Parts};
use subtle::ConstantTimeEq;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    control::Control,
    endpoints::{self, Access, Endpoint},
    error::{ApiError, ApiResult},
    local::from_this_machine,
};

const API_KEY: &str = "x-api-key";
const ADMIN_TOKEN: &str = "x-admin-token";
const TEAM_ID: &str = "x-team-id";
const BEARER: &str = "Bearer ";

/// Most that is read of the body of a request that is refused, bytes: more than any but builds have.
const DRAINED: usize = 64 * 1024;

const INVALID_API_KEY: &str =
    "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.";
const INVALID_ACCESS_TOKEN: &str =
    "Invalid Access token, try to login again by running `e2b auth login`.";

/// Who asks, once it is known.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// Nobody in particular.
    Anyone,
    /// A team.
    Team(Arc<Team>),
    /// A user, with the teams they are in, the default one first.
    User { user: Uuid, teams: Arc<[Team]> },
    /// The administrator.
    Admin,
}

/// The team that asks, on routes that only teams may call.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Arc<Team>);

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match Principal::from_request_parts(parts, state).await? {
            Principal::Team(team) => Ok(Self(team)),
            _ => Err(missing()),
        }
    }
}

/// A way to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    ApiKey,
    AccessToken,
    /// A token of an identity provider: none can be configured in this release.
    Provider,
    AdminAsTeam,
    Admin,
    /// A volume's token: none is handed out in this release.
    Volume,
}

fn schemes(access: Access) -> &'static [Scheme] {
    use Scheme::{AccessToken, Admin, AdminAsTeam, ApiKey, Provider, Volume};
    match access {
        Access::Open => &[],
        Access::Team => &[ApiKey, Provider, AdminAsTeam],
        Access::TeamOrUser => &[ApiKey, Provider, AdminAsTeam, AccessToken],
        Access::UserWithTeam | Access::User => &[AccessToken, Provider],
        Access::Provider { admin: true } => &[Provider, AdminAsTeam],
        Access::Provider { admin: false } | Access::ProviderOnly => &[Provider],
        Access::Admin => &[Admin],
        Access::Volume => &[Volume],
    }
}

/// The middleware.
pub(crate) async fn authenticate(
    State(control): State<Arc<Control>>,
    mut request: Request,
    next: Next,
) -> Response {
    let endpoint = request
        .extensions()
        .get::<MatchedPath>()
        .and_then(|path| endpoints::find(request.method(), path.as_str()));
    // What is not in the table (an unknown route, a wrong method) is refused further in.
    let Some(endpoint) = endpoint else { return next.run(request).await };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let error = match principal(&control, endpoint, request.headers(), peer).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            return next.run(request).await;
        }
        Err(error) => error,
    };
    // Unread, it would end the connection, under a client that is about to use it again.
    let body = to_bytes(request.into_body(), DRAINED);
    let _ = timeout(control.read_timeout, body).await;
    if endpoint.path.starts_with("/secrets") {
        return secrets_refusal(&error);
    }
    error.into_response()
}

/// The secrets routes have sentences of their own.
fn secrets_refusal(error: &ApiError) -> Response {
    match error.code().status {
        403 => crate::unbuilt::secrets_unavailable(),
        500.. => error.clone(),
        _ => ApiError::fixed(codes::UNAUTHENTICATED, "You are not authenticated"),
    }
    .into_response()
}

async fn principal(
    control: &Control,
    endpoint: &Endpoint,
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
) -> ApiResult<Principal> {
    if endpoint.access == Access::Open {
        return Ok(Principal::Anyone);
    }
    let attempt = Attempt { control, endpoint, headers, peer };
    let mut verdict: Option<ApiError> = None;
    let mut first_error: Option<ApiError> = None;
    for scheme in schemes(endpoint.access) {
        match attempt.by(*scheme).await {
            Ok(Some(principal)) => return Ok(principal),
            Ok(None) => {}
            Err(error) if error.code() == codes::FORBIDDEN => verdict = verdict.or(Some(error)),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(verdict.or(first_error).unwrap_or_else(missing))
}

fn missing() -> ApiError {
    ApiError::fixed(codes::UNAUTHENTICATED, "authorization header is missing")
}

fn malformed() -> ApiError {
    ApiError::fixed(codes::UNAUTHENTICATED, "authorization header is malformed")
}

fn refused(sentence: &str, detail: &str) -> ApiError {
    ApiError::fixed(codes::UNAUTHENTICATED, format!("{sentence}\n{detail}"))
}

fn dev_key_refused() -> ApiError {
    ApiError::new(
        codes::DEV_KEY_REFUSED,
        "The development key is published, so it works from this machine only, and not from a web page.",
    )
}

/// The value of a header; an error when it is there but is not text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> ApiResult<Option<&'a str>> {
    headers.get(name).map(|value| value.to_str().map_err(|_| malformed())).transpose()
}

struct Attempt<'a> {
    control: &'a Control,
    endpoint: &'a Endpoint,
    headers: &'a HeaderMap,
    peer: Option<SocketAddr>,
}

impl Attempt<'_> {
    /// Tries one scheme; none when its header is not there.
    async fn by(&self, scheme: Scheme) -> ApiResult<Option<Principal>> {
        match scheme {
            Scheme::ApiKey => match header(self.headers, API_KEY)? {
                Some(raw) => self.by_api_key(raw).await.map(Some),
                None => Ok(None),
            },
            Scheme::AccessToken => match self.bearer()? {
                Some(raw) => self.by_access_token(raw).await.map(Some),
                None => Ok(None),
            },
            Scheme::Provider => self.by_provider(),
            Scheme::Volume => Ok(self.bearer()?.map(|_| Principal::Anyone)),
            Scheme::Admin => Ok(self.admin()?.map(|()| Principal::Admin)),
            Scheme::AdminAsTeam => match (self.admin()?, header(self.headers, TEAM_ID)?) {
                (Some(()), Some(team)) => self.by_team_id(team).await.map(Some),
                _ => Ok(None),
            },
        }
    }

    async fn by_api_key(&self, raw: &str) -> ApiResult<Principal> {
        let hash = key::hash(key::API_KEY_PREFIX, raw).map_err(|error| match error {
            key::KeyError::Prefix => malformed(),
            key::KeyError::Format => refused(INVALID_API_KEY, "Invalid API key format"),
        })?;
        let owner =
            self.control.database.key_owner(&hash).await?.ok_or_else(|| {
                refused(INVALID_API_KEY, "Cannot get the team for the given API key")
            })?;
        self.check_development(owner.development)?;
        self.admit(owner.team)
    }

    async fn by_access_token(&self, raw: &str) -> ApiResult<Principal> {
        let hash = key::hash(key::ACCESS_TOKEN_PREFIX, raw).map_err(|error| match error {
            key::KeyError::Prefix => malformed(),
            key::KeyError::Format => refused(INVALID_ACCESS_TOKEN, "Invalid access token format"),
        })?;
        let owner = self.control.database.token_owner(&hash).await?.ok_or_else(|| {
            refused(INVALID_ACCESS_TOKEN, "Cannot get the user for the given access token")
        })?;
        self.check_development(owner.development)?;
        Ok(Principal::User { user: owner.user, teams: owner.teams.into() })
    }

    fn by_provider(&self) -> ApiResult<Option<Principal>> {
        let Some(token) = self.bearer()? else { return Ok(None) };
        // An access token is left to its own scheme where the route takes one.
        if token.starts_with(key::ACCESS_TOKEN_PREFIX)
            && schemes(self.endpoint.access).contains(&Scheme::AccessToken)
        {
            return Ok(None);
        }
        Err(ApiError::fixed(
            codes::UNAUTHENTICATED,
            "Invalid auth provider token. No identity provider is configured: send an API key in X-API-Key.",
        ))
    }

    async fn by_team_id(&self, team: &str) -> ApiResult<Principal> {
        let id: Uuid =
            team.parse().map_err(|_| ApiError::fixed(codes::INVALID_REQUEST, "Invalid team ID"))?;
        let team = self.control.database.team(id).await?;
        self.admit(team.ok_or_else(|| ApiError::fixed(codes::NOT_FOUND, "Team not found"))?)
    }

    fn bearer(&self) -> ApiResult<Option<&str>> {
        header(self.headers, "authorization")?
            .map(|value| value.strip_prefix(BEARER).ok_or_else(malformed))
            .transpose()
    }

    fn admin(&self) -> ApiResult<Option<()>> {
        let Some(presented) = header(self.headers, ADMIN_TOKEN)? else { return Ok(None) };
        let expected = self.control.admin_token.as_deref().unwrap_or_default();
        let equal: bool = presented.as_bytes().ct_eq(expected.as_bytes()).into();
        if equal && !expected.is_empty() {
            return Ok(Some(()));
        }
        Err(ApiError::fixed(
            codes::UNAUTHENTICATED,
            "Invalid Access token. It is not the admin token of this deployment.",
        ))
    }

    fn check_development(&self, development: bool) -> ApiResult<()> {
        let domain = self.control.domain.as_deref();
        if development && !from_this_machine(self.headers, self.peer, domain) {
            return Err(dev_key_refused());
        }
        Ok(())
    }

    fn admit(&self, team: Team) -> ApiResult<Principal> {
        check_standing(&team, self.endpoint.allows_blocked())?;
        Ok(Principal::Team(Arc::new(team)))
    }
}

/// Refuses a banned team, and a blocked one unless the endpoint is one it may still call.
pub(crate) fn check_standing(team: &Team, blocked_may: bool) -> ApiResult<()> {
    if team.banned {
        return Err(ApiError::fixed(codes::FORBIDDEN, "team is banned"));
    }
    match &team.blocked {
        Some(_) if blocked_may => Ok(()),
        None => Ok(()),
        Some(reason) if reason.is_empty() => {
            Err(ApiError::fixed(codes::FORBIDDEN, "team is blocked"))
        }
        Some(reason) => {
            Err(ApiError::fixed(codes::FORBIDDEN, format!("team is blocked: {reason}")))
        }
    }
}
