//! What the node does at start with the sandboxes of its journal: it looks for each on the host,
//! takes hold of what lives, and lets its lifecycle say how to go on.

use std::sync::Arc;

use atoll_core::{
    Result,
    lifecycle::{self, Kept, Lifecycle, Seen, State},
};
use atoll_isolation::Running;
use atoll_network::Slot;

use crate::{
    journal::{Entry, RunEntry, keeps_run},
    logs::SandboxLog,
    owner,
    run::{Parts, Run},
    sandbox::Sandbox,
    service::Inner,
    start,
};

/// The sandbox of an entry, with a lifecycle that goes on from what is there. None if that cannot be
/// told: then nothing may be done about it, and the next start tries again.
pub(crate) async fn adopt(inner: &Inner, entry: Entry) -> Option<Arc<Sandbox>> {
    let id = entry.record.id.clone();
    match try_adopt(inner, entry).await {
        Ok(sandbox) => Some(sandbox),
        Err(error) => {
            tracing::error!(sandbox = %id, %error, "a sandbox is left alone until the next start");
            None
        }
    }
}

async fn try_adopt(inner: &Inner, entry: Entry) -> Result<Arc<Sandbox>> {
    let Entry { state, record, .. } = &entry;
    let log = SandboxLog::new(inner.logs.clone(), record.id.clone(), record.team.clone());
    let saved = owner::saved(inner, &record.id).await?;
    let run = match entry.run.clone().filter(|_| keeps_run(*state)) {
        Some(run) => find(inner, &entry, run, log.clone()).await?,
        None => None,
    };
    let seen = Seen {
        run: run.as_ref().map_or(lifecycle::Run::None, |run| {
            // Whether they are frozen is not asked: either is done again, and harms nothing.
            if *state != State::Paused(Kept::Frozen) {
                run.assume_frozen();
            }
            run.look()
        }),
        saved,
    };
    tracing::info!(sandbox = %record.id, ?state, ?seen, "a sandbox of an earlier run");
    let limits = start::limits(inner, record);
    let lifecycle = Lifecycle::adopt(*state, seen);
    let sandbox = Sandbox::adopt(entry, lifecycle, limits, inner.journal.clone(), log);
    if let Some(run) = run {
        let alive = run.begin_reading();
        sandbox.known().run = Some(Arc::new(run));
        if alive {
            owner::report_adopted(&sandbox);
        }
    }
    Ok(Arc::new(sandbox))
}

/// What is left of a run: all of it, its disk alone, or nothing.
async fn find(inner: &Inner, entry: &Entry, run: RunEntry, log: SandboxLog) -> Result<Option<Run>> {
    let running = inner.driver.adopt(&run.identity).await?;
    let disk = inner.storage.adopt_disk(&run.disk).await?;
    let Some(disk) = disk else {
        if let Some(running) = running {
            tracing::error!(sandbox = %entry.record.id, "a sandbox has lost its disk; ending it");
            start::undo(running).await;
        }
        inner.network.discard(run.slot);
        return Ok(None);
    };
    let processes = match running {
        Some(running) => take_slot(inner, entry, run.slot, running).await,
        None => None,
    };
    if processes.is_none() {
        inner.network.discard(run.slot);
    }
    let limits = start::limits(inner, &entry.record);
    let run = Run::new(Parts { entry: run, limits, processes, disk }, log);
    run.forget_past();
    Ok(Some(run))
}

/// Takes hold of the network of processes that live. Those that cannot have it back are ended.
async fn take_slot(
    inner: &Inner,
    entry: &Entry,
    index: u32,
    running: Running,
) -> Option<(Running, Slot)> {
    let internet = !start::has_no_internet(&entry.record);
    let adopted = async {
        let namespaces = inner.driver.namespaces(&running)?;
        inner.network.adopt(index, namespaces.user, namespaces.net, internet).await
    };
    match adopted.await {
        Ok(slot) => Some((running, slot)),
        Err(error) => {
            tracing::error!(sandbox = %entry.record.id, %error, "a sandbox has lost its network");
            start::undo(running).await;
            None
        }
    }
}
