//! The one task that owns a sandbox: it performs the steps of its lifecycle, one at a time, and
//! watches over its processes and its time in between.
//!
//! A step that fails, a sandbox that dies and a node that starts again are all the same to it: it
//! looks at what is there, and [`Lifecycle`](atoll_core::lifecycle::Lifecycle) says how to go on.

use std::{mem, sync::Arc, time::Duration};

use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, Origin, Saved, State, Step},
};
use atoll_storage::{BuildManifest, Lease};
use atoll_wire::node::{Change, EndReason};

use crate::{
    abort, adopt, copies,
    expiry::Expiry,
    journal::Memory,
    run::Run,
    sandbox::Sandbox,
    service::{Handle, Inner},
    start::{self, Source},
};

/// A step that fails again waits: the cause will not be gone at once.
const RETRY: Duration = Duration::from_secs(1);

/// Owns `sandbox` until nothing of it is left, or until the node stops and it may stay. Run exactly
/// once, to its end.
pub(crate) async fn own(node: Handle, sandbox: Arc<Sandbox>) {
    let inner = node.inner();
    if !adopt::take_up(inner, &sandbox).await {
        return sandbox.leave();
    }
    let mut failures = 0;
    let mut expiry = Expiry::default();
    loop {
        let Some(step) = sandbox.take_step() else {
            let stopping = inner.stopping.is_cancelled();
            if sandbox.is_over() || (stopping && stop(&sandbox)) {
                return;
            }
            watch(inner, &sandbox, &mut expiry, stopping).await;
            continue;
        };
        match perform(&node, &sandbox, step).await {
            Ok(()) => {
                failures = 0;
                abort::after(step);
                sandbox.done(step);
            }
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.id(), step = step.name(), %error, "a step failed");
                sandbox.report_failure(&error);
                sandbox.failed(&error, look(inner, &sandbox).await);
                failures += 1;
                if failures > 1 {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// The node is stopping: whether the sandbox needs no node to be there. If it does, that is changed.
fn stop(sandbox: &Sandbox) -> bool {
    match sandbox.state() {
        State::Paused(Kept::Disk | Kept::Checkpoint) => {
            sandbox.leave();
            return true;
        }
        // Its end is seen, and its disk saved.
        State::Paused(Kept::Frozen) => {
            sandbox.known().entry.has_lost_memory = true;
            if let Some(run) = sandbox.run() {
                run.kill();
            }
        }
        _ => sandbox.begin_kill(EndReason::Shutdown),
    }
    false
}

/// Waits until something is asked, the node stops, its time is up, or the processes die.
async fn watch(inner: &Inner, sandbox: &Sandbox, expiry: &mut Expiry, stopping: bool) {
    let run = sandbox.run();
    let death = async {
        match &run {
            Some(run) => run.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sandbox.wake.notified() => {}
        () = inner.stopping.cancelled(), if !stopping => {}
        () = expiry.wait(inner, sandbox), if !stopping => {}
        () = death => {
            sandbox.known().close();
            let saved = look(inner, sandbox).await;
            // A kill that came in between has its own steps.
            if sandbox.known().lifecycle.is_settled() {
                let message = format!("the processes of sandbox {} have ended.", sandbox.id());
                let error = Error::new(codes::SANDBOX_GONE, message);
                sandbox.failed(&error, saved);
            }
        }
    }
}

/// What is saved of a sandbox.
///
/// # Errors
/// When the storage does not tell. That is never to be taken for nothing: it would be lost then.
pub(crate) async fn saved(inner: &Inner, id: &SandboxId) -> Result<Saved> {
    match inner.storage.saved(id.as_str()).await {
        Ok(None) => Ok(Saved::None),
        Ok(Some(saved)) if copies::has_memory(&saved).await? => Ok(Saved::Checkpoint),
        Ok(Some(_)) => Ok(Saved::Disk),
        // It is there: resuming fails, and says why, and it can be killed.
        Err(error) if error.code == codes::LAYER_CORRUPT => Ok(Saved::Disk),
        Err(error) => Err(error),
    }
}

/// As [`saved`], for as long as it takes.
async fn look(inner: &Inner, sandbox: &Sandbox) -> Saved {
    loop {
        match saved(inner, sandbox.id()).await {
            Ok(saved) => return saved,
            // It is to go, whatever is saved.
            Err(_) if sandbox.killed.is_cancelled() => return Saved::None,
            Err(error) => {
                tracing::error!(sandbox = %sandbox.id(), %error, "cannot tell what is saved");
                let _ = tokio::time::timeout(RETRY, sandbox.killed.cancelled()).await;
            }
        }
    }
}

async fn perform(node: &Handle, sandbox: &Arc<Sandbox>, step: Step) -> Result<()> {
    let inner = node.inner();
    match step {
        Step::Record(state) => record(sandbox, state).await,
        Step::Start(origin) => start(inner, sandbox, origin).await,
        Step::Freeze => freeze(inner, sandbox).await,
        Step::Thaw => run(sandbox)?.thaw(&*inner.driver).await,
        Step::Dump => {
            let run = run(sandbox)?;
            copies::dump_to(inner, &run, sandbox.id().as_str()).await?;
            sandbox.known().entry.memory = Some(run.entry().memory.clone());
            Ok(())
        }
        Step::Seal => {
            let run = run(sandbox)?;
            inner.storage.seal(&*run.disk()?, sandbox.id().as_str()).await?;
            run.still_held()
        }
        Step::Copy => copies::copy(inner, sandbox).await,
        Step::Fetch => copies::fetch(inner, sandbox).await,
        Step::EndRun => {
            sandbox.known().close();
            // Taken out only when it has ended: a kill meanwhile finds it.
            if let Some(run) = sandbox.run() {
                run.end().await;
            }
            sandbox.known().run = None;
            Ok(())
        }
        Step::DropSaved => {
            inner.storage.drop_saved(sandbox.id().as_str()).await?;
            release_layers(inner, sandbox).await;
            Ok(())
        }
        Step::Forget => {
            sandbox.forget().await?;
            farewell(node, sandbox).await;
            Ok(())
        }
        Step::Answer => Ok(()),
    }
}

pub(crate) fn run(sandbox: &Sandbox) -> Result<Arc<Run>> {
    sandbox.run().ok_or_else(|| Error::new(codes::SANDBOX_GONE, "it has no processes."))
}

async fn record(sandbox: &Arc<Sandbox>, state: State) -> Result<()> {
    let before = sandbox.known().entry.state;
    if state == State::Paused(Kept::Frozen) {
        // What is left of it when the machine stops.
        copies::sync(&*run(sandbox)?.disk()?).await?;
    }
    sandbox.record(state).await?;
    if state == State::Running {
        begin_running(sandbox);
    }
    sandbox.report_state(before, state);
    Ok(())
}

/// What a new run needs once: its log read, and its envd set apart.
fn begin_running(sandbox: &Sandbox) {
    if let Some(run) = sandbox.run()
        && run.begin_reading()
    {
        run.begin_setting_apart();
    }
}

/// Stops the processes. Connections to them end, unless all that is to be copied is the disk.
async fn freeze(inner: &Inner, sandbox: &Sandbox) -> Result<()> {
    let run = run(sandbox)?;
    let is_copied = sandbox.state() == State::Snapshotting;
    if !is_copied || inner.driver.memory() == Kept::Checkpoint {
        sandbox.known().close();
        run.shut().await;
    }
    if is_copied {
        // Who comes now waits for a moment.
        sandbox.known().open();
    }
    run.freeze(&*inner.driver).await
}

async fn start(inner: &Inner, sandbox: &Sandbox, origin: Origin) -> Result<()> {
    let source = source(inner, sandbox, origin).await?;
    let started = start::start(inner, sandbox, source).await?;
    let mut known = sandbox.known();
    known.run = Some(Arc::new(started.run));
    known.entry.envd_version = started.envd_version;
    known.timings = started.timings;
    Ok(())
}

/// Whether it was built, and is not a snapshot of a sandbox: what it started with can be started again.
fn is_built(build: &BuildManifest) -> bool {
    !build.recipe_digest.is_empty()
}

/// What a run is to start from.
async fn source(inner: &Inner, sandbox: &Sandbox, origin: Origin) -> Result<Source> {
    let (build, memory) = {
        let known = sandbox.known();
        (known.entry.build.clone(), known.entry.memory.clone())
    };
    let (name, memory, kept) = match origin {
        Origin::Template => match build.snapshot {
            None => return Ok(Source::Nothing),
            // All that is lost is what its start command did, and that does it again.
            Some(Kept::Checkpoint)
                if is_built(&build) && inner.driver.memory() != Kept::Checkpoint =>
            {
                return Ok(Source::Nothing);
            }
            Some(kept) => (build.id.clone(), Memory::of(&build), kept),
        },
        Origin::Disk => (sandbox.id().to_string(), None, Kept::Disk),
        Origin::Checkpoint => (sandbox.id().to_string(), memory, Kept::Checkpoint),
    };
    let saved = inner.storage.saved(&name).await?.ok_or_else(|| match origin {
        Origin::Template => {
            Error::new(codes::TEMPLATE_MISSING, format!("snapshot {name} is gone."))
        }
        _ => Error::new(codes::INTERNAL, format!("nothing is saved of sandbox {name}.")),
    })?;
    match (kept, memory) {
        (Kept::Checkpoint, Some(memory)) => Ok(Source::Checkpoint(saved, memory)),
        (Kept::Checkpoint, None) => {
            let message = format!("it is not known what the checkpoint of {name} was made of.");
            Err(Error::new(codes::CHECKPOINT_FAILED, message))
        }
        _ => Ok(Source::Disk(saved)),
    }
}

/// Lets go of layers that a sandbox had before it was taken back to a snapshot.
async fn release_layers(inner: &Inner, sandbox: &Sandbox) {
    let layers = {
        let known = sandbox.known();
        if known.leases.len() < 2 || known.entry.state != State::Running {
            return;
        }
        known.entry.layers(&inner.options.runtime_layer)
    };
    match inner.storage.lease(&layers).await {
        Ok(lease) => {
            let before = mem::replace(&mut sandbox.known().leases, vec![lease]);
            end_leases(sandbox, before).await;
        }
        Err(error) => tracing::error!(sandbox = %sandbox.id(), %error, "a layer is missing"),
    }
}

async fn end_leases(sandbox: &Sandbox, leases: Vec<Lease>) {
    for lease in leases {
        if let Err(error) = lease.end().await {
            let sandbox = sandbox.id();
            tracing::warn!(%sandbox, %error, "layers that nothing uses are left for the next start");
        }
    }
}

/// Takes leave of a sandbox of which nothing is left.
async fn farewell(node: &Handle, sandbox: &Sandbox) {
    let (reason, is_public, leases) = {
        let mut known = sandbox.known();
        (known.reason(), known.is_public, mem::take(&mut known.leases))
    };
    let id = sandbox.id().clone();
    end_leases(sandbox, leases).await;
    node.remove(&id);
    // Nobody has heard of one that did not come to run.
    if is_public {
        sandbox.report_end(reason);
        tracing::info!(sandbox = %id, ?reason, "sandbox ended");
        node.inner().events.push(Change::Ended { id, reason });
    }
}
