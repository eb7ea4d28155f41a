//! What a build starts from: an image, or another build.

use atoll_core::{Error, LayerId, Result, error::codes};
use atoll_storage::BuildManifest;
use atoll_wire::{
    build::{BuildSpec, From},
    log::LogLevel,
};

use super::{
    Shared,
    context::Context,
    job::{self, Held, Job},
    log::Log,
    step::Key,
    unpack,
};

/// Begins a build.
pub(super) async fn begin<'a>(
    shared: &'a Shared,
    spec: &'a BuildSpec,
    log: Log<'a>,
) -> Result<Job<'a>> {
    match &spec.from {
        From::Build { id, name } => from_build(shared, spec, log, id, name).await,
        From::Image { .. } | From::Archive { .. } => unpack::from_image(shared, spec, log).await,
    }
}

async fn from_build<'a>(
    shared: &'a Shared,
    spec: &'a BuildSpec,
    log: Log<'a>,
    id: &str,
    name: &str,
) -> Result<Job<'a>> {
    let build = shared.site.storage.build(id).await?.ok_or_else(|| {
        Error::new(codes::TEMPLATE_MISSING, format!("the node does not have template {name}."))
    })?;
    let key = Key::first(&spec.team, ["build", id]);
    log.note(format_args!("FROM {name} [{}]", key.short()));
    if build.snapshot.is_none() {
        // Its own layers are its result: nothing has to be kept.
        let held = Held::of(shared, build).await?;
        return Ok(Job::at(shared, spec, log, held, key));
    }
    if let Some(found) = job::find(shared, &spec.team, &key, spec.force).await? {
        return Ok(Job::at(shared, spec, log, found, key));
    }
    let layer = written(shared, &build, &key).await?;
    let context = Context::of(&build);
    let layers = build.layers.iter().cloned().chain(layer).collect();
    let manifest = result(shared, spec, &key, layers, &context, format!("FROM {name}"));
    let held = Held::put(shared, manifest).await?;
    Ok(Job::at(shared, spec, log, held, key))
}

/// What the sandbox of a snapshot had written, as a layer.
async fn written(shared: &Shared, build: &BuildManifest, key: &Key) -> Result<Option<LayerId>> {
    let storage = &shared.site.storage;
    let saved = storage.saved(&build.id).await?.ok_or_else(|| {
        Error::new(codes::TEMPLATE_MISSING, format!("snapshot {} is gone.", build.id))
    })?;
    let (limit, layer) = (u64::from(build.disk_mb) << 20, job::layer("FROM a snapshot", key));
    storage.layer_of(&saved, limit, "", super::room::LEFT_OUT, layer).await
}

/// The result that a build begins with.
pub(super) fn result(
    shared: &Shared,
    spec: &BuildSpec,
    key: &Key,
    layers: Vec<LayerId>,
    context: &Context,
    text: String,
) -> BuildManifest {
    let step = atoll_storage::StepResult {
        team: spec.team.clone(),
        text,
        used_at: jiff::Timestamp::now(),
    };
    BuildManifest { step: Some(step), ..job::manifest(shared, spec, key, layers, context) }
}

/// Says that something of an earlier build serves.
pub(super) fn say_cached(log: &Log<'_>, text: &str, key: &Key) {
    log.say(LogLevel::Info, format!("CACHED [base] {text} [{}]", key.short()));
}
