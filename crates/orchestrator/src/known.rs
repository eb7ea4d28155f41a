//! What is known of a sandbox now, in memory: what the journal holds, and what is under way.

use std::sync::Arc;

use atoll_core::{
    Error, Result,
    error::codes,
    lifecycle::{self, Kept, Lifecycle, Request, Saved, Seen, State},
};
use atoll_storage::{BuildManifest, Lease};
use atoll_wire::node::{CreateTimings, EndReason, NodeSandbox, Resume, Snapshot};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    deadline,
    journal::Entry,
    run::{Door, Run},
};

/// What is known of a sandbox.
pub(crate) struct Known {
    pub(crate) lifecycle: Lifecycle,
    /// As the journal has it, but for what the owner adds for the next time that it is written.
    pub(crate) entry: Entry,
    pub(crate) timings: CreateTimings,
    pub(crate) run: Option<Arc<Run>>,
    /// The way in, while it may be reached.
    pub(crate) door: Option<Arc<Door>>,
    /// What is under way.
    pub(crate) doing: Doing,
    /// Its memory could not be written: once it runs again, it is paused frozen.
    pub(crate) falls_back: bool,
    /// Keeps the layers that it consists of.
    pub(crate) leases: Vec<Lease>,
    /// Why it ends, if somebody or something made it end.
    pub(crate) reason: Option<EndReason>,
    /// Somebody may have been told of it.
    pub(crate) is_public: bool,
    /// An earlier run of the node made it, and it is not known yet what there is of it: its lifecycle
    /// has a state, and its steps mean nothing.
    pub(crate) is_unseen: bool,
    /// A kill has begun.
    pub(crate) is_killed: bool,
    /// Its file is gone, and is not to be written again.
    pub(crate) is_forgotten: bool,
    /// Its owner has left.
    pub(crate) is_over: bool,
    asked: Vec<Asked>,
}

/// What a request that has begun is to be done with.
pub(crate) enum Doing {
    /// Nothing, or something that needs no more.
    Nothing,
    /// A pause that was asked for at this time.
    Pause(Timestamp),
    /// To run again.
    Resume(Resume),
    /// A copy; says what is in it once it is made.
    Snapshot(Snapshot, Option<Kept>),
    /// To run again from this snapshot, with the time of before.
    Rewind(Box<BuildManifest>),
}

/// A request under way.
struct Asked {
    request: Request,
    error: Option<Error>,
    answer: watch::Sender<Option<Result<Reply>>>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The sandbox right then.
    pub(crate) sandbox: NodeSandbox,
    /// What is in the copy, if it was one.
    pub(crate) copied: Option<Kept>,
}

pub(crate) type Answer = watch::Receiver<Option<Result<Reply>>>;

impl Known {
    pub(crate) fn new(lifecycle: Lifecycle, entry: Entry, lease: Option<Lease>) -> Self {
        Self {
            is_public: entry.state != State::Starting && !entry.record.is_for_build,
            reason: entry.reason,
            lifecycle,
            entry,
            timings: CreateTimings::default(),
            run: None,
            door: None,
            doing: Doing::Nothing,
            falls_back: false,
            leases: lease.into_iter().collect(),
            is_unseen: false,
            is_killed: false,
            is_forgotten: false,
            is_over: false,
            asked: Vec::new(),
        }
    }

    /// What the control plane may know of it.
    pub(crate) fn describe(&self) -> NodeSandbox {
        let mut record = self.entry.record.clone();
        let state = match self.entry.state {
            // It does so for a moment, on its way to another way of being paused.
            State::Running if self.falls_back => State::Pausing(Kept::Frozen),
            // It stops for a moment, and runs again.
            _ if self.is_between() => State::Snapshotting,
            state => state,
        };
        if let (State::Pausing(_), Doing::Pause(at)) = (state, &self.doing) {
            record.end_at = *at;
        }
        NodeSandbox {
            record,
            envd_version: self.entry.envd_version.clone(),
            state,
            revision: self.entry.revision,
        }
    }

    /// Whether a rewind has got to where it does not run.
    pub(crate) fn is_between(&self) -> bool {
        matches!(self.doing, Doing::Rewind(_))
            && matches!(self.entry.state, State::Paused(_) | State::Resuming(_))
    }

    /// A rewind, if there is one, has failed: it goes on as what it is in the journal. Whether that
    /// looks different from before.
    pub(crate) fn end_rewind(&mut self) -> bool {
        let was_between = self.is_between();
        if matches!(self.doing, Doing::Rewind(_)) {
            self.doing = Doing::Nothing;
        }
        if was_between {
            self.entry.record.end_at = Timestamp::now();
            self.entry.revision += 1;
        }
        was_between
    }

    /// Goes on from what there is of it.
    pub(crate) fn see(&mut self, run: Option<Arc<Run>>, saved: Saved) {
        let entry = &mut self.entry;
        let found = run.as_ref().map_or(lifecycle::Run::None, |run| run.look());
        self.lifecycle = Lifecycle::adopt(entry.state, Seen { run: found, saved });
        self.is_unseen = false;
        match entry.state {
            // If a checkpoint is complete, it is of this run.
            State::Pausing(_) => {
                let of_run = entry.run.as_ref().map(|run| run.memory.clone());
                entry.memory = of_run.or_else(|| entry.memory.take());
            }
            // A rewind that was under way keeps the time of before until it fails.
            State::Paused(_) | State::Resuming(_) => {
                entry.record.end_at = entry.record.end_at.min(Timestamp::now());
            }
            _ => {}
        }
        self.run = run;
    }

    /// Why it ends, if it ends.
    pub(crate) fn reason(&self) -> EndReason {
        self.reason.unwrap_or(EndReason::Died)
    }

    /// What the journal is to hold for a new state.
    pub(crate) fn enter(&self, entry: &mut Entry, state: State) {
        let (before, now) = (entry.state, Timestamp::now());
        entry.state = state;
        match (before, state) {
            (State::Starting, State::Running) => {
                let timeout = entry.record.timeout;
                deadline::begin(&mut entry.record, timeout, now);
            }
            (State::Resuming(_), State::Running) => self.begin_again(entry, now),
            (_, State::Resuming(_)) => {
                entry.resume = match self.doing {
                    Doing::Resume(resume) => Some(resume),
                    _ => None,
                };
            }
            // It stays what it was.
            (State::Paused(_) | State::Resuming(_), State::Paused(_)) => entry.resume = None,
            (_, State::Paused(_)) => match &self.doing {
                Doing::Rewind(build) => entry.go_back_to(build),
                Doing::Pause(at) => entry.record.end_at = *at,
                _ => entry.record.end_at = now,
            },
            (_, State::Ending) => entry.reason = Some(self.reason()),
            _ => {}
        }
    }

    fn begin_again(&self, entry: &mut Entry, now: Timestamp) {
        if matches!(self.doing, Doing::Rewind(_)) {
            return;
        }
        let resume = entry.resume.take();
        let timeout = resume.map_or(entry.record.timeout, |resume| resume.timeout);
        if let Some(on_timeout) = resume.and_then(|resume| resume.on_timeout) {
            entry.record.on_timeout = on_timeout;
        }
        deadline::begin(&mut entry.record, timeout, now);
    }

    pub(crate) fn expect(&mut self, request: Request) -> Answer {
        let (answer, receiver) = watch::channel(None);
        self.asked.push(Asked { request, error: None, answer });
        receiver
    }

    /// Says that whatever is under way has failed, apart from kills: those do not.
    pub(crate) fn fail(&mut self, error: &Error) {
        for asked in &mut self.asked {
            if asked.request != Request::Kill {
                asked.error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Tells all who asked that nothing will come of it.
    pub(crate) fn abandon(&mut self, error: &Error) {
        for asked in &mut self.asked {
            asked.error.get_or_insert_with(|| error.clone());
        }
        self.answer();
    }

    /// Tells those who asked what came of it.
    pub(crate) fn answer(&mut self) {
        let state = self.lifecycle.state();
        let copied = match self.doing {
            Doing::Snapshot(_, kept) => kept,
            _ => None,
        };
        let reply = Reply { sandbox: self.describe(), copied };
        for Asked { request, error, answer } in self.asked.drain(..) {
            let is_so = match request {
                Request::Pause(_) => matches!(state, State::Paused(_)),
                Request::Resume | Request::Rewind(_) => state == State::Running,
                Request::Snapshot { .. } => copied.is_some(),
                Request::Kill => true,
            };
            let outcome = match error {
                Some(error) => Err(error),
                None if is_so => Ok(reply.clone()),
                None => Err(Error::new(codes::INTERNAL, "the request was undone.")),
            };
            // Those who asked may have left.
            answer.send_replace(Some(outcome));
        }
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&mut self) {
        if let Some(door) = self.door.take() {
            door.close();
        }
    }

    /// Lets people in, if it runs and is to go on.
    pub(crate) fn open(&mut self) {
        let runs = matches!(self.entry.state, State::Running | State::Snapshotting);
        if self.door.is_none() && runs && !self.is_killed && !self.falls_back {
            self.door = self.run.clone().map(|run| Arc::new(Door::new(run)));
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::lifecycle::Kept::{Checkpoint, Disk, Frozen};
    use atoll_wire::node::OnTimeout;
    use jiff::SignedDuration;

    use super::*;
    use crate::tests::{build, entry};

    fn known(state: State, doing: Doing) -> Known {
        Known { doing, ..Known::new(Lifecycle::create(), entry(state), None) }
    }

    /// What the journal holds after these states.
    fn through(known: &mut Known, states: &[State]) -> Entry {
        for state in states {
            let mut entry = known.entry.clone();
            known.enter(&mut entry, *state);
            known.entry = entry;
        }
        known.entry.clone()
    }

    fn seconds(entry: &Entry) -> f64 {
        entry.record.end_at.duration_since(entry.record.started_at).as_secs_f64()
    }

    #[test]
    fn the_time_of_a_run_counts_from_when_it_is_up() {
        let mut known = known(State::Starting, Doing::Nothing);
        let before = Timestamp::now();
        let up = through(&mut known, &[State::Running]);
        assert!(up.record.started_at >= before);
        assert_eq!(seconds(&up), 300.0);
    }

    #[test]
    fn what_is_paused_ends_at_the_time_of_the_pause_and_starts_anew() {
        let at = Timestamp::now();
        let mut known = known(State::Running, Doing::Pause(at));
        let running = known.entry.clone();
        known.entry.state = State::Pausing(Disk);
        assert_eq!(known.describe().record.end_at, at);
        // A pause that fails has changed nothing.
        assert_eq!(known.entry.record, running.record);
        let paused = through(&mut known, &[State::Paused(Disk)]);
        assert_eq!(paused.record.end_at, at);
        assert_eq!(paused.record.started_at, running.record.started_at);

        let on_timeout = Some(OnTimeout::Pause { memory: false });
        known.doing = Doing::Resume(Resume { timeout: 20, on_timeout });
        // A resume that fails leaves what was there.
        let failed = through(&mut known, &[State::Resuming(Disk), State::Paused(Disk)]);
        assert_eq!(failed, paused);
        let again = through(&mut known, &[State::Resuming(Disk), State::Running]);
        assert!(again.record.started_at > at);
        assert_eq!(seconds(&again), 20.0);
        assert_eq!(again.record.on_timeout, OnTimeout::Pause { memory: false });
    }

    #[test]
    fn how_it_is_to_go_on_outlives_the_node() {
        let resume = Resume { timeout: 20, on_timeout: None };
        let mut before = known(State::Paused(Frozen), Doing::Resume(resume));
        let entry = through(&mut before, &[State::Resuming(Frozen)]);
        let mut after = Known::new(Lifecycle::create(), entry, None);
        assert_eq!(seconds(&through(&mut after, &[State::Running])), 20.0);
    }

    #[test]
    fn what_is_rewound_has_the_time_of_before_and_the_snapshot_s_layers() {
        let mut known = known(State::Running, Doing::Nothing);
        let running = known.entry.clone();
        let snapshot = BuildManifest {
            stack: vec!["then".parse().unwrap()],
            control_secret: Some("of-then".to_owned()),
            snapshot: Some(Checkpoint),
            ..build()
        };
        known.doing = Doing::Rewind(Box::new(snapshot.clone()));
        let paused = through(&mut known, &[State::Paused(Checkpoint)]);
        assert_eq!(known.describe().state, State::Snapshotting);
        assert_eq!(paused.memory.unwrap().control_secret, "of-then");
        assert_eq!(paused.build, snapshot);
        let again = through(&mut known, &[State::Resuming(Checkpoint), State::Running]);
        assert_eq!(again.record, running.record);
    }

    #[test]
    fn what_falls_back_to_being_frozen_never_seems_to_run() {
        let mut known = known(State::Running, Doing::Pause(Timestamp::now()));
        known.falls_back = true;
        assert_eq!(known.describe().state, State::Pausing(Frozen));
        assert!(known.describe().record.end_at < Timestamp::now() + SignedDuration::from_secs(1));
    }
}
