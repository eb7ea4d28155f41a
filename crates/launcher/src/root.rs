//! From the staging directory to a root that shows nothing of the host. Runs in the sandbox's
//! first process, before it becomes envd.
//!
//! Order matters. What needs the tree outside (device nodes, the check that `/proc` may be mounted)
//! is taken as detached mounts first; then the root is changed and the host's tree let go; only
//! then is anything attached. So no path of the template, which may hold any symbolic link, is ever
//! resolved where the host's files can be reached.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use atoll_launcher::checkpoint::{BOOT_ID, EMPTY};

use crate::{
    mounts,
    sys::{self, Result, Step},
};

/// Entries of /proc that tell of the host or reach it, hidden by an empty file or directory.
const HIDDEN: [&str; 26] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/driver",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
];

/// Entries of /proc that may be read but never written.
const READ_ONLY: [&str; 2] = ["/proc/sys", "/proc/sysrq-trigger"];

const PROCESSORS: &str = "/sys/devices/system/cpu";
/// The host's, until there is the sandbox's.
const BOOT_ID_AT: &str = "/proc/sys/kernel/random/boot_id";

struct Detached {
    proc: OwnedFd,
    dev: OwnedFd,
    pts: OwnedFd,
    shm: OwnedFd,
    queues: OwnedFd,
    sys: OwnedFd,
    processors: Option<OwnedFd>,
    devices: Vec<OwnedFd>,
    /// What directories are hidden by. One for all, not a file system each: a checkpoint would have to
    /// pack every one of them.
    empty: OwnedFd,
    boot_id: OwnedFd,
}

/// Makes the overlay the root of this process, with /proc, /dev and /sys in it.
pub(crate) fn enter(shm_bytes: u64) -> Result<()> {
    let detached = take(shm_bytes)?;
    // A mount that came along from a more privileged namespace is locked in place and cannot become
    // the root; a copy made here can.
    sys::mount(mounts::ROOT, mounts::ROOT, "", libc::MS_BIND | libc::MS_REC, "")
        .step("copy the root mount")?;
    sys::chdir(mounts::ROOT).step("enter the new root")?;
    sys::pivot_here().step("change the root")?;
    attach(detached)
}

fn take(shm_bytes: u64) -> Result<Detached> {
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let silent = quiet | libc::MOUNT_ATTR_NOEXEC;
    let new = |kind: &str, options: &[(&str, &str)], attributes: u64| {
        sys::new_filesystem(kind, options, attributes).step(&format!("create a {kind}"))
    };
    let shm_size = shm_bytes.to_string();
    let processors = sys::open_tree(PROCESSORS, true).ok();
    if let Some(tree) = &processors {
        sys::set_mount(tree.as_fd(), silent | libc::MOUNT_ATTR_RDONLY, None)
            .step("protect the list of processors")?;
    }
    let devices = mounts::DEVICES
        .iter()
        .map(|(name, ..)| {
            sys::open_tree(&format!("dev/{name}"), false).step(&format!("take the device {name}"))
        })
        .collect::<Result<_>>()?;
    let empty = sys::open_tree(&format!("dev/{EMPTY}"), false).step("take the empty directory")?;
    let boot_id = sys::open_tree(&format!("dev/{BOOT_ID}"), false).step("take the boot's id")?;
    Ok(Detached {
        proc: new("proc", &[], silent)?,
        // Not nodev: this is where the six devices are attached.
        dev: new("tmpfs", &[("mode", "755"), ("size", "64k")], libc::MOUNT_ATTR_NOSUID)?,
        pts: new(
            "devpts",
            &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        )?,
        shm: new("tmpfs", &[("mode", "1777"), ("size", &shm_size)], quiet)?,
        queues: new("mqueue", &[], silent)?,
        sys: new("tmpfs", &[("mode", "755"), ("size", "16k")], silent)?,
        processors,
        devices,
        empty,
        boot_id,
    })
}

fn attach(detached: Detached) -> Result<()> {
    put(&detached.proc, "/proc")?;
    put(&detached.dev, "/dev")?;
    fill_dev(&detached)?;
    put(&detached.sys, "/sys")?;
    if let Some(processors) = &detached.processors {
        for part in ["/sys/devices", "/sys/devices/system", PROCESSORS] {
            put_directory(part)?;
        }
        put(processors, PROCESSORS)?;
    }
    let sealed = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    sys::set_mount(detached.sys.as_fd(), sealed, None).step("seal /sys")?;
    hide(&detached.empty)?;
    protect()?;
    // Last, since what is read-only by now is another mount.
    attach_at(&detached.boot_id, BOOT_ID_AT).step("attach the boot's id")
}

/// Attaches `mount` at a directory of the sandbox's root, which must not be a symbolic link.
fn put(mount: &OwnedFd, path: &str) -> Result<()> {
    put_directory(path)?;
    let target = sys::open_dir(None, path).step(&format!("open {path}"))?;
    sys::attach(mount.as_fd(), target.as_fd(), c"").step(&format!("attach {path}"))
}

fn put_directory(path: &str) -> Result<()> {
    let root = sys::open_dir(None, "/").step("open the root")?;
    sys::mkdir(root.as_fd(), path, 0o755).step(&format!("make {path}"))
}

fn fill_dev(detached: &Detached) -> Result<()> {
    let dev = sys::open_dir(None, "/dev").step("open /dev")?;
    for ((name, ..), device) in mounts::DEVICES.iter().zip(&detached.devices) {
        sys::touch(dev.as_fd(), name).step(&format!("make /dev/{name}"))?;
        let name = sys::c(name).step("name a device")?;
        sys::attach(device.as_fd(), dev.as_fd(), &name).step("attach a device")?;
    }
    put(&detached.pts, "/dev/pts")?;
    put(&detached.shm, "/dev/shm")?;
    put(&detached.queues, "/dev/mqueue")?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        sys::symlink(target, dev.as_fd(), name).step(&format!("link /dev/{name}"))?;
    }
    Ok(())
}

/// /proc and /dev are ours by now: their paths hold no link that a template could have planted.
fn hide(empty: &OwnedFd) -> Result<()> {
    let mut first = None;
    for path in HIDDEN {
        let metadata = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.step(&format!("look at {path}"))?,
        };
        let hidden = match first {
            _ if !metadata.is_dir() => sys::mount("/dev/null", path, "", libc::MS_BIND, ""),
            Some(first) => sys::mount(first, path, "", libc::MS_BIND, ""),
            None => {
                first = Some(path);
                attach_at(empty, path)
            }
        };
        hidden.step(&format!("hide {path}"))?;
    }
    Ok(())
}

fn protect() -> Result<()> {
    for path in READ_ONLY {
        let tree = match sys::open_tree(path, true) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other.step(&format!("open {path}"))?,
        };
        sys::set_mount(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, None)
            .step(&format!("protect {path}"))?;
        attach_at(&tree, path).step(&format!("attach {path}"))?;
    }
    Ok(())
}

/// Attaches `mount` at a path that is ours.
fn attach_at(mount: &OwnedFd, path: &str) -> io::Result<()> {
    let root = sys::open_dir(None, "/")?;
    sys::attach(mount.as_fd(), root.as_fd(), &sys::c(path)?)
}
