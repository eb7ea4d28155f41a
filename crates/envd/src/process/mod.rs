//! The processes that clients start.
//!
//! [`Processes`] holds those that live and, for a while, how the others ended. A process is forked
//! ([`spawner`], [`spawn`]), its output is pumped to subscribers ([`output`]), its input is written by clients
//! ([`input`]) and one task, [`Processes::supervise`], sees it to its end: that task, not the
//! request that started it, owns it, so a client that goes away leaves it running. A client follows
//! it through a [`feed`]. [`service`] is the Connect service over all this.
//!
//! A process has ended when its main process is reaped *and* its output is closed, for somebody
//! may still be writing. When a client killed it, or its time was up, the second is not waited for.

pub mod end;
pub mod feed;
pub mod input;
pub mod journal;
pub mod launch;
pub mod output;
pub mod service;
pub mod spawn;
pub mod spawner;

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
use rustix::process::{Rlimit, Signal};
use tokio::{
    select,
    sync::{mpsc::Receiver, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    end::end_event,
    input::Input,
    launch::{Launch, Launched, StartError},
    output::{Chunk, Fanout},
    spawner::Spawner,
};
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

/// A process that has executed its command, and its output from the beginning.
struct Started {
    process: Arc<Process>,
    output: Receiver<Chunk>,
}

/// All processes.
pub struct Processes {
    reaper: Arc<Reaper>,
    spawner: Option<Spawner>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    live: BTreeMap<u32, Live>,
    /// Oldest first.
    ended: VecDeque<(Instant, Arc<Process>)>,
}

impl Processes {
    /// No processes yet; `reaper` must be running. Without a spawner envd forks by itself.
    pub fn new(reaper: Arc<Reaper>, spawner: Option<Spawner>) -> Arc<Self> {
        Arc::new(Self { reaper, spawner, known: Mutex::default() })
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

    /// Starts a process and sees it to its end; `deadline` kills it.
    ///
    /// `started` hears first whether it could be started at all.
    async fn run(
        self: Arc<Self>,
        launch: Launch,
        open_files: Option<Rlimit>,
        deadline: Option<Instant>,
        started: oneshot::Sender<Result<Started, StartError>>,
    ) {
        match launch.start(&self.reaper, self.spawner.as_ref(), open_files).await {
            Ok(launched) => self.supervise(launched, deadline, started).await,
            Err(error) => drop(started.send(Err(StartError::Fork(error)))),
        }
    }

    async fn supervise(
        &self,
        launched: Launched,
        deadline: Option<Instant>,
        started: oneshot::Sender<Result<Started, StartError>>,
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
        started: oneshot::Sender<Result<Started, StartError>>,
    ) {
        let Launched { live, report, exit, outputs } = launched;
        let process = Arc::clone(&live.process);
        if let Some(error) = report.read().await {
            // Reaped first, so that no trace is left when the caller hears of it.
            let _ = exit.await;
            let _ = started.send(Err(StartError::SetUp(error)));
            return;
        }
        let entry = journal::Entry::start(&live);
        self.known().add(live);
        // Before its output is read, so that nothing is missed.
        let output = process.output.subscribe();
        // The client may have gone; the process runs on.
        let _ = started.send(Ok(Started { process: Arc::clone(&process), output }));

        let cut = CancellationToken::new();
        let reaped = CancellationToken::new();
        let exit = async {
            let exit = exit.await;
            reaped.cancel();
            exit
        };
        let pumps = async {
            let pumps = outputs.into_iter().map(async |(stream, source)| {
                (stream, output::pump(source, stream, &process.output, &cut).await)
            });
            let printed = futures::future::join_all(pumps).await;
            cut.cancel();
            printed
        };
        let cutter = async {
            select! {
                _ = futures::future::join(reaped.cancelled(), process.killed.cancelled()) => {}
                () = cut.cancelled() => {}
            }
            cut.cancel();
        };
        let (exit, printed, ()) = tokio::join!(exit, pumps, cutter);
        // The reaper lives as long as the program: there is always an answer.
        let exit = exit.unwrap_or(Exit::Signal { number: libc::SIGKILL, core_dumped: false });
        let end = end_event(exit);
        entry.end(&end, &printed);
        let _ = process.end.set(end);
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

#[cfg(test)]
mod tests {
    use rustix::process::Pid;

    use super::*;

    /// What is known of a process, without one: nothing here asks the kernel.
    pub(super) fn named(pid: i32, tag: Option<&str>) -> Arc<Process> {
        let fork = || Ok(Pid::from_raw(pid).unwrap());
        Arc::new(Process {
            child: Reaper::default().spawn(fork).unwrap().0,
            tag: tag.map(str::to_owned),
            output: Fanout::default(),
            killed: CancellationToken::new(),
            end: OnceLock::new(),
            ended: CancellationToken::new(),
        })
    }

    // Rules: PROC-61, PROC-62, TRAP-31
    #[tokio::test(start_paused = true)]
    async fn an_end_is_kept_for_half_a_minute() {
        let processes = Processes::new(Arc::default(), None);
        let find = |selector| processes.find_or_ended(Some(&selector)).map(|process| process.pid());
        processes.known().end(&named(7, Some("t")));
        tokio::time::advance(Duration::from_secs(29)).await;
        processes.known().end(&named(8, None));
        assert_eq!(find(Selector::Pid(7)).unwrap(), 7);
        assert_eq!(find(Selector::Tag("t")).unwrap(), 7);
        tokio::time::advance(Duration::from_secs(1)).await;
        let gone = find(Selector::Pid(7)).unwrap_err();
        assert_eq!(gone.message.as_deref(), Some("process with pid 7 not found"));
        let gone = find(Selector::Tag("t")).unwrap_err();
        assert_eq!(gone.message.as_deref(), Some("process with tag t not found"));
        assert_eq!(find(Selector::Pid(8)).unwrap(), 8);
    }
}
