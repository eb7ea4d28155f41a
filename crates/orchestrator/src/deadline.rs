//! When the time of a sandbox is up.
//!
//! A deadline counts while its sandbox runs. Whoever moves it writes it to the journal; the owner
//! looks at it ([`left`]) and begins what is to become of the sandbox then.

use std::time::Duration;

use atoll_core::lifecycle::State;
use atoll_wire::node::{Deadline, SandboxRecord};
use jiff::{SignedDuration, Timestamp};

use crate::journal::Entry;

/// The clock on the wall may be set: it is looked at this often at least.
const LOOK: Duration = Duration::from_secs(5);

/// So many seconds after a moment.
fn after(moment: Timestamp, seconds: u32) -> Timestamp {
    moment.checked_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)
}

/// A run begins now.
pub(crate) fn begin(record: &mut SandboxRecord, timeout: u32, now: Timestamp) {
    record.started_at = now;
    record.end_at = after(now, timeout.min(record.longest));
}

/// Moves a deadline; whether it has moved.
pub(crate) fn shift(record: &mut SandboxRecord, deadline: Deadline, now: Timestamp) -> bool {
    let latest = after(record.started_at, record.longest);
    let before = record.end_at;
    record.end_at = match deadline {
        Deadline::In(seconds) => after(now, seconds).min(latest),
        Deadline::AtLeastIn(seconds) => after(now, seconds).min(latest).max(before),
    };
    record.end_at != before
}

/// How long a sandbox may go on before its deadline has to be looked at again; nothing if its time is
/// up. None if it has no deadline, because it does not run.
pub(crate) fn left(entry: &Entry, now: Timestamp) -> Option<Duration> {
    if entry.state != State::Running {
        return None;
    }
    let left = Duration::try_from(entry.record.end_at.duration_since(now)).unwrap_or_default();
    Some(left.min(LOOK))
}

/// Whether its longest run ended so long ago that nothing under way accounts for it.
pub(crate) fn is_long_over(record: &SandboxRecord, now: Timestamp) -> bool {
    const LONG: u32 = 60;
    after(after(record.started_at, record.longest), LONG) < now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::entry;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 123_456_789);

    fn running(timeout: u32) -> Entry {
        let mut entry = entry(State::Running);
        entry.record.longest = 3600;
        begin(&mut entry.record, timeout, NOW);
        entry
    }

    /// Seconds from `NOW` to the deadline.
    fn lifetime(entry: &Entry) -> f64 {
        entry.record.end_at.duration_since(NOW).as_secs_f64()
    }

    #[test]
    fn a_run_has_its_timeout_but_never_more_than_the_longest_run() {
        assert_eq!(lifetime(&running(300)), 300.0);
        assert_eq!(lifetime(&running(u32::MAX)), 3600.0);
    }

    #[test]
    fn a_deadline_can_be_set_sooner_and_later_up_to_the_longest_run() {
        let mut entry = running(300);
        let later = after(NOW, 60);
        assert!(shift(&mut entry.record, Deadline::In(10), later));
        assert_eq!(lifetime(&entry), 70.0);
        assert!(shift(&mut entry.record, Deadline::In(7200), later));
        assert_eq!(lifetime(&entry), 3600.0);
        assert!(shift(&mut entry.record, Deadline::In(0), later));
        assert_eq!(lifetime(&entry), 60.0);
    }

    #[test]
    fn an_extension_never_shortens() {
        let mut entry = running(300);
        let before = entry.record.end_at;
        assert!(!shift(&mut entry.record, Deadline::AtLeastIn(10), after(NOW, 60)));
        assert_eq!(entry.record.end_at, before);
        assert!(shift(&mut entry.record, Deadline::AtLeastIn(300), after(NOW, 60)));
        assert_eq!(lifetime(&entry), 360.0);
        assert!(shift(&mut entry.record, Deadline::AtLeastIn(u32::MAX), after(NOW, 60)));
        assert_eq!(lifetime(&entry), 3600.0);
    }

    #[test]
    fn only_what_runs_has_a_deadline_and_one_that_passed_is_due() {
        let mut entry = running(2);
        assert_eq!(left(&entry, NOW), Some(Duration::from_secs(2)));
        assert_eq!(left(&entry, after(NOW, 2)), Some(Duration::ZERO));
        assert_eq!(left(&entry, after(NOW, 99)), Some(Duration::ZERO));
        entry.state = State::Snapshotting;
        assert_eq!(left(&entry, after(NOW, 99)), None);
        // However far it is, the clock may jump.
        assert_eq!(left(&running(3600), NOW), Some(LOOK));
    }
}
