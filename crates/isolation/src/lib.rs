//! Drivers: how a prepared root, a network slot and limits become a running sandbox.
//!
//! - [`Driver`] is what the orchestrator sees; [`container`] is the driver of this release.
//! - `berths`: control groups with a launcher in each, made ahead of time.
//! - [`checkpoint`]: the processes of a sandbox as files, through CRIU; `memory`, `dumped`, `restore`:
//!   the driver's use of it.
//! - [`cgroup`]: limits and accounting on cgroup v1, v2 and hosts that mix them.
//! - [`seccomp`]: the system calls a sandbox may not make.
//! - [`process`]: a first process, held by a descriptor that no reused pid can confuse.
//! - [`Identity`]: what a sandbox is found again by, which outlives the daemon.

mod berths;
mod boot_id;
pub mod cgroup;
pub mod checkpoint;
pub mod container;
mod dumped;
mod freezer;
mod hierarchies;
mod identity;
mod memory;
pub mod process;
mod report;
mod restore;
pub mod seccomp;

use std::{
    fs::File,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use atoll_core::{Error, Result, SandboxId, error::codes, lifecycle::Kept};
use atoll_network::Slot;
use tokio_util::sync::CancellationToken;

use crate::{cgroup::Cgroup, process::FirstProcess};
pub use crate::{dumped::Dumped, identity::Identity};

/// What a driver needs to start a sandbox.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The sandbox.
    pub id: &'a SandboxId,
    /// Where it is to live.
    pub place: Place<'a>,
    /// Directories with ids from 0, lowest layer first.
    pub layers: Vec<PathBuf>,
    /// Directory that holds `upper` and `work`.
    pub disk: PathBuf,
    /// Limits.
    pub limits: Limits,
    /// Program to run first, as the sandbox sees it, and its arguments.
    pub exec: Vec<String>,
    /// What it reads on standard input.
    pub stdin: String,
    /// Port whose listening socket it finds as descriptor 3.
    pub listen: u16,
}

/// The namespaces that a sandbox is to live in: those of a [`Slot`].
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The user namespace.
    pub user_ns: BorrowedFd<'a>,
    /// The network namespace, with the loopback device up.
    pub net_ns: BorrowedFd<'a>,
    /// Host id that is root in the user namespace.
    pub first_uid: u32,
}

impl<'a> From<&'a Slot> for Place<'a> {
    fn from(slot: &'a Slot) -> Self {
        Self { user_ns: slot.user_ns(), net_ns: slot.net_ns(), first_uid: slot.first_uid() }
    }
}

/// Limits of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Virtual CPUs: this many seconds of processor time a second.
    pub vcpu: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u32,
}

/// A sandbox that runs, or is frozen. Dropping this does not end it.
#[derive(Debug)]
pub struct Running {
    /// Its first process: when that ends, the sandbox has ended.
    pub process: FirstProcess,
    /// Its limits and accounting.
    pub cgroup: Cgroup,
    /// The end to read of the pipe that is its first process's standard output, for whoever reads
    /// it to take. Reading does not block, and ends when that process has.
    pub log: Option<OwnedFd>,
    identity: Identity,
}

impl Running {
    /// The sandbox in `cgroup` whose first process is `pid`, a child of this process, and logs to
    /// the pipe that `log` is the other end of.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn new(pid: u32, cgroup: Cgroup, log: OwnedFd) -> Result<Self> {
        let process = FirstProcess::open(pid)?;
        let identity = Identity::of(&process, &cgroup, &log).map_err(|error| {
            let message = format!("the sandbox's first process cannot be told: {error}.");
            Error::new(codes::SANDBOX_START_FAILED, message)
        })?;
        Ok(Self { process, cgroup, log: Some(log), identity })
    }

    /// What [`Driver::adopt`] finds it by.
    pub fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// Sends SIGKILL to all of it, frozen or not; what has ended is left alone.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not do to a privileged caller.
    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()?;
        if self.cgroup.outlives_kill_when_frozen() {
            self.cgroup.kill();
        }
        Ok(())
    }
}

/// The namespaces that a sandbox's [`Slot`] consists of.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace, which owns the other.
    pub user: OwnedFd,
    /// The network namespace.
    pub net: OwnedFd,
}

/// A way to isolate.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Its name, as `atoll doctor` and the nodes API print it.
    fn name(&self) -> &'static str;

    /// What a pause with memory keeps here: [`Kept::Checkpoint`] where checkpoints were tried and
    /// work, else [`Kept::Frozen`].
    fn memory(&self) -> Kept;

    /// Starts a sandbox. Run this to its end: it cleans up after its own failures, but a dropped
    /// call leaves that to the next start of the driver.
    async fn start(&self, spec: Spec<'_>) -> Result<Running>;

    /// Takes hold of a sandbox that an earlier run of the driver started; its group must have been
    /// kept at the start of this one. `None` when it has ended: nothing of it is left then, and its
    /// number may be another process's, which is not touched.
    ///
    /// # Errors
    /// `INTERNAL` when the kernel refuses to tell, or what is left cannot be removed.
    async fn adopt(&self, identity: &Identity) -> Result<Option<Running>>;

    /// The namespaces of a sandbox.
    ///
    /// # Errors
    /// `SANDBOX_GONE` when it has ended.
    fn namespaces(&self, running: &Running) -> Result<Namespaces> {
        let opened = running.process.look(|process| {
            let open = |name: &str| File::open(process.join("ns").join(name)).map(OwnedFd::from);
            Ok(Namespaces { user: open("user")?, net: open("net")? })
        });
        match opened {
            Ok(Some(namespaces)) => Ok(namespaces),
            Ok(None) => Err(Error::new(codes::SANDBOX_GONE, "the sandbox has ended.")),
            Err(error) => {
                let message = format!("the sandbox's namespaces cannot be opened: {error}.");
                Err(Error::new(codes::INTERNAL, message))
            }
        }
    }

    /// Stops all of a sandbox's processes, and returns when none runs any more; once more is no
    /// error. They can be killed meanwhile, with [`Running::kill`]. A dropped call goes on to its
    /// end.
    ///
    /// # Errors
    /// `SANDBOX_GONE` when it has ended, `DRIVER_UNSUPPORTED` when this host cannot, `INTERNAL` when
    /// processes do not stop: all go on then.
    async fn freeze(&self, running: &Running) -> Result<()>;

    /// Lets them go on; once more is no error. A dropped call goes on to its end.
    ///
    /// # Errors
    /// As for [`freeze`](Self::freeze).
    async fn thaw(&self, running: &Running) -> Result<()>;

    /// Writes the memory of a [frozen](Self::freeze) sandbox to `images`, an empty directory that only
    /// root may enter, and closes its connections to outside and those that this process has opened
    /// into it: nobody may open new ones meanwhile. The processes stay stopped until the answer is
    /// [released](Dumped::release), and are not to be thawed before; they can be killed, but have ended
    /// only after the release: kill, release, then wait.
    ///
    /// When the call or its answer is dropped, or this process dies, they are frozen as before, in a
    /// moment. Whatever comes of it, they are never harmed.
    ///
    /// # Errors
    /// `CHECKPOINT_FAILED` with the cause, `DRIVER_UNSUPPORTED` where [`memory`](Self::memory) is not
    /// a checkpoint, `SANDBOX_GONE` when it has ended. It is frozen as before, but connections may
    /// have been closed; `images` is to be removed.
    async fn dump(&self, running: &Running, images: &Path) -> Result<Dumped>;

    /// As [`start`](Self::start), from a checkpoint in `images`, which is not written: of the same
    /// layers in the same order as then, on a copy of the disk from while it was [`Dumped`], in another
    /// slot, with limits of now. `exec`, `stdin` and `listen` are of no matter. `work` is an empty
    /// directory for this restore alone, for the caller to remove.
    ///
    /// It takes as long as reading its memory, and ends at once when it is `given_up`. When the call is
    /// dropped, what there is of the sandbox is killed at once, and removed soon.
    ///
    /// # Errors
    /// `CHECKPOINT_FAILED`, or `DRIVER_UNSUPPORTED` as for [`dump`](Self::dump). Nothing is left.
    async fn restore(
        &self,
        spec: Spec<'_>,
        images: &Path,
        work: &Path,
        given_up: &CancellationToken,
    ) -> Result<Running>;

    /// Gives back what is kept ready. Sandboxes are left as they are.
    async fn shutdown(&self);
}
