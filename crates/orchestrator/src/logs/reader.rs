//! Takes the lines of one sandbox from its envd's pipe.
//!
//! Whoever is root in the sandbox may have got hold of the other end, so reading costs a bounded
//! amount whatever is written: a sandbox that has used up its allowance is not read for a while, and
//! its envd, finding the pipe full, counts what it drops.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    time::Duration,
};

use atoll_wire::{log::LINE_MAX, node::LogLine};
use jiff::Timestamp;
use tokio::{net::unix::pipe::Receiver, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{SANDBOX_BYTES, SandboxLog, line};

/// Lines that a sandbox may log at once, and then each second.
const BURST: f64 = 5000.0;
const RATE: f64 = 20.0;
/// So many bytes count as a line, in one line or in none.
const LINE_BYTES: usize = 512;
/// How long to wait when the allowance is used up: some lines are worth waking up for.
const PAUSE: Duration = Duration::from_millis(500);
/// Read at a time.
const CHUNK: usize = 2 * LINE_MAX;
/// Most that is read at the end, when nobody can write any more: what a pipe holds.
const LEFT: usize = 64 << 10;

/// Reads until the pipe ends, or until `over` and what is left then.
pub(crate) async fn read(pipe: OwnedFd, log: SandboxLog, over: CancellationToken) {
    let pipe = match Receiver::from_owned_fd(pipe) {
        Ok(pipe) => pipe,
        Err(cause) => {
            tracing::error!(sandbox = %log.sandbox, %cause, "a sandbox's log cannot be read");
            return;
        }
    };
    let mut lines = Lines::default();
    if over.run_until_cancelled(follow(&pipe, &mut lines, &log)).await.is_none() {
        drain(pipe, &mut lines, &log);
    }
    if lines.is_torn() {
        log.lose(1);
    }
}

/// Reads as fast as the sandbox may log, until the pipe ends. May be dropped at any await.
async fn follow(pipe: &Receiver, lines: &mut Lines, log: &SandboxLog) {
    let mut allowance = Allowance::new();
    while pipe.readable().await.is_ok() {
        match take(|buffer| pipe.try_read(buffer), lines, log) {
            Ok(Taken { bytes: 0, .. }) => return,
            Ok(Taken { bytes, lines }) => {
                allowance.spend(lines.max(bytes.div_ceil(LINE_BYTES)));
                while allowance.is_used_up() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => return,
        }
    }
}

/// Reads what is in the pipe now. The event loop may not know of it yet.
fn drain(pipe: Receiver, lines: &mut Lines, log: &SandboxLog) {
    let Ok(mut pipe) = pipe.into_nonblocking_fd().map(File::from) else { return };
    for _ in 0..LEFT / CHUNK {
        let taken = take(|buffer| pipe.read(buffer), lines, log);
        if !matches!(taken, Ok(Taken { bytes: 1.., .. })) {
            return;
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What one read brought.
struct Taken {
    bytes: usize,
    lines: usize,
}

/// Reads once, without waiting. The buffer lives for one read: a quiet sandbox has none.
fn take(
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    lines: &mut Lines,
    log: &SandboxLog,
) -> io::Result<Taken> {
    let mut buffer = vec![0; CHUNK];
    let bytes = read(&mut buffer)?;
    let mut count = 0;
    lines.split(&buffer[..bytes], |line| {
        count += 1;
        match line.and_then(|line| line::parse(line, Timestamp::now())) {
            Some(said) => log.push(of(log, said), SANDBOX_BYTES),
            None => log.lose(1),
        }
    });
    Ok(Taken { bytes, lines: count })
}

fn of(log: &SandboxLog, said: line::Said) -> LogLine {
    let line::Said { timestamp, level, logger, message, fields } = said;
    let (sandbox, team) = (log.sandbox.clone(), log.team.clone());
    LogLine { sandbox, team, timestamp, sequence: 0, level, logger, message, fields }
}

/// Puts lines together from pieces.
#[derive(Default)]
struct Lines {
    /// A line without its end, so far.
    partial: Vec<u8>,
    /// The line is too long; the rest of it is skipped.
    skipping: bool,
}

impl Lines {
    /// Hands each line that ends in `data` to `each`; none for one that was too long.
    fn split(&mut self, data: &[u8], mut each: impl FnMut(Option<&[u8]>)) {
        let mut pieces = data.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let is_end = pieces.peek().is_some();
            // The limit is for the line with its newline.
            if self.skipping || self.partial.len() + piece.len() >= LINE_MAX {
                self.partial = Vec::new();
                self.skipping = !is_end;
                if is_end {
                    each(None);
                }
            } else if !is_end {
                self.partial.extend_from_slice(piece);
            } else if self.partial.is_empty() {
                each(Some(piece));
            } else {
                self.partial.extend_from_slice(piece);
                each(Some(&std::mem::take(&mut self.partial)));
            }
        }
    }

    /// Whether a line was begun that has no end.
    fn is_torn(&self) -> bool {
        self.skipping || !self.partial.is_empty()
    }
}

/// A token bucket.
struct Allowance {
    tokens: f64,
    at: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { tokens: BURST, at: Instant::now() }
    }

    /// Takes `count`, going into debt.
    fn spend(&mut self, count: usize) {
        self.refill();
        self.tokens -= count as f64;
    }

    fn is_used_up(&mut self) -> bool {
        self.refill();
        self.tokens <= 0.0
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let gain = now.duration_since(self.at).as_secs_f64() * RATE;
        (self.tokens, self.at) = ((self.tokens + gain).min(BURST), now);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::logs::Logs;

    const START: &str = r#"{"level":"info","logger":"process","message":""#;

    struct Fixture {
        envd: File,
        logs: Arc<Logs>,
        over: CancellationToken,
        reading: tokio::task::JoinHandle<()>,
        cursor: u64,
    }

    impl Fixture {
        fn new() -> Self {
            let (pipe, envd) = io::pipe().unwrap();
            let logs = Arc::new(Logs::default());
            let log = SandboxLog::new(logs.clone(), "i1".parse().unwrap(), "team".to_owned());
            let over = CancellationToken::new();
            let reading = tokio::spawn(read(pipe.into(), log, over.clone()));
            let envd = File::from(OwnedFd::from(envd));
            Self { envd, logs, over, reading, cursor: 0 }
        }

        fn write(&mut self, text: &str) {
            self.envd.write_all(text.as_bytes()).unwrap();
        }

        /// The next `count` messages; those of losses too.
        async fn messages(&mut self, count: usize) -> Vec<String> {
            let mut found = Vec::new();
            while found.len() < count {
                let (next, lines) = self.logs.wait(self.cursor).await;
                self.cursor = next;
                found.extend(lines.into_iter().map(|line| line.message));
            }
            found
        }
    }

    fn line(message: &str) -> String {
        format!("{START}{message}\"}}\n")
    }

    #[tokio::test]
    async fn lines_come_through_however_they_are_cut() {
        let mut fixture = Fixture::new();
        let (first, second) = (line("one"), line("two"));
        fixture.write(&first[..20]);
        tokio::task::yield_now().await;
        fixture.write(&format!("{}{second}", &first[20..]));
        assert_eq!(fixture.messages(2).await, ["one", "two"]);
        drop(fixture.envd);
        fixture.reading.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_line_is_counted_with_the_next_that_is() {
        let mut fixture = Fixture::new();
        fixture.write("junk\n{}\n\n");
        fixture.write(&format!("{}\n", "x".repeat(3 * LINE_MAX)));
        fixture.write(&line(&"y".repeat(LINE_MAX - START.len() - 2)));
        let longest = "z".repeat(LINE_MAX - START.len() - 3);
        fixture.write(&line(&longest));
        fixture.write(&line("after"));
        let [loss, kept, after] = &fixture.messages(3).await[..] else { panic!("not three") };
        assert_eq!(loss, "5 lines of the log were lost here");
        assert_eq!((kept, after.as_str()), (&longest, "after"));
    }

    #[tokio::test]
    async fn the_end_of_a_sandbox_is_not_waited_for_and_loses_nothing() {
        let mut fixture = Fixture::new();
        let again = fixture.envd.try_clone().unwrap();
        fixture.write(&line("last"));
        fixture.write("torn");
        fixture.over.cancel();
        fixture.reading.await.unwrap();
        // Somebody still has the other end.
        drop(again);
        let (_, lines) = fixture.logs.wait(0).await;
        assert_eq!(lines[0].message, "last");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_never_stops_is_read_at_its_rate() {
        let Fixture { mut envd, logs, over, reading, .. } = Fixture::new();
        let started = Instant::now();
        const LINES: usize = 6000;
        // A thread, for the pipe is full most of the time.
        let writer = std::thread::spawn(move || {
            (0..LINES).for_each(|_| envd.write_all(line("x").as_bytes()).unwrap());
        });
        let (mut cursor, mut seen) = (0, 0);
        while seen < LINES {
            let (next, lines) = logs.wait(cursor).await;
            (cursor, seen) = (next, seen + lines.len());
        }
        writer.join().unwrap();
        // The clock is the test's own. Up to one read may be ahead of the allowance.
        let ahead = (CHUNK / line("x").len()) as f64;
        let seconds = started.elapsed().as_secs_f64();
        assert!(seconds >= (LINES as f64 - BURST - ahead) / RATE, "{seconds}");
        over.cancel();
        reading.await.unwrap();
    }

    proptest! {
        #[test]
        fn splitting_is_the_same_wherever_reads_end(
            data in proptest::collection::vec(prop_oneof![4 => 97_u8..100, 1 => Just(b'\n')], 0..300),
            longest in 0_usize..3,
            cut in 1_usize..50,
        ) {
            // Lines at and around the limit.
            let mut data = data;
            data.extend(std::iter::repeat_n(b'x', LINE_MAX - 2 + longest));
            data.push(b'\n');
            let expected: Vec<Option<Vec<u8>>> = data
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| (line.len() <= LINE_MAX).then(|| line[..line.len() - 1].to_vec()))
                .collect();
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in data.chunks(cut) {
                lines.split(piece, |line| found.push(line.map(<[u8]>::to_vec)));
                prop_assert!(lines.partial.len() < LINE_MAX);
            }
            prop_assert!(!lines.is_torn());
            prop_assert_eq!(found, expected);
        }
    }
}
