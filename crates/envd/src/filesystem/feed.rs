//! What a client of `WatchDir` sees: a start, events, and signs of life between.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use atoll_wire::rpc::filesystem::__buffa::oneof::watch_dir_response::Event;
use atoll_wire::rpc::filesystem::WatchDirResponse;
use atoll_wire::rpc::filesystem::watch_dir_response::{KeepAlive, StartEvent};
use connectrpc::ConnectError;
use futures::stream::{self, Stream};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, sleep_until};

use super::watch::{Drained, Watch, WatchError};
use crate::disk;
use crate::process::feed::FeedOptions;

/// The stream of a watch. Dropping it ends the watch.
///
/// # Errors
/// `internal`, when the watch cannot be waited for.
pub fn feed(
    watch: Watch,
    options: FeedOptions,
) -> Result<impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send, ConnectError> {
    let readiness = watch.readiness().map_err(|error| failure(&error))?;
    let pending = VecDeque::from([StartEvent::default().into()]);
    let feed = Feed { watch: Some(watch), readiness, options, pending };
    Ok(stream::unfold(feed, async |mut feed| {
        let event = feed.next().await?;
        let response =
            event.map(|event| WatchDirResponse { event: Some(event), ..Default::default() });
        Some((response, feed))
    }))
}

/// The error of a watch that cannot go on.
pub fn failure(error: &WatchError) -> ConnectError {
    ConnectError::internal(format!("watcher error: {error}"))
}

struct Feed {
    /// Gone once the watch is over.
    watch: Option<Watch>,
    readiness: AsyncFd<Arc<OwnedFd>>,
    options: FeedOptions,
    pending: VecDeque<Event>,
}

impl Feed {
    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(Ok(event));
            }
            self.watch.as_ref()?;
            let deadline = self.options.deadline;
            let time_is_up = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let readable = tokio::select! {
                biased;
                () = time_is_up => {
                    self.watch = None;
                    return Some(Err(ConnectError::deadline_exceeded("the watch timed out")));
                }
                readable = self.readiness.readable() => readable,
                () = sleep(self.options.keepalive) => {
                    return Some(Ok(KeepAlive::default().into()));
                }
            };
            let drained = match readable {
                Ok(mut readable) => {
                    let drained = drain(&mut self.watch, &mut self.pending).await;
                    if let Ok(Drained::Empty) = drained {
                        readable.clear_ready();
                    }
                    drained
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = drained {
                self.watch = None;
                self.pending.clear();
                return Some(Err(failure(&error)));
            }
        }
    }
}

/// Takes what has happened. If the caller goes away in the middle, so does the watch.
async fn drain(
    slot: &mut Option<Watch>,
    pending: &mut VecDeque<Event>,
) -> Result<Drained, WatchError> {
    let Some(mut watch) = slot.take() else { return Ok(Drained::Empty) };
    let (watch, events, drained) = disk::blocking(move || {
        let mut events = Vec::new();
        let drained = watch.drain(&mut events);
        (watch, events, drained)
    })
    .await?;
    *slot = Some(watch);
    pending.extend(events.into_iter().map(Event::from));
    drained
}
