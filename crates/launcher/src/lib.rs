//! What the launcher reads: one [`Job`], a line of JSON on standard input.
//!
//! The node daemon has many threads, and a process with many threads cannot safely fork into new
//! namespaces. So it runs this program, which has one thread and does two things:
//!
//! - `atoll-launcher slot UID` makes an empty user and network namespace for the pool, and holds
//!   it until its standard input closes (`slot.rs`);
//! - `atoll-launcher run CGROUP...` joins control groups and waits for a [`Job`]. With a [`RunSpec`]
//!   it builds a sandbox's root and starts its first process (`run.rs`), reporting on standard output:
//!   `pid N`, or `error STEP: CAUSE`, a line each. Joining a group can take the kernel tens of milliseconds, so
//!   launchers are started, and have joined, before they are needed.
//!
//! The first process is a child of the daemon (`CLONE_PARENT`), not of the launcher, which ends at
//! once: the daemon can wait for it, and it outlives the daemon.
//!
//! With CRIU there are checkpoints: see [`checkpoint`] for the jobs of a dump and of a restore.

pub mod checkpoint;

use serde::{Deserialize, Serialize};

/// Descriptor on which the first process finds its listening socket.
pub const LISTENER_FD: i32 = 3;

/// What a launcher that has joined its groups is to do: a line of JSON on standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Start a sandbox.
    Run(RunSpec),
    /// Write the processes of a sandbox.
    Dump(checkpoint::DumpSpec),
    /// Make the processes of a checkpoint again.
    Restore(checkpoint::RestoreSpec),
}

/// A sandbox to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunSpec {
    /// Path that opens the slot's user namespace, such as `/proc/PID/fd/N` of the daemon.
    pub user_ns: String,
    /// Path that opens the slot's network namespace.
    pub net_ns: String,
    /// Path that opens the end to write of the pipe that takes the first process's log; it becomes
    /// descriptor 1.
    pub log: String,
    /// Host id that is root in the user namespace.
    pub first_uid: u32,
    /// Directories with ids from 0, lowest layer first.
    pub layers: Vec<String>,
    /// Directory that holds `upper` and `work`, with ids from 0.
    pub disk: String,
    /// An empty directory of the host to build on; a file system of the launcher's own, seen by
    /// nobody else, is mounted there.
    pub staging: String,
    /// Name the sandbox sees itself by.
    pub hostname: String,
    /// What it reads of `/proc/sys/kernel/random/boot_id`, with the end of the line: a sandbox's
    /// start is its boot.
    pub boot_id: String,
    /// Program to become, as the sandbox sees it, and its arguments.
    pub exec: Vec<String>,
    /// What the program reads on standard input.
    pub stdin: String,
    /// Port of the listening socket handed over as descriptor [`LISTENER_FD`].
    pub listen: u16,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: u64,
    /// A seccomp program: `sock_filter` records in memory order, hexadecimal.
    pub seccomp: String,
}
