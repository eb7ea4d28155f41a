//! What the launcher reads for a checkpoint: [`DumpSpec`], and [`RestoreSpec`] as a job. The caller
//! gives CRIU's arguments; the launcher makes the place that CRIU runs in.
//!
//! CRIU's root is the staging directory: nothing of the host is in it but the programs it needs.
//!
//! ```text
//! /usr /bin /lib ...   of the tree, read-only
//! /proc                the host's processes
//! /images              the images, which only a dump writes
//!
//! of a dump            /sh, /dev/null and /dev/pts; /freezer, where the processes are frozen
//! of a restore         /dev and /root, the sandbox's devices and root; /work for what CRIU writes;
//!                      /cpus, the host's list of processors
//! ```

use serde::{Deserialize, Serialize};

/// The variable of CRIU's environment that has a dump's [`DumpSpec::held`].
pub const HELD: &str = "ATOLL_HELD";
/// What it then waits for, on a line of its own, to let them go on. Anything else, and the end of its
/// input, lets them go on too, but the dump has failed then.
pub const GO: &str = "go";

/// Name of the images below CRIU's root.
pub const IMAGES: &str = "images";
/// Name of CRIU's action script below its root: the launcher itself, which is also the shell that CRIU
/// runs it by, and tar its gzip.
pub const HOOK: &str = "sh";
/// Name of the frozen control group below CRIU's root.
pub const FREEZER: &str = "freezer";
/// Name of an empty directory among the devices: what hides directories of `/proc`.
pub const EMPTY: &str = "empty";
/// Name of a file among the devices: what the sandbox takes for its boot's id.
pub const BOOT_ID: &str = "boot_id";

/// A sandbox's processes to be dumped. Standard input is then read further, for [`GO`].
#[derive(Debug, Serialize, Deserialize)]
pub struct DumpSpec {
    /// Path that opens the processes' user namespace.
    pub user_ns: String,
    /// Host id that is root in it, and owns it.
    pub first_uid: u32,
    /// As in a `RunSpec`.
    pub staging: String,
    /// An empty directory that gets the images, with ids from 0.
    pub images: String,
    /// As in a [`RestoreSpec`].
    pub tree: String,
    /// The directory of the processes' control group, if that is frozen.
    pub freezer: Option<String>,
    /// What the launcher writes, on a line of its own, once the dump is complete and holds the
    /// processes: nothing that a sandbox could make CRIU write.
    pub held: String,
    /// CRIU and its arguments, all paths as CRIU sees them.
    pub exec: Vec<String>,
}

/// A checkpoint to be restored.
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
    /// As in a `RunSpec`: what it was at the dump.
    pub boot_id: String,
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
