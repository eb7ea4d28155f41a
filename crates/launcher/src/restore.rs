//! From a [`RestoreSpec`] to CRIU, which makes the processes again.
//!
//! CRIU reads images that guests have a say in, so it is given nothing: it runs as root of the
//! sandbox's own user namespace, which is nobody on the host, and with a root directory that holds
//! nothing of the host but CRIU itself. What breaks into it is where it was before: in the sandbox's
//! ids, its network and its control group.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::PermissionsExt,
};

use atoll_launcher::checkpoint::{IMAGES, LOG_FD, NET_NS_FD, RestoreSpec};

use crate::{
    mounts,
    run::{self, ENVIRONMENT},
    sys::{self, Failure, Result, Step},
};

const PROCESSORS: &str = "/sys/devices/system/cpu";
/// The first number of those that [`sys::place`] does not use.
const ABOVE: i32 = 64;
/// Whoever has the descriptor may write; the owner stays the daemon, which tells it from a pipe made
/// inside.
const LOG_MODE: u32 = 0o602;

pub(crate) fn restore(spec: &RestoreSpec) -> Result<()> {
    let user_ns = File::open(&spec.user_ns).step("open the user namespace")?;
    let net_ns = File::open(&spec.net_ns).step("open the network namespace")?;
    let log = run::open_log(&spec.log)?;
    // CRIU opens the pipe anew, as the sandbox's root.
    log.set_permissions(PermissionsExt::from_mode(LOG_MODE)).step("share the log")?;
    run::lower_protection().step("give up the daemon's protection")?;
    // What CRIU has, the processes may get back.
    sys::raise_priority();
    sys::reset_signals();
    sys::set_limits().step("set limits")?;
    let parts = mounts::Parts {
        first_uid: spec.first_uid,
        layers: &spec.layers,
        disk: &spec.disk,
        staging: &spec.staging,
        boot_id: &spec.boot_id,
    };
    mounts::build(&parts, user_ns.as_fd())?;
    furnish(spec, user_ns.as_fd())?;
    sys::pivot_here().step("change the root")?;

    run::join_slot(user_ns.as_fd(), net_ns.as_fd())?;
    // CRIU takes these for the namespaces that the images' first process is to be in.
    let own = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    sys::unshare(own).step("create the sandbox's namespaces")?;
    sys::set_hostname(&spec.hostname).step("set the host name")?;
    become_criu(spec, &net_ns, &log)
}

/// Puts into the staging directory, the working directory, what CRIU needs beside the root.
fn furnish(spec: &RestoreSpec, user_ns: BorrowedFd<'_>) -> Result<()> {
    let here = sys::open_dir(None, ".").step("open the staging directory")?;
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let sealed = quiet | libc::MOUNT_ATTR_RDONLY;
    mounts::attach_mapped(here.as_fd(), &spec.images, IMAGES, sealed, user_ns)?;
    mounts::attach_mapped(here.as_fd(), &spec.work, "work", quiet, user_ns)?;
    mounts::furnish(here.as_fd(), &spec.tree)?;
    mounts::attach(here.as_fd(), PROCESSORS, "cpus", sealed)?;
    // CRIU opens its working directory, and mounts on the next two.
    std::fs::set_permissions(".", PermissionsExt::from_mode(0o755)).step("open the root")?;
    sys::mkdir(here.as_fd(), "run", 0o755).step("make /run")?;
    sys::mkdir(here.as_fd(), "tmp", 0o700).step("make /tmp")?;
    std::os::unix::fs::chown("tmp", Some(spec.first_uid), Some(spec.first_uid)).step("give /tmp")
}

/// Errors of CRIU go where the launcher's reports go.
fn become_criu(spec: &RestoreSpec, net_ns: &File, log: &File) -> Result<()> {
    let net_ns = sys::raise(net_ns.as_fd(), ABOVE).step("keep the network namespace")?;
    let log = sys::raise(log.as_fd(), ABOVE).step("keep the log")?;
    sys::place(io::stdout().as_fd(), 2).step("report on standard error")?;
    sys::place(net_ns.as_fd(), NET_NS_FD).step("place the network namespace")?;
    sys::place(log.as_fd(), LOG_FD).step("place the log")?;
    sys::close_on_exec_from(LOG_FD.unsigned_abs() + 1).step("close descriptors")?;
    let error = sys::exec(&spec.exec, &ENVIRONMENT);
    Err(Failure::new("start CRIU", error))
}
