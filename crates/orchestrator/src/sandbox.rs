//! A sandbox, as the rest of the node sees it: how to ask something of it, and how that is remembered.
//!
//! Requests go to its [`Lifecycle`] at once, which says what is to be done; its owner (`owner`) does
//! it. So nobody but the owner touches what is on the host, with one exception: a kill ends the
//! processes itself, so that whatever the owner is at comes to an end.
//!
//! What can be seen of it changes when the journal has it, never sooner, and with each change its
//! revision grows.

#[cfg(test)]
mod tests;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{self, Kept, Lifecycle, Request, Saved, Seen, State, Step, Verdict},
};
use atoll_isolation::Limits;
use atoll_storage::Lease;
use atoll_wire::node::{Change, Created, Deadline, EndReason, NodeSandbox};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    deadline,
    events::Events,
    journal::{Entry, Journal, outlives_machine},
    known::{Answer, Doing, Known, Reply},
    logs::SandboxLog,
    run::{Door, Run},
    start,
};

/// A sandbox of this node.
pub struct Sandbox {
    id: SandboxId,
    pub(crate) limits: Limits,
    pub(crate) log: SandboxLog,
    journal: Journal,
    events: Arc<Events>,
    known: Mutex<Known>,
    /// Held while its file in the journal is written. Outside of `known`.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Wakes the owner.
    pub(crate) wake: Notify,
    /// Counts what was done, for those who wait to ask again.
    progress: watch::Sender<u64>,
    /// Cancelled by a kill.
    pub(crate) killed: CancellationToken,
}

/// What a sandbox uses of its node.
pub(crate) struct Surroundings {
    pub(crate) limits: Limits,
    pub(crate) log: SandboxLog,
    pub(crate) journal: Journal,
    pub(crate) events: Arc<Events>,
}

/// What becomes of a request.
enum Outcome {
    /// It is refused.
    Refused(Error),
    /// It is so already.
    IsSo(Box<Reply>),
    /// To be answered.
    Then(How, Answer),
    AskAgain(watch::Receiver<u64>),
}

/// What came of a request.
pub(crate) struct Came {
    pub(crate) reply: Reply,
    pub(crate) how: How,
}

/// How it came to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// By this request.
    Begun,
    /// By one that was under way.
    Joined,
    /// It was so already.
    WasSo,
}

impl Sandbox {
    /// A sandbox that is to be made, or that an earlier run of the node made.
    pub(crate) fn new(
        entry: Entry,
        lifecycle: Lifecycle,
        lease: Option<Lease>,
        around: Surroundings,
    ) -> Self {
        let Surroundings { limits, log, journal, events } = around;
        Self {
            id: entry.record.id.clone(),
            limits,
            log,
            journal,
            events,
            known: Mutex::new(Known::new(lifecycle, entry, lease)),
            writing: Arc::default(),
            wake: Notify::new(),
            progress: watch::Sender::new(0),
            killed: CancellationToken::new(),
        }
    }

    /// One that an earlier run of the node made, of which no more is known yet than its entry, until it
    /// is [`seen`](Self::seen).
    pub(crate) fn remembered(entry: Entry, lease: Option<Lease>, around: Surroundings) -> Self {
        let nothing = Seen { run: lifecycle::Run::None, saved: Saved::None };
        let sandbox =
            Self::new(entry.clone(), Lifecycle::adopt(entry.state, nothing), lease, around);
        sandbox.known().is_unseen = true;
        sandbox
    }

    /// What there is of it has been found, and it goes on from there.
    pub(crate) fn seen(&self, run: Option<Run>, saved: Saved) {
        let run = run.map(Arc::new);
        let has_lost_memory = {
            let mut known = self.known();
            known.see(run.clone(), saved);
            if known.is_killed {
                known.lifecycle.ask(Request::Kill);
                run.iter().for_each(|run| run.kill());
            }
            mem::take(&mut known.entry.has_lost_memory)
        };
        if has_lost_memory {
            self.report_lost_memory();
        }
        if run.is_some_and(|run| run.begin_reading()) {
            self.report_adopted();
        }
        self.advance();
    }

    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.known().lifecycle.state()
    }

    /// What the control plane may know of it; nothing before it has run.
    pub fn describe(&self) -> Option<NodeSandbox> {
        let known = self.known();
        known.is_public.then(|| known.describe())
    }

    /// What the create is answered.
    pub(crate) fn created(&self) -> Created {
        let known = self.known();
        Created { sandbox: known.describe(), timings: known.timings }
    }

    /// The way in, if it runs.
    pub(crate) fn door(&self) -> Option<Arc<Door>> {
        self.known().door.clone()
    }

    /// Its run, if it has one that may be looked at.
    pub(crate) fn run(&self) -> Option<Arc<Run>> {
        self.known().run.clone()
    }

    /// Expects the create that has begun.
    pub(crate) fn expect_create(&self) -> Answer {
        // It is to run in the end, as after a resume.
        self.known().expect(Request::Resume)
    }

    /// Moves its deadline.
    pub(crate) async fn set_end(self: &Arc<Self>, deadline: Deadline) -> Result<NodeSandbox> {
        let id = self.id.clone();
        // It has the time of before again in a moment.
        self.until(|known| !matches!(known.doing, Doing::Rewind(_))).await;
        let now = self.write(move |known, entry| match entry.state {
            _ if known.is_killed || known.is_forgotten => Err(refused(&id, State::Ending)),
            _ if known.is_unseen => Err(unseen(&id)),
            _ if known.is_between() => Err(refused(&id, State::Snapshotting)),
            State::Running if known.falls_back => Err(refused(&id, State::Pausing(Kept::Frozen))),
            State::Running | State::Snapshotting => {
                Ok(deadline::shift(&mut entry.record, deadline, Timestamp::now()))
            }
            state => Err(refused(&id, state)),
        });
        let now = now.await?;
        self.wake.notify_one();
        Ok(now)
    }

    /// Makes a state durable.
    pub(crate) async fn record(self: &Arc<Self>, state: State) -> Result<()> {
        let written = self.write(move |known, entry| {
            known.enter(entry, state);
            Ok(!known.is_forgotten)
        });
        written.await.map(drop)
    }

    /// Writes what is known, with what `change` does to it if that is anything, and makes it visible.
    /// Returns the sandbox as it is then.
    async fn write(
        self: &Arc<Self>,
        change: impl FnOnce(&Known, &mut Entry) -> Result<bool>,
    ) -> Result<NodeSandbox> {
        let writing = self.writing.clone().lock_owned().await;
        let (entry, durable) = {
            let known = self.known();
            let mut entry = known.entry.clone();
            entry.run = known.run.as_ref().map(|run| run.entry().clone());
            if !change(&known, &mut entry)? {
                return Ok(known.describe());
            }
            entry.revision += 1;
            let durable = outlives_machine(known.entry.state) || outlives_machine(entry.state);
            (entry, durable)
        };
        let sandbox = self.clone();
        // Written to its end even if the caller leaves, and before the next.
        let written = tokio::task::spawn_blocking(move || {
            let written = sandbox.journal.write(&entry, durable);
            let written = written.map(|()| sandbox.show(entry));
            drop(writing);
            written
        });
        written.await.unwrap_or_else(|error| Err(lost(&error)))
    }

    /// Lets everybody see what the journal has.
    fn show(&self, entry: Entry) -> NodeSandbox {
        let mut known = self.known();
        known.is_public |= entry.state == State::Running && !entry.record.is_for_build;
        known.falls_back &= entry.state == State::Running;
        known.entry = entry;
        known.open();
        let now = known.describe();
        if known.is_public {
            self.events.push(Change::Now(now.clone()));
        }
        now
    }

    /// Removes its file.
    pub(crate) async fn forget(&self) -> Result<()> {
        let writing = self.writing.clone().lock_owned().await;
        let (journal, id) = (self.journal.clone(), self.id.clone());
        let forgotten = tokio::task::spawn_blocking(move || {
            let forgotten = journal.forget(&id);
            drop(writing);
            forgotten
        });
        // First: a deadline moved meanwhile must not bring it back.
        self.known().is_forgotten = true;
        forgotten.await.unwrap_or_else(|error| Err(lost(&error)))
    }

    /// Asks for something and waits for what becomes of it; `begin` is told if it begins. It goes on
    /// if the caller leaves.
    pub(crate) async fn ask(
        &self,
        request: Request,
        begin: impl Fn(&mut Known) + Send,
    ) -> Result<Came> {
        loop {
            match self.try_ask(request, &begin) {
                Outcome::Refused(error) => return Err(error),
                Outcome::IsSo(reply) => return Ok(Came { reply: *reply, how: How::WasSo }),
                Outcome::Then(how, answer) => {
                    return Ok(Came { reply: answered(answer).await?, how });
                }
                Outcome::AskAgain(mut progress) => {
                    progress.changed().await.map_err(|_| unanswered())?;
                }
            }
        }
    }

    fn try_ask(&self, request: Request, begin: impl Fn(&mut Known)) -> Outcome {
        let mut known = self.known();
        let is_so = |known: &Known| {
            Outcome::IsSo(Box::new(Reply { sandbox: known.describe(), copied: None }))
        };
        if known.is_over {
            return match request {
                _ if !known.is_forgotten => Outcome::Refused(start::stopping()),
                Request::Kill => is_so(&known),
                _ => Outcome::Refused(refused(&self.id, State::Ending)),
            };
        }
        if known.is_unseen {
            if request != Request::Kill {
                return Outcome::Refused(unseen(&self.id));
            }
            if !known.is_killed {
                begin(&mut known);
            }
            let answer = known.expect(request);
            drop(known);
            self.wake.notify_one();
            return Outcome::Then(How::Begun, answer);
        }
        if (known.falls_back || known.is_between()) && request != Request::Kill {
            return Outcome::AskAgain(self.progress.subscribe());
        }
        match known.lifecycle.ask(request) {
            Verdict::Begin => {
                begin(&mut known);
                let answer = known.expect(request);
                drop(known);
                self.wake.notify_one();
                Outcome::Then(How::Begun, answer)
            }
            Verdict::Join => Outcome::Then(How::Joined, known.expect(request)),
            // Subscribed under the lock: what is done next is news.
            Verdict::Wait => Outcome::AskAgain(self.progress.subscribe()),
            Verdict::Done => is_so(&known),
            Verdict::Refuse(state) => Outcome::Refused(refused(&self.id, state)),
        }
    }

    /// Pauses it, and waits until it is.
    pub(crate) async fn pause(&self, kept: Kept) -> Result<Reply> {
        Ok(self.ask(Request::Pause(kept), begin_pause).await?.reply)
    }

    /// Begins to pause it, if it runs and nothing is under way; whether it does.
    pub(crate) fn begin_pause(&self, kept: Kept) -> bool {
        let outcome = self.try_ask(Request::Pause(kept), begin_pause);
        matches!(outcome, Outcome::Then(How::Begun, _))
    }

    /// Ends it and waits until nothing of it is left.
    pub(crate) async fn kill(&self, reason: EndReason) -> Result<()> {
        self.ask(Request::Kill, |known| self.end(known, reason)).await.map(drop)
    }

    /// Begins to end it.
    pub(crate) fn begin_kill(&self, reason: EndReason) {
        drop(self.try_ask(Request::Kill, |known| self.end(known, reason)));
    }

    fn end(&self, known: &mut Known, reason: EndReason) {
        known.fail(&refused(&self.id, State::Ending));
        known.reason = Some(reason);
        known.is_killed = true;
        known.falls_back = false;
        // Before its processes are killed.
        known.close();
        self.killed.cancel();
        if let Some(run) = &known.run {
            run.kill();
        }
    }

    /// The owner's next step. With none, whoever waits is answered.
    pub(crate) fn take_step(&self) -> Option<Step> {
        let mut known = self.known();
        let mut step = known.lifecycle.take_step();
        if step.is_none() && known.falls_back {
            match known.lifecycle.ask(Request::Pause(Kept::Frozen)) {
                Verdict::Begin => step = known.lifecycle.take_step(),
                _ => known.falls_back = false,
            }
        }
        if step.is_none() {
            known.answer();
            known.doing = Doing::Nothing;
            known.is_over = known.is_forgotten;
            drop(known);
            self.advance();
        }
        step
    }

    /// Whether nothing of it is left, and nothing will come.
    pub(crate) fn is_over(&self) -> bool {
        self.known().is_over
    }

    /// Its owner leaves it as it is, because the node is stopping.
    pub(crate) fn leave(&self) {
        let error = start::stopping();
        {
            let mut known = self.known();
            known.is_over = true;
            known.abandon(&error);
        }
        self.advance();
    }

    /// The step has succeeded.
    pub(crate) fn done(&self, step: Step) {
        {
            let mut known = self.known();
            known.lifecycle.done();
            // One that was taken up runs on, and nothing is recorded.
            known.open();
            if step == Step::Answer {
                known.answer();
            }
        }
        self.advance();
    }

    /// The step has failed, or with none in hand its processes have died; `saved` says what is saved.
    pub(crate) fn failed(&self, error: &Error, saved: Saved) {
        {
            let mut known = self.known();
            let has_no_checkpoint = error.code == codes::CHECKPOINT_FAILED
                && known.lifecycle.state() == State::Pausing(Kept::Checkpoint);
            known.falls_back = has_no_checkpoint && !known.is_killed;
            if !known.falls_back {
                known.fail(error);
            }
            if known.end_rewind() {
                self.events.push(Change::Now(known.describe()));
            }
            let run = known.run.as_ref().map_or(lifecycle::Run::None, |run| run.look());
            known.lifecycle.failed(Seen { run, saved });
        }
        self.advance();
    }

    /// Waits until nothing is under way.
    pub(crate) async fn settled(&self) {
        self.until(|known| !known.is_unseen && known.lifecycle.is_settled()).await;
    }

    async fn until(&self, condition: impl Fn(&Known) -> bool) {
        let mut progress = self.progress.subscribe();
        while !condition(&self.known()) {
            // Its sender is ours.
            let _ = progress.changed().await;
        }
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count += 1);
    }
}

fn begin_pause(known: &mut Known) {
    known.doing = Doing::Pause(Timestamp::now());
}

/// Waits for what becomes of a request.
pub(crate) async fn answered(mut answer: Answer) -> Result<Reply> {
    let answered = answer.wait_for(Option::is_some).await;
    let outcome = answered.ok().and_then(|outcome| outcome.clone());
    outcome.unwrap_or_else(|| Err(unanswered()))
}

fn refused(id: &SandboxId, state: State) -> Error {
    match state {
        State::Ending => {
            Error::new(codes::SANDBOX_ENDING, format!("sandbox {id} is being killed."))
        }
        State::Paused(_) => Error::new(codes::SANDBOX_PAUSED, format!("sandbox {id} is paused.")),
        _ => Error::new(codes::SANDBOX_BUSY, format!("sandbox {id} is between two states.")),
    }
}

fn unseen(id: &SandboxId) -> Error {
    let message = format!("sandbox {id} is still looked for, after the node has started again.");
    Error::new(codes::SANDBOX_BUSY, message)
}

fn unanswered() -> Error {
    Error::new(codes::INTERNAL, "the request ended without an answer.")
}

fn lost(error: &tokio::task::JoinError) -> Error {
    Error::new(codes::INTERNAL, format!("the journal was not written: {error}."))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
