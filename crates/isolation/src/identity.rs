//! How a sandbox is found again by a daemon that did not start it.
//!
//! Nothing that is read of a process may be another's, which got its number: the process is held by
//! a descriptor first, then looked at, and was alive after that (`FirstProcess::look`).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use rustix::{
    fs::{fstat, fstatfs},
    pipe::{PipeFlags, pipe_with},
};
use serde::{Deserialize, Serialize};

use crate::{Running, boot_id, cgroup::Cgroup, process::FirstProcess};

/// The file system that pipes without a name are in, as `statfs(2)` numbers it.
const PIPEFS: u64 = 0x5049_5045;

/// Descriptors of a first process that are looked at for its log's pipe: it is among the first, and a
/// sandbox may have any number.
pub(crate) const MOST_DESCRIPTORS: usize = 1024;

/// What a journal keeps of a sandbox that runs, to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Number of its first process, as the host counts.
    pub pid: u32,
    /// When that was started: clock ticks since the host was.
    pub started: u64,
    /// The kernel's name for this run of the host.
    pub boot: String,
    /// Name of its control group, unique among those of the instance, those of earlier runs too.
    pub cgroup: String,
    /// Inode of the pipe that takes its first process's log.
    pub log: u64,
}

impl Identity {
    pub(crate) fn of(process: &FirstProcess, cgroup: &Cgroup, log: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pid: process.pid(),
            started: process.started(),
            boot: boot()?,
            cgroup: cgroup.name().to_owned(),
            log: fstat(log)?.st_ino,
        })
    }

    /// The sandbox, if it runs and is in `cgroup`.
    pub(crate) async fn find(&self, cgroup: Cgroup) -> io::Result<Option<Running>> {
        if self.boot != boot()? {
            return Ok(None);
        }
        let Some(process) = FirstProcess::find(self.pid)? else { return Ok(None) };
        if process.started() != self.started || !cgroup.processes().contains(&self.pid) {
            return Ok(None);
        }
        let inode = self.log;
        let log = process.look_long(move |process| reopen(process, inode)).await?;
        let Some(log) = log else { return Ok(None) };
        Ok(Some(Running { process, cgroup, log: Some(log), identity: self.clone() }))
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(boot_id::PATH)?.trim().to_owned())
}

/// The end to read of the pipe with this inode, of which the process has the other end. A process
/// that has let go of it has no more to say: the pipe is another one then, at its end.
fn reopen(process: &Path, inode: u64) -> io::Result<OwnedFd> {
    let link = format!("pipe:[{inode}]");
    for entry in fs::read_dir(process.join("fd"))?.take(MOST_DESCRIPTORS) {
        let entry = entry?.path();
        // It may have been closed since it was listed.
        if fs::read_link(&entry).is_ok_and(|target| target == Path::new(&link))
            && let Some(log) = open_pipe(&entry, inode)?
        {
            return Ok(log);
        }
    }
    let (ended, _) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok(ended)
}

/// The descriptor may have become another one since: the sandbox might want something opened that
/// does things when it is. So it is held without being opened, looked at, and opened only then.
fn open_pipe(entry: &Path, inode: u64) -> io::Result<Option<OwnedFd>> {
    let Ok(held) = File::options().read(true).custom_flags(libc::O_PATH).open(entry) else {
        return Ok(None);
    };
    if fstatfs(&held)?.f_type as u64 != PIPEFS || fstat(&held)?.st_ino != inode {
        return Ok(None);
    }
    let held = format!("/proc/self/fd/{}", held.as_fd().as_raw_fd());
    let log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(held)?;
    Ok(Some(log.into()))
}
