//! Templates and their builds (control-plane contract, section 10).
//!
//! - [`register`]: a name and a build that waits. [`files`]: what it copies. [`start`]: what it is
//!   made of. [`status`]: how it goes, and its log.
//! - [`list`]: looking. [`update`]: visibility, and the end.
//! - [`tags`], and [`tag_history`]: what tags mean and have meant.
//! - [`own`]: what is not of the contract.
//!
//! A build under way is the builder's; `foreman` beside this module stores what it tells.

pub(crate) mod files;
pub(crate) mod list;
pub(crate) mod own;
pub(crate) mod register;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod tag_history;
pub(crate) mod tags;
pub(crate) mod update;

use atoll_core::{Error, error::codes, reference::Reference};
use atoll_state::{
    builds::{BuildRecord, BuildStatus},
    database::Named,
    model::Team,
};
use atoll_wire::rest;
use uuid::Uuid;

use crate::{
    auth::{Principal, check_standing},
    control::Control,
    error::{ApiError, ApiResult},
    sandboxes::create::template_error,
};

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::fixed(codes::INVALID_REQUEST, message)
}

/// The team to act for: the key's, or the user's default one, or the one wanted of those.
fn team_of<'a>(principal: &'a Principal, wanted: Option<&str>) -> ApiResult<&'a Team> {
    let wanted = wanted.filter(|wanted| !wanted.is_empty());
    let is_wanted = |team: &Team| wanted.is_none_or(|wanted| team.id.to_string() == wanted);
    match principal {
        Principal::Team(team) if is_wanted(team) => Ok(team),
        Principal::Team(_) => Err(invalid("Team ID param mismatch with the API key")),
        Principal::User { teams, .. } if teams.is_empty() => {
            Err(ApiError::fixed(codes::FORBIDDEN, "You don't have access to any teams"))
        }
        Principal::User { teams, .. } => {
            let team = teams.iter().find(|team| is_wanted(team)).ok_or_else(|| {
                ApiError::fixed(codes::FORBIDDEN, "You are not allowed to access this team")
            })?;
            check_standing(team, true)?;
            Ok(team)
        }
        Principal::Admin | Principal::Anyone => {
            Err(Error::new(codes::INTERNAL, "a route of teams was reached without one.").into())
        }
    }
}

/// Whether the caller may act for this team.
fn is_of(principal: &Principal, team: Uuid) -> bool {
    match principal {
        Principal::Team(own) => own.id == team,
        Principal::User { teams, .. } => {
            teams.iter().any(|own| own.id == team && check_standing(own, true).is_ok())
        }
        Principal::Admin | Principal::Anyone => false,
    }
}

fn parse_reference(text: &str) -> ApiResult<Reference> {
    Reference::parse(text).map_err(|error| invalid(format!("Invalid template reference: {error}")))
}

/// The template that a reference names, if it is the team's own.
async fn owned(control: &Control, team: &Team, reference: &Reference) -> ApiResult<Named> {
    let named = control.database.find_template(reference, team).await.map_err(template_error)?;
    if named.is_own {
        return Ok(named);
    }
    Err(ApiError::fixed(
        codes::FORBIDDEN,
        format!("you don't have access to template '{}'", reference.name),
    ))
}

/// A build by the two ids of its routes; none if there is none.
async fn build_of(
    control: &Control,
    template: &str,
    build: Uuid,
) -> ApiResult<Option<BuildRecord>> {
    let record = control.database.build(build).await?;
    Ok(record.filter(|record| record.template.as_str() == template))
}

fn shown_status(status: BuildStatus) -> rest::BuildStatus {
    match status {
        BuildStatus::Waiting => rest::BuildStatus::Waiting,
        BuildStatus::Building => rest::BuildStatus::Building,
        BuildStatus::Ready => rest::BuildStatus::Ready,
        BuildStatus::Failed => rest::BuildStatus::Error,
    }
}

/// A tag to be given, as it is stored.
fn parse_tag(text: &str) -> ApiResult<String> {
    let refused = |why: &str| invalid(format!("Invalid tag: '{text}' {why}"));
    let reference = Reference::parse(&format!("x:{}", text.trim()))
        .map_err(|_| refused("must be of letters, digits, '-', '_' and '.'"))?;
    let tag = reference.tag.unwrap_or_else(|| atoll_core::reference::DEFAULT_TAG.to_owned());
    // It would stand in the way of the build of that id.
    if Uuid::try_parse(&tag).is_ok() {
        return Err(refused("looks like the id of a build"));
    }
    Ok(tag)
}

/// Tags of a request, each once.
fn parse_tags(texts: &[String]) -> ApiResult<Vec<String>> {
    let mut tags = Vec::with_capacity(texts.len());
    for text in texts {
        let tag = parse_tag(text)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// What files are called: 64 lower-case hexadecimal characters.
fn check_hash(hash: &str) -> ApiResult<()> {
    let is_hash = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_hash { Ok(()) } else { Err(invalid("Invalid files hash")) }
}
