//! What happens to builds, until the control plane has it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_core::limits::MOST_BUILD_LINES;
use atoll_wire::build::{BuildEvent, BuildLine};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// Most events that wait. Beyond, lines are left out; how a build ends never is.
const MOST: usize = 50_000;
/// Most events of one answer.
const BATCH: usize = 1000;
/// A long poll ends after this, so that it is never mistaken for a hung connection.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Events in order. Numbers have no gap; those below a cursor that somebody asked with are gone.
#[derive(Default)]
struct Queue {
    first: u64,
    events: VecDeque<(String, BuildEvent)>,
    /// Lines that were left out since the last one that was not.
    left_out: u64,
    /// Lines of each build that has not ended.
    said: HashMap<String, u32>,
}

impl Queue {
    /// Whether a build may say another line. One that never stops is not to crowd out others: what is
    /// beyond is not stored anyway.
    fn may_say(&mut self, build: &str) -> bool {
        match self.said.get_mut(build) {
            Some(said) if *said >= MOST_BUILD_LINES => return false,
            Some(said) => *said += 1,
            None => drop(self.said.insert(build.to_owned(), 1)),
        }
        true
    }
}

/// The queue, and who waits for it.
#[derive(Default)]
pub(crate) struct Events {
    queue: Mutex<Queue>,
    news: Notify,
}

impl Events {
    pub(crate) fn push(&self, build: &str, event: BuildEvent) {
        {
            let mut queue = self.lock();
            let is_line = matches!(event, BuildEvent::Line(_));
            if is_line && queue.events.len() >= MOST {
                queue.left_out += 1;
                return;
            }
            if !is_line {
                queue.said.remove(build);
            } else if !queue.may_say(build) {
                return;
            }
            if let (left_out @ 1.., BuildEvent::Line(line)) = (queue.left_out, &event) {
                queue.left_out = 0;
                let message = format!("… {left_out} lines were left out");
                let notice = BuildLine { message, ..line.clone() };
                queue.events.push_back((build.to_owned(), BuildEvent::Line(notice)));
            }
            queue.events.push_back((build.to_owned(), event));
        }
        self.news.notify_waiters();
    }

    /// What was pushed from `cursor` on, waiting for the first; forgets what comes before.
    pub(crate) async fn wait(&self, cursor: u64) -> (u64, Vec<(String, BuildEvent)>) {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let mut notified = std::pin::pin!(self.news.notified());
            // Before looking, so that a push between the two is not missed.
            notified.as_mut().enable();
            let (next, found) = self.since(cursor);
            if !found.is_empty() || timeout_at(deadline, notified).await.is_err() {
                return (next, found);
            }
        }
    }

    fn since(&self, cursor: u64) -> (u64, Vec<(String, BuildEvent)>) {
        let mut queue = self.lock();
        let end = queue.first + queue.events.len() as u64;
        // One of an earlier run is to miss nothing of this one.
        let cursor = if cursor > end { 0 } else { cursor };
        while queue.first < cursor {
            queue.events.pop_front();
            queue.first += 1;
        }
        let found: Vec<_> = queue.events.iter().take(BATCH).cloned().collect();
        (queue.first + found.len() as u64, found)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use atoll_wire::log::LogLevel;
    use jiff::Timestamp;

    use super::*;

    fn line(text: &str) -> BuildEvent {
        BuildEvent::Line(BuildLine {
            timestamp: Timestamp::UNIX_EPOCH,
            level: LogLevel::Info,
            step: None,
            message: text.to_owned(),
        })
    }

    fn texts(events: &[(String, BuildEvent)]) -> Vec<String> {
        let text = |event: &BuildEvent| match event {
            BuildEvent::Line(line) => line.message.clone(),
            other => format!("{other:?}"),
        };
        events.iter().map(|(build, event)| format!("{build}: {}", text(event))).collect()
    }

    #[tokio::test]
    async fn an_event_is_there_until_one_asks_for_the_next() {
        let events = Events::default();
        events.push("b", line("one"));
        events.push("b", line("two"));
        let (next, found) = events.wait(0).await;
        assert_eq!(texts(&found), ["b: one", "b: two"]);
        assert_eq!(texts(&events.wait(0).await.1), ["b: one", "b: two"]);
        events.push("b", line("three"));
        let (_, found) = events.wait(next).await;
        assert_eq!(texts(&found), ["b: three"]);
        assert_eq!(texts(&events.wait(u64::MAX).await.1), ["b: three"]);
    }

    #[tokio::test]
    async fn when_too_much_waits_lines_are_left_out_and_the_end_is_not() {
        let events = Events::default();
        for _ in 0..MOST + 5 {
            events.push("b", line("x"));
        }
        events.push("b", BuildEvent::Ready { envd_version: "1".into() });
        let mut cursor = 0;
        let mut all = Vec::new();
        while all.len() < MOST + 1 {
            let (next, found) = events.wait(cursor).await;
            (cursor, all) = (next, [all, found].concat());
        }
        assert!(matches!(all[MOST].1, BuildEvent::Ready { .. }));
        events.push("b", line("y"));
        let (_, found) = events.wait(cursor).await;
        assert_eq!(texts(&found), ["b: … 5 lines were left out", "b: y"]);
    }

    #[tokio::test]
    async fn a_build_that_never_stops_does_not_crowd_out_others() {
        let events = Events::default();
        let mut cursor = 0;
        for _ in 0..MOST_BUILD_LINES / 1000 {
            (0..1000).for_each(|_| events.push("loud", line("x")));
            cursor = events.wait(cursor).await.0;
        }
        events.push("loud", line("x"));
        events.push("other", line("y"));
        events.push("loud", BuildEvent::Ready { envd_version: "1".into() });
        let (_, found) = events.wait(cursor).await;
        assert_eq!(texts(&found)[0], "other: y");
        assert_eq!(found.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_news_ends_empty() {
        assert!(Events::default().wait(0).await.1.is_empty());
    }
}
