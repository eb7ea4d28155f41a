use std::path::Path;

use atoll_isolation::Identity;
use atoll_storage::BuildManifest;
use atoll_wire::node::{Resume, Snapshot};
use tempfile::TempDir;

use super::*;
use crate::{
    journal::{Memory, RunEntry},
    logs::Logs,
    tests::{build, entry},
};

/// A sandbox, with a journal, and an owner who finds that every step succeeds.
struct World {
    directory: TempDir,
    events: Arc<Events>,
    sandbox: Arc<Sandbox>,
}

impl World {
    fn new() -> Self {
        let entry = Entry::new(entry(State::Starting).record, build());
        Self::with(entry, |entry, around| Sandbox::new(entry, Lifecycle::create(), None, around))
    }

    /// One that an earlier run of the node has left in this state.
    fn remembered(state: State) -> Self {
        let run = Some(run_entry());
        let entry = Entry { revision: 7, run, ..entry(state) };
        let world =
            Self::with(entry.clone(), |entry, around| Sandbox::remembered(entry, None, around));
        world.sandbox.journal.write(&entry, true).unwrap();
        world
    }

    fn with(entry: Entry, make: impl FnOnce(Entry, Surroundings) -> Sandbox) -> Self {
        let directory = TempDir::new().unwrap();
        let events = Arc::<Events>::default();
        let id = entry.record.id.clone();
        let around = Surroundings {
            limits: Limits { vcpu: 1, memory: 1 << 29, processes: 100 },
            log: SandboxLog::new(Arc::<Logs>::default(), id, "team".to_owned()),
            journal: Journal::open(directory.path()).unwrap().journal,
            events: events.clone(),
        };
        let sandbox = Arc::new(make(entry, around));
        Self { directory, events, sandbox }
    }

    /// One that runs.
    async fn running() -> Self {
        let world = Self::new();
        world.settle().await;
        world
    }

    /// Performs all steps that there are.
    async fn settle(&self) {
        while let Some(step) = self.sandbox.take_step() {
            match step {
                Step::Record(state) => self.sandbox.record(state).await.unwrap(),
                Step::Forget => self.sandbox.forget().await.unwrap(),
                Step::Copy => {
                    if let Doing::Snapshot(_, copied) = &mut self.sandbox.known().doing {
                        *copied = Some(Kept::Disk);
                    }
                }
                _ => {}
            }
            self.sandbox.done(step);
        }
    }

    /// Asks for something, which begins, and has it done.
    async fn ask(&self, request: Request, doing: fn() -> Doing) -> Result<Came> {
        let begin = move |known: &mut Known| known.doing = doing();
        let (came, ()) = tokio::join!(self.sandbox.ask(request, begin), self.settle());
        came
    }

    async fn pause(&self) -> NodeSandbox {
        let (paused, ()) = tokio::join!(self.sandbox.pause(Kept::Disk), self.settle());
        paused.unwrap().sandbox
    }

    fn journal(&self) -> Vec<Entry> {
        Journal::open(self.path()).unwrap().entries
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn changes(&self) -> Vec<(State, u64)> {
        let changes = self.events.wait(0).await.1;
        let seen = changes.into_iter().filter_map(|change| match change {
            Change::Now(sandbox) => Some((sandbox.state, sandbox.revision)),
            Change::Ended { .. } => None,
        });
        seen.collect()
    }
}

fn run_entry() -> RunEntry {
    let (boot, cgroup) = ("boot".to_owned(), "group".to_owned());
    let identity = Identity { pid: 1, started: 1, boot, cgroup, log: 1 };
    let memory = Memory { stack: Vec::new(), control_secret: "secret".to_owned() };
    RunEntry { identity, slot: 1, disk: "disk".to_owned(), memory }
}

fn rewind() -> Doing {
    Doing::Rewind(Box::new(BuildManifest { snapshot: Some(Kept::Disk), ..build() }))
}

fn resume() -> Doing {
    Doing::Resume(Resume { timeout: 20, on_timeout: None })
}

#[tokio::test]
async fn each_change_is_told_once_it_is_in_the_journal() {
    let world = World::new();
    assert!(world.sandbox.describe().is_none(), "nobody is told of one that has not run");
    world.settle().await;
    let running = world.sandbox.describe().unwrap();
    let paused = world.pause().await;
    assert_eq!(paused.state, State::Paused(Kept::Disk));
    assert!(paused.revision > running.revision);
    let changes = world.changes().await;
    let states: Vec<_> = changes.iter().map(|(state, _)| *state).collect();
    let kept = Kept::Disk;
    assert_eq!(states, [State::Running, State::Pausing(kept), State::Paused(kept)]);
    assert!(changes.is_sorted_by(|(_, before), (_, after)| before < after), "{changes:?}");
    let found = world.journal().pop().unwrap();
    assert_eq!((found.state, found.revision), (paused.state, paused.revision));
    assert_eq!(found.record, paused.record);
}

#[tokio::test]
async fn a_deadline_moves_while_it_runs_and_only_if_it_has_to() {
    let world = World::running().await;
    let before = world.sandbox.describe().unwrap();
    let same = world.sandbox.set_end(Deadline::AtLeastIn(1)).await.unwrap();
    assert_eq!((same.record.end_at, same.revision), (before.record.end_at, before.revision));
    let later = world.sandbox.set_end(Deadline::AtLeastIn(1000)).await.unwrap();
    assert!(later.record.end_at > before.record.end_at && later.revision > before.revision);
    assert_eq!(world.journal().pop().unwrap().record, later.record);
    assert_eq!(world.changes().await.len(), 2);

    let paused = world.pause().await;
    let error = world.sandbox.set_end(Deadline::In(10)).await.unwrap_err();
    assert_eq!(error.code, codes::SANDBOX_PAUSED);
    assert_eq!(world.journal().pop().unwrap().record, paused.record);
}

#[tokio::test]
async fn what_is_paused_is_refused_what_it_cannot_and_resumed_once() {
    let world = World::running().await;
    world.pause().await;
    let again = world.sandbox.pause(Kept::Disk).await.unwrap_err();
    assert_eq!(again.code, codes::SANDBOX_PAUSED);
    let (first, second) = tokio::join!(
        world.ask(Request::Resume, resume),
        world.sandbox.ask(Request::Resume, |_| { panic!("two resumes have begun") })
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((first.how, second.how), (How::Begun, How::Joined));
    assert_eq!(first.reply.sandbox.state, State::Running);
    let third = world.ask(Request::Resume, resume).await.unwrap();
    assert_eq!(third.how, How::WasSo);
}

#[tokio::test]
async fn a_snapshot_says_what_is_in_it() {
    let world = World::running().await;
    let snapshot = || {
        let (build, template) = ("build".to_owned(), "base".parse().unwrap());
        Doing::Snapshot(Snapshot { build, template, of_paused: false }, None)
    };
    let request = Request::Snapshot { of_paused: false };
    let came = world.ask(request, snapshot).await.unwrap();
    assert_eq!(came.reply.copied, Some(Kept::Disk));
    world.pause().await;
    let error = world.sandbox.ask(request, |_| {}).await.err().unwrap();
    assert_eq!(error.code, codes::SANDBOX_PAUSED);
}

#[tokio::test]
async fn why_it_ends_is_known_to_the_next_run_of_the_node() {
    let world = World::running().await;
    world.sandbox.begin_kill(EndReason::Expired);
    let error = world.sandbox.set_end(Deadline::In(10)).await.unwrap_err();
    assert_eq!(error.code, codes::SANDBOX_ENDING);
    while let Some(step) = world.sandbox.take_step() {
        if step == Step::Record(State::Ending) {
            world.sandbox.record(State::Ending).await.unwrap();
            world.sandbox.done(step);
            break;
        }
        world.sandbox.done(step);
    }
    let entry = world.journal().pop().unwrap();
    let known = Known::new(Lifecycle::create(), entry, None);
    assert_eq!(known.reason(), EndReason::Expired);
    world.settle().await;
    assert!(world.journal().is_empty() && world.sandbox.is_over());
    // It is gone, which is all that a kill is for.
    world.sandbox.kill(EndReason::Killed).await.unwrap();
    assert_eq!(world.sandbox.pause(Kept::Disk).await.err().unwrap().code, codes::SANDBOX_ENDING);
}

#[tokio::test]
async fn nothing_waits_for_a_sandbox_that_its_owner_has_left() {
    let world = World::running().await;
    world.pause().await;
    world.sandbox.leave();
    let error = world.sandbox.ask(Request::Resume, |_| {}).await.err().unwrap();
    assert_eq!(error.code, codes::NODE_UNAVAILABLE);
    assert_eq!(world.journal().len(), 1);
}

#[tokio::test]
async fn a_rewind_looks_like_a_moment_in_which_a_copy_is_taken() {
    let world = World::running().await;
    let before = world.sandbox.describe().unwrap();
    let request = Request::Rewind(Kept::Disk);
    // The other is asked while it is under way.
    let deadline = world.sandbox.set_end(Deadline::In(1000));
    let (came, deadline) = tokio::join!(world.ask(request, rewind), deadline);
    let after = came.unwrap().reply.sandbox;
    assert_eq!((after.state, &after.record), (State::Running, &before.record));
    assert!(deadline.unwrap().record.end_at > before.record.end_at);
    let states: Vec<_> = world.changes().await.iter().map(|(state, _)| *state).collect();
    let (between, running) = (State::Snapshotting, State::Running);
    assert_eq!(states, [running, between, between, running, running]);
}

#[tokio::test]
async fn a_rewind_that_fails_is_shown_as_what_it_leaves() {
    let world = World::running().await;
    let rewound = async {
        let begin = |known: &mut Known| known.doing = rewind();
        world.sandbox.ask(Request::Rewind(Kept::Disk), begin).await
    };
    let fail = async {
        while let Some(step) = world.sandbox.take_step() {
            match step {
                Step::Record(state) => world.sandbox.record(state).await.unwrap(),
                Step::Start(_) => {
                    let error = Error::new(codes::SANDBOX_START_FAILED, "no");
                    world.sandbox.failed(&error, Saved::Disk);
                    continue;
                }
                _ => {}
            }
            world.sandbox.done(step);
        }
    };
    let (came, ()) = tokio::join!(rewound, fail);
    assert_eq!(came.err().unwrap().code, codes::SANDBOX_START_FAILED);
    let left = world.sandbox.describe().unwrap();
    assert_eq!(left.state, State::Paused(Kept::Disk));
    assert!(left.record.end_at <= Timestamp::now());
    assert_eq!(world.changes().await.pop(), Some((left.state, left.revision)));
    assert_eq!(world.journal().pop().unwrap().record, left.record);
}

#[tokio::test]
async fn one_that_is_still_looked_for_is_there_and_takes_nothing_but_a_kill() {
    let world = World::remembered(State::Paused(Kept::Disk));
    let World { sandbox, .. } = &world;
    assert_eq!(sandbox.describe().unwrap().state, State::Paused(Kept::Disk));
    let error = sandbox.ask(Request::Resume, |_| {}).await.err().unwrap();
    assert_eq!(error.code, codes::SANDBOX_BUSY);
    assert_eq!(sandbox.set_end(Deadline::In(10)).await.unwrap_err().code, codes::SANDBOX_BUSY);
    assert_eq!(
        world.journal().pop().unwrap().run,
        Some(run_entry()),
        "it could not be found again"
    );
    sandbox.seen(None, Saved::Disk);
    let came = world.ask(Request::Resume, resume).await.unwrap();
    assert_eq!((came.how, came.reply.sandbox.state), (How::Begun, State::Running));
}

#[tokio::test]
async fn one_that_is_killed_while_it_is_looked_for_ends_when_it_is_found() {
    let world = World::remembered(State::Paused(Kept::Disk));
    let end = async {
        world.sandbox.killed.cancelled().await;
        assert_eq!(world.journal().len(), 1);
        world.sandbox.seen(None, Saved::Disk);
        world.settle().await;
    };
    let (killed, ()) = tokio::join!(world.sandbox.kill(EndReason::Killed), end);
    killed.unwrap();
    assert!(world.journal().is_empty() && world.sandbox.is_over());
    assert_eq!(world.changes().await, [(State::Ending, 8)]);
}

#[tokio::test]
async fn a_kill_that_a_stopping_node_leaves_undone_is_not_said_to_be_done() {
    let world = World::remembered(State::Paused(Kept::Disk));
    let leave = async {
        world.sandbox.killed.cancelled().await;
        world.sandbox.leave();
    };
    let (killed, ()) = tokio::join!(world.sandbox.kill(EndReason::Killed), leave);
    assert_eq!(killed.unwrap_err().code, codes::NODE_UNAVAILABLE);
}
