//! A sandbox's first process, held by a pidfd: a descriptor that means this process and never
//! another one that got its number.

use std::{io, os::fd::OwnedFd};

use atoll_core::{Error, Result, error::codes};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A sandbox's first process. Ending it ends every process of the sandbox, since it is the init of
/// their pid namespace. Dropping this does not end it.
#[derive(Debug)]
pub struct FirstProcess {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl FirstProcess {
    /// Takes hold of `pid`, a child of this process or one adopted from an earlier run.
    ///
    /// # Errors
    /// `SANDBOX_START_FAILED` when it has ended already.
    pub fn open(pid: u32) -> Result<Self> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(
                codes::SANDBOX_START_FAILED,
                format!("the sandbox's first process ended at once: {error}."),
            )
        };
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| failed(&"no such pid"))?;
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK).map_err(|error| failed(&error))?;
        let pidfd = watch(pidfd).map_err(|error| failed(&error))?;
        Ok(Self { pid, pidfd })
    }

    /// Its number in the host's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL; a process that has ended is left alone.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not do to a privileged caller.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, and with it every process of the sandbox. Its number is not
    /// another's before it is [waited for](Self::wait).
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
            Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(()),
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
