//! A real sandbox with nothing in it: whether one can be made here is found out by making one.
//!
//! It has a slot, id-mapped layers under an overlay, limits and the system call filter, like any
//! other; its first process is the launcher itself, which says how it is called and ends. Then
//! another one is saved and restored, as a pause and a resume do.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, InstanceId, Result, SandboxId, error::codes};
use atoll_isolation::{
    Driver, Limits, Spec,
    checkpoint::{
        self,
        criu::{OLDEST, Version},
    },
    container::{self, Container},
};
use atoll_network::Slot;

use super::Finding;
use crate::{helpers::Launcher, up::claim::Claim};

const NAME: &str = "container driver";
const MEMORY: &str = "memory in pauses";
const PROBE_PORT: u16 = 49983;
/// Directories that every root needs for the mounts made in it.
const MOUNT_POINTS: [&str; 4] = ["proc", "dev", "sys", "bin"];

/// Tries the container driver, and what a pause keeps with it.
pub(crate) async fn container(criu: Option<PathBuf>) -> [Finding; 2] {
    match try_container(criu).await {
        Ok(Tried { limits, memory }) => [
            Finding::ok(
                NAME,
                format!(
                    "a sandbox was made and removed: namespaces, id-mapped overlay, seccomp, {limits}"
                ),
            ),
            pause(memory),
        ],
        Err(error) => {
            let not_tried = Finding::warning(
                MEMORY,
                "what a pause keeps was not tried, since no sandbox can be made",
                "See to the line above first.",
            );
            [Finding::error(NAME, &error), not_tried]
        }
    }
}

/// What a pause with memory keeps here.
fn pause(tried: std::result::Result<Version, checkpoint::Error>) -> Finding {
    match tried {
        Ok(version) => Finding::ok(
            MEMORY,
            format!(
                "a pause keeps processes on disk, where they outlive Atoll and the machine: one was \
                 saved and restored, by CRIU {version}"
            ),
        ),
        Err(cause) => Finding::warning(
            MEMORY,
            format!(
                "a pause keeps processes frozen in memory: when Atoll or the machine is shut down \
                 only their files are left, and snapshots and forks are of files alone ({cause})"
            ),
            format!(
                "Install CRIU {OLDEST} or newer, such as that of Debian's testing suite, or unpack \
                 it to a directory (scripts/criu.sh does) and name that in ATOLL_CRIU."
            ),
        ),
    }
}

fn failed(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(codes::HOST_FEATURE_MISSING, format!("{what}: {cause}."))
}

/// A directory that goes away with this value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn make(instance: &InstanceId) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("atoll-doctor-{instance}"));
        fs::create_dir(&path).map_err(|e| failed("cannot make a directory to work in", e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "scratch directory is left");
        }
    }
}

/// What came of it.
struct Tried {
    /// Where control groups are, in words.
    limits: String,
    memory: std::result::Result<Version, checkpoint::Error>,
}

async fn try_container(criu: Option<PathBuf>) -> Result<Tried> {
    let instance = InstanceId::generate().map_err(|e| failed("no randomness", e))?;
    let claim = Claim::take(&instance)?;
    let scratch = Scratch::make(&instance)?;
    let program = Launcher::install(&scratch.0.join("bin"))?;
    let launcher = program.path();
    let driver = Container::start(container::Options {
        instance: instance.clone(),
        launcher: launcher.clone(),
        staging: scratch.0.join("staging"),
        ready: 0,
        keep: std::collections::HashSet::new(),
        criu,
    })
    .await?;
    let network = atoll_network::Service::start(atoll_network::Options {
        instance,
        launcher: launcher.clone(),
        first_uid: claim.first_uid(),
        slots: 1,
        pool: 1,
        network: None,
        dns: Vec::new(),
        deny: Vec::new(),
        keep: std::collections::HashSet::new(),
    })
    .await?;
    let outcome = match network.handle().take().await {
        Ok(slot) => try_in(&driver, &slot, &scratch.0, &launcher).await,
        Err(error) => Err(error),
    };
    network.shutdown().await?;
    let limits = driver.cgroups().hierarchies().describe();
    driver.shutdown().await;
    outcome.map(|memory| Tried { limits, memory })
}

async fn try_in(
    driver: &Container,
    slot: &Slot,
    scratch: &Path,
    launcher: &Path,
) -> Result<std::result::Result<Version, checkpoint::Error>> {
    start(driver, slot, scratch, launcher).await?;
    let scratch = scratch.join("memory");
    let made = fs::DirBuilder::new().mode(0o700).create(&scratch);
    made.map_err(|error| failed("cannot make a directory to work in", error))?;
    Ok(driver.probe_memory(slot.into(), &scratch).await)
}

async fn start(driver: &Container, slot: &Slot, scratch: &Path, launcher: &Path) -> Result<()> {
    let layer = scratch.join("layer");
    let disk = scratch.join("disk");
    let prepare = || -> std::io::Result<()> {
        for point in MOUNT_POINTS {
            fs::create_dir_all(layer.join(point))?;
        }
        fs::copy(launcher, layer.join("bin/probe"))?;
        fs::create_dir_all(disk.join("upper"))?;
        fs::create_dir_all(disk.join("work"))
    };
    prepare().map_err(|error| failed("cannot prepare a root", error))?;
    let id = SandboxId::generate().map_err(|e| failed("no randomness", e))?;
    let running = driver
        .start(Spec {
            id: &id,
            place: slot.into(),
            layers: vec![layer],
            disk,
            limits: Limits { vcpu: 1, memory: 64 << 20, processes: 16 },
            exec: vec!["/bin/probe".to_owned()],
            stdin: String::new(),
            listen: PROBE_PORT,
        })
        .await?;
    running.process.wait().await.map_err(|error| failed("cannot wait for a process", error))?;
    running.cgroup.remove().await.map_err(|error| failed("cannot remove a cgroup", error))
}
