//! `GET /teams` (control-plane contract, section 11).

use std::sync::Arc;

use atoll_core::{Error, error::codes, key};
use atoll_wire::rest;
use axum::{Json, extract::State};

use crate::{auth::Principal, control::Control, error::ApiResult};

const KEY_NAME: &str = "CLI login/configure";

/// Lists the user's teams, each with a new API key: the command line stores it.
#[utoipa::path(get, path = "/teams", tag = "teams",
    responses(
        (status = 200, body = Vec<rest::Team>), (status = 401, body = rest::Error),
        (status = 500, body = rest::Error),
    ),
    security(("AccessTokenAuth" = [])))]
pub(crate) async fn list_teams(
    State(control): State<Arc<Control>>,
    principal: Principal,
) -> ApiResult<Json<Vec<rest::Team>>> {
    let Principal::User { user, teams } = principal else {
        return Err(Error::new(codes::INTERNAL, "a route of users was reached without one.").into());
    };
    let mut answer = Vec::with_capacity(teams.len());
    for (position, team) in teams.iter().enumerate() {
        let raw = key::generate(key::API_KEY_PREFIX).map_err(|error| {
            Error::new(codes::INTERNAL, format!("the system gives no randomness: {error}."))
        })?;
        control.database.create_api_key(team.id, user, KEY_NAME, &raw).await?;
        answer.push(rest::Team {
            team_id: team.id.to_string(),
            name: team.name.clone(),
            api_key: raw,
            is_default: position == 0,
        });
    }
    Ok(Json(answer))
}
