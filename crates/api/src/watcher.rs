//! Keeps the catalogue true to the node: takes in what there was before this process started, and
//! follows each change.
//!
//! The node tells of each. Now and then what both say is compared, so that a change whose news was
//! lost (the node forgot it) is noticed all the same.

use std::{collections::HashSet, sync::Arc, time::Duration};

use atoll_core::Result;
use atoll_wire::node::Change;
use tokio::time::Instant;

use crate::control::Control;

/// Pause after the node could not be asked.
const BACKOFF: Duration = Duration::from_secs(1);

/// Longest time without a comparison while there is news all the time; without news it is about 20
/// seconds.
const COMPARE: Duration = Duration::from_secs(60);

/// Takes in every sandbox of the node, paused ones included.
pub(crate) async fn adopt(control: &Control) -> Result<usize> {
    let sandboxes = control.node.list().await?;
    let count = sandboxes.len();
    for sandbox in sandboxes {
        control.learn(sandbox).await?;
    }
    Ok(count)
}

/// Deletes the builds that the database does not know: those that were being taken, or deleted, when
/// an earlier process was killed, and what forks were made from. Those that are to be are known. To
/// be called before there are requests.
///
/// Those that are older than the database belong to another one, which may come back.
pub(crate) async fn sweep(control: &Control) -> Result<()> {
    let made_at = control.database.made_at().await?;
    let known: HashSet<String> =
        control.database.known_builds().await?.iter().map(ToString::to_string).collect();
    let mut builds = control.node.builds().await?;
    builds.retain(|build| !known.contains(&build.build));
    let (older, builds): (Vec<_>, Vec<_>) =
        builds.into_iter().partition(|build| build.created_at < made_at);
    if !older.is_empty() {
        tracing::warn!(
            builds = older.len(),
            "builds are older than atoll.db, which does not know them: they are left alone; put the \
             database back that they belong to"
        );
    }
    let builds: Vec<String> = builds.into_iter().map(|build| build.build).collect();
    control.delete_builds(&builds).await;
    Ok(())
}

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stopping = control.stopping.clone();
    let work = async {
        let (mut cursor, mut compared) = (0, Instant::now());
        loop {
            match follow(&control, cursor, &mut compared).await {
                Ok(next) => cursor = next,
                Err(error) => {
                    tracing::warn!(%error, "the node does not say what becomes of its sandboxes");
                    tokio::time::sleep(BACKOFF).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// Waits for news, or for about 20 seconds, and acts on it.
async fn follow(control: &Control, cursor: u64, compared: &mut Instant) -> Result<u64> {
    let (next, changes) = control.node.changes(cursor).await?;
    if changes.is_empty() || compared.elapsed() > COMPARE {
        compare(control).await?;
        *compared = Instant::now();
    }
    for change in changes {
        match change {
            Change::Now(sandbox) => drop(control.learn(sandbox).await?),
            Change::Ended { id, reason } => {
                control.catalogue.remove(&id).await?;
                tracing::info!(sandbox = %id, ?reason, "ended");
            }
        }
    }
    Ok(next)
}

/// Takes in what the node has, and forgets what it has not.
async fn compare(control: &Control) -> Result<()> {
    let known = control.catalogue.ids().await?;
    let mut there = HashSet::new();
    for sandbox in control.node.list().await? {
        there.insert(sandbox.record.id.clone());
        control.learn(sandbox).await?;
    }
    for id in known.iter().filter(|id| !there.contains(id)) {
        // Asked by name: it may be one that was not to be listed yet.
        if control.node.get(id).await?.is_none() {
            control.catalogue.remove(id).await?;
            tracing::warn!(sandbox = %id, "gone from the node unannounced");
        }
    }
    Ok(())
}
