//! Ends sandboxes whose time is up (control-plane contract, section 6).
//!
//! The catalogue wakes it at the moment of a deadline rather than by polling, so a sandbox ends
//! within milliseconds of it. Many are ended at once, each in a task of its own, so that one that
//! will not end holds up no other.

use std::{sync::Arc, time::Duration};

use atoll_core::{Error, Result, SandboxId};
use atoll_wire::node::EndReason;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::control::Control;

/// Most kills at once (contract, section 20).
const CONCURRENT: usize = 256;

/// Pause after the catalogue could not say what has expired.
const BACKOFF: Duration = Duration::from_millis(50);

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let places = Arc::new(Semaphore::new(CONCURRENT));
    let stopping = control.stopping.clone();
    let work = async {
        loop {
            let step = async {
                for id in control.catalogue.expired().await? {
                    evict(&control, &places, id).await?;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = step.await {
                tracing::error!(%error, "expired sandboxes were not ended; trying again");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// Marks the sandbox and starts to end it. The catalogue reports one that could not be ended again
/// after a while.
async fn evict(control: &Arc<Control>, places: &Arc<Semaphore>, id: SandboxId) -> Result<()> {
    // The semaphore is never closed.
    let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
    // Someone may have lengthened its life since.
    let now = Timestamp::now();
    if control.catalogue.get(&id).await?.is_none_or(|entry| entry.record.end_at > now) {
        return Ok(());
    }
    // Marked before the next look at the catalogue, which would report it again.
    if !control.catalogue.begin_kill(&id).await? {
        return Ok(());
    }
    let control = control.clone();
    control.clone().tasks.spawn(async move {
        match control.finish_kill(&id, EndReason::Expired).await {
            Ok(()) => tracing::info!(sandbox = %id, "expired"),
            Err(error) => {
                tracing::error!(sandbox = %id, %error, "an expired sandbox was not ended; trying again");
            }
        }
        drop(place);
    });
    Ok(())
}
