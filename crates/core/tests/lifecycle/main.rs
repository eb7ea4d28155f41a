//! Random lives of a sandbox on a simulated host: requests in any order, steps that fail, processes
//! that die, kills in the middle of everything, and crashes of the node between any two steps and in
//! the middle of any of them. After each, what the lifecycle promises must hold.
//!
//! The host counts how long the processes have run: once in their memory, once on their disk. There
//! is one true count of each, so a run that goes on from anything but the latest is found, and a copy
//! of anything but what was true. With the record of a rewind, the truth is what the snapshot has.

mod world;

use atoll_core::lifecycle::{Kept, Lifecycle, Request, State, Step, Verdict};
use proptest::{prelude::*, test_runner::TestRunner};

use world::{Awaited, NOTHING, Processes, World};

/// How many random histories each run of the tests takes.
const HISTORIES: u32 = 100_000;

#[derive(Clone, Copy, Debug)]
enum Happening {
    Ask(Request),
    /// Back to one of the snapshots there are.
    Rewind(u8),
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
    /// The step fails in its middle.
    FailHalf,
    /// The step fails, having done its work.
    FailLate,
    /// The node dies before the step.
    CrashBefore,
    /// The node dies in the middle of the step.
    CrashHalf,
    /// The node dies after the step, before it knows.
    CrashAfter,
    /// A kill arrives while the step is performed.
    Kill,
    /// Everything else is asked for while the step is performed.
    Ask,
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
        2 => any::<bool>()
            .prop_map(|of_paused| Happening::Ask(Request::Snapshot { of_paused })),
        1 => (0_u8..4).prop_map(Happening::Rewind),
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
        2 => Just(Trouble::FailHalf),
        2 => Just(Trouble::FailLate),
        3 => Just(Trouble::CrashBefore),
        3 => Just(Trouble::CrashHalf),
        3 => Just(Trouble::CrashAfter),
        1 => Just(Trouble::Kill),
        1 => Just(Trouble::Ask),
        1 => Just(Trouble::Die),
    ];
    let troubles = proptest::collection::vec((0_u8..8, trouble), 0..3);
    let moment = (rare, troubles).prop_map(|(happening, troubles)| Moment { happening, troubles });
    proptest::collection::vec(moment, 1..12)
}

/// A history as it goes.
struct History {
    world: World,
    /// None when the node knows nothing of the sandbox.
    lifecycle: Option<Lifecycle>,
    troubles: Vec<(u8, Trouble)>,
}

impl History {
    fn start(copies_memory: bool) -> Self {
        let world = World { mortal: true, copies_memory, ..World::default() };
        Self { world, lifecycle: Some(Lifecycle::create()), troubles: vec![] }
    }

    fn crash(&mut self) {
        self.world.awaited = None;
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
            match trouble {
                Some(Trouble::Kill) => self.kill(),
                Some(Trouble::Ask) => self.ask_for_all(),
                _ => {}
            }
            self.perform(step, trouble);
            self.world.work();
        }
    }

    fn perform(&mut self, step: Step, trouble: Option<Trouble>) {
        let done = match trouble {
            Some(Trouble::Fail) => false,
            Some(Trouble::FailHalf | Trouble::CrashHalf) => {
                self.world.perform_half(step);
                false
            }
            // A record that was written was written; only of other steps can the end be in doubt.
            Some(Trouble::FailLate) => self.world.perform(step) && is_record(step),
            _ => self.world.perform(step),
        };
        if let Some(Trouble::CrashHalf | Trouble::CrashAfter) = trouble {
            self.crash();
            return;
        }
        let Some(lifecycle) = &mut self.lifecycle else { return };
        if done {
            lifecycle.done();
            if step == Step::Forget {
                assert_eq!(self.world.seen(), NOTHING, "left behind");
            }
        } else {
            self.world.awaited = None;
            lifecycle.failed(self.world.seen());
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

    /// Nothing but a kill begins while something is under way.
    fn ask_for_all(&mut self) {
        let Some(lifecycle) = &mut self.lifecycle else { return };
        for request in [
            Request::Pause(Kept::Frozen),
            Request::Resume,
            Request::Snapshot { of_paused: true },
            Request::Rewind(Kept::Disk),
        ] {
            let verdict = lifecycle.ask(request);
            assert_ne!(verdict, Verdict::Begin, "{request:?} in the middle of {lifecycle:?}");
        }
    }

    fn happen(&mut self, happening: Happening) {
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
                let awaited = matches!(request, Request::Snapshot { .. });
                self.ask(request, awaited.then_some(Awaited::Snapshot));
            }
            Happening::Rewind(number) => {
                let there = &self.world.snapshots;
                let Some(snapshot) = there.get(usize::from(number) % there.len().max(1)) else {
                    return;
                };
                let awaited = Awaited::Rewind(*snapshot);
                self.ask(Request::Rewind(snapshot.kept()), Some(awaited));
            }
        }
    }

    /// Asks for something while nothing is under way.
    fn ask(&mut self, request: Request, awaited: Option<Awaited>) {
        let Some(lifecycle) = &mut self.lifecycle else { return };
        let verdict = lifecycle.ask(request);
        let runs = self.world.journal == Some(State::Running);
        let is_paused = matches!(self.world.journal, Some(State::Paused(_)));
        let begins = match request {
            Request::Pause(_) | Request::Rewind(_) => runs,
            Request::Snapshot { of_paused } => runs || (of_paused && is_paused),
            Request::Resume => is_paused,
            Request::Kill => true,
        };
        assert_eq!(begins, verdict == Verdict::Begin, "{request:?}: {:?}", self.world);
        if begins {
            self.world.awaited = awaited;
            self.world.copied = None;
        }
    }

    fn run(copies_memory: bool, moments: Vec<Moment>) {
        let mut history = Self::start(copies_memory);
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
        .run(&(any::<bool>(), moments()), |(copies_memory, moments)| {
            History::run(copies_memory, moments);
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
