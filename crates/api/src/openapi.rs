//! The routes this release has, and the OpenAPI document made of them.
//!
//! Routes and document are one list: a handler that is routed is documented.

use std::sync::Arc;

use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    control::Control,
    health,
    sandboxes::{
        create, deadline, fork, get, kill, lineage, list, logs, metrics, pause, resume, rewind,
    },
    snapshots, teams,
    templates::{
        files, list as templates, own, register, start, status, tag_history, tags, update,
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", description = "The control plane of a self-hosted sandbox cloud."),
    modifiers(&Schemes),
    security(("ApiKeyAuth" = []), ("AdminApiKeyAuth" = [], "AdminTeamAuth" = [])),
)]
struct Base;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut Document) {
        let header = |name: &str| SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(name)));
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("ApiKeyAuth", header("X-API-Key"));
        components.add_security_scheme("AdminApiKeyAuth", header("X-Admin-Token"));
        components.add_security_scheme("AdminTeamAuth", header("X-Team-ID"));
        components.add_security_scheme("AccessTokenAuth", SecurityScheme::Http(bearer));
    }
}

/// The routes with their document.
pub(crate) fn built_routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(health::health))
        .routes(routes!(create::create_sandbox))
        .routes(routes!(create::create_sandbox_v2))
        .routes(routes!(list::list_running_sandboxes))
        .routes(routes!(list::list_sandboxes))
        .routes(routes!(metrics::sandboxes_metrics))
        .routes(routes!(metrics::sandbox_metrics))
        .routes(routes!(logs::sandbox_logs))
        .routes(routes!(logs::sandbox_logs_v2))
        .routes(routes!(get::get_sandbox))
        .routes(routes!(kill::kill_sandbox))
        .routes(routes!(deadline::set_timeout))
        .routes(routes!(deadline::refresh_sandbox))
        .routes(routes!(pause::pause_sandbox))
        .routes(routes!(resume::connect_sandbox))
        .routes(routes!(resume::connect_sandbox_v2))
        .routes(routes!(resume::resume_sandbox))
        .routes(routes!(fork::fork_sandbox))
        .routes(routes!(fork::fork_any_sandbox))
        .routes(routes!(rewind::rewind_sandbox))
        .routes(routes!(lineage::sandbox_lineage))
        .routes(routes!(snapshots::create_snapshot))
        .routes(routes!(snapshots::list_snapshots))
        .routes(routes!(templates::list_templates))
        .routes(routes!(templates::template_alias))
        .routes(routes!(templates::list_templates_v2))
        .routes(routes!(templates::list_default_templates))
        .routes(routes!(templates::get_template))
        .routes(routes!(update::update_template))
        .routes(routes!(update::update_template_v2))
        .routes(routes!(update::delete_template))
        .routes(routes!(register::register_template))
        .routes(routes!(register::register_template_v2))
        .routes(routes!(files::files_upload))
        .routes(routes!(files::upload_files))
        .routes(routes!(start::start_build))
        .routes(routes!(status::build_status))
        .routes(routes!(status::build_logs))
        .routes(routes!(tags::assign_tags))
        .routes(routes!(tags::delete_tags))
        .routes(routes!(tags::list_tags))
        .routes(routes!(tag_history::count_tags))
        .routes(routes!(tag_history::tag_exists))
        .routes(routes!(tag_history::tag_groups))
        .routes(routes!(tag_history::tag_assignments))
        .routes(routes!(own::build_shell))
        .routes(routes!(own::cancel_build))
        .routes(routes!(own::prune_templates))
        .routes(routes!(teams::list_teams))
}
