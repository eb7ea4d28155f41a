//! Drivers: how a prepared root, a network slot and limits become a running sandbox.
//!
//! - [`Driver`] is what the orchestrator sees; [`container`] is the driver of this release.
//! - `berths`: control groups with a launcher in each, made ahead of time.
//! - [`checkpoint`]: the processes of a sandbox as files, through CRIU.
//! - [`cgroup`]: limits and accounting on cgroup v1, v2 and hosts that mix them.
//! - [`seccomp`]: the system calls a sandbox may not make.
//! - [`process`]: a first process, held by a descriptor that no reused pid can confuse.

mod berths;
pub mod cgroup;
pub mod checkpoint;
pub mod container;
mod hierarchies;
pub mod process;
pub mod seccomp;

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_network::Slot;

use crate::{cgroup::Cgroup, process::FirstProcess};

/// What a driver needs to start a sandbox.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The sandbox.
    pub id: &'a SandboxId,
    /// Namespaces and addresses.
    pub slot: &'a Slot,
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

/// A sandbox that runs.
#[derive(Debug)]
pub struct Running {
    /// Its first process: when that ends, the sandbox has ended.
    pub process: FirstProcess,
    /// Its limits and accounting.
    pub cgroup: Cgroup,
    /// The end to read of the pipe that is its first process's standard output. Reading does not
    /// block, and ends when that process has.
    pub log: OwnedFd,
}

/// What a driver can do on this host; found by trying, at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Pause, snapshot and fork keep memory.
    pub memory_snapshots: bool,
}

/// A way to isolate.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Its name, as `atoll doctor` and the nodes API print it.
    fn name(&self) -> &'static str;

    /// What it can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// Starts a sandbox. Run this to its end: it cleans up after its own failures, but a dropped
    /// call leaves that to the next start of the driver.
    async fn start(&self, spec: Spec<'_>) -> Result<Running>;

    /// Gives back what is kept ready. No sandbox may run any more.
    async fn shutdown(&self);
}
