//! A CRIU that dumps, in a control group of its own: what guests make it do takes nothing from others.
//!
//! While it works it has its code in the sandbox's processes, so it is not to be killed: it lets them go
//! when it fails, or reads the end of its input. A task sees to that, whatever becomes of those who
//! wanted the dump; and one that does not let go in time is ended, with the sandbox.

use std::{mem::ManuallyDrop, time::Duration};

use atoll_launcher::{Job, checkpoint::GO};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Error, dump_failed};
use crate::{
    berths::{Berth, give},
    cgroup::Cgroup,
    process::FirstProcess,
    report::Report,
};

/// Many times what CRIU takes to let go of a sandbox with as many processes as it may have: it must do
/// also on a host whose disk is busy with something else for a while.
const LETTING_GO: Duration = Duration::from_secs(60);

/// A dump: once [reached](Self::reached), processes that are written, and stopped until this is
/// [released](Self::release) or dropped.
#[derive(Debug)]
pub(crate) struct Held {
    process: FirstProcess,
    input: ChildStdin,
    report: Report,
    /// Told when the processes are to go on; gone without a word, when there is no use for the dump.
    go: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), String>>,
}

impl Held {
    /// Has the launcher of `berth` begin, of processes in `target`.
    pub(super) async fn begin(berth: Berth, job: &Job, target: Cgroup) -> Result<Self, Error> {
        let process = berth.launcher.id().map(FirstProcess::find).transpose().map_err(dump_failed);
        let Berth { cgroup, launcher, stdin, report } = berth;
        let (go, told) = oneshot::channel();
        let ended = tokio::spawn(keep(launcher, cgroup, target, told));
        let (Some(process), Some(input)) = (process?.flatten(), stdin) else {
            return Err(dump_failed("its launcher has ended"));
        };
        let mut held = Self { process, input, report, go, ended };
        give(&mut held.input, job).await.map_err(dump_failed)?;
        Ok(held)
    }

    /// Whether the dump gets so far that CRIU says `word`, and holds the processes.
    pub(super) async fn reached(&mut self, word: &str) -> bool {
        while self.report.more().await.unwrap_or(false) {
            if self.report.has_line(word) {
                return true;
            }
        }
        false
    }

    /// Whether it does so still: a CRIU that has ended has let them go, and so was the dump in vain.
    pub(crate) fn still_holds(&self) -> bool {
        !self.process.has_ended().unwrap_or(true)
    }

    /// Lets the processes go on; those that were ended meanwhile are gone.
    ///
    /// # Errors
    /// [`Error::Dump`] with CRIU's report, which may also be that they were gone.
    pub(crate) async fn release(self) -> Result<(), Error> {
        let Self { mut input, mut report, go, ended, .. } = self;
        // One that has ended says why.
        let _ = input.write_all(format!("{GO}\n").as_bytes()).await;
        let _ = go.send(());
        drop(input);
        let ended = async { (report.all().await, ended.await).1 }.await;
        match ended.map_err(dump_failed)? {
            Ok(()) => Ok(()),
            Err(cause) => Err(dump_failed(format!("{}; {cause}", report.in_one_line()))),
        }
    }

    /// Gives the dump up, and waits until the processes are let go. Says what CRIU did.
    pub(super) async fn give_up(self) -> String {
        let Self { input, mut report, go, ended, .. } = self;
        drop((input, go));
        // There is no more to say of one that is unreadable.
        let _ = report.all().await;
        match ended.await {
            Ok(Err(cause)) => format!("{}; {cause}", report.in_one_line()),
            _ => report.in_one_line(),
        }
    }
}

/// Waits until CRIU has ended, and sees to it that it does once it is `told`, or nobody can tell it any
/// more. Says why it was not good.
async fn keep(
    launcher: Child,
    cgroup: Cgroup,
    target: Cgroup,
    told: oneshot::Receiver<()>,
) -> Result<(), String> {
    // A process that drops this, because it ends, is not to kill it.
    let mut launcher = ManuallyDrop::new(launcher);
    let pid = launcher.id();
    let patience = async {
        if told.await.is_err() {
            fail(pid);
        }
        tokio::time::sleep(LETTING_GO).await;
    };
    let status = tokio::select! {
        status = launcher.wait() => status.map_err(|error| error.to_string()),
        () = patience => {
            tracing::error!(cgroup = target.name(), "a dump does not let go: the sandbox is ended");
            // In this order: what its code was taken out of by force is not to run on.
            target.kill();
            cgroup.kill();
            let _ = launcher.wait().await;
            Err("it did not let go of the processes, and was ended with the sandbox".to_owned())
        }
    };
    // What it has started may live a little longer.
    if let Err(cause) = cgroup.remove().await {
        tracing::warn!(%cause, "a dump left a cgroup");
    }
    match status? {
        status if status.success() => Ok(()),
        status => Err(status.to_string()),
    }
}

/// CRIU that is in the middle of a dump lets go when it cannot write.
fn fail(pid: Option<u32>) {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Not waited for yet, so the number is no other's.
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        // It may have ended.
        let _ = prlimit(Some(pid), Resource::Fsize, none);
    }
}
