//! The processes that clients start.
//!
//! [`Processes`] holds those that live and, for a while, how the others ended. A process is forked
//! ([`spawn`]), its output is pumped to subscribers ([`output`]), its input is written by clients
//! ([`input`]) and one task, [`Processes::supervise`], sees it to its end: that task, not the
//! request that started it, owns it, so a client that goes away leaves it running. A client follows
//! it through a [`feed`]. [`service`] is the Connect service over all this.
//!
//! A process has ended when its main process is reaped *and* its output is closed, for somebody
//! may still be writing. When a client killed it, or its time was up, the second is not waited for.

pub mod end;
pub mod feed;
pub mod input;
pub mod launch;
pub mod output;
pub mod service;
pub mod spawn;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use atoll_wire::rpc::process::{
    __buffa::view::oneof::{process_input, process_selector::Selector},
    ProcessConfig,
    process_event::EndEvent,
};
use connectrpc::ConnectError;
use rustix::process::Signal;
use tokio::{select, sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{end::end_event, input::Input, launch::Launched, output::Fanout, spawn::SetupError};
use crate::reaper::{Child, Exit, Reaper};

/// How long the end of a process can still be asked for.
const END_RETENTION: Duration = Duration::from_secs(30);

/// How many ends are kept at most; processes can be started faster than time passes.
const MAX_ENDS: usize = 4096;

/// A process started by a client.
pub struct Process {
    child: Child,
    /// A name chosen by the client.
    pub tag: Option<String>,
    /// Where its output goes.
    pub output: Fanout,
    /// Set once a client killed it or its time was up.
    killed: CancellationToken,
    /// Set at the end, before the subscribers run dry.
    end: OnceLock<EndEvent>,
    /// Releases writers whose input nobody will read any more.
    ended: CancellationToken,
}

impl Process {
    /// How it ended, if it has.
    pub fn end(&self) -> Option<&EndEvent> {
        self.end.get()
    }

    /// The process id, which is also its handle on the wire.
    pub fn pid(&self) -> u32 {
        self.child.pid.as_raw_nonzero().get().unsigned_abs()
    }
}

/// A process that has not ended. Its input is closed when the last of these is dropped.
#[derive(Clone)]
pub struct Live {
    /// The process.
    pub process: Arc<Process>,
    /// What was asked for.
    pub config: Arc<ProcessConfig>,
    /// Where its input comes from.
    pub input: Arc<Input>,
}

impl Live {
    /// Writes input, as [`Input::write`].
    ///
    /// # Errors
    /// As [`Input::write`]; `not_found` when the process ends before it has read everything.
    pub async fn write(&self, data: Option<&process_input::Input<'_>>) -> Result<(), ConnectError> {
        select! {
            biased;
            () = self.process.ended.cancelled() => {
                Err(not_found(&format!("pid {}", self.process.pid())))
            }
            result = self.input.write(data) => result,
        }
    }
}

/// All processes.
pub struct Processes {
    reaper: Arc<Reaper>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    live: BTreeMap<u32, Live>,
    /// Oldest first.
    ended: VecDeque<(Instant, Arc<Process>)>,
}

impl Processes {
    /// No processes yet; `reaper` must be running.
    pub fn new(reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self { reaper, known: Mutex::default() })
    }

    /// Those that have not ended, by process id.
    pub fn live(&self) -> Vec<Live> {
        self.known().live.values().cloned().collect()
    }

    /// A process that has not ended.
    ///
    /// # Errors
    /// `not_found`; `unimplemented` when nothing is selected.
    pub fn find(&self, selector: Option<&Selector<'_>>) -> Result<Live, ConnectError> {
        let selector = selected(selector)?;
        let known = self.known();
        let found = known.live.values().find(|live| matches(selector, &live.process));
        found.cloned().ok_or_else(|| not_selected(selector))
    }

    /// A process that lives or ended a moment ago.
    ///
    /// # Errors
    /// As for [`Processes::find`].
    pub fn find_or_ended(
        &self,
        selector: Option<&Selector<'_>>,
    ) -> Result<Arc<Process>, ConnectError> {
        let selector = selected(selector)?;
        let mut known = self.known();
        known.forget_old_ends();
        let live = known.live.values().map(|live| &live.process);
        let ended = known.ended.iter().rev().map(|(_, process)| process);
        let found = live.chain(ended).find(|process| matches(selector, process));
        found.cloned().ok_or_else(|| not_selected(selector))
    }

    /// Sends a signal to the main process. Killing one whose main process is gone already ends the
    /// wait for those it left behind.
    ///
    /// # Errors
    /// `internal` when the kernel refuses.
    pub fn signal(&self, process: &Process, signal: Signal) -> Result<(), ConnectError> {
        self.reaper
            .signal(process.child, signal)
            .map_err(|error| ConnectError::internal(format!("error sending signal: {error}")))?;
        process.killed.cancel();
        Ok(())
    }

    /// Sees a process to its end; `deadline` kills it.
    ///
    /// `started` hears first whether the command could be set up at all.
    async fn supervise(
        self: Arc<Self>,
        launched: Launched,
        deadline: Option<Instant>,
        started: oneshot::Sender<Result<(), SetupError>>,
    ) {
        let process = Arc::clone(&launched.live.process);
        let time_is_up = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            // Nobody to tell when the kernel refuses; envd may signal any of its children.
            let _ = self.signal(&process, Signal::KILL);
            std::future::pending::<()>().await;
        };
        select! {
            () = self.live_and_end(launched, started) => {}
            () = time_is_up => {}
        }
    }

    async fn live_and_end(
        &self,
        launched: Launched,
        started: oneshot::Sender<Result<(), SetupError>>,
    ) {
        let Launched { live, report, exit, outputs } = launched;
        let process = Arc::clone(&live.process);
        if let Some(error) = report.read().await {
            // Reaped first, so that no trace is left when the caller hears of it.
            let _ = exit.await;
            let _ = started.send(Err(error));
            return;
        }
        self.known().add(live);
        // The client may have gone; the process runs on.
        let _ = started.send(Ok(()));

        let cut = CancellationToken::new();
        let reaped = CancellationToken::new();
        let exit = async {
            let exit = exit.await;
            reaped.cancel();
            exit
        };
        let pumps = async {
            let pumps = outputs
                .into_iter()
                .map(|(stream, source)| output::pump(source, stream, &process.output, &cut));
            futures::future::join_all(pumps).await;
            cut.cancel();
        };
        let cutter = async {
            select! {
                _ = futures::future::join(reaped.cancelled(), process.killed.cancelled()) => {}
                () = cut.cancelled() => {}
            }
            cut.cancel();
        };
        let (exit, (), ()) = tokio::join!(exit, pumps, cutter);
        // The reaper lives as long as the program: there is always an answer.
        let exit = exit.unwrap_or(Exit::Signal { number: libc::SIGKILL, core_dumped: false });
        let _ = process.end.set(end_event(exit));
        self.known().end(&process);
        process.ended.cancel();
        process.output.close();
    }

    /// Every change is a few insertions and removals, so a poisoned lock is still good.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// A new process takes the place of ended ones with the same id or tag.
    fn add(&mut self, live: Live) {
        let new = &live.process;
        self.ended.retain(|(_, ended)| {
            let same_tag = new.tag.is_some() && ended.tag == new.tag;
            ended.pid() != new.pid() && !same_tag
        });
        self.live.insert(new.pid(), live);
    }

    fn end(&mut self, process: &Arc<Process>) {
        // A new process may have the id already: this one was reaped before its output ended.
        let pid = process.pid();
        if self.live.get(&pid).is_some_and(|live| Arc::ptr_eq(&live.process, process)) {
            self.live.remove(&pid);
        }
        self.forget_old_ends();
        if self.ended.len() >= MAX_ENDS {
            self.ended.pop_front();
        }
        self.ended.push_back((Instant::now(), Arc::clone(process)));
    }

    fn forget_old_ends(&mut self) {
        while self.ended.front().is_some_and(|(since, _)| since.elapsed() >= END_RETENTION) {
            self.ended.pop_front();
        }
    }
}

fn selected<'a>(selector: Option<&'a Selector<'a>>) -> Result<&'a Selector<'a>, ConnectError> {
    selector.ok_or_else(|| ConnectError::unimplemented("invalid process selector"))
}

fn matches(selector: &Selector<'_>, process: &Process) -> bool {
    match selector {
        Selector::Pid(pid) => process.pid() == *pid,
        Selector::Tag(tag) => process.tag.as_deref() == Some(*tag),
    }
}

fn not_selected(selector: &Selector<'_>) -> ConnectError {
    match selector {
        Selector::Pid(pid) => not_found(&format!("pid {pid}")),
        Selector::Tag(tag) => not_found(&format!("tag {tag}")),
    }
}

fn not_found(which: &str) -> ConnectError {
    ConnectError::not_found(format!("process with {which} not found"))
}
