//! What sandboxes log, on its way to the control plane.
//!
//! ```text
//! envd ── pipe ──▶ reader ──▶ SandboxLog of the sandbox ──▶ Logs ── Node::logs ──▶ control plane
//!                  (hostile)      ▲ the node's own words
//! ```
//!
//! - [`line`]: what a line of envd means.
//! - [`reader`]: takes lines from a pipe, no faster than a sandbox may log.
//! - [`SandboxLog`]: one sandbox's way in. [`Logs`]: what waits for the control plane to store it.
//!
//! What waits is bounded, for each sandbox and in all. Lines that find no room are dropped and
//! counted, and the sandbox's next line is preceded by one that says so.

mod line;
pub(crate) mod reader;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_core::SandboxId;
use atoll_wire::{log::LogLevel, node::LogLine};
use jiff::Timestamp;
use tokio::sync::Notify;

/// Most bytes of one sandbox that wait.
const SANDBOX_BYTES: usize = 1 << 20;
/// Most bytes that wait in all; the oldest lines make room.
const TOTAL_BYTES: usize = 32 << 20;
/// Most lines and bytes of one answer.
const BATCH_LINES: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
/// A long poll ends after this, so that it is never mistaken for a hung connection.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What the node itself says is of this logger.
const NODE: &str = "node";

/// The lines of all sandboxes that the control plane does not have yet.
#[derive(Default)]
pub(crate) struct Logs {
    queue: Mutex<Queue>,
    news: Notify,
}

/// Lines in order of arrival; their numbers have no gap.
#[derive(Default)]
struct Queue {
    /// Number of the first line.
    first: u64,
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// Bytes of each sandbox that has any here.
    waiting: HashMap<SandboxId, usize>,
}

impl Queue {
    /// The number that the next line gets.
    fn next(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn push(&mut self, mut line: LogLine) {
        line.sequence = self.next();
        let bytes = size(&line);
        self.bytes += bytes;
        *self.waiting.entry(line.sandbox.clone()).or_default() += bytes;
        self.lines.push_back(line);
        while self.bytes > TOTAL_BYTES {
            self.pop();
        }
    }

    fn pop(&mut self) {
        let Some(line) = self.lines.pop_front() else { return };
        let bytes = size(&line);
        self.first += 1;
        self.bytes -= bytes;
        if let Some(waiting) = self.waiting.get_mut(&line.sandbox) {
            *waiting -= bytes;
            if *waiting == 0 {
                self.waiting.remove(&line.sandbox);
            }
        }
    }

    /// Forgets what was stored and returns what comes next.
    fn since(&mut self, cursor: u64) -> (u64, Vec<LogLine>) {
        if cursor <= self.next() {
            while self.first < cursor {
                self.pop();
            }
        }
        let mut bytes = 0;
        let fits = |line: &&LogLine| {
            bytes += size(line);
            bytes <= BATCH_BYTES
        };
        let batch: Vec<LogLine> =
            self.lines.iter().take(BATCH_LINES).take_while(fits).cloned().collect();
        (self.first + batch.len() as u64, batch)
    }
}

/// What a line takes in memory, about.
fn size(line: &LogLine) -> usize {
    const FIELD: usize = 80;
    let fields = line.fields.iter().map(|(name, value)| name.len() + value.len() + FIELD);
    size_of::<LogLine>() + line.message.len() + line.logger.len() + fields.sum::<usize>()
}

impl Logs {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes lines of a sandbox unless more than `most` bytes of it would wait then.
    fn offer(&self, sandbox: &SandboxId, lines: Vec<LogLine>, most: usize) -> bool {
        {
            let mut queue = self.queue();
            let waiting = queue.waiting.get(sandbox).copied().unwrap_or_default();
            if waiting + lines.iter().map(size).sum::<usize>() > most {
                return false;
            }
            lines.into_iter().for_each(|line| queue.push(line));
        }
        self.news.notify_waiters();
        true
    }

    /// Lines from `cursor` on, waiting for the first if there is none yet.
    pub(crate) async fn wait(&self, cursor: u64) -> (u64, Vec<LogLine>) {
        let deadline = tokio::time::Instant::now() + LONGEST_WAIT;
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            // Registered before looking, so that a line between the two is not missed.
            notified.as_mut().enable();
            let (next, found) = self.queue().since(cursor);
            if !found.is_empty() || tokio::time::timeout_at(deadline, notified).await.is_err() {
                return (next, found);
            }
        }
    }
}

/// What is said of one sandbox. Clones are of the same one.
#[derive(Clone)]
pub(crate) struct SandboxLog {
    logs: Arc<Logs>,
    sandbox: SandboxId,
    team: String,
    /// Lines lost since the last that was taken.
    lost: Arc<AtomicU64>,
}

impl SandboxLog {
    pub(crate) fn new(logs: Arc<Logs>, sandbox: SandboxId, team: String) -> Self {
        Self { logs, sandbox, team, lost: Arc::default() }
    }

    /// Adds what the node has to say, which is little: there is always room for it.
    pub(crate) fn say<const N: usize>(
        &self,
        level: LogLevel,
        message: impl Into<String>,
        fields: [(&str, String); N],
    ) {
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        self.push(self.line(level, message.into(), BTreeMap::from(fields)), usize::MAX);
    }

    fn line(&self, level: LogLevel, message: String, fields: BTreeMap<String, String>) -> LogLine {
        LogLine {
            sandbox: self.sandbox.clone(),
            team: self.team.clone(),
            timestamp: Timestamp::now(),
            sequence: 0,
            level,
            logger: NODE.to_owned(),
            message,
            fields,
        }
    }

    /// Adds a line, after one about those that were lost before it, where `most` allows.
    fn push(&self, line: LogLine, most: usize) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let loss = (lost > 0).then(|| self.loss(lost));
        let lines = loss.into_iter().chain([line]).collect();
        if !self.logs.offer(&self.sandbox, lines, most) {
            self.lose(lost + 1);
        }
    }

    /// Counts lines that will not come.
    fn lose(&self, lines: u64) {
        self.lost.fetch_add(lines, Ordering::Relaxed);
    }

    fn loss(&self, lines: u64) -> LogLine {
        let fields = [("event_type", "log_loss".to_owned()), ("lines", lines.to_string())];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        let message = format!("{lines} lines of the log were lost here");
        self.line(LogLevel::Warn, message, BTreeMap::from(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(logs: &Arc<Logs>, id: &str) -> SandboxLog {
        SandboxLog::new(logs.clone(), id.parse().unwrap(), "team".to_owned())
    }

    fn messages(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.message.as_str()).collect()
    }

    #[tokio::test]
    async fn lines_are_handed_out_until_they_are_stored() {
        let logs = Arc::new(Logs::default());
        let log = log(&logs, "i1");
        log.say(LogLevel::Info, "a", []);
        log.say(LogLevel::Info, "b", []);
        let (next, first) = logs.wait(0).await;
        assert_eq!((next, messages(&first)), (2, vec!["a", "b"]));
        // The answer was lost: it is given again, in the same words.
        assert_eq!(logs.wait(0).await, (2, first));
        let waiting = tokio::spawn({
            let logs = logs.clone();
            async move { logs.wait(next).await }
        });
        tokio::task::yield_now().await;
        log.say(LogLevel::Info, "c", [("reason", "x".to_owned())]);
        let (next, second) = waiting.await.unwrap();
        assert_eq!((next, second[0].sequence, second[0].fields["reason"].as_str()), (3, 2, "x"));
        // A control plane that starts anew gets what is not stored yet.
        assert_eq!(messages(&logs.wait(0).await.1), ["c"]);
    }

    #[tokio::test]
    async fn a_cursor_of_an_earlier_run_loses_nothing() {
        let logs = Arc::new(Logs::default());
        log(&logs, "i1").say(LogLevel::Info, "a", []);
        let (next, found) = logs.wait(77).await;
        assert_eq!((next, messages(&found)), (1, vec!["a"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_news_ends_empty() {
        let logs = Logs::default();
        assert_eq!(logs.wait(0).await, (0, Vec::new()));
    }

    #[tokio::test]
    async fn a_sandbox_that_says_too_much_loses_its_own_lines_only() {
        let logs = Arc::new(Logs::default());
        let (noisy, quiet) = (log(&logs, "i1"), log(&logs, "i2"));
        let long = "x".repeat(4000);
        for _ in 0..1000 {
            noisy.push(noisy.line(LogLevel::Info, long.clone(), BTreeMap::new()), SANDBOX_BYTES);
        }
        quiet.say(LogLevel::Info, "heard", []);
        let (mut cursor, mut all) = (0, Vec::new());
        while all.last().is_none_or(|line: &LogLine| line.message != "heard") {
            let (next, lines) = logs.wait(cursor).await;
            assert!(lines.iter().map(size).sum::<usize>() <= BATCH_BYTES);
            cursor = next;
            all.extend(lines);
        }
        let kept = all.len() - 1;
        assert!(kept * 4000 < SANDBOX_BYTES && kept > 200, "{kept}");
        // Once there is room, it is told what is missing.
        let waiting = logs.wait(cursor);
        noisy.say(LogLevel::Info, "again", []);
        let (_, lines) = waiting.await;
        assert_eq!(lines[0].fields["lines"], (1000 - kept).to_string());
    }

    #[test]
    fn all_sandboxes_together_are_bounded() {
        let logs = Arc::new(Logs::default());
        for number in 0..100 {
            let log = log(&logs, &format!("i{number}"));
            for _ in 0..200 {
                log.say(LogLevel::Info, "x".repeat(4000), []);
            }
        }
        let mut queue = logs.queue();
        assert!(queue.bytes <= TOTAL_BYTES && queue.bytes > TOTAL_BYTES / 2);
        assert_eq!(queue.next(), 20_000);
        assert_eq!(queue.waiting.values().sum::<usize>(), queue.bytes);
        while !queue.lines.is_empty() {
            queue.pop();
        }
        assert!(queue.bytes == 0 && queue.waiting.is_empty());
    }
}
