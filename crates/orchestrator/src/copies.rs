//! Copies of a sandbox: what a snapshot and a rewind do with its disk and its memory.
//!
//! A snapshot is a build. What is saved under its id is sealed first; then its manifest is written,
//! and that is what makes it exist: what is saved without one is deleted at the next start.

use std::{fs::File, io, sync::Arc};

use atoll_core::{
    Error, Result,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_storage::{BuildManifest, Disk, Saved};
use atoll_wire::{log::LogLevel, node::Snapshot};
use jiff::Timestamp;

use crate::{
    journal::{Entry, Memory},
    known::Doing,
    owner,
    run::Run,
    sandbox::Sandbox,
    service::Inner,
};

/// What a checkpoint takes beside the memory itself: what describes processes, and what is counted
/// late. Bytes.
const CHECKPOINT_MARGIN: u64 = 32 << 20;

/// Copies the frozen run, or what is saved, to the snapshot that was asked for. On failure nothing
/// is left of that.
pub(crate) async fn copy(inner: &Inner, sandbox: &Arc<Sandbox>) -> Result<()> {
    let (entry, snapshot) = {
        let known = sandbox.known();
        let Doing::Snapshot(snapshot, _) = &known.doing else { return Err(nothing_asked()) };
        (known.entry.clone(), snapshot.clone())
    };
    let copied = try_copy(inner, sandbox, &entry, &snapshot).await;
    match copied {
        Ok(kept) => {
            let fields = [("event_type", "sandbox_snapshot".to_owned()), ("build", snapshot.build)];
            let message = match kept {
                Kept::Checkpoint => "A snapshot was taken",
                _ => "A snapshot was taken, of the disk alone: what is made of it boots anew",
            };
            sandbox.log.say(LogLevel::Info, message, fields);
            if let Doing::Snapshot(_, copied) = &mut sandbox.known().doing {
                *copied = Some(kept);
            }
            Ok(())
        }
        Err(error) => {
            if let Err(error) = inner.storage.drop_saved(&snapshot.build).await {
                tracing::warn!(build = snapshot.build, %error, "half a snapshot is left");
            }
            Err(error)
        }
    }
}

async fn try_copy(
    inner: &Inner,
    sandbox: &Arc<Sandbox>,
    entry: &Entry,
    snapshot: &Snapshot,
) -> Result<Kept> {
    let (kept, memory) = match entry.state {
        State::Paused(kept @ (Kept::Disk | Kept::Checkpoint)) => {
            let name = sandbox.id().as_str();
            let saved = inner.storage.saved(name).await?;
            let saved = saved.ok_or_else(|| lost(format!("nothing is saved of sandbox {name}")))?;
            inner.storage.copy_saved(&saved, &snapshot.build).await?;
            (kept, entry.memory.clone().filter(|_| kept == Kept::Checkpoint))
        }
        _ => {
            let run = owner::run(sandbox)?;
            let kept = dump(inner, sandbox, &run, &snapshot.build).await?;
            let sealed = inner.storage.seal(&*run.disk()?, &snapshot.build).await;
            let sealed = sealed.and_then(|_| run.still_held());
            run.let_go().await?;
            sealed?;
            (kept, (kept == Kept::Checkpoint).then(|| run.entry().memory.clone()))
        }
    };
    inner.storage.put_build(&manifest(entry, snapshot, kept, memory)).await?;
    Ok(kept)
}

/// Writes the memory of the frozen run to what is to be saved under `name`.
///
/// # Errors
/// `CHECKPOINT_FAILED` also when there is no room for it.
pub(crate) async fn dump_to(inner: &Inner, run: &Run, name: &str) -> Result<()> {
    let limit = run.limits().memory;
    let used = run.memory_in_use().unwrap_or(limit);
    let begun =
        inner.storage.begin_saved(name, used + CHECKPOINT_MARGIN, limit + CHECKPOINT_MARGIN).await;
    let images = begun.map_err(|error| match error.code {
        code if code == codes::DISK_FULL => Error { code: codes::CHECKPOINT_FAILED, ..error },
        _ => error,
    })?;
    run.dump(&*inner.driver, &images).await
}

/// Writes the memory of the frozen run to what is to be saved under `name`, where that can be done;
/// says what will be in it.
async fn dump(inner: &Inner, sandbox: &Sandbox, run: &Run, name: &str) -> Result<Kept> {
    // A start of an earlier run of this node may have left something.
    inner.storage.drop_saved(name).await?;
    if inner.driver.memory() != Kept::Checkpoint {
        return Ok(Kept::Disk);
    }
    match dump_to(inner, run, name).await {
        Ok(()) => Ok(Kept::Checkpoint),
        Err(error) if error.code == codes::CHECKPOINT_FAILED => {
            inner.storage.drop_saved(name).await?;
            sandbox.report_no_checkpoint(&error, "its snapshot is of the disk alone");
            Ok(Kept::Disk)
        }
        Err(error) => Err(error),
    }
}

fn manifest(
    entry: &Entry,
    snapshot: &Snapshot,
    kept: Kept,
    memory: Option<Memory>,
) -> BuildManifest {
    let Entry { record, build, .. } = entry;
    let (stack, control_secret) =
        memory.map(|memory| (memory.stack, memory.control_secret)).unzip();
    BuildManifest {
        id: snapshot.build.clone(),
        template: snapshot.template.clone(),
        alias: None,
        layers: build.layers.clone(),
        envd_version: entry.envd_version.clone(),
        vcpu: record.resources.vcpu,
        memory_mb: record.resources.memory_mb,
        disk_mb: record.resources.disk_mb,
        default_user: build.default_user.clone(),
        default_workdir: build.default_workdir.clone(),
        created_at: Timestamp::now(),
        // It was built from no recipe.
        recipe_digest: String::new(),
        step: None,
        parent: None,
        env_vars: build.env_vars.clone(),
        start: build.start.clone(),
        snapshot: Some(kept),
        stack: stack.unwrap_or_default(),
        control_secret,
    }
}

/// Makes a copy of a snapshot what is saved of the sandbox.
pub(crate) async fn fetch(inner: &Inner, sandbox: &Sandbox) -> Result<()> {
    let name = {
        let known = sandbox.known();
        let Doing::Rewind(build) = &known.doing else { return Err(nothing_asked()) };
        build.id.clone()
    };
    let saved = inner.storage.saved(&name).await?;
    let saved = saved
        .ok_or_else(|| Error::new(codes::TEMPLATE_MISSING, format!("snapshot {name} is gone.")))?;
    inner.storage.copy_saved(&saved, sandbox.id().as_str()).await.map(drop)
}

/// Whether a checkpoint is among what is saved.
pub(crate) async fn has_memory(saved: &Saved) -> Result<bool> {
    let directory = saved.memory_dir();
    let look = async || tokio::fs::read_dir(&directory).await?.next_entry().await;
    match look().await {
        Ok(first) => Ok(first.is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            let message = format!("cannot look into {}: {error}.", directory.display());
            Err(Error::new(codes::DATA_DIR_UNUSABLE, message))
        }
    }
}

/// Has what was written to a disk outlive the machine.
pub(crate) async fn sync(disk: &Disk) -> Result<()> {
    let upper = disk.upper();
    let sync = move || nix::unistd::syncfs(File::open(upper)?).map_err(io::Error::from);
    let synced = tokio::task::spawn_blocking(sync).await.map_err(io::Error::other).flatten();
    synced.map_err(|error| Error::new(codes::POOL_FAILED, format!("cannot sync a disk: {error}.")))
}

fn nothing_asked() -> Error {
    Error::new(codes::INTERNAL, "it is not known which copy was asked for.")
}

fn lost(what: String) -> Error {
    Error::new(codes::INTERNAL, format!("{what}."))
}
