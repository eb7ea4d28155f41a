//! The end of a build: the template's own manifest, and what its sandboxes start with.

use std::time::Duration;

use atoll_core::{Result, lifecycle::Kept};
use atoll_orchestrator::services::{self, Start};
use atoll_storage::{BuildManifest, StartCommand};
use atoll_wire::{
    log::LogLevel,
    node::{Node, Snapshot},
};

use super::{
    context::DEFAULT_USER,
    job::{self, Job},
    room::{Room, gone},
    step::Key,
    work,
};

/// A start command has to be ready within this time (control-plane contract, section 10.5).
const READY_WITHIN: Duration = Duration::from_secs(10 * 60);

/// Makes the template of what the steps have left.
pub(super) async fn finish(mut job: Job<'_>) -> Result<()> {
    job.log.at("finalize", "[finalize]");
    if !job.spec.keeps_user {
        DEFAULT_USER.clone_into(&mut job.context.user);
        job.context.workdir = None;
    }
    let storage = job.shared.site.storage.clone();
    let start = start_command(&job);
    let template = BuildManifest {
        id: job.spec.id.clone(),
        alias: job.spec.alias.clone(),
        start: start.clone(),
        parent: Some(job.parent.id.clone()),
        ..job::manifest(job.shared, job.spec, &job.key, job.parent.layers.clone(), &job.context)
    };
    let Some(start) = start else {
        return storage.put_build(&template).await;
    };
    // A sandbox as those of the template will be, but for the command.
    let key = Key::first(&job.spec.team, ["finalize", &job.spec.id]);
    let parent = job.keep(None, &key, "[finalize]".to_owned()).await?.manifest;
    let before = std::mem::replace(&mut job.parent, parent);
    let finished = started(&mut job, &start, template).await;
    let parent = std::mem::replace(&mut job.parent, before);
    if let Err(error) = storage.delete_build(&parent.id).await {
        tracing::warn!(%error, "what a build was finished with stays until a prune");
    }
    finished
}

fn start_command(job: &Job<'_>) -> Option<StartCommand> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    match (given(&job.spec.start), given(&job.spec.ready)) {
        (Some(command), ready) => Some(StartCommand { command, ready }),
        // What is to be ready comes up by itself.
        (None, Some(ready)) => {
            Some(StartCommand { command: "true".to_owned(), ready: Some(ready) })
        }
        (None, None) => None,
    }
}

/// Starts the command, and makes the template: of the sandbox with its memory where that can be kept,
/// else of the layers, and the command is started in every sandbox.
async fn started(job: &mut Job<'_>, start: &StartCommand, template: BuildManifest) -> Result<()> {
    let mut room = job.open(true).await?;
    job.log.note(format_args!("Running start command: {}", start.command));
    if let Some(ready) = &start.ready {
        job.log.note(format_args!("Waiting for template to be ready: {ready}"));
    }
    let mut log = job.log.clone();
    log.at("finalize", "[start]");
    let mut lines = log.output();
    let say = |stream, bytes: &[u8]| lines.take(stream, bytes);
    let started = services::start(&room.guest, start, Start::Build, READY_WITHIN, say).await;
    started.map_err(|error| work::ended(&start.command, error))?;
    drop(lines);
    job.log.say(LogLevel::Info, "Template is ready");
    let kept = snapshot(job, &room, &template).await?;
    room.end().await;
    job.log.note(match kept {
        Kept::Checkpoint => "Sandboxes go on from the memory of this moment",
        _ => "Sandboxes run the start command when they are created",
    });
    Ok(())
}

/// Stores the template.
async fn snapshot(job: &Job<'_>, room: &Room, template: &BuildManifest) -> Result<Kept> {
    let site = &job.shared.site;
    if site.node.info().await?.memory != Kept::Checkpoint {
        site.storage.put_build(template).await?;
        return Ok(Kept::Disk);
    }
    let wanted = Snapshot {
        build: template.id.clone(),
        template: template.template.clone(),
        of_paused: false,
    };
    let kept = site.node.snapshot(room.id(), wanted).await?.ok_or_else(gone)?;
    if kept != Kept::Checkpoint {
        // Of no more use than the layers.
        site.storage.delete_build(&template.id).await?;
        site.storage.put_build(template).await?;
        return Ok(Kept::Disk);
    }
    let taken = site.storage.build(&template.id).await?.ok_or_else(gone)?;
    let manifest = BuildManifest {
        snapshot: taken.snapshot,
        stack: taken.stack,
        control_secret: taken.control_secret,
        ..template.clone()
    };
    site.storage.put_build(&manifest).await?;
    Ok(kept)
}
