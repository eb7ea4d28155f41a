//! `PATCH /v2/templates/{templateID}`, `PATCH /templates/{templateID}` and
//! `DELETE /templates/{templateID}` (control-plane contract, sections 8 and 10.10).

use std::sync::Arc;

use atoll_core::{TemplateId, error::codes};
use atoll_state::{
    database::{DEVELOPMENT_TEAM, Named},
    model::Team,
};
use atoll_wire::rest::{self, SandboxState};
use axum::{Json, extract::State};
use http::StatusCode;

use super::{owned, parse_reference, team_of};
use crate::{
    auth::Principal,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{OptionalJson, Segment},
    sandboxes::{create::template_error, shown_state},
};

/// Lets every team use a template, or its own alone.
#[utoipa::path(patch, path = "/v2/templates/{templateID}", tag = "templates",
    params(("templateID" = String, Path, description = "`[namespace/]alias-or-id`, percent-encoded")),
    request_body = rest::TemplateUpdate,
    responses(
        (status = 200, body = rest::TemplateNames), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn update_template_v2(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segment(template): Segment,
    OptionalJson(body): OptionalJson<rest::TemplateUpdate>,
) -> ApiResult<Json<rest::TemplateNames>> {
    let names = update(&control, &principal, &template, &body, false).await?;
    Ok(Json(rest::TemplateNames { names }))
}

/// The same for older clients; a template that becomes public gets its name in the global namespace,
/// too.
#[utoipa::path(patch, path = "/templates/{templateID}", tag = "templates",
    params(("templateID" = String, Path, description = "`[namespace/]alias-or-id`, percent-encoded")),
    request_body = rest::TemplateUpdate,
    responses(
        (status = 200, description = "It is done"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn update_template(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segment(template): Segment,
    OptionalJson(body): OptionalJson<rest::TemplateUpdate>,
) -> ApiResult<StatusCode> {
    update(&control, &principal, &template, &body, true).await?;
    Ok(StatusCode::OK)
}

async fn update(
    control: &Control,
    principal: &Principal,
    template: &str,
    body: &rest::TemplateUpdate,
    reserve: bool,
) -> ApiResult<Vec<String>> {
    let team = team_of(principal, None)?;
    let named = owned(control, team, &parse_reference(template)?).await?;
    let public = body.public.unwrap_or(named.is_public);
    if public != named.is_public {
        refuse_shipped(&named, "changed")?;
    }
    let reserve = reserve && body.public == Some(true);
    if reserve {
        refuse_reserved(control, team, &named)?;
    }
    control.database.set_public(&named.template, public, reserve).await.map_err(template_error)
}

/// Whoever creates a sandbox by the plain name of a template that Atoll ships, trusts the deployment,
/// not any team of it: the name is its first team's, whose key the operator has.
fn refuse_reserved(control: &Control, team: &Team, named: &Named) -> ApiResult<()> {
    match &named.alias {
        Some(alias) if control.available.contains_key(alias) && team.id != DEVELOPMENT_TEAM => {
            Err(ApiError::fixed(
                codes::FORBIDDEN,
                format!(
                    "the name '{alias}' is reserved for this deployment's first team; the template \
                     stays your team's own"
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// What came with the deployment is everybody's.
fn refuse_shipped(named: &Named, done: &str) -> ApiResult<()> {
    if !named.is_shipped {
        return Ok(());
    }
    Err(ApiError::fixed(
        codes::FORBIDDEN,
        format!("template '{}' came with this deployment and cannot be {done}", named.template),
    ))
}

/// Deletes a template or snapshot, whatever the tag, with all its builds. Sandboxes that were made of
/// it stand in the way; builds under way do not.
#[utoipa::path(delete, path = "/templates/{templateID}", tag = "templates",
    params(("templateID" = String, Path, description = "`[namespace/]alias-or-id[:tag]`, percent-encoded")),
    responses(
        (status = 204, description = "It is gone"), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 500, body = rest::Error),
    ),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = []), ("AccessTokenAuth" = [])))]
pub(crate) async fn delete_template(
    State(control): State<Arc<Control>>,
    principal: Principal,
    Segment(template): Segment,
) -> ApiResult<StatusCode> {
    let team = team_of(&principal, None)?;
    let named = owned(&control, team, &parse_reference(&template)?).await?;
    refuse_shipped(&named, "deleted")?;
    delete(&control, team, named).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete(control: &Arc<Control>, team: &Team, named: Named) -> ApiResult<()> {
    refuse_used(control, team, &named).await?;
    let (worker, template) = (control.clone(), named.template);
    let work = async move {
        let Some(builds) = worker.database.delete_template(&template).await? else {
            return Err(ApiError::fixed(
                codes::TEMPLATE_NOT_FOUND,
                format!("template '{template}' not found"),
            ));
        };
        let builds: Vec<String> = builds.iter().map(ToString::to_string).collect();
        if !named.is_snapshot {
            for build in &builds {
                let stopped = worker.builder.cancel(build, "The template was deleted.").await;
                if let Err(error) = stopped {
                    tracing::warn!(build, %error, "a build of a deleted template was not stopped");
                }
            }
        }
        worker.delete_builds(&builds).await;
        Ok(())
    };
    control.to_the_end(work).await?
}

/// Refuses to delete a template that sandboxes were made of; those of other teams, if it is public.
async fn refuse_used(control: &Control, team: &Team, named: &Named) -> ApiResult<()> {
    let template = &named.template;
    let states = if named.is_public {
        states_of_all(control, template).await?
    } else {
        let sandboxes = control.catalogue.list(&team.id.to_string()).await?;
        let users = sandboxes.iter().filter(|entry| entry.sandbox.record.template == *template);
        users.map(|entry| shown_state(entry.sandbox.state)).collect()
    };
    for (state, word) in [(SandboxState::Running, "running"), (SandboxState::Paused, "paused")] {
        if states.contains(&state) {
            return Err(ApiError::fixed(
                codes::INVALID_REQUEST,
                format!(
                    "cannot delete template '{template}' because there are {word} sandboxes using it"
                ),
            ));
        }
    }
    Ok(())
}

async fn states_of_all(control: &Control, template: &TemplateId) -> ApiResult<Vec<SandboxState>> {
    let mut states = Vec::new();
    for id in control.catalogue.ids().await? {
        if let Some(entry) = control.catalogue.get(&id).await?
            && entry.sandbox.record.template == *template
        {
            states.push(shown_state(entry.sandbox.state));
        }
    }
    Ok(states)
}
