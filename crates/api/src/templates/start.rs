//! `POST /v2/templates/{templateID}/builds/{buildID}` (control-plane contract, sections 10.4 to 10.6).
//!
//! What is wrong with the base of a build (a template that is not there, an image that cannot be
//! had) fails the build, not the request: clients look for it there.

use std::sync::Arc;

use atoll_core::{Error, Result, error::codes, reference::Reference};
use atoll_state::{
    builds::{BuildRecord, BuildStatus, SUPERSEDED},
    model::Team,
};
use atoll_wire::{
    build::{BuildSpec, Credentials, From, Step},
    node::Resources,
    rest::{self, RegistryCredentials},
};
use axum::extract::State;
use http::{HeaderMap, StatusCode, header};
use uuid::Uuid;

use super::{build_of, check_hash, invalid};
use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Json, Segments},
    foreman,
    sandboxes::create::template_error,
};

/// The image that clients name for want of another; here it is a template.
const BASE_IMAGE: &str = "e2bdev/base";
const BASE: &str = "base";
/// What clients of Google's registries give as name beside the key file of a service account.
const KEY_FILE_USER: &str = "_json_key";

/// How published clients begin their `User-Agent`.
const CLIENTS: [&str; 2] = ["e2b-js-sdk/", "e2b-python-sdk/"];

/// Starts a build that waits.
#[utoipa::path(post, path = "/v2/templates/{templateID}/builds/{buildID}", tag = "templates",
    params(("templateID" = String, Path), ("buildID" = String, Path)),
    request_body = rest::BuildRequest,
    responses(
        (status = 202, description = "It is under way"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
        (status = 503, body = rest::Error),
    ))]
pub(crate) async fn start_build(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Segments((template, build)): Segments<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<rest::BuildRequest>,
) -> ApiResult<StatusCode> {
    let id =
        Uuid::parse_str(&build).map_err(|error| invalid(format!("Invalid build ID: {error}")))?;
    let record = build_of(&control, &template, id).await?.ok_or_else(|| {
        ApiError::fixed(
            codes::TEMPLATE_NOT_FOUND,
            format!("template '{template}' has no build '{id}'"),
        )
    })?;
    if record.team != team.id {
        let message = "User does not have access to the template";
        return Err(ApiError::fixed(codes::FORBIDDEN, message));
    }
    if record.status != BuildStatus::Waiting {
        return Err(invalid("build is not in waiting state"));
    }
    let keeps_user = keeps_user(&headers)?;
    let source = Source::of(&body)?;
    let steps = steps(&body)?;
    let order = Order { record, team, source, steps, body, keeps_user };
    control.to_the_end(order.carry_out(control.clone())).await??;
    Ok(StatusCode::ACCEPTED)
}

/// Whether the last USER and WORKDIR are kept, which clients before 2.3.0 do not expect.
fn keeps_user(headers: &HeaderMap) -> ApiResult<bool> {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let version = CLIENTS.iter().find_map(|client| agent?.strip_prefix(client));
    let Some(version) = version else { return Ok(true) };
    let version = version.split_whitespace().next().unwrap_or_default();
    let (numbers, is_preview) = match version.split_once(['-', '+']) {
        Some((numbers, _)) => (numbers, version[numbers.len()..].starts_with('-')),
        None => (version, false),
    };
    let numbers: Option<Vec<u64>> = numbers.split('.').map(|number| number.parse().ok()).collect();
    let Some([major, minor, patch]) = numbers.as_deref() else {
        return Err(invalid(format!(
            "Error when parsing user agent: '{version}' is not a version"
        )));
    };
    let numbers = (*major, *minor, *patch);
    Ok(numbers > (2, 3, 0) || (numbers == (2, 3, 0) && !is_preview))
}

/// What a build is to start from.
enum Source {
    Image { reference: String, credentials: Option<Credentials> },
    Archive(String),
    Template(String),
}

impl Source {
    fn of(body: &rest::BuildRequest) -> ApiResult<Self> {
        let given = |text: &Option<String>| {
            text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let all = (given(&body.from_image), given(&body.from_template), given(&body.from_archive));
        match all {
            (Some(image), None, None) if is_base_image(&image) => {
                Ok(Self::Template(BASE.to_owned()))
            }
            (Some(reference), None, None) => {
                let credentials = body.from_image_registry.clone().map(credentials);
                Ok(Self::Image { reference, credentials })
            }
            (None, Some(template), None) => Ok(Self::Template(template)),
            (None, None, Some(archive)) => {
                check_hash(&archive)?;
                Ok(Self::Archive(archive))
            }
            _ => Err(ApiError::validation(
                "exactly one of fromImage, fromTemplate and fromArchive must be given",
            )),
        }
    }

    /// As the builder is asked for it.
    async fn resolve(self, control: &Control, team: &Team) -> Result<From> {
        match self {
            Self::Image { reference, credentials } => Ok(From::Image { reference, credentials }),
            Self::Archive(files) => Ok(From::Archive { files }),
            Self::Template(name) => {
                let reference = Reference::parse(&name).map_err(|error| {
                    let message = format!("Invalid template reference: {error}");
                    Error::new(codes::INVALID_REQUEST, message)
                })?;
                let resolved = control.database.resolve_template(&reference, team).await?;
                Ok(From::Build { id: resolved.build.id.to_string(), name })
            }
        }
    }
}

/// Whether an image is the one that the template `base` stands for, whatever its tag.
fn is_base_image(reference: &str) -> bool {
    let name = reference.split(['@', ':']).next().unwrap_or_default();
    let name = name.strip_prefix("index.").unwrap_or(name);
    name.strip_prefix("docker.io/").unwrap_or(name) == BASE_IMAGE
}

fn credentials(given: RegistryCredentials) -> Credentials {
    match given {
        RegistryCredentials::Aws { aws_access_key_id, aws_secret_access_key, aws_region } => {
            Credentials::Aws {
                access_key_id: aws_access_key_id,
                secret_access_key: aws_secret_access_key,
                region: aws_region,
            }
        }
        RegistryCredentials::Gcp { service_account_json } => Credentials::Basic {
            username: KEY_FILE_USER.to_owned(),
            password: service_account_json,
        },
        RegistryCredentials::Registry { username, password } => {
            Credentials::Basic { username, password }
        }
    }
}

fn steps(body: &rest::BuildRequest) -> ApiResult<Vec<Step>> {
    let step = |step: &rest::BuildStep| {
        let files = step.files_hash.clone().filter(|hash| !hash.is_empty());
        if let Some(hash) = &files {
            check_hash(hash)?;
        }
        Ok(Step {
            kind: step.kind.clone(),
            args: step.args.clone().unwrap_or_default(),
            files,
            force: step.force.unwrap_or(false),
        })
    };
    body.steps.iter().flatten().map(step).collect()
}

/// A start that has passed every check.
struct Order {
    record: BuildRecord,
    team: Arc<Team>,
    source: Source,
    steps: Vec<Step>,
    body: rest::BuildRequest,
    keeps_user: bool,
}

impl Order {
    /// Begins the build. From the first write on the build is under way, and whatever comes in the
    /// way fails it.
    async fn carry_out(self, control: Arc<Control>) -> ApiResult<()> {
        let Self { record, team, source, steps, body, keeps_user } = self;
        let id = record.build.id;
        let superseded = control.database.start_build(id).await.map_err(template_error)?;
        for build in superseded {
            if let Err(error) = control.builder.cancel(&build.to_string(), SUPERSEDED).await {
                tracing::warn!(%build, %error, "a superseded build was not stopped");
            }
        }
        let from = match source.resolve(&control, &team).await {
            Ok(from) => from,
            Err(error) => {
                foreman::fail(&control, id, &error).await?;
                return if error.code.status < 500 { Ok(()) } else { Err(error.into()) };
            }
        };
        let text = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let spec = BuildSpec {
            id: id.to_string(),
            template: record.template,
            alias: record.alias,
            team: team.id.to_string(),
            from,
            force: body.force.unwrap_or(false),
            steps,
            start: text(body.start_cmd),
            ready: text(body.ready_cmd),
            resources: Resources {
                vcpu: record.build.vcpu,
                memory_mb: record.build.memory_mb,
                disk_mb: record.build.disk_mb,
            },
            keeps_user,
        };
        if let Err(error) = control.builder.start(spec).await {
            foreman::fail(&control, id, &error).await?;
            return Err(error.into());
        }
        // Cancelled, superseded or deleted while the builder did not have it yet.
        let now = control.database.build(id).await?;
        if now.is_none_or(|record| record.status == BuildStatus::Failed) {
            control.builder.cancel(&id.to_string(), "Nobody waits for this build.").await?;
        }
        tracing::info!(build = %id, team = %team.slug, "a build is under way");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn kept(agent: &str) -> Option<bool> {
        let value = HeaderValue::from_str(agent).unwrap();
        keeps_user(&HeaderMap::from_iter([(header::USER_AGENT, value)])).ok()
    }

    #[test]
    fn clients_before_2_3_0_expect_the_user_of_old() {
        for agent in ["e2b-python-sdk/2.2.9", "e2b-js-sdk/1.13.0", "e2b-js-sdk/2.3.0-rc.1 x/1"] {
            assert_eq!(kept(agent), Some(false), "{agent}");
        }
        for agent in ["e2b-python-sdk/2.3.0", "e2b-js-sdk/2.10.1 app/1", "curl/8", "x e2b-js-sdk/1"]
        {
            assert_eq!(kept(agent), Some(true), "{agent}");
        }
        assert_eq!(keeps_user(&HeaderMap::new()).ok(), Some(true));
        for agent in ["e2b-python-sdk/", "e2b-js-sdk/two", "e2b-js-sdk/2.3", "e2b-js-sdk/2.3.0.1"] {
            assert_eq!(kept(agent), None, "{agent}");
        }
    }

    #[test]
    fn the_image_of_base_is_the_template() {
        for image in ["e2bdev/base", "e2bdev/base:latest", "docker.io/e2bdev/base@sha256:00"] {
            assert!(is_base_image(image), "{image}");
        }
        for image in ["e2bdev/base2", "x/e2bdev/base", "e2bdev/code-interpreter", "base"] {
            assert!(!is_base_image(image), "{image}");
        }
    }
}
