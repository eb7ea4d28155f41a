//! Whether checkpoints work on this host: found by making one, and a sandbox from it.
//!
//! What is dumped is small, and has what fails where it does not work: a user namespace, a system call
//! filter, and a socket that listens.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::Stdio,
};

use atoll_launcher::RunSpec;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{Checkpoints, Error, Options, Restore, target::Target};
use crate::{container::HOSTNAME, process::FirstProcess, seccomp};

/// Where the launcher is in the probe's root.
const PROGRAM: &str = "probe";
const PORT: u16 = 49_983;
const SHM_BYTES: u64 = 1 << 20;

/// A slot to try in: it is as unused afterwards as it was before.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Its user namespace.
    pub user_ns: BorrowedFd<'a>,
    /// Its network namespace, with the loopback device up.
    pub net_ns: BorrowedFd<'a>,
    /// Host id that is root in it.
    pub first_uid: u32,
}

/// Dumps and restores a process. `scratch` is an empty directory on the file system of the disks, for
/// root alone; what is left in it is for the caller to remove.
///
/// # Errors
/// The first thing that does not work here.
pub async fn run(options: Options, slot: Slot<'_>, scratch: &Path) -> Result<(), Error> {
    let [layer, disk, images, work] =
        ["layer", "disk", "images", "work"].map(|name| scratch.join(name));
    let missing = |error: io::Error| Error::Missing(format!("the probe failed: {error}"));
    for directory in [&layer, &disk.join("upper"), &disk.join("work"), &images, &work] {
        fs::create_dir_all(directory).map_err(missing)?;
    }
    fs::copy(&options.launcher, layer.join(PROGRAM)).map_err(missing)?;
    fs::set_permissions(layer.join(PROGRAM), PermissionsExt::from_mode(0o755)).map_err(missing)?;

    let first = start(&options, slot, &layer, &disk).await?;
    let checkpoints = Checkpoints::new(options);
    let dumped = dump(&checkpoints, slot, &first, &images).await;
    end(&first).await.map_err(missing)?;
    dumped?;
    // overlayfs refuses a disk that was in use, until somebody has looked after it.
    fs::remove_dir_all(disk.join("work/work/incompat")).map_err(missing)?;
    let restore = Restore {
        images: &images,
        work: &work,
        user_ns: slot.user_ns,
        net_ns: slot.net_ns,
        first_uid: slot.first_uid,
        layers: std::slice::from_ref(&layer),
        disk: &disk,
        join: &[],
    };
    let restored = checkpoints.restore(restore).await?;
    let second = FirstProcess::open(restored.pid)
        .map_err(|error| Error::Restore(format!("the restored process ended: {error}")))?;
    end(&second).await.map_err(missing)
}

async fn dump(
    checkpoints: &Checkpoints,
    slot: Slot<'_>,
    first: &FirstProcess,
    images: &Path,
) -> Result<(), Error> {
    let target = Target::read(first.pid(), slot.first_uid)
        .map_err(|error| Error::Dump(format!("the process is unreadable: {error}")))?;
    checkpoints.dump(&target, images, None).await?.release().await
}

async fn end(process: &FirstProcess) -> io::Result<()> {
    process.kill()?;
    process.wait().await
}

/// Runs the launcher as a sandbox's first process, waiting.
async fn start(
    options: &Options,
    slot: Slot<'_>,
    layer: &Path,
    disk: &Path,
) -> Result<FirstProcess, Error> {
    let missing = |cause: String| Error::Missing(format!("the probe did not start: {cause}"));
    let (_log, log_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|error| missing(error.to_string()))?;
    let descriptor =
        |fd: BorrowedFd<'_>| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let spec = RunSpec {
        user_ns: descriptor(slot.user_ns),
        net_ns: descriptor(slot.net_ns),
        log: descriptor(log_end.as_fd()),
        first_uid: slot.first_uid,
        layers: vec![text(layer)],
        disk: text(disk),
        staging: text(&options.staging),
        hostname: HOSTNAME.to_owned(),
        exec: vec![format!("/{PROGRAM}"), "wait".to_owned()],
        stdin: String::new(),
        listen: PORT,
        shm_bytes: SHM_BYTES,
        seccomp: seccomp::program().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let run = async {
        let request = serde_json::to_vec(&spec)?;
        let mut launcher = Command::new(&options.launcher)
            .arg("run")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = launcher.stdin.take() {
            let _ = input.write_all(&request).await;
        }
        let mut report = String::new();
        if let Some(mut output) = launcher.stdout.take() {
            output.read_to_string(&mut report).await?;
        }
        launcher.wait().await?;
        io::Result::Ok(report)
    };
    let report = run.await.map_err(|error| missing(error.to_string()))?;
    let pid = report.strip_prefix("pid ").and_then(|rest| rest.trim().parse().ok());
    let pid = pid.ok_or_else(|| missing(report.trim().to_owned()))?;
    FirstProcess::open(pid).map_err(|error| missing(error.to_string()))
}
