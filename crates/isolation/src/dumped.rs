//! The driver's dump: of a frozen sandbox, which is frozen again whatever comes of it.
//!
//! While CRIU has the processes it stops them itself, and their group is not frozen. It lives on when
//! this process dies, reads the end of its input, and lets them go, back into the frozen group. A
//! driver that starts meanwhile [waits](await_former) for that before it looks at any sandbox's group.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};

use crate::{
    Limits, Running,
    berths::Berths,
    cgroup::{Cgroup, Cgroups},
    checkpoint::{Checkpoints, Held, connections, target::Target},
    process::FirstProcess,
};

/// What CRIU may have, and tar and gzip for it. Memory is for its own lists, and for what is not yet on
/// the disk; with too little it would be killed, and with it the sandbox.
const LIMITS: Limits = Limits { vcpu: 2, memory: 1 << 30, processes: 64 };

/// Longest that a start waits for dumps of an earlier run: several times what the memory of a large
/// sandbox takes to be written.
const FORMER: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(5);

/// A sandbox whose memory is written, and which is stopped until this is [released](Self::release).
/// Dropped, it is frozen as before, in a moment.
#[derive(Debug)]
pub struct Dumped {
    held: Held,
    cgroup: Cgroup,
}

impl Dumped {
    /// Whether it was stopped all the time until now: if not, what was copied of its disk is not what it
    /// was when its memory was written. To be asked when the disk is copied.
    pub fn still_holds(&self) -> bool {
        self.held.still_holds()
    }

    /// Gives it back, frozen as it was. One that was killed meanwhile is gone.
    ///
    /// # Errors
    /// `CHECKPOINT_FAILED` when it cannot be frozen again: it may run.
    pub async fn release(self) -> Result<()> {
        let Self { held, cgroup } = self;
        // CRIU's word does not count, but how the group is now.
        if let Err(cause) = held.release().await {
            tracing::debug!(%cause, cgroup = cgroup.name(), "a dump has ended");
        }
        freeze(cgroup).await
    }
}

/// CRIU freezes the group again, and does not wait for that.
async fn freeze(cgroup: Cgroup) -> Result<()> {
    let frozen = tokio::task::spawn_blocking(move || {
        if cgroup.processes().is_empty() { Ok(()) } else { cgroup.freeze() }
    });
    match frozen.await.map_err(io::Error::other) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(failed(format!("it cannot be frozen again: {error}"))),
    }
}

/// How often a dump is tried: a process that begins to fork while CRIU takes hold of it is in its way,
/// and may not be a moment later.
const ATTEMPTS: u32 = 3;

/// See [`crate::Driver::dump`].
pub(crate) async fn dump(
    checkpoints: &Checkpoints,
    berths: &Arc<Berths>,
    running: &Running,
    net_ns: &OwnedFd,
    images: &Path,
) -> Result<Dumped> {
    if running.cgroup.unified_freezer().is_none() {
        let message = "checkpoints need control groups of version 2.";
        return Err(Error::new(codes::DRIVER_UNSUPPORTED, message));
    }
    let mut attempt = 1;
    loop {
        match try_dump(checkpoints, berths, running, net_ns, images).await {
            Err(error) if error.code == codes::CHECKPOINT_FAILED && attempt < ATTEMPTS => {
                tracing::info!(%error, attempt, "a dump is tried again");
                clear(images)
                    .await
                    .map_err(|error| failed(format!("its files cannot be removed: {error}")))?;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Removes what a dump that failed has written.
async fn clear(images: &Path) -> io::Result<()> {
    let mut entries = tokio::fs::read_dir(images).await?;
    while let Some(entry) = entries.next_entry().await? {
        tokio::fs::remove_file(entry.path()).await?;
    }
    Ok(())
}

async fn try_dump(
    checkpoints: &Checkpoints,
    berths: &Arc<Berths>,
    running: &Running,
    net_ns: &OwnedFd,
    images: &Path,
) -> Result<Dumped> {
    let gone = || Error::new(codes::SANDBOX_GONE, "the sandbox has ended.");
    // CRIU would wait for them in vain.
    let cgroup = running.cgroup.clone();
    let outside = tokio::task::spawn_blocking(move || cgroup.freeze_outside_forks()).await;
    let outside = outside.map_err(io::Error::other).and_then(|outside| outside);
    outside.map_err(|error| failed(format!("a process is in the middle of vfork: {error}")))?;
    let pid = running.process.pid();
    let looked = running.process.look_long(move |process| {
        let first_uid = first_uid(process)?;
        Ok((first_uid, Target::read(pid, first_uid)?))
    });
    let looked =
        looked.await.map_err(|error| failed(format!("its processes are unreadable: {error}")))?;
    let (first_uid, target) = looked.ok_or_else(gone)?;
    let closed = connections::close(net_ns.as_fd(), first_uid).await;
    closed.map_err(|error| failed(format!("its connections cannot be closed: {error}")))?;
    let berth = berths.take_whole().await.map_err(|error| failed(error.message))?;
    if let Err(error) = berth.cgroup.limit(LIMITS) {
        berth.discard().await;
        return Err(failed(format!("limits for that cannot be set: {error}")));
    }
    let cgroup = &running.cgroup;
    match checkpoints.dump(target, cgroup, images, berth).await {
        Ok(held) => Ok(Dumped { held, cgroup: cgroup.clone() }),
        Err(cause) => {
            freeze(cgroup.clone()).await?;
            if running.process.has_ended().unwrap_or(false) {
                let message = format!("the sandbox has ended: {cause}.");
                return Err(Error::new(codes::SANDBOX_GONE, message));
            }
            Err(failed(cause.to_string()))
        }
    }
}

/// The host's number of the sandbox's root: what its user namespace maps 0 to.
fn first_uid(process: &Path) -> io::Result<u32> {
    let map = fs::read_to_string(process.join("uid_map"))?;
    let mut fields = map.split_whitespace().map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(0)), Some(Ok(first))) => Ok(first),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it has no user namespace")),
    }
}

pub(crate) fn failed(cause: String) -> Error {
    let message = format!("the sandbox's memory could not be saved: {}.", cause.trim_end());
    Error::new(codes::CHECKPOINT_FAILED, message)
}

/// Waits until no dump of an earlier run of this driver is under way. `keep` are the groups of sandboxes.
pub(crate) async fn await_former(cgroups: &Cgroups, keep: &HashSet<String>) {
    let deadline = Instant::now() + FORMER;
    let mut told = false;
    for former in former(cgroups, keep) {
        while !former.has_ended().unwrap_or(true) {
            if Instant::now() >= deadline {
                tracing::error!(pid = former.pid(), "a dump of an earlier run does not end");
                return;
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(pid = former.pid(), "waiting for a dump of an earlier run to end");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What is in a group and not in a sandbox: those have other user namespaces, which nobody leaves. A
/// launcher that is root still has not begun.
fn former(cgroups: &Cgroups, keep: &HashSet<String>) -> Vec<FirstProcess> {
    let user_ns = |process: &Path| fs::metadata(process.join("ns/user")).map(|ns| ns.ino());
    let Ok(own) = user_ns(Path::new("/proc/self")) else { return Vec::new() };
    let is_dump = |process: &Path| {
        let status = fs::read_to_string(process.join("status"))?;
        Ok(user_ns(process)? == own && !status.contains("\nUid:\t0\t"))
    };
    let groups = cgroups.existing().into_iter().filter(|(name, _)| !keep.contains(name));
    let processes = groups.flat_map(|(_, cgroup)| cgroup.processes());
    processes
        .filter_map(|pid| FirstProcess::find(pid).ok().flatten())
        .filter(|process| process.look(is_dump).ok().flatten().unwrap_or(false))
        .collect()
}
