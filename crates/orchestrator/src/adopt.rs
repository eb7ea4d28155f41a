//! What the node does at start with the sandboxes of its journal: it looks for each on the host,
//! takes hold of what lives, and lets its lifecycle say how to go on.
//!
//! Until that has been possible the sandbox is there as the journal has it, and all that can be asked
//! of it is to end.

use std::{sync::Arc, time::Duration};

use atoll_core::{
    Error, Result,
    error::codes,
    lifecycle::{Kept, Saved, State},
};
use atoll_isolation::Running;
use atoll_network::Slot;
use atoll_storage::Lease;
use atoll_wire::node::{EndReason, OnTimeout};
use jiff::Timestamp;

use crate::{
    deadline,
    journal::{Entry, RunEntry, keeps_run},
    logs::SandboxLog,
    owner,
    run::{Parts, Run},
    sandbox::Sandbox,
    service::Inner,
    start,
};

/// How many are looked for at once.
pub(crate) const AT_ONCE: usize = 16;

/// What could not be found out is looked at again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Processes that are killed end within milliseconds; those that take this long may never end.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// The sandbox of an entry, for its owner to [take up](take_up).
pub(crate) async fn remember(inner: &Inner, entry: Entry) -> Arc<Sandbox> {
    let log =
        SandboxLog::new(inner.logs.clone(), entry.record.id.clone(), entry.record.team.clone());
    let lease = lease(inner, &entry).await;
    let around = inner.around(&entry.record, log);
    Arc::new(Sandbox::remembered(entry, lease, around))
}

/// Finds out what there is of a remembered sandbox, however long that takes; of any other that is
/// known. Whether it is: if the node stops first, nothing has been done.
pub(crate) async fn take_up(inner: &Inner, sandbox: &Arc<Sandbox>) -> bool {
    if !sandbox.known().is_unseen {
        return true;
    }
    // What is recorded meanwhile has no run.
    let entry = sandbox.known().entry.clone();
    loop {
        match look(inner, sandbox, &entry).await {
            Ok((run, saved)) => {
                tracing::info!(sandbox = %sandbox.id(), ?saved, "a sandbox of an earlier run");
                sandbox.seen(run, saved);
                return true;
            }
            Err(error) => {
                tracing::error!(sandbox = %sandbox.id(), %error, "a sandbox cannot be taken up");
            }
        }
        tokio::select! {
            () = sandbox.wake.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
            () = inner.stopping.cancelled() => return false,
        }
        let left = deadline::left(&entry, Timestamp::now());
        let is_due = left == Some(Duration::ZERO) && entry.record.on_timeout == OnTimeout::Kill;
        if is_due && !sandbox.killed.is_cancelled() {
            sandbox.begin_kill(EndReason::Expired);
        }
        if sandbox.killed.is_cancelled() && sandbox.known().entry.state != State::Ending {
            // So that it ends with the next start, if not with this one.
            if let Err(error) = sandbox.record(State::Ending).await {
                tracing::warn!(sandbox = %sandbox.id(), %error, "its end is not recorded");
            }
        }
    }
}

async fn look(inner: &Inner, sandbox: &Sandbox, entry: &Entry) -> Result<(Option<Run>, Saved)> {
    let _turn = inner.adopting.acquire().await;
    let saved = match owner::saved(inner, sandbox.id()).await {
        // It is to go, whatever is saved.
        Err(_) if sandbox.killed.is_cancelled() => Saved::None,
        saved => saved?,
    };
    let run = match entry.run.clone().filter(|_| keeps_run(entry.state)) {
        Some(run) => find(inner, sandbox, entry, run).await?,
        None => None,
    };
    if let Some(run) = &run
        && entry.state != State::Paused(Kept::Frozen)
    {
        // Whether they are frozen is not asked: either is done again, and harms nothing.
        run.assume_frozen();
    }
    Ok((run, saved))
}

/// Keeps the layers of a sandbox. One that lacks some may run on, but will not start anew.
async fn lease(inner: &Inner, entry: &Entry) -> Option<Lease> {
    let layers = entry.layers(&inner.options.runtime_layer);
    match inner.storage.lease(&layers).await {
        Ok(lease) => return Some(lease),
        Err(error) => tracing::error!(sandbox = %entry.record.id, %error, "a layer is missing"),
    }
    let mut there = Vec::new();
    for layer in layers {
        if inner.storage.lease(std::slice::from_ref(&layer)).await.is_ok() {
            there.push(layer);
        }
    }
    inner.storage.lease(&there).await.ok()
}

/// What is left of a run: all of it, its disk alone, or nothing.
async fn find(
    inner: &Inner,
    sandbox: &Sandbox,
    entry: &Entry,
    run: RunEntry,
) -> Result<Option<Run>> {
    let processes = match inner.driver.adopt(&run.identity).await? {
        Some(running) => {
            if sandbox.killed.is_cancelled() {
                start::kill(&running);
            }
            take_slot(inner, entry, run.slot, running).await?
        }
        None => None,
    };
    let (disk, processes) = match (inner.storage.adopt_disk(&run.disk).await, processes) {
        (Ok(Some(disk)), processes) => (disk, processes),
        (Ok(None), Some((running, slot))) => {
            tracing::error!(sandbox = %sandbox.id(), "a sandbox has lost its disk; ending it");
            if let Err(error) = end(running).await {
                slot.leave();
                return Err(error);
            }
            return Ok(None);
        }
        (Ok(None), None) => {
            inner.network.discard(run.slot);
            return Ok(None);
        }
        (Err(error), processes) => {
            if let Some((_, slot)) = processes {
                slot.leave();
            }
            return Err(error);
        }
    };
    if processes.is_none() {
        inner.network.discard(run.slot);
    }
    let processes = processes.map(|(running, slot)| (running, Arc::new(slot)));
    let parts = Parts { entry: run, limits: sandbox.limits, processes, disk };
    let run = Run::new(parts, sandbox.log.clone());
    run.forget_past();
    Ok(Some(run))
}

/// Takes hold of the network of processes that live. Those that cannot have it back are ended.
async fn take_slot(
    inner: &Inner,
    entry: &Entry,
    index: u32,
    running: Running,
) -> Result<Option<(Running, Slot)>> {
    let internet = !start::has_no_internet(&entry.record);
    let adopted = async {
        let namespaces = inner.driver.namespaces(&running)?;
        inner.network.adopt(index, namespaces.user, namespaces.net, internet).await
    };
    match adopted.await {
        Ok(slot) => Ok(Some((running, slot))),
        Err(error) => {
            tracing::error!(sandbox = %entry.record.id, %error, "a sandbox has lost its network");
            end(running).await?;
            Ok(None)
        }
    }
}

/// Ends processes that are of no use without the rest.
async fn end(running: Running) -> Result<()> {
    let ended = tokio::time::timeout(ENDED_WITHIN, start::undo(running)).await;
    ended.map_err(|_| Error::new(codes::INTERNAL, "its processes are killed, and do not end."))
}
