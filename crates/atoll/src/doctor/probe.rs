//! A real sandbox with nothing in it: whether one can be made here is found out by making one.
//!
//! It has a slot, id-mapped layers under an overlay, limits and the system call filter, like any
//! other; its first process is the launcher itself, which says how it is called and ends.

use std::{fs, path::Path};

use atoll_core::{Error, InstanceId, Result, SandboxId, error::codes};
use atoll_isolation::{
    Driver, Limits, Spec,
    container::{self, Container},
};
use atoll_network::Slot;

use super::Finding;
use crate::{helpers::Launcher, up::claim::Claim};

const NAME: &str = "container driver";
const PROBE_PORT: u16 = 49983;
/// Directories that every root needs for the mounts made in it.
const MOUNT_POINTS: [&str; 4] = ["proc", "dev", "sys", "bin"];

/// Tries the container driver.
pub(crate) async fn container() -> Finding {
    match try_container().await {
        Ok(limits) => Finding::ok(
            NAME,
            format!(
                "a sandbox was made and removed: namespaces, id-mapped overlay, seccomp, {limits}"
            ),
        ),
        Err(error) => Finding::error(NAME, &error),
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

async fn try_container() -> Result<String> {
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
        Ok(slot) => start(&driver, &slot, &scratch.0, &launcher).await,
        Err(error) => Err(error),
    };
    network.shutdown().await?;
    let limits = driver.cgroups().hierarchies().describe();
    driver.shutdown().await;
    outcome.map(|()| limits)
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
            slot,
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
