//! A sandbox, as the rest of the node sees it: what is known of it, and how to ask something of it.
//!
//! Requests go to its [`Lifecycle`] at once, which says what is to be done; its owner (`owner`) does
//! it. So nobody but the owner touches what is on the host, with one exception: a kill ends the
//! processes itself, so that whatever the owner is at comes to an end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{self, Lifecycle, Request, Saved, Seen, State, Step, Verdict},
};
use atoll_isolation::Limits;
use atoll_wire::{
    log::LogLevel,
    node::{CreateTimings, Created, EndReason, NodeSandbox, SandboxRecord},
};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    journal::{Entry, Journal, outlives_machine},
    logs::SandboxLog,
    run::{Door, Run},
};

/// A sandbox of this node.
pub struct Sandbox {
    id: SandboxId,
    pub(crate) limits: Limits,
    pub(crate) log: SandboxLog,
    journal: Journal,
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

/// What is known of a sandbox now.
pub(crate) struct Known {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) record: SandboxRecord,
    /// Empty before its envd has answered.
    pub(crate) envd_version: String,
    pub(crate) timings: CreateTimings,
    pub(crate) run: Option<Arc<Run>>,
    /// The way in, while it may be reached.
    door: Option<Arc<Door>>,
    /// Why it ends, if it does.
    pub(crate) reason: EndReason,
    /// Somebody may have been told of it.
    pub(crate) is_public: bool,
    /// Its file is gone, and is not to be written again.
    is_forgotten: bool,
    /// Its owner has left.
    is_over: bool,
    asked: Vec<Asked>,
}

/// A request under way.
struct Asked {
    request: Request,
    error: Option<Error>,
    answer: watch::Sender<Option<Result<()>>>,
}

pub(crate) type Answer = watch::Receiver<Option<Result<()>>>;

/// What becomes of a request.
enum Outcome {
    Now(Result<()>),
    Then(Answer),
    AskAgain(watch::Receiver<u64>),
}

impl Known {
    fn new(lifecycle: Lifecycle, record: SandboxRecord) -> Self {
        Self {
            lifecycle,
            record,
            envd_version: String::new(),
            timings: CreateTimings::default(),
            run: None,
            door: None,
            reason: EndReason::Died,
            is_public: false,
            is_forgotten: false,
            is_over: false,
            asked: Vec::new(),
        }
    }

    fn expect(&mut self, request: Request) -> Answer {
        let (answer, receiver) = watch::channel(None);
        self.asked.push(Asked { request, error: None, answer });
        receiver
    }

    /// Says that whatever is under way has failed, apart from kills: those do not.
    fn fail(&mut self, error: &Error) {
        for asked in &mut self.asked {
            if asked.request != Request::Kill {
                asked.error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Tells those who asked what came of it.
    fn answer(&mut self) {
        let state = self.lifecycle.state();
        for Asked { request, error, answer } in self.asked.drain(..) {
            let is_so = match request {
                Request::Pause(_) => matches!(state, State::Paused(_)),
                Request::Resume => state == State::Running,
                Request::Snapshot | Request::Kill => true,
            };
            let outcome = match error {
                Some(error) => Err(error),
                None if is_so => Ok(()),
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

    fn open(&mut self) {
        if self.door.is_none() && self.lifecycle.state() == State::Running {
            self.door = self.run.clone().map(|run| Arc::new(Door::new(run)));
        }
    }
}

impl Sandbox {
    /// A sandbox to be made.
    pub(crate) fn create(
        record: SandboxRecord,
        limits: Limits,
        journal: Journal,
        log: SandboxLog,
    ) -> Self {
        Self::with(Known::new(Lifecycle::create(), record), limits, journal, log)
    }

    /// A sandbox that an earlier run of the node made.
    pub(crate) fn adopt(
        entry: Entry,
        lifecycle: Lifecycle,
        limits: Limits,
        journal: Journal,
        log: SandboxLog,
    ) -> Self {
        let is_public = entry.state != State::Starting;
        let is_ending = entry.state == State::Ending;
        let known = Known {
            envd_version: entry.envd_version,
            // Why it ends is not in the journal; most are killed.
            reason: if is_ending { EndReason::Killed } else { EndReason::Died },
            is_public,
            ..Known::new(lifecycle, entry.record)
        };
        Self::with(known, limits, journal, log)
    }

    fn with(known: Known, limits: Limits, journal: Journal, log: SandboxLog) -> Self {
        Self {
            id: known.record.id.clone(),
            limits,
            log,
            journal,
            known: Mutex::new(known),
            writing: Arc::default(),
            wake: Notify::new(),
            progress: watch::Sender::new(0),
            killed: CancellationToken::new(),
        }
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
        known.is_public.then(|| NodeSandbox {
            record: known.record.clone(),
            envd_version: known.envd_version.clone(),
            state: known.lifecycle.state(),
        })
    }

    /// What the create is answered.
    pub(crate) fn created(&self) -> Created {
        let known = self.known();
        Created { envd_version: known.envd_version.clone(), timings: known.timings }
    }

    /// The way in, if it runs.
    pub(crate) fn door(&self) -> Option<Arc<Door>> {
        self.known().door.clone()
    }

    /// Its run, if it has one that may be looked at.
    pub(crate) fn run(&self) -> Option<Arc<Run>> {
        self.known().run.clone()
    }

    pub(crate) fn end_at(&self) -> Timestamp {
        self.known().record.end_at
    }

    /// Expects the create that has begun.
    pub(crate) fn expect_create(&self) -> Answer {
        // It is to run in the end, as after a resume.
        self.known().expect(Request::Resume)
    }

    /// Moves its deadline, and remembers that; whether it is there still.
    pub(crate) async fn set_end(&self, end_at: Timestamp) -> Result<bool> {
        self.write(move |known| {
            known.record.end_at = end_at;
            known.lifecycle.state()
        })
        .await
    }

    /// Makes a state durable.
    pub(crate) async fn record(&self, state: State) -> Result<bool> {
        self.write(move |_| state).await
    }

    /// Writes what is known, with the state that `change` gives; false when it is forgotten.
    async fn write(&self, change: impl FnOnce(&mut Known) -> State) -> Result<bool> {
        let writing = self.writing.clone().lock_owned().await;
        let (entry, durable) = {
            let mut known = self.known();
            if known.is_forgotten {
                return Ok(false);
            }
            let before = known.lifecycle.state();
            let state = change(&mut known);
            let entry = Entry {
                state,
                record: known.record.clone(),
                envd_version: known.envd_version.clone(),
                run: known.run.as_ref().map(|run| run.entry().clone()),
            };
            (entry, outlives_machine(before) || outlives_machine(state))
        };
        let journal = self.journal.clone();
        // Written to its end even if the caller leaves, and before the next.
        let written = tokio::task::spawn_blocking(move || {
            let written = journal.write(&entry, durable);
            drop(writing);
            written
        });
        written.await.unwrap_or_else(|error| Err(lost(&error)))?;
        Ok(true)
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

    /// Asks for something and waits for what becomes of it. It goes on if the caller leaves.
    pub(crate) async fn ask(&self, request: Request) -> Result<()> {
        self.ask_with(request, |_| {}).await
    }

    /// As [`ask`](Self::ask); `begin` is told if it begins.
    pub(crate) async fn ask_with(
        &self,
        request: Request,
        begin: impl Fn(&mut Known) + Send,
    ) -> Result<()> {
        loop {
            match self.try_ask(request, &begin) {
                Outcome::Now(outcome) => return outcome,
                Outcome::Then(answer) => return answered(answer).await,
                Outcome::AskAgain(mut progress) => {
                    progress.changed().await.map_err(|_| unanswered())?;
                }
            }
        }
    }

    fn try_ask(&self, request: Request, begin: impl Fn(&mut Known)) -> Outcome {
        let mut known = self.known();
        if known.is_over {
            let gone = || Err(refused(&self.id, State::Ending));
            return Outcome::Now(if request == Request::Kill { Ok(()) } else { gone() });
        }
        match known.lifecycle.ask(request) {
            Verdict::Begin => {
                begin(&mut known);
                let answer = known.expect(request);
                drop(known);
                self.wake.notify_one();
                Outcome::Then(answer)
            }
            Verdict::Join => Outcome::Then(known.expect(request)),
            // Subscribed under the lock: what is done next is news.
            Verdict::Wait => Outcome::AskAgain(self.progress.subscribe()),
            Verdict::Done => Outcome::Now(Ok(())),
            Verdict::Refuse(state) => Outcome::Now(Err(refused(&self.id, state))),
        }
    }

    /// Ends it and waits until nothing of it is left.
    pub(crate) async fn kill(&self, reason: EndReason) -> Result<()> {
        self.ask_with(Request::Kill, |known| {
            known.fail(&Error::new(codes::SANDBOX_GONE, "the sandbox was ended meanwhile."));
            known.reason = reason;
            // Before its processes are killed.
            known.close();
            self.killed.cancel();
            if let Some(run) = &known.run {
                run.kill();
            }
        })
        .await
    }

    /// The owner's next step. With none, whoever waits is answered.
    pub(crate) fn take_step(&self) -> Option<Step> {
        let mut known = self.known();
        let step = known.lifecycle.take_step();
        if step.is_none() {
            known.answer();
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

    /// The step has succeeded.
    pub(crate) fn done(&self, step: Step) {
        {
            let mut known = self.known();
            known.lifecycle.done();
            known.is_public |= step == Step::Record(State::Running);
            if !self.killed.is_cancelled() {
                known.open();
            }
            if step == Step::Answer {
                known.answer();
            }
        }
        self.advance();
    }

    /// The step has failed, or with none in hand its processes have died; `look` says what is left.
    pub(crate) fn failed(&self, error: &Error, saved: Saved) {
        {
            let mut known = self.known();
            known.fail(error);
            let run = known.run.as_ref().map_or(lifecycle::Run::None, |run| run.look());
            known.lifecycle.failed(Seen { run, saved });
        }
        self.advance();
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Says in its log that it runs, and how long that took.
    pub(crate) fn report_start(&self) {
        let (template, timings) = {
            let known = self.known();
            (known.record.template.to_string(), known.timings)
        };
        self.log.say(
            LogLevel::Info,
            "Sandbox started",
            [
                ("event_type", "sandbox_start".to_owned()),
                ("template", template),
                ("cpu_count", self.limits.vcpu.to_string()),
                ("memory_bytes", self.limits.memory.to_string()),
                ("take_us", timings.take_us.to_string()),
                ("start_us", timings.start_us.to_string()),
                ("init_us", timings.init_us.to_string()),
            ],
        );
    }

    /// Says in its log how it ended.
    pub(crate) fn report_end(&self, reason: EndReason) {
        let (level, how) = match reason {
            EndReason::Killed => (LogLevel::Info, "killed"),
            EndReason::Expired => (LogLevel::Info, "expired"),
            EndReason::Died => (LogLevel::Error, "died"),
            EndReason::Shutdown => (LogLevel::Warn, "shutdown"),
        };
        let fields = [("event_type", "sandbox_end".to_owned()), ("reason", how.to_owned())];
        self.log.say(level, "Sandbox ended", fields);
    }
}

/// Waits for what becomes of a request.
pub(crate) async fn answered(mut answer: Answer) -> Result<()> {
    let answered = answer.wait_for(Option::is_some).await;
    let outcome = answered.ok().and_then(|outcome| outcome.clone());
    outcome.unwrap_or_else(|| Err(unanswered()))
}

fn refused(id: &SandboxId, state: State) -> Error {
    match state {
        State::Ending => Error::new(codes::SANDBOX_GONE, format!("sandbox {id} is being ended.")),
        State::Paused(_) => Error::new(codes::CONFLICT, format!("sandbox {id} is paused."))
            .with_fix("Resume it first."),
        _ => Error::new(codes::CONFLICT, format!("sandbox {id} is between two states.")),
    }
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
