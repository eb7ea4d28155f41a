//! Follows builds of templates: stores what they say and what became of them. The builder hands out
//! events until it is told that they are stored.

use std::{collections::HashSet, sync::Arc, time::Duration};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{
    build::{BuildEvent, BuildFailure, BuildLine},
    log::LogLevel,
};
use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use crate::control::Control;

/// Pause after the builder could not be asked, or its answer not be stored.
const BACKOFF: Duration = Duration::from_secs(1);
/// Pause after a batch, so that many small ones become few. Clients ask every 200 milliseconds.
const GATHER: Duration = Duration::from_millis(20);

/// Compares the builds that are to be under way with those that are: the others were interrupted, or
/// nobody waits for them any more. To be called before there are requests.
pub(crate) async fn adopt(control: &Control) -> Result<()> {
    let running = control.builder.running().await?;
    let mut expected: HashSet<Uuid> =
        control.database.builds_under_way().await?.into_iter().collect();
    for build in running {
        let is_expected = Uuid::parse_str(&build).is_ok_and(|id| expected.remove(&id));
        if !is_expected {
            control.builder.cancel(&build, "Nobody waits for this build.").await?;
        }
    }
    for build in expected {
        // It may have become ready without a word.
        control.delete_builds(&[build.to_string()]).await;
        let error = Error::new(
            codes::BUILD_INTERRUPTED,
            "The build was interrupted: Atoll was stopped while it was under way.",
        );
        fail(control, build, &error).await?;
        tracing::warn!(%build, "a build was under way when Atoll was stopped");
    }
    Ok(())
}

/// Lets a build fail that the builder does not have (any more), before its first step.
pub(crate) async fn fail(control: &Control, build: Uuid, error: &Error) -> Result<()> {
    let step = (error.code != codes::BUILD_INTERRUPTED).then(|| "base".to_owned());
    let line = BuildLine {
        timestamp: Timestamp::now(),
        level: LogLevel::Error,
        step: step.clone(),
        message: format!("Build failed: {}", error.message),
    };
    let failure = BuildFailure {
        step,
        code: error.code.to_string(),
        message: error.message.clone(),
        parent: None,
    };
    let events = [(build, BuildEvent::Line(line)), (build, BuildEvent::Failed(failure))];
    control.database.record_build_events(&events).await?;
    Ok(())
}

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stopping = control.stopping.clone();
    let work = async {
        let mut cursor = 0;
        loop {
            match follow(&control, cursor).await {
                Ok(next) => {
                    cursor = next;
                    sleep(GATHER).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "news of builds are not stored; trying again");
                    sleep(BACKOFF).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// Waits for news, or for about 20 seconds, and stores them.
async fn follow(control: &Control, cursor: u64) -> Result<u64> {
    let (next, news) = control.builder.events(cursor).await?;
    let mut events = Vec::with_capacity(news.len());
    for (build, event) in news {
        match Uuid::parse_str(&build) {
            Ok(id) => events.push((id, event)),
            Err(_) => tracing::warn!(build, "news of what cannot be a build"),
        }
    }
    let unwanted = control.database.record_build_events(&events).await?;
    let unwanted: Vec<String> = unwanted.iter().map(ToString::to_string).collect();
    control.delete_builds(&unwanted).await;
    Ok(next)
}
