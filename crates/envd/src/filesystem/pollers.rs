//! Watchers that clients poll: `CreateWatcher`, `GetWatcherEvents`, `RemoveWatcher`.
//!
//! A watcher outlives the request that made it. In the background its events are taken from the
//! kernel, whose queue is short, and new directories watched in time; a poll first takes what has
//! happened up to now, so that it misses nothing that was over before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_wire::rpc::filesystem::FilesystemEvent;
use connectrpc::ConnectError;
use tokio::task::AbortHandle;

use super::feed::failure;
use super::watch::{Drained, Watch, WatchError};
use crate::{disk, random};

/// Watchers that a sandbox may have. Clients forget them, and each takes one of the 128 inotify instances that
/// the kernel gives a user.
pub const MAX_WATCHERS: usize = 64;

/// Events kept between two polls: twice what the kernel keeps.
const MAX_EVENTS: usize = 32 << 10;

/// All polled watchers of the sandbox.
pub struct Pollers {
    watchers: Mutex<HashMap<String, Poller>>,
    limit: usize,
}

struct Poller {
    shared: Arc<Mutex<Shared>>,
    background: AbortHandle,
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.background.abort();
    }
}

/// A watch and what came out of it. Locked on blocking threads, for a drain.
struct Shared {
    watch: Watch,
    events: Vec<FilesystemEvent>,
    failed: Option<ConnectError>,
}

impl Pollers {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Self {
        Self { watchers: Mutex::default(), limit }
    }

    /// Keeps a watch and gives it a name.
    ///
    /// # Errors
    /// `resource_exhausted` when there are too many.
    pub fn add(&self, watch: Watch) -> Result<String, ConnectError> {
        let id = format!("w{}", random::hex().map_err(|error| failure(&error.into()))?);
        let readiness = watch.readiness().map_err(|error| failure(&error))?;
        let mut watchers = self.watchers();
        if watchers.len() >= self.limit {
            return Err(ConnectError::resource_exhausted(format!(
                "too many watchers: the sandbox has {} already, remove one first",
                self.limit
            )));
        }
        let shared = Arc::new(Mutex::new(Shared { watch, events: Vec::new(), failed: None }));
        let background = Arc::clone(&shared);
        let background = tokio::spawn(async move {
            while let Ok(mut readable) = readiness.readable().await {
                let shared = Arc::clone(&background);
                match disk::blocking(move || lock(&shared).drain()).await {
                    Ok(Some(Drained::Empty)) => readable.clear_ready(),
                    Ok(Some(Drained::More)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        });
        watchers.insert(id.clone(), Poller { shared, background: background.abort_handle() });
        Ok(id)
    }

    /// All events since the last call, in order.
    ///
    /// # Errors
    /// `not_found` for an unknown name, `internal` for a watch that has broken down.
    pub async fn poll(&self, id: &str) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let shared = match self.watchers().get(id) {
            Some(poller) => Arc::clone(&poller.shared),
            None => return Err(unknown(id)),
        };
        disk::blocking(move || {
            let mut shared = lock(&shared);
            while shared.drain() == Some(Drained::More) {}
            match &shared.failed {
                Some(error) => Err(error.clone()),
                None => Ok(std::mem::take(&mut shared.events)),
            }
        })
        .await
        .map_err(|error| failure(&error.into()))?
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// `not_found` for an unknown name.
    pub fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.watchers().remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<String, Poller>> {
        lock(&self.watchers)
    }
}

impl Shared {
    /// Takes what has happened; `None` when the watch has broken down.
    fn drain(&mut self) -> Option<Drained> {
        if self.failed.is_some() {
            return None;
        }
        let drained = match self.watch.drain(&mut self.events) {
            Ok(_) if self.events.len() > MAX_EVENTS => Err(WatchError::Overflow),
            drained => drained,
        };
        match drained {
            Ok(drained) => Some(drained),
            Err(error) => {
                self.events = Vec::new();
                self.failed = Some(failure(&error));
                None
            }
        }
    }
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}

/// What is behind these locks is good after a panic, too: at worst an event is lost.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use connectrpc::ErrorCode;

    use super::*;
    use crate::filesystem::watch::WatchOptions;

    fn watch(dir: &tempfile::TempDir, recursive: bool) -> Watch {
        let options = WatchOptions { recursive, ..WatchOptions::default() };
        Watch::start(dir.path().to_owned(), options).unwrap()
    }

    // Rules: WATCH-13, WATCH-14
    #[tokio::test]
    async fn a_poll_sees_what_was_over_before() {
        let dir = tempfile::tempdir().unwrap();
        let pollers = Pollers::new(2);
        let id = pollers.add(watch(&dir, true)).unwrap();
        for round in 0..20 {
            std::fs::write(dir.path().join(round.to_string()), "x").unwrap();
            let names: Vec<_> =
                pollers.poll(&id).await.unwrap().into_iter().map(|event| event.name).collect();
            assert_eq!(names, [round.to_string(), round.to_string()]);
        }
        assert_eq!(pollers.poll(&id).await.unwrap(), []);
        pollers.remove(&id).unwrap();
        assert_eq!(pollers.poll(&id).await.unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(pollers.remove(&id).unwrap_err().code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn events_between_two_polls_are_taken_from_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let pollers = Pollers::new(2);
        let id = pollers.add(watch(&dir, true)).unwrap();
        std::fs::create_dir(dir.path().join("new")).unwrap();
        let shared = Arc::clone(&pollers.watchers()[&id].shared);
        while lock(&shared).events.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pollers.poll(&id).await.unwrap()[0].name, "new");
    }

    // Rules: WATCH-12, WATCH-15
    #[tokio::test]
    async fn a_watcher_that_has_lost_events_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let pollers = Pollers::new(2);
        let id = pollers.add(watch(&dir, false)).unwrap();
        lock(&pollers.watchers()[&id].shared).events = vec![FilesystemEvent::default(); MAX_EVENTS];
        std::fs::write(dir.path().join("file"), "").unwrap();
        for _ in 0..2 {
            let error = pollers.poll(&id).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
            assert_eq!(error.message.as_deref(), Some("watcher error: event queue overflow"));
        }
        pollers.remove(&id).unwrap();
    }

    // Rules: WATCH-20
    #[tokio::test]
    async fn watchers_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let pollers = Pollers::new(2);
        let first = pollers.add(watch(&dir, false)).unwrap();
        pollers.add(watch(&dir, false)).unwrap();
        let error = pollers.add(watch(&dir, false)).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        pollers.remove(&first).unwrap();
        pollers.add(watch(&dir, false)).unwrap();
    }
}
