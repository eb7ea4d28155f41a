//! Keeps the catalogue true to the node: takes in what ran before this process started, and takes
//! out what ended by itself.
//!
//! The node tells of each end. In between, what both say is compared, so that an end whose news was
//! lost (the node restarted) is noticed all the same.

use std::{collections::HashSet, sync::Arc, time::Duration};

use atoll_core::{Result, lifecycle::State};
use atoll_state::catalogue::{Entry, Phase};

use crate::control::Control;

/// Pause after the node could not be asked.
const BACKOFF: Duration = Duration::from_secs(1);

/// Takes in every sandbox that runs on the node. Those whose time was up meanwhile expire at once.
pub(crate) async fn adopt(control: &Control) -> Result<usize> {
    let mut running = control.node.list().await?;
    running.retain(|sandbox| matches!(sandbox.state, State::Running | State::Snapshotting));
    let count = running.len();
    for sandbox in running {
        let entry = Entry {
            record: sandbox.record,
            envd_version: sandbox.envd_version,
            phase: Phase::Running,
            node: control.node_id.clone(),
        };
        control.catalogue.adopt(entry).await?;
    }
    Ok(count)
}

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stopping = control.stopping.clone();
    let work = async {
        let mut cursor = 0;
        loop {
            match follow(&control, cursor).await {
                Ok(next) => cursor = next,
                Err(error) => {
                    tracing::warn!(%error, "the node does not say which sandboxes ended");
                    tokio::time::sleep(BACKOFF).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// Waits for news, or for about 20 seconds, and acts on it.
async fn follow(control: &Control, cursor: u64) -> Result<u64> {
    let (next, ended) = control.node.ended(cursor).await?;
    if ended.is_empty() {
        compare(control).await?;
    }
    for end in ended {
        control.catalogue.remove(&end.id).await?;
        tracing::info!(sandbox = %end.id, reason = ?end.reason, "ended");
    }
    Ok(next)
}

/// Forgets sandboxes that the node does not have. The catalogue is asked first: what it has by then,
/// the node had before, so what the node lacks afterwards has ended.
async fn compare(control: &Control) -> Result<()> {
    let known = control.catalogue.ids().await?;
    let running: HashSet<_> =
        control.node.list().await?.into_iter().map(|sandbox| sandbox.record.id).collect();
    for id in known.iter().filter(|id| !running.contains(id)) {
        control.catalogue.remove(id).await?;
        tracing::warn!(sandbox = %id, "gone from the node unannounced");
    }
    Ok(())
}
