//! Which sandboxes ended, for whoever asks later.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use atoll_wire::node::Ended;
use tokio::sync::Notify;

/// Enough for every sandbox of a full node to end while nobody asks.
const KEPT: usize = 4096;
/// A long poll ends after this, so that it is never mistaken for a hung connection.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Log {
    next: u64,
    entries: VecDeque<(u64, Ended)>,
}

/// The log of ended sandboxes.
#[derive(Default)]
pub(crate) struct Events {
    log: Mutex<Log>,
    news: Notify,
}

impl Events {
    pub(crate) fn push(&self, ended: Ended) {
        {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let number = log.next;
            log.next += 1;
            log.entries.push_back((number, ended));
            if log.entries.len() > KEPT {
                log.entries.pop_front();
            }
        }
        self.news.notify_waiters();
    }

    fn since(&self, cursor: u64) -> (u64, Vec<Ended>) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let news = log.entries.iter().filter(|(number, _)| *number >= cursor);
        (log.next, news.map(|(_, ended)| ended.clone()).collect())
    }

    /// What was pushed at or after `cursor`, waiting for the first if there is none yet.
    pub(crate) async fn wait(&self, cursor: u64) -> (u64, Vec<Ended>) {
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

    use atoll_wire::node::EndReason;

    use super::*;

    fn ended(id: &str) -> Ended {
        Ended { id: id.parse().unwrap(), reason: EndReason::Died }
    }

    #[tokio::test]
    async fn a_waiter_gets_what_comes_and_nothing_twice() {
        let events = Arc::new(Events::default());
        events.push(ended("i1"));
        let (cursor, first) = events.wait(0).await;
        assert_eq!((cursor, first.len()), (1, 1));
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.wait(cursor).await }
        });
        tokio::task::yield_now().await;
        events.push(ended("i2"));
        let (cursor, second) = waiting.await.unwrap();
        assert_eq!(cursor, 2);
        assert_eq!(second[0].id.as_str(), "i2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_news_ends_empty() {
        let events = Events::default();
        let (cursor, found) = events.wait(0).await;
        assert_eq!((cursor, found.len()), (0, 0));
    }
}
