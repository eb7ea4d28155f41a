//! What the launcher reads for a checkpoint: [`DumpSpec`], and [`RestoreSpec`] as a job. The caller
//! gives CRIU's arguments; the launcher makes the place that CRIU runs in.
//!
//! `atoll-launcher dump STAGING` reads its specification from standard input; STAGING is an empty
//! directory of the host to mount on. It becomes CRIU, so whoever comes after the caller finds a dump
//! that is under way by its arguments: one of them is STAGING, or [`IMAGES`] below it.

use serde::{Deserialize, Serialize};

/// What the launcher writes, on a line of its own, once a dump is complete and holds the processes.
pub const HELD: &str = "held";
/// What it then waits for, on a line of its own, to let them go on. Anything else, and the end of its
/// input, lets them go on too, but the dump has failed then.
pub const GO: &str = "go";

/// Where a dump's images directory is, below its staging directory.
pub const IMAGES: &str = "images";
/// Where CRIU's action script is, below the staging directory: the launcher itself, which CRIU may
/// not be allowed to reach under the name that it was run by.
pub const HOOK: &str = "hook";
/// Name of an empty directory among the devices: what hides directories of `/proc`.
pub const EMPTY: &str = "empty";

/// A sandbox's processes to be dumped: one line of JSON, because standard input is read further.
#[derive(Debug, Serialize, Deserialize)]
pub struct DumpSpec {
    /// Path that opens the processes' user namespace.
    pub user_ns: String,
    /// Host id that is root in it, and owns it.
    pub first_uid: u32,
    /// An empty directory that gets the images, with ids from 0.
    pub images: String,
    /// CRIU and its arguments, all paths as the host sees them.
    pub exec: Vec<String>,
}

/// What a restoring CRIU sees. Its root is the staging directory: nothing of the host is in it but
/// the programs it needs.
///
/// ```text
/// /usr /bin /lib ...   of `tree`, read-only
/// /proc                the host's processes
/// /cpus                the host's list of processors
/// /dev /root           the sandbox's devices, with the empty directory, and root
/// /images /work        the images, read-only, and a directory for what CRIU writes
/// ```
#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// As in a `RunSpec`.
    pub user_ns: String,
    /// As in a `RunSpec`; also descriptor [`NET_NS_FD`].
    pub net_ns: String,
    /// As in a `RunSpec`; also descriptor [`LOG_FD`].
    pub log: String,
    /// As in a `RunSpec`.
    pub first_uid: u32,
    /// As in a `RunSpec`.
    pub layers: Vec<String>,
    /// As in a `RunSpec`: a copy of what the disk was when the processes were dumped.
    pub disk: String,
    /// As in a `RunSpec`.
    pub staging: String,
    /// As in a `RunSpec`.
    pub hostname: String,
    /// The images, with ids from 0; never written, so that many may restore from one.
    pub images: String,
    /// An empty directory for CRIU's own files, with ids from 0.
    pub work: String,
    /// Directory that has `usr` and the like, with CRIU, its libraries, tar and gzip.
    pub tree: String,
    /// CRIU and its arguments, all paths as CRIU sees them.
    pub exec: Vec<String>,
}

/// Descriptor on which a restoring CRIU finds the network namespace.
pub const NET_NS_FD: i32 = 3;
/// Descriptor on which a restoring CRIU finds the log's pipe.
pub const LOG_FD: i32 = 4;
