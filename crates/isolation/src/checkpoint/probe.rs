//! Whether checkpoints work on this host: found by making one, and a sandbox from it.
//!
//! What is dumped is small, and has what fails where it does not work: a user namespace, a system call
//! filter, and a socket that listens. It goes the way of every sandbox.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use atoll_core::SandboxId;
use tokio_util::sync::CancellationToken;

use super::{Checkpoints, Error, Options, criu::Criu, criu::Version};
use crate::{Driver, Limits, Place, Running, Spec, cgroup::Cgroup, container::Container};

/// Where the launcher is in the probe's root.
const PROGRAM: &str = "probe";
const PORT: u16 = 49_983;
const LIMITS: Limits = Limits { vcpu: 1, memory: 64 << 20, processes: 16 };

/// Finds CRIU in `tree`, or else in `PATH`, and dumps and restores a process. See
/// [`Container::probe_memory`].
///
/// # Errors
/// The first thing that does not work here.
pub(crate) async fn run(
    driver: &Container,
    options: &crate::container::Options,
    place: Place<'_>,
    scratch: &Path,
) -> Result<(Checkpoints, Version), Error> {
    let criu = Criu::find(options.criu.as_deref()).await?;
    let version = criu.version();
    let checkpoints = Checkpoints::new(Options { criu, staging: options.staging.clone() });
    let missing = |error: io::Error| Error::Missing(format!("the probe failed: {error}"));
    let id = SandboxId::generate().map_err(|error| missing(io::Error::other(error)))?;
    let [layer, disk, images, work] =
        ["layer", "disk", "images", "work"].map(|name| scratch.join(name));
    for directory in [&layer, &disk.join("upper"), &disk.join("work"), &images, &work] {
        fs::create_dir_all(directory).map_err(missing)?;
    }
    fs::copy(&options.launcher, layer.join(PROGRAM)).map_err(missing)?;
    fs::set_permissions(layer.join(PROGRAM), PermissionsExt::from_mode(0o755)).map_err(missing)?;
    let spec = || Spec {
        id: &id,
        place,
        layers: vec![layer.clone()],
        disk: disk.clone(),
        limits: LIMITS,
        exec: vec![format!("/{PROGRAM}"), "wait".to_owned()],
        stdin: String::new(),
        listen: PORT,
    };

    let started = driver.start(spec()).await.map_err(|error| Error::Missing(error.message))?;
    let ended = Ended(started.cgroup.clone());
    let dumped = dump(driver, &checkpoints, &started, &images).await;
    end(started, ended).await.map_err(missing)?;
    dumped?;
    // overlayfs refuses a disk that was in use, until somebody has looked after it.
    fs::remove_dir_all(disk.join("work/work/incompat")).map_err(missing)?;
    let restored = driver
        .restore_from(checkpoints.clone(), &spec(), &images, &work, &CancellationToken::new())
        .await;
    let restored = restored.map_err(|error| Error::Restore(error.message))?;
    let ended = Ended(restored.cgroup.clone());
    end(restored, ended).await.map_err(missing)?;
    Ok((checkpoints, version))
}

async fn dump(
    driver: &Container,
    checkpoints: &Checkpoints,
    running: &Running,
    images: &Path,
) -> Result<(), Error> {
    let failed = |error: atoll_core::Error| Error::Dump(error.message);
    driver.freeze(running).await.map_err(failed)?;
    let dumped = driver.dump_with(checkpoints, running, images).await;
    dumped.map_err(failed)?.release().await.map_err(failed)
}

/// What is in the group has ended when this is dropped: also when the probe is given up half-way.
struct Ended(Cgroup);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill();
    }
}

async fn end(running: Running, ended: Ended) -> io::Result<()> {
    drop(ended);
    running.process.wait().await?;
    running.cgroup.remove().await
}
