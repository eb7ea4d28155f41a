//! `dump`: from a [`DumpSpec`] to CRIU, which writes the processes' images; and the hook through
//! which CRIU holds them until the caller has copied their disk.
//!
//! A dump needs more than a restore: suspending a system call filter is for the host's root. So CRIU
//! runs here with four of its capabilities; as the id that owns the sandbox's user namespace, which
//! has all of them inside, and as nobody else's. The processes are stopped all along, and can neither
//! see CRIU nor signal it.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::parent_id,
    },
};

use atoll_launcher::checkpoint::{DumpSpec, FREEZER, GO, HELD, HOOK, IMAGES};

use crate::{
    mounts, run,
    sys::{self, CapabilitySets, Failure, Result, Step},
};

/// Set by CRIU for its action scripts: the moment they are run in.
const MOMENT: &str = "CRTOOLS_SCRIPT_ACTION";
/// The images are complete, and the processes still stopped.
const COMPLETE: &str = "post-dump";

/// Where CRIU looks for programs: for a shell, it finds [`HOOK`].
const PATH: &CStr = c"PATH=/:/usr/sbin:/usr/bin:/sbin:/bin";

/// What CRIU cannot do without, found by leaving out one at a time. Numbers from the kernel's
/// `linux/capability.h`.
const KEPT: [u32; 4] = [
    1,  // DAC_OVERRIDE: read the sandbox's files
    6,  // SETGID: be one of its users for them
    18, // SYS_CHROOT: enter its mount namespace
    21, // SYS_ADMIN: suspend its system call filter
];

pub(crate) fn dump(spec: &DumpSpec) -> Result<()> {
    let user_ns = File::open(&spec.user_ns).step("open the user namespace")?;
    run::lower_protection().step("give up the daemon's protection")?;
    sys::reset_signals();
    // CRIU must live until it has taken its code out of the processes, even if the daemon does not.
    sys::survive_writing();
    sys::set_limits().step("set limits")?;
    // Before the mount namespace is another one than that of the file.
    let this = sys::open_tree("/proc/self/exe", false).step("take this program")?;
    let here = mounts::stage(&spec.staging)?;
    furnish(spec, here.as_fd(), &this, user_ns.as_fd())?;
    sys::pivot_here().step("change the root")?;
    sys::place(io::stdout().as_fd(), 2).step("report on standard error")?;
    sys::close_on_exec_from(3).step("close descriptors")?;
    become_owner(spec.first_uid)?;
    let held = sys::c(&format!("{HELD}={}", spec.held)).step("name what is held")?;
    let error = sys::exec(&spec.exec, &[PATH, &held]);
    Err(Failure::new("start CRIU", error))
}

/// Puts into the staging directory, the working directory, what CRIU needs. It follows paths that
/// guests have made, as somebody who may read any file: so the host's are not there.
fn furnish(
    spec: &DumpSpec,
    here: BorrowedFd<'_>,
    this: &OwnedFd,
    user_ns: BorrowedFd<'_>,
) -> Result<()> {
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let silent = quiet | libc::MOUNT_ATTR_NOEXEC;
    mounts::furnish(here, &spec.tree)?;
    mounts::attach_mapped(here, &spec.images, IMAGES, silent, user_ns)?;
    if let Some(freezer) = &spec.freezer {
        mounts::attach(here, freezer, FREEZER, silent)?;
    }
    sys::set_mount(this.as_fd(), quiet | libc::MOUNT_ATTR_RDONLY, None).step("protect the hook")?;
    attach_file(here, this, HOOK)?;
    // Where that is a link, to a place that cannot be written, the tree need not have a shell.
    if std::fs::remove_file("bin").is_ok() {
        sys::mkdir(here, "bin", 0o755).step("make /bin")?;
        sys::symlink("/sh", here, "bin/sh").step("make /bin/sh")?;
    }
    let null = sys::open_tree("/dev/null", false).step("take /dev/null")?;
    sys::mkdir(here, "dev", 0o755).step("make the devices' directory")?;
    attach_file(here, &null, "dev/null")?;
    // CRIU wants to know whether the sandbox's is the same.
    let pts = sys::new_filesystem("devpts", &[], silent).step("create a devpts")?;
    sys::mkdir(here, "dev/pts", 0o755).step("make the mount point of /dev/pts")?;
    sys::attach(pts.as_fd(), here, c"dev/pts").step("attach /dev/pts")
}

fn attach_file(here: BorrowedFd<'_>, file: &OwnedFd, name: &str) -> Result<()> {
    sys::touch(here, name).step(&format!("make a mount point for {name}"))?;
    let path = sys::c(name).step("name a mount point")?;
    sys::attach(file.as_fd(), here, &path).step(&format!("attach {name}"))
}

/// Becomes the id that owns the sandbox's user namespace, with [`KEPT`] on the host and no way to
/// more.
fn become_owner(uid: u32) -> Result<()> {
    let kept = KEPT.iter().fold(0u64, |mask, capability| mask | 1 << capability);
    for capability in 0..64 {
        if kept & 1 << capability != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other.step("drop a capability from the bounding set")?,
        }
    }
    sys::keep_capabilities_for_good().step("keep capabilities")?;
    sys::become_id(uid).step("become the owner")?;
    sys::set_capabilities(CapabilitySets { effective: kept, permitted: kept, inheritable: kept })
        .step("drop capabilities")?;
    KEPT.iter().try_for_each(|&capability| {
        sys::raise_ambient(capability).step("keep a capability over exec")
    })
}

/// Whether CRIU runs this as its action script.
pub(crate) fn is_hook() -> bool {
    std::env::var_os(MOMENT).is_some()
}

/// What tar wants of a shell: it compresses files in memory.
pub(crate) fn compress() -> Result<()> {
    let error = sys::exec(&["/usr/bin/gzip".to_owned()], &[PATH]);
    Err(Failure::new("start gzip", error))
}

/// CRIU goes on when this returns; with success only if the caller says so. CRIU closes what it
/// inherited before it runs its script, but has itself still got the caller's pipes.
pub(crate) fn hook() -> Result<()> {
    if std::env::var_os(MOMENT).is_none_or(|moment| moment != COMPLETE) {
        return Ok(());
    }
    let held = std::env::var(HELD).map_err(|error| Failure::new("know what to say", error))?;
    let pipe = |number| format!("/proc/{}/fd/{number}", parent_id());
    File::options()
        .write(true)
        .open(pipe(2))
        .and_then(|mut report| writeln!(report, "{held}"))
        .step("say that the processes are held")?;
    let mut answer = String::new();
    let input = File::open(pipe(0)).step("open the caller's pipe")?;
    BufReader::new(input.take(64)).read_line(&mut answer).step("wait for the caller")?;
    if answer.trim_end() == GO { Ok(()) } else { Err(Failure::new("hold", "the caller has gone")) }
}
