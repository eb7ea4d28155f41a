//! The life of a sandbox, as a machine without I/O.
//!
//! ```text
//!              ┌──────── Snapshotting ◀───────┐
//!              ▼                              │
//! Starting ─▶ Running ── Pausing(kept) ─▶ Paused(kept)
//!              ▲  ▲           │               │
//!              │  └── failed ─┘               │
//!              └───────── Resuming(kept) ◀────┘      any ─▶ Ending ─▶ (nothing)
//! ```
//!
//! A rewind goes from Running straight to Paused, with a snapshot as what is saved, and resumes.
//!
//! [`Lifecycle`] says what to do next, one [`Step`] at a time; who owns the sandbox performs the step
//! on the host and says how it went. Every change of state is a step too, [`Step::Record`]: it is in
//! the journal before its effect. So there is one way to deal with a crash, a failed step and a
//! sandbox that died by itself: look at what is there, and let [`recover`] say how to go on from the
//! state recorded last.
//!
//! What must always hold, and is tested with random histories (`tests/lifecycle`):
//! - a sandbox can be killed in any state, and nothing is left of it then;
//! - at most one run of it exists, and nothing is lost between two of them;
//! - what was answered holds after a crash at any moment;
//! - a resume or a pause that fails leaves what was there before, and so does a rewind, until it is
//!   recorded;
//! - a copy that was answered has all that was true at one moment.
//!
//! Debug builds check at each turn that what is planned respects the journal (`fits` and `leads`).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// What a paused sandbox is resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Its disk: it boots anew.
    Disk,
    /// Its processes, frozen on the node, and its disk.
    Frozen,
    /// A checkpoint of its processes, and its disk as it was then.
    Checkpoint,
}

/// Where a sandbox is in its life: what the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being made; nobody has been told of it.
    Starting,
    /// Its processes run.
    Running,
    /// Its processes run, apart from a moment in which a copy is taken.
    Snapshotting,
    /// On the way to being paused.
    Pausing(Kept),
    /// Nothing of it runs.
    Paused(Kept),
    /// On the way to running again.
    Resuming(Kept),
    /// Being taken apart.
    Ending,
}

/// What somebody asks of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop, keeping this.
    Pause(Kept),
    /// Run again.
    Resume,
    /// Take a copy, for a snapshot or for forks.
    Snapshot {
        /// Of a paused sandbox too.
        of_paused: bool,
    },
    /// Run again from a snapshot, of which this is kept.
    Rewind(Kept),
    /// Go away.
    Kill,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has begun: perform the steps.
    Begin,
    /// The same is under way: share its outcome.
    Join,
    /// Something else is under way: ask again when it has ended.
    Wait,
    /// It is so already.
    Done,
    /// It cannot be, because the sandbox is in this state.
    Refuse(State),
}

/// What a run starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The template's layers and an empty disk.
    Template,
    /// A copy of the saved disk.
    Disk,
    /// A copy of the saved disk, and the checkpoint.
    Checkpoint,
}

/// Something to do, on the host or in the journal. Each can be repeated after a crash in its middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this state durable.
    Record(State),
    /// Make a run: a slot, a cgroup, a disk of its own, and processes.
    Start(Origin),
    /// Stop the run's processes, in one moment.
    Freeze,
    /// Let them go on.
    Thaw,
    /// Write the frozen processes' memory beside the run.
    Dump,
    /// Save a copy of the frozen run's disk, and with it what [`Step::Dump`] wrote: from here on it
    /// is complete.
    Seal,
    /// Copy the frozen run, or what is saved, to where snapshots are.
    Copy,
    /// Copy a snapshot to where the sandbox's own is saved.
    Fetch,
    /// Remove the run: its processes first, then its slot, cgroup and disk.
    EndRun,
    /// Remove what is saved, complete or not.
    DropSaved,
    /// Remove the sandbox from the journal.
    Forget,
    /// Tell those who asked.
    Answer,
}

impl Step {
    /// Its name, as tests that end Atoll after a certain step spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Record(State::Starting) => "record-starting",
            Self::Record(State::Running) => "record-running",
            Self::Record(State::Snapshotting) => "record-snapshotting",
            Self::Record(State::Pausing(_)) => "record-pausing",
            Self::Record(State::Paused(_)) => "record-paused",
            Self::Record(State::Resuming(_)) => "record-resuming",
            Self::Record(State::Ending) => "record-ending",
            Self::Start(Origin::Template) => "start",
            Self::Start(Origin::Disk) => "start-disk",
            Self::Start(Origin::Checkpoint) => "start-checkpoint",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Dump => "dump",
            Self::Seal => "seal",
            Self::Copy => "copy",
            Self::Fetch => "fetch",
            Self::EndRun => "end-run",
            Self::DropSaved => "drop-saved",
            Self::Forget => "forget",
            Self::Answer => "answer",
        }
    }
}

/// What is there of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Nothing.
    None,
    /// Its processes run.
    Running,
    /// Its processes are frozen.
    Frozen,
    /// Its processes are gone; its disk is there.
    Dead,
}

/// What is saved, and complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// Nothing.
    None,
    /// A disk.
    Disk,
    /// A disk and a checkpoint.
    Checkpoint,
}

/// What a look at the host finds of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its run.
    pub run: Run,
    /// What is saved of it.
    pub saved: Saved,
}

/// A sandbox's state, and the steps of what is under way.
///
/// Perform what [`take_step`](Self::take_step) gives, then call [`done`](Self::done) or
/// [`failed`](Self::failed), until it gives none. One owner does so, and it alone touches the
/// sandbox.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// What the journal holds.
    state: State,
    /// The step that the owner has in hand.
    performing: Option<Step>,
    /// Those after it.
    steps: VecDeque<Step>,
    /// A kill has begun.
    ending: bool,
}

impl Lifecycle {
    /// A sandbox to be made.
    pub fn create() -> Self {
        use Step::{Answer, Record, Start};
        let (starting, running) = (Record(State::Starting), Record(State::Running));
        Self::with(State::Starting, vec![starting, Start(Origin::Template), running, Answer])
    }

    /// A sandbox that the journal knows from an earlier run of the node.
    pub fn adopt(state: State, seen: Seen) -> Self {
        Self::with(state, recover(state, seen))
    }

    fn with(state: State, steps: Vec<Step>) -> Self {
        let steps = steps.into();
        let lifecycle = Self { state, performing: None, ending: is_end(state, &steps), steps };
        lifecycle.assert_sound();
        lifecycle
    }

    /// The state recorded last.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.performing.is_none() && self.steps.is_empty()
    }

    /// Takes a request. After [`Verdict::Begin`] there are steps to perform.
    ///
    /// A kill begins whatever is under way: its steps follow the one that is being performed.
    pub fn ask(&mut self, request: Request) -> Verdict {
        let verdict = self.decide(request);
        if verdict == Verdict::Begin {
            self.steps = plan(self.state, request).into();
            self.ending = request == Request::Kill;
            self.assert_sound();
        }
        verdict
    }

    fn decide(&self, request: Request) -> Verdict {
        use State::{Ending, Paused, Pausing, Resuming, Running, Snapshotting, Starting};
        let settled = self.is_settled();
        match (request, self.state) {
            (Request::Kill, _) if self.ending => Verdict::Join,
            (Request::Kill, _) => Verdict::Begin,
            _ if self.ending => Verdict::Refuse(Ending),

            (Request::Pause(_), Running) if settled => Verdict::Begin,
            (Request::Pause(_), Pausing(_)) => Verdict::Join,
            (Request::Pause(_), Running | Starting | Snapshotting) => Verdict::Wait,
            (Request::Pause(_), _) => Verdict::Refuse(self.state),

            // Running with steps left is running: what is saved of before is being removed.
            (Request::Resume, Running) => Verdict::Done,
            (Request::Resume, Paused(_)) if settled => Verdict::Begin,
            (Request::Resume, Resuming(_)) => Verdict::Join,
            (Request::Resume, _) => Verdict::Wait,

            (Request::Snapshot { .. }, Running) if settled => Verdict::Begin,
            (Request::Snapshot { .. }, Running | Starting) => Verdict::Wait,
            (Request::Snapshot { of_paused: true }, Paused(_)) if settled => Verdict::Begin,
            (Request::Snapshot { of_paused: true }, Paused(_)) => Verdict::Wait,
            (Request::Snapshot { .. }, _) => Verdict::Refuse(self.state),

            (Request::Rewind(_), Running) if settled => Verdict::Begin,
            (Request::Rewind(_), Running | Starting | Snapshotting) => Verdict::Wait,
            (Request::Rewind(_), _) => Verdict::Refuse(self.state),
        }
    }

    /// The step to perform now. Ask for the next one after [`done`](Self::done) or
    /// [`failed`](Self::failed).
    pub fn take_step(&mut self) -> Option<Step> {
        debug_assert!(self.performing.is_none(), "one step at a time");
        self.performing = self.steps.pop_front();
        self.performing
    }

    /// The step in hand has succeeded.
    pub fn done(&mut self) {
        if let Some(Step::Record(state)) = self.performing.take() {
            self.state = state;
        }
        self.assert_sound();
    }

    /// The step in hand has failed; or, with none in hand, the processes have died by themselves.
    /// `seen` is what is there now. Whoever waits for the request is to be told.
    pub fn failed(&mut self, seen: Seen) {
        match self.performing.take() {
            // Not even a journal that cannot be written keeps a sandbox from being killed.
            Some(Step::Record(State::Ending)) => self.state = State::Ending,
            // A kill came in between, and its steps are next.
            _ if self.ending && self.state != State::Ending => {}
            _ => {
                self.steps = recover(self.state, seen).into();
                self.ending = is_end(self.state, &self.steps);
            }
        }
        self.assert_sound();
    }

    /// In debug builds, checks that all that is under way respects the journal and comes to rest.
    fn assert_sound(&self) {
        // The bug that is planted is for the tests' simulation to find.
        debug_assert!(cfg!(feature = "planted-bug") || self.is_sound(), "unsound: {self:?}");
    }

    fn is_sound(&self) -> bool {
        let mut state = self.state;
        let mut ends = state == State::Ending;
        for step in self.performing.iter().chain(&self.steps) {
            if !fits(*step, state) {
                return false;
            }
            if let Step::Record(next) = *step {
                state = next;
                ends |= next == State::Ending;
            }
        }
        let rests = matches!(state, State::Running | State::Paused(_) | State::Ending);
        rests && self.ending == ends
    }
}

/// Whether a step may be performed while the journal holds this state.
fn fits(step: Step, state: State) -> bool {
    use State::{Ending, Paused, Pausing, Resuming, Running, Snapshotting, Starting};
    match step {
        Step::Record(next) => leads(state, next),
        Step::Start(Origin::Template) => state == Starting,
        Step::Start(Origin::Disk) => state == Resuming(Kept::Disk),
        Step::Start(Origin::Checkpoint) => state == Resuming(Kept::Checkpoint),
        Step::Freeze => matches!(state, Snapshotting | Pausing(_) | Paused(Kept::Frozen)),
        Step::Thaw => {
            matches!(state, Running | Snapshotting | Pausing(_) | Resuming(Kept::Frozen))
        }
        Step::Dump => state == Pausing(Kept::Checkpoint),
        // Also of processes that died frozen.
        Step::Seal => {
            matches!(state, Pausing(_) | Paused(Kept::Frozen) | Resuming(Kept::Frozen))
        }
        Step::Copy => matches!(state, Snapshotting | Paused(_)),
        Step::Fetch => state == Running,
        // Never what a sandbox that is not to end lives on in.
        Step::EndRun => {
            let saved = |kept| kept != Kept::Frozen;
            state == Ending || matches!(state, Paused(kept) | Resuming(kept) if saved(kept))
        }
        Step::DropSaved => matches!(state, Running | Pausing(_) | Ending),
        Step::Forget => state == Ending,
        Step::Answer => matches!(state, Running | Paused(_) | Ending),
    }
}

/// Whether one state may follow another in the journal.
fn leads(from: State, to: State) -> bool {
    use State::{Ending, Paused, Pausing, Resuming, Running, Snapshotting, Starting};
    match (from, to) {
        (_, Ending) => from != Ending,
        (Starting, Starting | Running) => true,
        (Running, Snapshotting | Pausing(_)) => true,
        // A rewind.
        (Running, Paused(kept)) => kept != Kept::Frozen,
        (Snapshotting | Pausing(_) | Resuming(_), Running) => true,
        (Pausing(_), Paused(_)) => true,
        (Paused(kept), Resuming(same)) | (Resuming(kept), Paused(same)) if kept == same => true,
        // The processes died frozen.
        (Paused(Kept::Frozen) | Resuming(Kept::Frozen), Paused(Kept::Disk)) => true,
        _ => false,
    }
}

fn is_end(state: State, steps: &VecDeque<Step>) -> bool {
    state == State::Ending || steps.front() == Some(&Step::Record(State::Ending))
}

/// The steps of a request that begins.
fn plan(from: State, request: Request) -> Vec<Step> {
    use Step::{Answer, Copy, DropSaved, Dump, EndRun, Fetch, Freeze, Record, Seal, Start, Thaw};
    let resuming = |kept| Record(State::Resuming(kept));
    let running = Record(State::Running);
    match (request, from) {
        (Request::Pause(kept), _) => {
            let pausing = [Record(State::Pausing(kept)), Freeze];
            let paused = Record(State::Paused(kept));
            let rest: &[Step] = match kept {
                Kept::Checkpoint => &[Dump, Seal, paused, EndRun, Answer],
                Kept::Disk => &[Seal, paused, EndRun, Answer],
                Kept::Frozen => &[paused, Answer],
            };
            [&pausing, rest].concat()
        }
        (Request::Resume, State::Paused(Kept::Frozen)) => {
            vec![resuming(Kept::Frozen), Thaw, running, Answer]
        }
        (Request::Resume, State::Paused(kept)) => {
            let start = Start(origin(kept));
            if cfg!(feature = "planted-bug") {
                return vec![resuming(kept), start, DropSaved, running, Answer];
            }
            vec![resuming(kept), start, running, Answer, DropSaved]
        }
        // No other state begins one.
        (Request::Resume, _) => vec![],
        (Request::Snapshot { .. }, State::Paused(_)) => vec![Copy, Answer],
        (Request::Snapshot { .. }, _) => {
            vec![Record(State::Snapshotting), Freeze, Copy, Thaw, running, Answer]
        }
        // From the record on it is paused as the snapshot has it, and goes on from there.
        (Request::Rewind(kept), _) => {
            let paused = [Fetch, Record(State::Paused(kept)), EndRun];
            let rest = [resuming(kept), Start(origin(kept)), running, Answer, DropSaved];
            [&paused[..], &rest].concat()
        }
        (Request::Kill, _) => end(true),
    }
}

fn origin(kept: Kept) -> Origin {
    if kept == Kept::Checkpoint { Origin::Checkpoint } else { Origin::Disk }
}

fn end(record: bool) -> Vec<Step> {
    let first = record.then_some(Step::Record(State::Ending));
    let rest = [Step::EndRun, Step::DropSaved, Step::Forget, Step::Answer];
    first.into_iter().chain(rest).collect()
}

/// How to go on from a recorded state, given what is there: after a crash, after a step that failed,
/// and when processes have died by themselves.
///
/// What nobody was told of is undone, unless it can only be finished. Whatever was told is kept.
pub fn recover(state: State, seen: Seen) -> Vec<Step> {
    use Step::{DropSaved, EndRun, Freeze, Record, Seal, Thaw};
    let running = Record(State::Running);
    let paused = |kept| Record(State::Paused(kept));
    let thaw = (seen.run == Run::Frozen).then_some(Thaw);
    let alive = matches!(seen.run, Run::Running | Run::Frozen);
    // A run that died, of which the disk is left: what a disk alone can give is kept.
    let disk_of_dead = || vec![Seal, paused(Kept::Disk), EndRun];
    match state {
        State::Starting => end(true),
        State::Ending => end(false),
        State::Running | State::Snapshotting if !alive => end(true),
        // Always: half of what was saved would pass for part of what is saved next.
        State::Running => thaw.into_iter().chain([DropSaved]).collect(),
        State::Snapshotting => thaw.into_iter().chain([running]).collect(),
        State::Pausing(_) if alive => {
            [DropSaved].into_iter().chain(thaw).chain([running]).collect()
        }
        State::Pausing(_) => match seen.saved {
            Saved::None => end(true),
            Saved::Disk => vec![paused(Kept::Disk), EndRun],
            Saved::Checkpoint => vec![paused(Kept::Checkpoint), EndRun],
        },
        State::Paused(Kept::Frozen) | State::Resuming(Kept::Frozen) if seen.run == Run::Dead => {
            disk_of_dead()
        }
        State::Paused(Kept::Frozen) | State::Resuming(Kept::Frozen) if seen.run == Run::None => {
            // Sealed, but not yet recorded so.
            if seen.saved == Saved::None { end(true) } else { vec![paused(Kept::Disk)] }
        }
        State::Paused(Kept::Frozen) => {
            if seen.run == Run::Running {
                vec![Freeze]
            } else {
                vec![]
            }
        }
        State::Resuming(Kept::Frozen) => thaw.into_iter().chain([running]).collect(),
        State::Paused(_) if seen.saved == Saved::None => end(true),
        State::Paused(_) if seen.run == Run::None => vec![],
        State::Paused(_) => vec![EndRun],
        State::Resuming(kept) => vec![EndRun, paused(kept)],
    }
}
