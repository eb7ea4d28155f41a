//! A sandbox's first process, held by a pidfd: a descriptor that means this process and never
//! another one that got its number.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// A sandbox's first process. Ending it ends every process of the sandbox, since it is the init of
/// their pid namespace. Dropping this does not end it.
#[derive(Debug)]
pub struct FirstProcess {
    pid: u32,
    started: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl FirstProcess {
    /// Takes hold of `pid`, a child of this process or one adopted from an earlier run.
    ///
    /// # Errors
    /// `SANDBOX_START_FAILED` when it has ended already.
    pub fn open(pid: u32) -> Result<Self> {
        let found = Self::find(pid).and_then(|found| found.ok_or(io::ErrorKind::NotFound.into()));
        found.map_err(|error| {
            Error::new(
                codes::SANDBOX_START_FAILED,
                format!("the sandbox's first process ended at once: {error}."),
            )
        })
    }

    /// The process with this number, if there is one.
    pub(crate) fn find(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => watch(pidfd)?,
            // The latter two when the number is a thread's, by kernel.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match start_time(&directory(pid)) {
            Ok(started) => Ok(Some(Self { pid, started, pidfd })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its number in the host's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it was started: clock ticks since the host was.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Whether it has ended, reaped or not.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        Ok(poll(&mut polled, Some(&Timespec::default()))? > 0)
    }

    /// What `read` finds below `/proc/PID`; `None` when the process has ended meanwhile: what was
    /// read may then be another's, which got its number.
    pub(crate) fn look<T>(
        &self,
        read: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let seen = read(&directory(self.pid));
        if self.has_ended()? { Ok(None) } else { seen.map(Some) }
    }

    /// As [`look`](Self::look), for what may take long: on a thread that serves nobody else.
    pub(crate) async fn look_long<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<Option<T>> {
        let directory = directory(self.pid);
        let seen = tokio::task::spawn_blocking(move || read(&directory)).await?;
        if self.has_ended()? { Ok(None) } else { seen.map(Some) }
    }

    /// Sends SIGKILL; a process that has ended is left alone.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not do to a privileged caller.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, and with it every process of the sandbox. The number of one that
    /// this program started is not another's before it is [waited for](Self::wait).
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// As [`ended`](Self::ended), and reaps it.
    ///
    /// # Errors
    /// As for [`ended`](Self::ended).
    pub async fn wait(&self) -> io::Result<()> {
        self.ended().await?;
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(self.pidfd.get_ref()));
        match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            // An adopted process is another's child, and reaped there.
            Ok(_) | Err(Errno::CHILD) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[allow(unsafe_code)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always names the same descriptor, and moves into the `AsyncFd`.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

fn directory(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Whether this is how a file below `/proc/PID` says that there is no such process.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn start_time(process: &Path) -> io::Result<u64> {
    parse_start_time(&fs::read_to_string(process.join("stat"))?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the process's start time cannot be read")
    })
}

/// proc_pid_stat(5): the second field is a name in parentheses, which may hold anything; the start
/// time is the 22nd.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_forge_its_start_time_by_its_name() {
        let rest = (4..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start_time(&format!("7 (a) S 1 2 3 (b) S {rest}")), Some(22));
        assert_eq!(parse_start_time("7 (a) S 1"), None);
    }
}
