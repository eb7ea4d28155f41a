//! The driver's restore: a checkpoint's processes in a control group, as a sandbox like any other.
//!
//! CRIU reads what guests had a say in, so nothing that it says is believed: the process that is
//! taken for the sandbox's first is in the sandbox's group, and is the init of a pid namespace.
//!
//! The work is a task's, which brings it to an end whatever becomes of the caller.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_network::IDS_PER_SLOT;
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    Limits, Place, Running, Spec,
    berths::{Berth, Berths},
    cgroup::Cgroup,
    checkpoint::{Checkpoints, Restore, Restored},
};

/// Several times what the memory of a large sandbox takes to be read; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

const REAP_ATTEMPTS: u32 = 200;
const REAP_PAUSE: Duration = Duration::from_millis(5);

/// See [`crate::Driver::restore`].
pub(crate) async fn restore(
    checkpoints: Checkpoints,
    berths: Arc<Berths>,
    spec: &Spec<'_>,
    images: &Path,
    work: &Path,
    given_up: &CancellationToken,
) -> Result<Running> {
    let duplicate = |error: io::Error| failed(format!("its namespaces cannot be held: {error}"));
    let job = Job {
        checkpoints,
        id: spec.id.clone(),
        user_ns: spec.place.user_ns.try_clone_to_owned().map_err(duplicate)?,
        net_ns: spec.place.net_ns.try_clone_to_owned().map_err(duplicate)?,
        first_uid: spec.place.first_uid,
        layers: spec.layers.clone(),
        disk: spec.disk.clone(),
        limits: spec.limits,
        images: images.to_path_buf(),
        work: work.to_path_buf(),
    };
    let given_up = given_up.child_token();
    let guard = given_up.clone().drop_guard();
    let (done, restored) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = job.run(&berths, &given_up).await;
        if let Err(Ok(unwanted)) = done.send(outcome) {
            job.undo(&unwanted.cgroup).await;
        }
    });
    let outcome = restored.await.unwrap_or_else(|_| Err(failed("its task has ended".to_owned())));
    drop(guard);
    outcome
}

/// A restore, with all that it needs of the caller's.
struct Job {
    checkpoints: Checkpoints,
    id: SandboxId,
    user_ns: OwnedFd,
    net_ns: OwnedFd,
    first_uid: u32,
    layers: Vec<PathBuf>,
    disk: PathBuf,
    limits: Limits,
    images: PathBuf,
    work: PathBuf,
}

impl Job {
    /// On failure nothing is left.
    async fn run(&self, berths: &Berths, given_up: &CancellationToken) -> Result<Running> {
        let mut berth = berths.take().await?;
        let made = tokio::select! {
            made = self.make(&mut berth) => made,
            () = given_up.cancelled() => Err(failed("it was given up".to_owned())),
            () = tokio::time::sleep(PATIENCE) => Err(failed("it takes too long".to_owned())),
        };
        if made.is_err() {
            berth.discard().await;
            reap(self.first_uid).await;
        }
        made
    }

    async fn make(&self, berth: &mut Berth) -> Result<Running> {
        let cgroup = berth.cgroup.clone();
        cgroup
            .limit(self.limits)
            .map_err(|error| failed(format!("its limits could not be set: {error}")))?;
        let restore = Restore {
            images: &self.images,
            work: &self.work,
            place: Place {
                user_ns: self.user_ns.as_fd(),
                net_ns: self.net_ns.as_fd(),
                first_uid: self.first_uid,
            },
            layers: &self.layers,
            disk: &self.disk,
        };
        let restored = self.checkpoints.restore(restore, berth).await;
        let Restored { pid, log } = restored.map_err(|error| failed(error.to_string()))?;
        let running = Running::new(pid, cgroup, log)?;
        let is_first = running.cgroup.processes().contains(&pid)
            && running.process.look(is_init).is_ok_and(|is_init| is_init == Some(true));
        if !is_first {
            return Err(failed(format!("process {pid} is not what was to be restored")));
        }
        Ok(running)
    }

    /// Ends what there is of the sandbox.
    async fn undo(&self, cgroup: &Cgroup) {
        cgroup.kill();
        if let Err(cause) = cgroup.remove().await {
            tracing::warn!(sandbox = %self.id, %cause, "a restore left a cgroup");
        }
        reap(self.first_uid).await;
    }
}

/// Whether it is the first of its pid namespace.
fn is_init(process: &Path) -> io::Result<bool> {
    let status = fs::read_to_string(process.join("status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    Ok(numbers.split_whitespace().count() > 1 && numbers.split_whitespace().last() == Some("1"))
}

/// Waits until what CRIU has made, and what has been ended, is gone: it has ids of the slot, and nobody
/// else waits for those that are children of this process. To be called when the launcher has been
/// waited for.
async fn reap(first_uid: u32) {
    for _ in 0..REAP_ATTEMPTS {
        // All of the host's processes are looked at.
        let ending = tokio::task::spawn_blocking(move || ending(first_uid)).await;
        let ending = ending.unwrap_or_default();
        if ending.is_empty() {
            return;
        }
        for pid in ending {
            // One that is another's child is waited for there.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        tokio::time::sleep(REAP_PAUSE).await;
    }
}

/// Processes that have ids of the slot and no memory any more. Others live on: they are not CRIU's.
fn ending(first_uid: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ending = processes.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()
        };
        let uid: u32 = field("Uid:")?.parse().ok()?;
        let slots = first_uid..first_uid.saturating_add(IDS_PER_SLOT);
        (field("VmSize:").is_none() && slots.contains(&uid)).then_some(pid)
    });
    ending.filter_map(Pid::from_raw).collect()
}

fn failed(cause: String) -> Error {
    let message = format!("the sandbox's memory could not be restored: {}.", cause.trim_end());
    Error::new(codes::CHECKPOINT_FAILED, message)
}
