//! What becomes of a sandbox when its time is up.
//!
//! It is killed, or paused. A pause that fails is tried again, in the end of the disk alone; a
//! sandbox that cannot be paused at all does not run for ever, but is killed.

use std::time::Duration;

use atoll_wire::node::{EndReason, OnTimeout, SandboxRecord};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{deadline, sandbox::Sandbox, service::Inner};

/// A pause that failed is tried again after this: the cause will not be gone at once.
const RETRY: Duration = Duration::from_secs(10);
/// So many pauses are as they should be; after them comes one of the disk alone.
const TRIES: u32 = 3;

/// What the owner has done about its sandbox's time.
#[derive(Default)]
pub(crate) struct Expiry {
    tried: Option<Tried>,
}

/// Pauses that were begun and came to nothing.
struct Tried {
    /// For this deadline.
    end_at: Timestamp,
    times: u32,
    /// When to go on.
    again: Instant,
}

/// What is to be done about a deadline that has passed.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Kill,
    Pause {
        memory: bool,
    },
    /// It cannot be paused.
    GiveUp,
}

impl Expiry {
    /// Waits a while, and if the time is up then, begins what is to be. May be dropped at any await.
    pub(crate) async fn wait(&mut self, inner: &Inner, sandbox: &Sandbox) {
        let (left, record) = {
            let known = sandbox.known();
            (deadline::left(&known.entry, Timestamp::now()), known.entry.record.clone())
        };
        let Some(left) = left else { return std::future::pending().await };
        if !left.is_zero() {
            return tokio::time::sleep(left).await;
        }
        if let Some(tried) = self.tried(&record) {
            tokio::time::sleep_until(tried.again).await;
        }
        match self.due(&record, Timestamp::now()) {
            Due::Kill => sandbox.begin_kill(EndReason::Expired),
            Due::Pause { memory } => {
                if sandbox.begin_pause(inner.kept(memory)) {
                    self.begun(record.end_at);
                }
            }
            Due::GiveUp => {
                sandbox.report_no_pause();
                sandbox.begin_kill(EndReason::Expired);
            }
        }
    }

    fn tried(&self, record: &SandboxRecord) -> Option<&Tried> {
        self.tried.as_ref().filter(|tried| tried.end_at == record.end_at)
    }

    fn due(&self, record: &SandboxRecord, now: Timestamp) -> Due {
        let OnTimeout::Pause { memory } = record.on_timeout else { return Due::Kill };
        match self.tried(record).map_or(0, |tried| tried.times) {
            0 => Due::Pause { memory },
            _ if deadline::is_long_over(record, now) => Due::GiveUp,
            times if times < TRIES => Due::Pause { memory },
            TRIES => Due::Pause { memory: false },
            _ => Due::GiveUp,
        }
    }

    fn begun(&mut self, end_at: Timestamp) {
        let before = self.tried.take().filter(|tried| tried.end_at == end_at);
        let times = before.map_or(0, |tried| tried.times) + 1;
        self.tried = Some(Tried { end_at, times, again: Instant::now() + RETRY });
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::lifecycle::State;
    use jiff::SignedDuration;

    use super::*;
    use crate::tests::entry;

    /// A sandbox whose time was up a second ago, and the time.
    fn expired(on_timeout: OnTimeout) -> (SandboxRecord, Timestamp) {
        let now = Timestamp::now();
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        let record = entry(State::Running).record;
        (SandboxRecord { started_at: ago(301), end_at: ago(1), on_timeout, ..record }, now)
    }

    /// What is done about it while nothing succeeds.
    async fn all_due(expiry: &mut Expiry, record: &SandboxRecord, now: Timestamp) -> Vec<Due> {
        let mut all = Vec::new();
        loop {
            let due = expiry.due(record, now);
            let is_last = !matches!(due, Due::Pause { .. });
            all.push(due);
            if is_last {
                return all;
            }
            expiry.begun(record.end_at);
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_paused_is_killed_in_the_end() {
        let (record, now) = expired(OnTimeout::Pause { memory: true });
        let mut expiry = Expiry::default();
        let full = || Due::Pause { memory: true };
        let disk = Due::Pause { memory: false };
        let all = [full(), full(), full(), disk, Due::GiveUp];
        assert_eq!(all_due(&mut expiry, &record, now).await, all);
        // Somebody has given it more time, and that is up too.
        let later = SandboxRecord { end_at: now, ..record };
        assert_eq!(all_due(&mut expiry, &later, now).await, all);
    }

    #[tokio::test]
    async fn one_that_has_had_the_longest_run_is_paused_if_it_can_be() {
        let (record, now) = expired(OnTimeout::Pause { memory: true });
        let at_most = SandboxRecord { longest: 240, ..record };
        let all = all_due(&mut Expiry::default(), &at_most, now).await;
        assert_eq!(all, [Due::Pause { memory: true }, Due::GiveUp]);
    }

    #[test]
    fn one_that_is_to_be_killed_is_killed() {
        let (record, now) = expired(OnTimeout::Kill);
        assert_eq!(Expiry::default().due(&record, now), Due::Kill);
    }
}
