//! The one task that owns a sandbox: it performs the steps of its lifecycle, one at a time, and
//! watches over its processes in between.
//!
//! A step that fails, a sandbox that dies and a node that starts again are all the same to it: it
//! looks at what is there, and [`Lifecycle`](atoll_core::lifecycle::Lifecycle) says how to go on.

use std::{sync::Arc, time::Duration};

use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, Origin, Saved, State, Step},
};
use atoll_wire::{log::LogLevel, node::Ended};

use crate::{
    abort,
    sandbox::Sandbox,
    service::{Handle, Inner},
    start,
};

/// A step that fails again waits: the cause will not be gone at once.
const RETRY: Duration = Duration::from_secs(1);

/// Owns `sandbox` until nothing of it is left, or until the node stops and it may stay. Run exactly
/// once, to its end.
pub(crate) async fn own(node: Handle, sandbox: Arc<Sandbox>) {
    let inner = node.inner();
    let mut failures = 0;
    loop {
        let Some(step) = sandbox.take_step() else {
            if sandbox.is_over() || may_stay(inner, &sandbox) {
                return;
            }
            watch(inner, &sandbox).await;
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
                sandbox.failed(&error, look(inner, &sandbox).await);
                failures += 1;
                if failures > 1 {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Whether the node is stopping, and the sandbox is one that needs no node to be there.
fn may_stay(inner: &Inner, sandbox: &Sandbox) -> bool {
    let saved = matches!(sandbox.state(), State::Paused(Kept::Disk | Kept::Checkpoint));
    saved && inner.stopping.is_cancelled()
}

/// Waits until something is asked, the node stops, or the processes die.
async fn watch(inner: &Inner, sandbox: &Sandbox) {
    let run = sandbox.run();
    let death = async {
        match &run {
            Some(run) => run.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sandbox.wake.notified() => {}
        () = inner.stopping.cancelled(), if run.is_none() => {}
        () = death => {
            sandbox.known().close();
            let saved = look(inner, sandbox).await;
            // A kill that came in between has its own steps.
            if sandbox.known().lifecycle.is_settled() {
                let error = Error::new(codes::SANDBOX_GONE, "its processes have ended.");
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
        Ok(saved) => Ok(saved.map_or(Saved::None, |_| Saved::Disk)),
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

async fn perform(node: &Handle, sandbox: &Sandbox, step: Step) -> Result<()> {
    let inner = node.inner();
    match step {
        Step::Record(state) => {
            sandbox.record(state).await?;
            if state == State::Running {
                begin_running(sandbox);
            }
            Ok(())
        }
        Step::Start(origin) => start(inner, sandbox, origin).await,
        Step::Freeze => {
            sandbox.known().close();
            run(sandbox)?.freeze(&*inner.driver).await
        }
        Step::Thaw => run(sandbox)?.thaw(&*inner.driver).await,
        Step::Seal => {
            let disk = run(sandbox)?.disk()?;
            inner.storage.seal(&disk, sandbox.id().as_str()).await.map(drop)
        }
        Step::Dump | Step::Copy => Err(no_checkpoints()),
        Step::EndRun => {
            sandbox.known().close();
            // Taken out only when it has ended: a kill meanwhile finds it.
            if let Some(run) = sandbox.run() {
                run.end().await;
            }
            sandbox.known().run = None;
            Ok(())
        }
        Step::DropSaved => inner.storage.drop_saved(sandbox.id().as_str()).await,
        Step::Forget => {
            sandbox.forget().await?;
            farewell(node, sandbox);
            Ok(())
        }
        Step::Answer => Ok(()),
    }
}

fn run(sandbox: &Sandbox) -> Result<Arc<crate::run::Run>> {
    sandbox.run().ok_or_else(|| Error::new(codes::SANDBOX_GONE, "it has no processes."))
}

fn no_checkpoints() -> Error {
    Error::new(codes::DRIVER_UNSUPPORTED, "the driver takes no checkpoints.")
}

async fn start(inner: &Inner, sandbox: &Sandbox, origin: Origin) -> Result<()> {
    let record = sandbox.known().record.clone();
    let saved = match origin {
        Origin::Template => None,
        Origin::Disk => Some(inner.storage.saved(record.id.as_str()).await?.ok_or_else(|| {
            Error::new(codes::INTERNAL, format!("nothing is saved of sandbox {}.", record.id))
        })?),
        Origin::Checkpoint => return Err(no_checkpoints()),
    };
    let started = start::start(inner, sandbox, &record, saved.as_ref()).await?;
    let mut known = sandbox.known();
    known.run = Some(Arc::new(started.run));
    known.envd_version = started.envd_version;
    known.timings = started.timings;
    Ok(())
}

/// What a run that goes on needs once: its log read, and its envd set apart.
fn begin_running(sandbox: &Sandbox) {
    let Some(run) = sandbox.run() else { return };
    if run.begin_reading() {
        run.begin_setting_apart();
        sandbox.report_start();
    }
}

/// Takes leave of a sandbox of which nothing is left.
fn farewell(node: &Handle, sandbox: &Sandbox) {
    let (reason, is_public) = {
        let known = sandbox.known();
        (known.reason, known.is_public)
    };
    let id = sandbox.id().clone();
    node.remove(&id);
    // Nobody has heard of one that did not come to run.
    if is_public {
        sandbox.report_end(reason);
        tracing::info!(sandbox = %id, ?reason, "sandbox ended");
        node.inner().events.push(Ended { id, reason });
    }
}

/// Says in its log that it lives on under another run of the node.
pub(crate) fn report_adopted(sandbox: &Sandbox) {
    let fields = [("event_type", "sandbox_adopt".to_owned())];
    sandbox.log.say(LogLevel::Info, "The node started again, and the sandbox goes on", fields);
}
