//! Random lives of a sandbox on a simulated host: requests in any order, steps that fail, processes
//! that die, kills in the middle of everything, and crashes of the node between any two steps and in
//! the middle of any of them. After each, what the lifecycle promises must hold.
//!
//! The host counts how long the processes have run: once in their memory, once on their disk. There
//! is one true count of each, so a run that goes on from anything but the latest is found.

use atoll_core::lifecycle::{
    Kept, Lifecycle, Origin, Request, Run, Saved, Seen, State, Step, Verdict,
};
use proptest::{prelude::*, test_runner::TestRunner};

/// How many random histories each run of the tests takes.
const HISTORIES: u32 = 100_000;

#[derive(Clone, Copy, Debug)]
enum Happening {
    Ask(Request),
    /// The processes do something, if they run.
    Work,
    /// The processes die.
    Die,
    /// The node dies and starts again.
    Crash,
}

/// What happens while steps are performed: at the step of this number from now.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The step fails, having done nothing.
    Fail,
    /// The step fails, having done its work.
    FailLate,
    /// The node dies before the step.
    CrashBefore,
    /// The node dies after the step, before it knows.
    CrashAfter,
    /// A kill arrives while the step is performed.
    Kill,
    /// The processes die before the step.
    Die,
}

#[derive(Clone, Debug)]
struct Moment {
    happening: Happening,
    troubles: Vec<(u8, Trouble)>,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let kept = prop_oneof![Just(Kept::Disk), Just(Kept::Frozen), Just(Kept::Checkpoint)];
    let happening = prop_oneof![
        4 => kept.prop_map(|kept| Happening::Ask(Request::Pause(kept))),
        4 => Just(Happening::Ask(Request::Resume)),
        1 => Just(Happening::Ask(Request::Snapshot)),
        3 => Just(Happening::Work),
        1 => Just(Happening::Crash),
    ];
    let rare = prop_oneof![
        12 => happening,
        1 => Just(Happening::Die),
        1 => Just(Happening::Ask(Request::Kill)),
    ];
    let trouble = prop_oneof![
        3 => Just(Trouble::Fail),
        2 => Just(Trouble::FailLate),
        4 => Just(Trouble::CrashBefore),
        4 => Just(Trouble::CrashAfter),
        1 => Just(Trouble::Kill),
        1 => Just(Trouble::Die),
    ];
    let troubles = proptest::collection::vec((0_u8..8, trouble), 0..3);
    let moment = (rare, troubles).prop_map(|(happening, troubles)| Moment { happening, troubles });
    proptest::collection::vec(moment, 1..12)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    memory: u64,
    disk: u64,
}

#[derive(Clone, Copy, Debug)]
struct Processes {
    frozen: bool,
    dead: bool,
    counts: Counts,
}

const NOTHING: Seen = Seen { run: Run::None, saved: Saved::None };

/// A host with one sandbox, its journal, and what is true of the sandbox.
#[derive(Debug, Default)]
struct World {
    journal: Option<State>,
    run: Option<Processes>,
    dump: Option<u64>,
    saved: Option<(u64, Option<u64>)>,
    truth: Option<Counts>,
    /// It may be gone: its processes died, or it was never answered.
    mortal: bool,
    /// A kill was asked for.
    killed: bool,
}

impl World {
    fn seen(&self) -> Seen {
        Seen {
            run: match self.run {
                None => Run::None,
                Some(Processes { dead: true, .. }) => Run::Dead,
                Some(Processes { frozen: true, .. }) => Run::Frozen,
                Some(_) => Run::Running,
            },
            saved: match self.saved {
                None => Saved::None,
                Some((_, None)) => Saved::Disk,
                Some((_, Some(_))) => Saved::Checkpoint,
            },
        }
    }

    /// Whether the run is one that nobody has been told of, and that may be undone, or is to go.
    fn is_tentative(&self) -> bool {
        let resuming = |kept| kept != Kept::Frozen;
        matches!(self.journal, None | Some(State::Starting | State::Ending))
            || matches!(self.journal, Some(State::Resuming(kept)) if resuming(kept))
    }

    /// The processes do something: they must have all that was ever done.
    fn work(&mut self) {
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
            assert!(disk(counts) >= disk(self.truth), "a resume lost what was on the disk");
            self.truth = counts;
        }
        // It may have died a moment ago, and that is not known yet.
        self.mortal |= state == State::Running && self.run.is_some_and(|run| run.dead);
        self.journal = Some(state);
    }

    fn die(&mut self) {
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
            (Origin::Disk, Some((disk, _))) => Counts { memory: 0, disk },
            (Origin::Checkpoint, Some((disk, Some(memory)))) => Counts { memory, disk },
            (origin, saved) => panic!("started from {origin:?} with {saved:?} saved"),
        };
        self.run = Some(Processes { frozen: false, dead: false, counts });
    }

    /// Performs a step; false when it cannot be done.
    fn perform(&mut self, step: Step) -> bool {
        match step {
            Step::Record(state) => self.record(state),
            Step::Start(origin) => self.start(origin),
            Step::Freeze | Step::Thaw | Step::Dump | Step::Copy => {
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
            Step::Seal => {
                let Some(run) = self.run else { return false };
                assert!(run.frozen || run.dead, "the disk of a run that runs was sealed");
                if run.dead && self.dump.is_some() {
                    return false;
                }
                self.saved = Some((run.counts.disk, self.dump.take()));
            }
            Step::EndRun => self.run = None,
            Step::DropSaved => (self.dump, self.saved) = (None, None),
            Step::Forget => self.journal = None,
            // What was answered is not to be lost from here on.
            Step::Answer => {
                let lives = self.run.is_some_and(|run| !run.dead);
                self.mortal &= !(lives && self.journal == Some(State::Running));
            }
        }
        true
    }

    /// What must hold whenever nothing is under way.
    fn check(&self) {
        let seen = self.seen();
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
                let expected = self
                    .truth
                    .map(|truth| (truth.disk, (kept == Kept::Checkpoint).then_some(truth.memory)));
                assert_eq!(self.saved, expected, "{self:?}");
            }
            Some(state) => panic!("{state:?} with nothing under way: {self:?}"),
        }
    }
}

/// A history as it goes.
struct History {
    world: World,
    /// None when the node knows nothing of the sandbox.
    lifecycle: Option<Lifecycle>,
    troubles: Vec<(u8, Trouble)>,
}

impl History {
    fn start() -> Self {
        let world = World { mortal: true, ..World::default() };
        Self { world, lifecycle: Some(Lifecycle::create()), troubles: vec![] }
    }

    fn crash(&mut self) {
        let seen = self.world.seen();
        self.lifecycle = self.world.journal.map(|state| Lifecycle::adopt(state, seen));
        if self.lifecycle.is_none() {
            assert_eq!(seen, NOTHING, "left behind, and nobody knows of it");
        }
    }

    /// Performs what is under way to its end, with the troubles given.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "it does not settle: {:?}", self.world);
            let trouble = self.trouble(round);
            if let Some(Trouble::Die) = trouble {
                self.world.die();
            }
            if let Some(Trouble::CrashBefore) = trouble {
                self.crash();
            }
            let Some(lifecycle) = &mut self.lifecycle else { return };
            let Some(step) = lifecycle.take_step() else {
                // The node watches the processes, and hears of a death once it has a hand free.
                let Some(Processes { dead: true, .. }) = self.world.run else { return };
                lifecycle.failed(self.world.seen());
                continue;
            };
            if let Some(Trouble::Kill) = trouble {
                self.kill();
            }
            let done = !matches!(trouble, Some(Trouble::Fail)) && self.world.perform(step);
            // A record that was written was written; only of other steps can the end be in doubt.
            let late = matches!(trouble, Some(Trouble::FailLate)) && !is_record(step);
            if let Some(Trouble::CrashAfter) = trouble {
                self.crash();
            } else if let Some(lifecycle) = &mut self.lifecycle {
                if done && !late {
                    lifecycle.done();
                    if step == Step::Forget {
                        assert_eq!(self.world.seen(), NOTHING, "left behind");
                    }
                } else {
                    lifecycle.failed(self.world.seen());
                }
            }
            self.world.work();
        }
    }

    fn trouble(&mut self, round: i32) -> Option<Trouble> {
        let at = self.troubles.iter().position(|(when, _)| i32::from(*when) == round)?;
        Some(self.troubles.remove(at).1)
    }

    fn kill(&mut self) {
        self.world.killed = true;
        let Some(lifecycle) = &mut self.lifecycle else { return };
        let verdict = lifecycle.ask(Request::Kill);
        assert!(
            matches!(verdict, Verdict::Begin | Verdict::Join),
            "a kill was answered {verdict:?}"
        );
    }

    fn happen(&mut self, happening: Happening) {
        let settled_in = self.world.journal;
        let Some(lifecycle) = &mut self.lifecycle else { return };
        match happening {
            Happening::Work => self.world.work(),
            Happening::Crash => self.crash(),
            Happening::Die => {
                self.world.die();
                lifecycle.failed(self.world.seen());
            }
            Happening::Ask(Request::Kill) => self.kill(),
            Happening::Ask(request) => {
                let verdict = lifecycle.ask(request);
                let begins = match (request, settled_in) {
                    (Request::Pause(_) | Request::Snapshot, state) => state == Some(State::Running),
                    (Request::Resume, state) => matches!(state, Some(State::Paused(_))),
                    (Request::Kill, _) => true,
                };
                assert_eq!(begins, verdict == Verdict::Begin, "{request:?} in {settled_in:?}");
            }
        }
    }

    fn run(moments: Vec<Moment>) {
        let mut history = Self::start();
        history.settle();
        for Moment { happening, troubles } in moments {
            if history.world.journal.is_none() {
                break;
            }
            history.world.check();
            let before = history.world.journal;
            history.happen(happening);
            history.troubles = troubles;
            history.settle();
            if let Happening::Crash | Happening::Work = happening
                && !history.world.mortal
                && !history.world.killed
            {
                let after = history.world.journal;
                // Frozen processes that die leave their disk.
                let less = before == Some(State::Paused(Kept::Frozen))
                    && after == Some(State::Paused(Kept::Disk));
                assert!(after == before || less, "a crash made {after:?} of {before:?}");
            }
            history.world.check();
        }
        // Whatever happened: it can be killed, and nothing is left.
        if history.world.journal.is_some() {
            history.troubles.clear();
            history.kill();
            history.settle();
        }
        history.world.check();
    }
}

fn is_record(step: Step) -> bool {
    matches!(step, Step::Record(_) | Step::Forget)
}

fn random_histories() -> Result<(), String> {
    let config =
        ProptestConfig { cases: HISTORIES, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&moments(), |moments| {
            History::run(moments);
            Ok(())
        })
        .map_err(|error| error.to_string())
}

#[test]
#[cfg(not(feature = "planted-bug"))]
fn random_histories_lose_nothing() {
    random_histories().unwrap();
}

/// The simulation would notice.
#[test]
#[cfg(feature = "planted-bug")]
fn a_planted_bug_is_found() {
    let found = random_histories().unwrap_err();
    assert!(found.contains("minimal failing input"), "{found}");
}
