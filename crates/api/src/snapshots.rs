//! `POST /sandboxes/{sandboxID}/snapshots` and `GET /snapshots` (control-plane contract, section 8).
//!
//! A snapshot is a build of a template. It is on the node first and in the database then, and what is
//! on the node alone is deleted at the next start: so an answer means that both have it, and a crash
//! in between leaves nothing.

use std::sync::Arc;

use atoll_core::{
    Error, SandboxId, TemplateId,
    error::codes,
    reference::{DEFAULT_TAG, Reference},
};
use atoll_state::model::{Build, NewSnapshot, Snapshot, Team};
use atoll_wire::{
    node::{self, NodeSandbox},
    rest::{self, SnapshotInfo},
};
use axum::{Json, extract::State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    auth::Caller,
    control::Control,
    cursor::{Key, Order},
    error::{ApiError, ApiResult},
    extract::{OptionalJson, Query, SandboxPath},
    page::Page,
    sandboxes::{
        create::template_error,
        find,
        refusal::{Refusal, answered},
    },
};

/// Takes a snapshot of a running sandbox, which goes on.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/snapshots", tag = "snapshots",
    params(("sandboxID" = String, Path)), request_body = Option<rest::SnapshotRequest>,
    responses(
        (status = 201, body = SnapshotInfo), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 403, body = rest::Error),
        (status = 404, body = rest::Error), (status = 409, body = rest::Error),
        (status = 500, body = rest::Error), (status = 503, body = rest::Error),
    ))]
pub(crate) async fn create_snapshot(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<rest::SnapshotRequest>,
) -> ApiResult<(StatusCode, Json<SnapshotInfo>)> {
    if body.memory == Some(false) {
        return Err(ApiError::unsupported("memory"));
    }
    let name = body.name.map(|name| Name::parse(&team, &name)).transpose()?;
    let source = find(&control, &team, &id).await?.sandbox;
    let template = template(&control, &team, name.as_ref()).await?;
    let work = take(control.clone(), team.clone(), source, name, template);
    let snapshot = control.to_the_end(work).await??;
    Ok((StatusCode::CREATED, Json(shown(&snapshot))))
}

/// What a snapshot is to be called.
struct Name {
    alias: String,
    tag: String,
}

impl Name {
    fn parse(team: &Team, text: &str) -> ApiResult<Self> {
        let refused = |message: String| ApiError::fixed(codes::INVALID_REQUEST, message);
        let reference = Reference::parse(text)
            .map_err(|error| refused(format!("Invalid snapshot name: {error}")))?;
        if let Some(namespace) = reference.namespace.filter(|namespace| *namespace != team.slug) {
            return Err(refused(format!(
                "namespace '{namespace}' must match your team '{}'",
                team.slug
            )));
        }
        let tag = reference.tag.unwrap_or_else(|| DEFAULT_TAG.to_owned());
        // It would stand in the way of the build of that id.
        if Uuid::try_parse(&tag).is_ok() {
            return Err(refused(format!("Invalid tag: '{tag}' looks like the id of a build")));
        }
        Ok(Self { alias: reference.name, tag })
    }
}

/// The template that the snapshot is to be of: that of the name, or a new one.
async fn template(control: &Control, team: &Team, name: Option<&Name>) -> ApiResult<TemplateId> {
    if let Some(name) = name {
        let known = control.database.snapshot_template(team, &name.alias).await;
        if let Some(template) = known.map_err(template_error)? {
            return Ok(template);
        }
    }
    TemplateId::generate().map_err(|error| {
        Error::new(codes::INTERNAL, format!("the system gives no randomness: {error}.")).into()
    })
}

/// Copies the sandbox and records the copy; one that cannot be recorded is deleted again.
async fn take(
    control: Arc<Control>,
    team: Arc<Team>,
    source: NodeSandbox,
    name: Option<Name>,
    template: TemplateId,
) -> ApiResult<Snapshot> {
    let record = source.record;
    let build = Uuid::new_v4();
    let snapshot =
        node::Snapshot { build: build.to_string(), template: template.clone(), of_paused: false };
    let answer = control.node.snapshot(&record.id, snapshot).await;
    let kept = match answered(&control, &record.id, answer).await {
        Ok(kept) => kept,
        Err(refusal) => {
            // A kill in the meantime is an error too, and the copy may be there all the same.
            control.delete_builds(&[build.to_string()]).await;
            return Err(match refusal {
                Refusal::Paused => ApiError::sandbox_not_found(&record.id),
                refusal => refusal.told_of("snapshotted", &record.id),
            });
        }
    };
    let (name, tag) =
        name.map_or((None, DEFAULT_TAG.to_owned()), |name| (Some(name.alias), name.tag));
    let new = NewSnapshot {
        template,
        name,
        tag,
        build: Build {
            id: build,
            vcpu: record.resources.vcpu,
            memory_mb: record.resources.memory_mb,
            disk_mb: record.resources.disk_mb,
            envd_version: source.envd_version,
        },
        sandbox: record.id,
        base: record.template,
        kept,
    };
    match control.database.add_snapshot(&new, &team).await {
        Ok(snapshot) => Ok(snapshot),
        Err(error) => {
            control.delete_builds(&[build.to_string()]).await;
            Err(template_error(error))
        }
    }
}

fn shown(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo { snapshot_id: snapshot.reference(), names: snapshot.names.clone() }
}

/// The query of `GET /snapshots`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SnapshotsQuery {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<i64>,
    next_token: Option<String>,
}

/// Lists the team's snapshots in pages, newest first.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots",
    params(
        ("sandboxID" = Option<String>, Query, description = "Only those of this sandbox, which may have ended"),
        ("name" = Option<String>, Query, description = "Only those of this name"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "100 by default"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, body = Vec<SnapshotInfo>, headers(
            ("X-Next-Token" = String, description = "Absent on the last page"),
        )),
        (status = 400, body = rest::Error), (status = 401, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn list_snapshots(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Query(query): Query<SnapshotsQuery>,
) -> ApiResult<(HeaderMap, Json<Vec<SnapshotInfo>>)> {
    let page = Page::new(query.limit, query.next_token.as_deref(), Order::Descending)?;
    let sandbox = query.sandbox_id.filter(|id| !id.is_empty());
    let sandbox = sandbox
        .map(|id| SandboxId::parse_segment(&id))
        .transpose()
        .map_err(|_| ApiError::fixed(codes::INVALID_REQUEST, "Invalid sandbox ID"))?;
    let name = query.name.filter(|name| !name.is_empty());
    let name = name.map(|name| Reference::parse(&name)).transpose().map_err(|error| {
        ApiError::fixed(codes::INVALID_REQUEST, format!("Invalid snapshot name: {error}"))
    })?;
    let mut snapshots = control.database.snapshots(team.id).await?;
    // One that another of its name and tag took the place of is reached by its build alone.
    snapshots.retain(|snapshot| {
        snapshot.is_current
            && sandbox.as_ref().is_none_or(|sandbox| snapshot.sandbox == *sandbox)
            && name.as_ref().is_none_or(|name| is_named(&team, snapshot, name))
    });
    let mut headers = HeaderMap::new();
    let key = |snapshot: &Snapshot| Key::new(snapshot.created_at, &snapshot.build.to_string());
    page.cut(&mut snapshots, key, &mut headers)?;
    Ok((headers, Json(snapshots.iter().map(shown).collect())))
}

fn is_named(team: &Team, snapshot: &Snapshot, name: &Reference) -> bool {
    let namespace = name.namespace.as_ref().unwrap_or(&team.slug);
    let qualified = format!("{namespace}/{}", name.name);
    let is_id = name.namespace.is_none() && snapshot.template.as_str() == name.name;
    (is_id || snapshot.names.contains(&qualified))
        && name.tag.as_ref().is_none_or(|tag| snapshot.tag == *tag)
}
