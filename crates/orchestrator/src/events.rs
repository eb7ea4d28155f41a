//! What happened to sandboxes, for whoever asks later.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use atoll_wire::node::Change;
use jiff::Timestamp;
use tokio::sync::Notify;

/// Enough for each sandbox of a full node to change twice while nobody asks.
const KEPT: usize = 4096;
/// A long poll ends after this, so that it is never mistaken for a hung connection.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

struct Log {
    next: u64,
    entries: VecDeque<(u64, Change)>,
}

/// The log of changes.
pub(crate) struct Events {
    log: Mutex<Log>,
    news: Notify,
}

impl Default for Events {
    /// Numbers go on from the present time, microseconds: a cursor of an earlier run of the node is
    /// lower, and misses nothing that happened in this one.
    fn default() -> Self {
        let next = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        Self { log: Mutex::new(Log { next, entries: VecDeque::new() }), news: Notify::new() }
    }
}

impl Events {
    pub(crate) fn push(&self, change: Change) {
        {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let number = log.next;
            log.next += 1;
            log.entries.push_back((number, change));
            if log.entries.len() > KEPT {
                log.entries.pop_front();
            }
        }
        self.news.notify_waiters();
    }

    fn since(&self, cursor: u64) -> (u64, Vec<Change>) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock may have been turned back between two runs of the node.
        let cursor = if cursor > log.next { 0 } else { cursor };
        let news = log.entries.iter().filter(|(number, _)| *number >= cursor);
        (log.next, news.map(|(_, change)| change.clone()).collect())
    }

    /// What was pushed at or after `cursor`, waiting for the first if there is none yet.
    pub(crate) async fn wait(&self, cursor: u64) -> (u64, Vec<Change>) {
        let deadline = tokio::time::Instant::now() + LONGEST_WAIT;
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            // Registered before looking, so that a push between the two is not missed.
            notified.as_mut().enable();
            let (next, found) = self.since(cursor);
            if !found.is_empty() {
                return (next, found);
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return (next, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use atoll_core::SandboxId;
    use atoll_wire::node::EndReason;

    use super::*;

    fn ended(id: &str) -> Change {
        Change::Ended { id: id.parse().unwrap(), reason: EndReason::Died }
    }

    fn ids(changes: &[Change]) -> Vec<&SandboxId> {
        let mut ids = Vec::new();
        for change in changes {
            ids.push(match change {
                Change::Ended { id, .. } => id,
                Change::Now(sandbox) => &sandbox.record.id,
            });
        }
        ids
    }

    #[tokio::test]
    async fn a_waiter_gets_what_comes_and_nothing_twice() {
        let events = Arc::new(Events::default());
        events.push(ended("i1"));
        let (cursor, first) = events.wait(0).await;
        assert_eq!(ids(&first), [&"i1".parse().unwrap()]);
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.wait(cursor).await }
        });
        tokio::task::yield_now().await;
        events.push(ended("i2"));
        let (next, second) = waiting.await.unwrap();
        assert_eq!(next, cursor + 1);
        assert_eq!(ids(&second), [&"i2".parse().unwrap()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_of_another_run_of_the_node_misses_nothing() {
        let (before, after) = (Events::default(), Events::default());
        let (cursor, _) = before.wait(0).await;
        after.push(ended("i1"));
        assert_eq!(after.wait(cursor).await.1.len(), 1);
        assert_eq!(after.wait(u64::MAX).await.1.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_news_ends_empty() {
        let events = Events::default();
        assert!(events.wait(0).await.1.is_empty());
    }
}
