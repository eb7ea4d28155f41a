//! A simulated host with one sandbox on it.

use atoll_core::lifecycle::{Kept, Origin, Run, Saved, Seen, State, Step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) memory: u64,
    pub(crate) disk: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Processes {
    pub(crate) frozen: bool,
    pub(crate) dead: bool,
    pub(crate) counts: Counts,
}

pub(crate) const NOTHING: Seen = Seen { run: Run::None, saved: Saved::None };

/// What is in a memory that was not written to its end.
const TORN: u64 = u64::MAX;

/// A disk, and perhaps a memory, as they were at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) disk: u64,
    pub(crate) memory: Option<u64>,
}

impl Copied {
    pub(crate) fn kept(self) -> Kept {
        if self.memory.is_some() { Kept::Checkpoint } else { Kept::Disk }
    }

    /// What a run that goes on from it has.
    pub(crate) fn counts(self) -> Counts {
        Counts { memory: self.memory.unwrap_or(0), disk: self.disk }
    }
}

/// What whoever asked last waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited {
    Snapshot,
    Rewind(Copied),
}

/// A host with one sandbox, its journal, and what is true of the sandbox.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) journal: Option<State>,
    pub(crate) run: Option<Processes>,
    /// A memory where the sandbox's own is saved, of which nothing says that it is complete.
    pub(crate) dump: Option<u64>,
    pub(crate) saved: Option<Copied>,
    pub(crate) truth: Option<Counts>,
    /// Copies of what runs have its memory too.
    pub(crate) copies_memory: bool,
    pub(crate) awaited: Option<Awaited>,
    /// A copy of which nobody has been told.
    pub(crate) copied: Option<Copied>,
    /// Copies that were answered.
    pub(crate) snapshots: Vec<Copied>,
    /// It may be gone: its processes died, or it was never answered.
    pub(crate) mortal: bool,
    /// A kill was asked for.
    pub(crate) killed: bool,
}

impl World {
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            run: match self.run {
                None => Run::None,
                Some(Processes { dead: true, .. }) => Run::Dead,
                Some(Processes { frozen: true, .. }) => Run::Frozen,
                Some(_) => Run::Running,
            },
            saved: match self.saved {
                None => Saved::None,
                Some(Copied { memory: None, .. }) => Saved::Disk,
                Some(Copied { memory: Some(_), .. }) => Saved::Checkpoint,
            },
        }
    }

    /// Whether the run is one that nobody has been told of, and that may be undone, or is to go.
    fn is_tentative(&self) -> bool {
        let is_saved = |kept| kept != Kept::Frozen;
        match self.journal {
            None | Some(State::Starting | State::Ending) => true,
            Some(State::Resuming(kept) | State::Paused(kept)) => is_saved(kept),
            Some(_) => false,
        }
    }

    /// The processes do something: they must have all that was ever done.
    pub(crate) fn work(&mut self) {
        let tentative = self.is_tentative();
        let Some(run) = self.run.as_mut().filter(|run| !run.dead && !run.frozen) else { return };
        if !tentative {
            assert_eq!(Some(run.counts), self.truth, "a run did not go on from the latest");
        }
        run.counts = Counts { memory: run.counts.memory + 1, disk: run.counts.disk + 1 };
        if !tentative {
            self.truth = Some(run.counts);
        }
    }

    fn record(&mut self, state: State) {
        if state == State::Running && self.is_tentative() {
            let counts = self.run.map(|run| run.counts);
            let disk = |counts: Option<Counts>| counts.map(|counts| counts.disk);
            let memory = |counts: Option<Counts>| counts.map(|counts| counts.memory);
            assert!(disk(counts) >= disk(self.truth), "a resume lost what was on the disk");
            if self.journal == Some(State::Resuming(Kept::Checkpoint)) {
                assert!(memory(counts) >= memory(self.truth), "a resume lost what was in memory");
            }
            self.truth = counts;
        }
        if let (State::Paused(_), Some(Awaited::Rewind(snapshot))) = (state, self.awaited) {
            self.truth = Some(snapshot.counts());
        }
        // It may have died a moment ago, and that is not known yet.
        self.mortal |= state == State::Running && self.run.is_some_and(|run| run.dead);
        self.journal = Some(state);
    }

    pub(crate) fn die(&mut self) {
        if let Some(run) = self.run.as_mut() {
            run.dead = true;
            // What only memory held is gone unless it is saved: that is death, not Atoll's doing.
            self.mortal |= !matches!(self.journal, Some(State::Paused(_) | State::Resuming(_)));
        }
    }

    fn start(&mut self, origin: Origin) {
        assert!(self.run.is_none(), "a second run was started beside one");
        let counts = match (origin, self.saved) {
            (Origin::Template, _) => Counts { memory: 0, disk: 0 },
            (Origin::Disk, Some(Copied { disk, .. })) => Counts { memory: 0, disk },
            (Origin::Checkpoint, Some(saved @ Copied { memory: Some(_), .. })) => saved.counts(),
            (origin, saved) => panic!("started from {origin:?} with {saved:?} saved"),
        };
        self.run = Some(Processes { frozen: false, dead: false, counts });
    }

    /// Performs a step; false when it cannot be done.
    pub(crate) fn perform(&mut self, step: Step) -> bool {
        match step {
            Step::Record(state) => self.record(state),
            Step::Start(origin) => self.start(origin),
            Step::Freeze | Step::Thaw | Step::Dump => {
                let Some(run) = self.run.as_mut().filter(|run| !run.dead) else { return false };
                match step {
                    Step::Freeze => run.frozen = true,
                    Step::Thaw => run.frozen = false,
                    _ => assert!(run.frozen, "{step:?} of a run that is not frozen"),
                }
                if step == Step::Dump {
                    self.dump = Some(run.counts.memory);
                }
            }
            Step::Copy => {
                self.copied = self.copy();
                return self.copied.is_some();
            }
            Step::Fetch => {
                let Some(Awaited::Rewind(snapshot)) = self.awaited else {
                    panic!("a snapshot was fetched that nobody asked for")
                };
                (self.saved, self.dump) = (Some(snapshot), None);
            }
            Step::Seal => {
                let Some(run) = self.run else { return false };
                assert!(run.frozen || run.dead, "the disk of a run that runs was sealed");
                if run.dead && self.dump.is_some() {
                    return false;
                }
                self.saved = Some(Copied { disk: run.counts.disk, memory: self.dump.take() });
            }
            Step::EndRun => self.run = None,
            Step::DropSaved => (self.dump, self.saved) = (None, None),
            Step::Forget => self.journal = None,
            Step::Answer => self.answer(),
        }
        true
    }

    /// What a step leaves that did not come to its end.
    pub(crate) fn perform_half(&mut self, step: Step) {
        match step {
            Step::Dump => self.dump = Some(TORN),
            Step::Fetch => (self.saved, self.dump) = (None, Some(TORN)),
            Step::Seal => self.saved = None,
            // What says that it is complete goes first.
            Step::DropSaved => {
                if let Some(Copied { memory: Some(_), .. }) = self.saved.take() {
                    self.dump = Some(TORN);
                }
            }
            Step::EndRun => self.die(),
            // Half a copy is none, and the others are done or not.
            _ => {}
        }
    }

    /// A copy of what there is; none if it cannot be made.
    fn copy(&self) -> Option<Copied> {
        let Some(run) = self.run else {
            assert!(self.saved.is_some(), "a copy of nothing");
            return self.saved;
        };
        if run.dead {
            return None;
        }
        assert!(run.frozen, "a copy of a run that is not frozen");
        assert_eq!(Some(run.counts), self.truth, "a copy of what is not true");
        let memory = self.copies_memory.then_some(run.counts.memory);
        Some(Copied { disk: run.counts.disk, memory })
    }

    /// Whoever asked is told: what was answered is not to be lost from here on.
    fn answer(&mut self) {
        let lives = self.run.is_some_and(|run| !run.dead);
        self.mortal &= !(lives && self.journal == Some(State::Running));
        match self.awaited.take().filter(|_| !self.killed) {
            None => {}
            Some(Awaited::Snapshot) => {
                assert!(self.copied.is_some(), "a snapshot was answered and not taken");
                self.snapshots.extend(self.copied.take());
            }
            Some(Awaited::Rewind(snapshot)) => {
                assert_eq!(self.journal, Some(State::Running), "a rewind was answered");
                let was = snapshot.counts();
                let goes_on = |is: Counts| is.disk >= was.disk && is.memory >= was.memory;
                assert!(self.truth.is_some_and(goes_on), "{:?} of {was:?}", self.truth);
            }
        }
    }

    /// What must hold whenever nothing is under way.
    pub(crate) fn check(&self) {
        let seen = self.seen();
        assert_eq!(self.dump, None, "half of something is left: {self:?}");
        match self.journal {
            None => {
                assert!(self.mortal || self.killed, "a sandbox was lost: {self:?}");
                assert_eq!(seen, NOTHING, "left behind");
            }
            Some(State::Running) => {
                assert_eq!(seen, Seen { run: Run::Running, saved: Saved::None }, "{self:?}");
                assert_eq!(self.run.map(|run| run.counts), self.truth, "{self:?}");
            }
            Some(State::Paused(Kept::Frozen)) => {
                assert_eq!(seen, Seen { run: Run::Frozen, saved: Saved::None }, "{self:?}");
                assert_eq!(self.run.map(|run| run.counts), self.truth, "{self:?}");
            }
            Some(State::Paused(kept)) => {
                assert_eq!(seen.run, Run::None, "{self:?}");
                let expected = self.truth.map(|Counts { memory, disk }| Copied {
                    disk,
                    memory: (kept == Kept::Checkpoint).then_some(memory),
                });
                assert_eq!(self.saved, expected, "{self:?}");
            }
            Some(state) => panic!("{state:?} with nothing under way: {self:?}"),
        }
    }
}
