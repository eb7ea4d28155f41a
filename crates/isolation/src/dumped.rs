//! The driver's dump: of a frozen sandbox, which is frozen again whatever comes of it.
//!
//! While CRIU has the processes it stops them itself, and their group is not frozen. It lives on when
//! this process dies, reads the end of its input, and lets them go, back into the frozen group. A
//! driver that starts meanwhile [waits](await_former) for that before it looks at any group.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_launcher::checkpoint::IMAGES;

use crate::{
    Running,
    cgroup::Cgroup,
    checkpoint::{Checkpoints, Held, connections, target::Target},
    process::FirstProcess,
};

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

/// See [`crate::Driver::dump`].
pub(crate) async fn dump(
    checkpoints: &Checkpoints,
    running: &Running,
    net_ns: &OwnedFd,
    images: &Path,
) -> Result<Dumped> {
    let gone = || Error::new(codes::SANDBOX_GONE, "the sandbox has ended.");
    let freezer = running.cgroup.unified_freezer().ok_or_else(|| {
        Error::new(codes::DRIVER_UNSUPPORTED, "checkpoints need control groups of version 2.")
    })?;
    let looked = running.process.look(|process| {
        let first_uid = first_uid(process)?;
        Ok((first_uid, Target::read(running.process.pid(), first_uid)?))
    });
    let looked =
        looked.map_err(|error| failed(format!("its processes are unreadable: {error}")))?;
    let (first_uid, target) = looked.ok_or_else(gone)?;
    let closed = connections::close(net_ns.as_fd(), first_uid).await;
    closed.map_err(|error| failed(format!("its connections cannot be closed: {error}")))?;
    match checkpoints.dump(&target, images, Some(freezer)).await {
        Ok(held) => Ok(Dumped { held, cgroup: running.cgroup.clone() }),
        Err(cause) => {
            freeze(running.cgroup.clone()).await?;
            let ended = running.process.has_ended().unwrap_or(false);
            Err(if ended { gone() } else { failed(cause.to_string()) })
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

/// Waits until no dump of an earlier run of this driver, which mounted on `staging` too, is under way.
pub(crate) async fn await_former(staging: &Path) {
    let deadline = Instant::now() + FORMER;
    let mut told = false;
    for dump in former(staging) {
        while !dump.has_ended().unwrap_or(true) {
            if Instant::now() >= deadline {
                tracing::error!(pid = dump.pid(), "a dump of an earlier run does not end");
                return;
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(pid = dump.pid(), "waiting for a dump of an earlier run to end");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Dumps under way. No sandbox can pass for one: they are in the host's user namespace.
fn former(staging: &Path) -> Vec<FirstProcess> {
    let user_ns = |process: &Path| fs::metadata(process.join("ns/user")).map(|ns| ns.ino());
    let Ok(own) = user_ns(Path::new("/proc/self")) else { return Vec::new() };
    let images = staging.join(IMAGES);
    let (staging, images) = (staging.as_os_str(), images.as_os_str());
    let is_dump = |process: &Path| {
        let command = fs::read(process.join("cmdline"))?;
        let mut arguments = command.split(|byte| *byte == 0);
        let named =
            arguments.any(|it| [staging, images].iter().any(|path| it == path.as_encoded_bytes()));
        Ok(named && user_ns(process)? == own)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| FirstProcess::find(pid).ok().flatten())
        .filter(|process| process.look(is_dump).ok().flatten().unwrap_or(false))
        .collect()
}
