//! The process of a kernel: the leader of a session, which is ended with all of it.
//!
//! It is looked at through a descriptor (pidfd) and not waited for before its process group has been
//! killed: until then its number is its own, also when it has already ended.

use std::{io, os::fd::OwnedFd};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getppid, kill_process,
    kill_process_group, pidfd_open, set_parent_process_death_signal, setsid, waitid,
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
};

use super::stat::{self, Member, Stat, bit};

/// How likely the kernel of the system is to end one of these when memory runs out (proc(5),
/// `oom_score_adj`, -1000 to 1000): sooner than the server and what else runs in the sandbox.
const OOM_SCORE_ADJ: &[u8] = b"500";

/// The same of one that nobody has used yet. Whoever reaches the server can have such started, and they
/// are not to push out one with somebody's work in it.
const UNUSED_OOM_SCORE_ADJ: &[u8] = b"900";

/// A process with a session of its own. Dropped, it is killed, and all of its process group with it.
#[derive(Debug)]
pub(crate) struct Process {
    /// Never waited for through this: whoever drops it, later, does.
    child: Child,
    pid: Pid,
    /// Becomes readable when it ends.
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts it: in a session of its own, preferred when memory runs out, and killed if the server
    /// ends without a chance to do it. It can be interrupted, also where the server was started to ignore
    /// that, as scripts start what runs in the background. To be called on the server's one thread, which
    /// is the one whose end counts.
    ///
    /// # Errors
    /// Those of spawning.
    #[allow(unsafe_code)]
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        let server = getpid();
        let prepare = move || {
            setsid()?;
            for signal in [libc::SIGINT, libc::SIGQUIT] {
                // SAFETY: no handler is installed.
                if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(server) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Best effort, for nothing depends on it: a file system without it is no reason to fail.
            if let Ok(file) = rustix::fs::open(
                c"/proc/self/oom_score_adj",
                rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            ) {
                let _ = rustix::io::write(&file, UNUSED_OOM_SCORE_ADJ);
            }
            Ok(())
        };
        // SAFETY: only system calls, between fork and exec; nothing is allocated.
        unsafe { command.pre_exec(prepare) };
        let child = command.kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("the process has no number"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: an owned descriptor stays open for as long as what it was moved into.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Self { child, pid, pidfd })
    }

    /// Its pipes, to be taken.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its number, and that of its process group.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended, and says how: a sentence without a full stop. Can be dropped and
    /// called again.
    pub(crate) async fn ended(&self) -> String {
        loop {
            if let Some(how) = self.has_ended() {
                return how;
            }
            match self.pidfd.readable().await {
                // Only what was seen before looking again is forgotten.
                Ok(mut guard) if self.has_ended().is_none() => guard.clear_ready(),
                Ok(_) => {}
                Err(error) => return format!("the kernel cannot be waited for: {error}"),
            }
        }
    }

    /// How it ended, if it has.
    pub(crate) fn has_ended(&self) -> Option<String> {
        match self.status() {
            Ok(status) => status.map(|status| describe(&status)),
            Err(error) => Some(format!("the kernel cannot be waited for: {error}")),
        }
    }

    /// Its status, if it has ended, which stays to be had.
    fn status(&self) -> rustix::io::Result<Option<WaitIdStatus>> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid), peek)
    }

    /// The code with which it has ended, if it has, and not by a signal.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.status().ok()??.exit_status()
    }

    /// How it ended, if it has, or if it has been killed: the system may take a while to end it.
    pub(crate) async fn has_ended_or_will(&self) -> Option<String> {
        match self.has_ended() {
            None if is_being_killed(self.pid) => Some(self.ended().await),
            how => how,
        }
    }

    /// When memory runs out, it is to go after those that nobody has used. Best effort, too: a system may
    /// not let the score be lowered.
    pub(crate) fn spare(&self) {
        let path = format!("/proc/{}/oom_score_adj", self.pid.as_raw_nonzero());
        let _ = std::fs::write(path, OOM_SCORE_ADJ);
    }

    /// Sends a signal to the process alone; one that has ended does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Sends a signal to its whole process group, as a terminal does.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Its program and arguments, to recognise forks of it by.
    pub(crate) fn command(&self) -> String {
        stat::command(self.pid.as_raw_nonzero().get())
    }

    /// All of its process group, and what they do with a signal; it was started with a command.
    pub(crate) fn group(&self, command: &str, signal: Signal) -> Vec<Member> {
        stat::group(self.pid, command, signal)
    }
}

impl Drop for Process {
    /// Before the child is dropped: that waits for it, and then its number is anybody's.
    fn drop(&mut self) {
        self.signal_group(Signal::KILL);
    }
}

/// Whether SIGKILL waits for a process, or it is past that.
fn is_being_killed(pid: Pid) -> bool {
    /// `PF_EXITING` among the flags.
    const EXITING: u64 = 0x4;
    let Some(process) = Stat::read(pid.as_raw_nonzero().get()) else { return false };
    let waiting = process.signals(&["SigPnd:", "ShdPnd:"]);
    process.flags & EXITING != 0 || waiting & bit(Signal::KILL) != 0
}

/// In words. A process that memory ran out for looks like any that was killed: with a guess.
fn describe(status: &WaitIdStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(9), _) => {
            "the kernel was killed (signal 9), most likely because memory ran out".to_owned()
        }
        (Some(signal), _) => format!("the kernel was ended by signal {signal}"),
        (None, Some(code)) => format!("the kernel ended with exit code {code}"),
        (None, None) => "the kernel ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    #[tokio::test]
    async fn says_how_it_ended_as_often_as_asked() {
        let process = Process::spawn(shell("exit 3")).unwrap();
        for _ in 0..2 {
            assert_eq!(process.ended().await, "the kernel ended with exit code 3");
        }
        let process = Process::spawn(shell("kill -TERM $$")).unwrap();
        assert_eq!(process.ended().await, "the kernel was ended by signal 15");
    }

    #[tokio::test]
    async fn one_that_was_killed_counts_as_ended_at_once() {
        for _ in 0..50 {
            let process = Process::spawn(shell("read line")).unwrap();
            assert_eq!(process.has_ended_or_will().await, None);
            process.signal(Signal::KILL);
            let how = process.has_ended_or_will().await;
            assert!(how.as_deref().is_some_and(|how| how.contains("signal 9")), "{how:?}");
        }
    }

    #[tokio::test]
    async fn its_group_ends_with_it_also_when_the_leader_has_gone_before() {
        for script in ["sleep 1000 & echo; read line", "sleep 1000 & echo"] {
            let mut process = Process::spawn(shell(script)).unwrap();
            let mut output = BufReader::new(process.child().stdout.take().unwrap());
            output.read_line(&mut String::new()).await.unwrap();
            if !script.ends_with("line") {
                process.ended().await;
            }
            drop(process);
            // The other process holds the pipe, too: it ends when both have.
            assert_eq!(output.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        }
    }
}
