//! Stores what sandboxes log (control-plane contract, section 9.3): the node hands out lines until it
//! is told that they are stored.

use std::{sync::Arc, time::Duration};

use atoll_core::{
    Result,
    limits::{LOG_RETENTION, MOST_LOG_LINES},
};
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::control::Control;

/// Pause after the node could not be asked, or its answer not be stored.
const BACKOFF: Duration = Duration::from_secs(1);
/// Pause after a batch, so that many small ones become few.
const GATHER: Duration = Duration::from_millis(50);
/// How often lines are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stopping = control.stopping.clone();
    let work = async { tokio::join!(store_all(&control), prune_all(&control)) };
    stopping.run_until_cancelled(work).await;
}

async fn store_all(control: &Control) {
    let mut cursor = 0;
    loop {
        match store(control, cursor).await {
            Ok(next) => {
                cursor = next;
                sleep(GATHER).await;
            }
            Err(error) => {
                tracing::warn!(%error, "lines of logs are not stored; trying again");
                sleep(BACKOFF).await;
            }
        }
    }
}

/// Waits for lines, or for about 20 seconds, and stores them.
async fn store(control: &Control, cursor: u64) -> Result<u64> {
    let (next, lines) = control.node.logs(cursor).await?;
    control.database.put_logs(&lines).await?;
    Ok(next)
}

async fn prune_all(control: &Control) {
    let mut ticks = interval(PRUNE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let before = Timestamp::now() - LOG_RETENTION;
        if let Err(error) = control.database.prune_logs(before, MOST_LOG_LINES).await {
            tracing::warn!(%error, "old lines of logs were not deleted");
        }
        if let Err(error) = control.database.prune_build_logs(before, MOST_LOG_LINES).await {
            tracing::warn!(%error, "old lines of builds' logs were not deleted");
        }
    }
}
