//! Reaps every child, exactly once.
//!
//! As process 1 of the sandbox envd inherits every orphan, so it waits for any child; nothing else
//! in the program may wait. Whoever starts a process does it through [`Reaper::spawn`] and is told
//! how it ended. One lock covers forking, reaping and signalling: a status cannot arrive before
//! its owner is known, and a process id cannot be reused while it is about to be signalled.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, wait, waitid,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// How many ends of unknown children are kept for those who may still ask. A process that the
/// spawner forked can end before its number is known here, but not long before.
const MAX_UNCLAIMED: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal {
        /// Number of the signal.
        number: i32,
        /// Whether the kernel wrote a core.
        core_dumped: bool,
    },
}

impl Exit {
    /// Nothing for statuses that are not an end (stopped, continued).
    fn from_status(status: WaitStatus) -> Option<Self> {
        if let Some(number) = status.terminating_signal() {
            return Some(Self::Signal { number, core_dumped: libc::WCOREDUMP(status.as_raw()) });
        }
        status.exit_status().map(Self::Code)
    }
}

/// A child of ours. Unlike a process id it is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its process id, while it lives.
    pub pid: Pid,
    serial: u64,
}

/// The children that somebody waits for.
#[derive(Default)]
pub struct Reaper {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    children: HashMap<Pid, (u64, oneshot::Sender<Exit>)>,
    /// Ends of children that nobody waited for, oldest first.
    unclaimed: VecDeque<(Pid, Exit)>,
    next_serial: u64,
}

impl Reaper {
    /// Runs `fork` and waits for the child it made; the receiver gets its end.
    ///
    /// # Errors
    /// Those of `fork`.
    pub fn spawn(
        &self,
        fork: impl FnOnce() -> io::Result<Pid>,
    ) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let mut waiting = self.waiting();
        let pid = fork()?;
        Ok(waiting.expect(pid))
    }

    /// Waits for a child that another process has just forked for us; the receiver gets its end.
    pub fn adopt(&self, pid: Pid) -> (Child, oneshot::Receiver<Exit>) {
        let mut waiting = self.waiting();
        let adopted = waiting.expect(pid);
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // Only when it is there no more was it reaped already, and not somebody before it who had
        // the same number.
        if matches!(waitid(WaitId::Pid(pid), peek), Err(Errno::CHILD)) {
            let end = waiting.unclaimed.iter().rev().find(|(ended, _)| *ended == pid);
            let end = end.map(|(_, exit)| *exit);
            // Without an end the owner hears that it is lost.
            if let (Some((_, owner)), Some(exit)) = (waiting.children.remove(&pid), end) {
                let _ = owner.send(exit);
            }
        }
        adopted
    }

    /// Signals a child. Does nothing once it has been reaped.
    ///
    /// # Errors
    /// Those of `kill(2)`.
    pub fn signal(&self, child: Child, signal: Signal) -> io::Result<()> {
        let waiting = self.waiting();
        match waiting.children.get(&child.pid) {
            Some((serial, _)) if *serial == child.serial => Ok(kill_process(child.pid, signal)?),
            _ => Ok(()),
        }
    }

    /// Reaps for as long as the program runs.
    ///
    /// # Errors
    /// When SIGCHLD cannot be caught.
    pub async fn run(&self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            // Before the first signal too: process 1 may have been given children already.
            self.reap_all();
            children.recv().await;
        }
    }

    fn reap_all(&self) {
        let mut waiting = self.waiting();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let Some(exit) = Exit::from_status(status) else { continue };
                    if let Some((_, owner)) = waiting.children.remove(&pid) {
                        // Nobody minds when the owner is gone: the child is reaped.
                        let _ = owner.send(exit);
                    } else {
                        waiting.keep(pid, exit);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Every change is one insertion or removal, so a poisoned lock is still good.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn expect(&mut self, pid: Pid) -> (Child, oneshot::Receiver<Exit>) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let (sender, receiver) = oneshot::channel();
        self.children.insert(pid, (serial, sender));
        (Child { pid, serial }, receiver)
    }

    fn keep(&mut self, pid: Pid, exit: Exit) {
        if self.unclaimed.len() >= MAX_UNCLAIMED {
            self.unclaimed.pop_front();
        }
        self.unclaimed.push_back((pid, exit));
    }
}
