//! The sandbox's root file system, mounted by the host's root in a mount namespace of the
//! launcher's own.
//!
//! ```text
//! staging (tmpfs)     dev        the six devices, as nodes of this sandbox's own, an empty directory
//!                                and its boot's id; read-only
//!                     l0 .. ln   the layers, id-mapped through the slot's user namespace, read-only
//!                     disk       the writable directory, id-mapped likewise: upper/ and work/
//!                     root       overlay of all of them
//! ```
//!
//! The layers and the disk are let go as soon as the overlay has them: whatever follows a sandbox's
//! paths here, as CRIU does, is not to find them.
//!
//! Files have ids from 0 on disk, so that layers are shared by all sandboxes; the id map gives each
//! sandbox its own view of the owner. The overlay is mounted from the initial user namespace, with
//! the file-system ids of the sandbox's root: that makes what overlayfs creates belong to id 0 on
//! disk, and lets it use trusted attributes, without which renaming a template's directory fails.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use atoll_launcher::checkpoint::{BOOT_ID, EMPTY};

use crate::sys::{self, Result, Step};

/// Name of the overlay below the staging directory.
pub(crate) const ROOT: &str = "root";

/// The devices every sandbox has: name, major, minor, as Linux's list of devices numbers them. They
/// are made anew, since locks and watches on a node of the host's would reach across sandboxes.
pub(crate) const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Directories that programs and their libraries are in.
const PROGRAMS: [&str; 6] = ["usr", "bin", "sbin", "lib", "lib32", "lib64"];

/// What a root is made of; the fields are those of a `RunSpec`.
pub(crate) struct Parts<'a> {
    pub(crate) first_uid: u32,
    pub(crate) layers: &'a [String],
    pub(crate) disk: &'a str,
    pub(crate) staging: &'a str,
    pub(crate) boot_id: &'a str,
}

/// Mounts everything below `parts.staging` and makes it the working directory.
pub(crate) fn build(parts: &Parts<'_>, user_ns: BorrowedFd<'_>) -> Result<()> {
    let here = stage(parts.staging)?;
    devices(here.as_fd(), parts.boot_id)?;
    for (index, layer) in parts.layers.iter().enumerate() {
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV;
        attach_mapped(here.as_fd(), layer, &format!("l{index}"), attributes, user_ns)?;
    }
    attach_mapped(here.as_fd(), parts.disk, "disk", libc::MOUNT_ATTR_NODEV, user_ns)?;
    sys::mkdir(here.as_fd(), ROOT, 0o755).step("make the root's mount point")?;
    overlay(parts)
}

fn devices(here: BorrowedFd<'_>, boot_id: &str) -> Result<()> {
    sys::mkdir(here, "dev", 0o755).step("make the devices' directory")?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount("devices", "dev", "tmpfs", flags, "mode=755,size=4k").step("mount the devices")?;
    for (name, major, minor) in DEVICES {
        sys::character_device(&format!("dev/{name}"), major, minor)
            .step(&format!("make the device {name}"))?;
    }
    sys::mkdir(here, &format!("dev/{EMPTY}"), 0o555).step("make the empty directory")?;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(format!("dev/{BOOT_ID}"))
        .and_then(|mut file| file.write_all(boot_id.as_bytes()))
        .step("write the boot's id")?;
    let devices = sys::open_dir(Some(here), "dev").step("open the devices' directory")?;
    sys::set_mount(devices.as_fd(), libc::MOUNT_ATTR_RDONLY, None).step("protect the devices")
}

/// A mount namespace of the launcher's own with an empty file system at `staging`, which becomes the
/// working directory; returns it.
pub(crate) fn stage(staging: &str) -> Result<OwnedFd> {
    sys::unshare(libc::CLONE_NEWNS).step("create a mount namespace")?;
    sys::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").step("make mounts private")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount("staging", staging, "tmpfs", flags, "mode=711,size=64k")
        .step("mount the staging directory")?;
    sys::chdir(staging).step("enter the staging directory")?;
    sys::open_dir(None, ".").step("open the staging directory")
}

/// Attaches the directory `source` at `name` below `here`, with its ids mapped through `user_ns`.
pub(crate) fn attach_mapped(
    here: BorrowedFd<'_>,
    source: &str,
    name: &str,
    attributes: u64,
    user_ns: BorrowedFd<'_>,
) -> Result<()> {
    let tree = sys::open_tree(source, false).step(&format!("open {source}"))?;
    sys::set_mount(tree.as_fd(), attributes, Some(user_ns))
        .step(&format!("map the ids of {source}"))?;
    sys::mkdir(here, name, 0o755).step("make a mount point")?;
    let name = sys::c(name).step("name a mount point")?;
    sys::attach(tree.as_fd(), here, &name).step(&format!("attach {source}"))
}

/// Attaches what is at `source`, with all that is mounted below, at `name` below `here`.
pub(crate) fn attach(
    here: BorrowedFd<'_>,
    source: &str,
    name: &str,
    attributes: u64,
) -> Result<()> {
    let tree = sys::open_tree(source, true).step(&format!("open {source}"))?;
    sys::set_mount(tree.as_fd(), attributes, None).step(&format!("protect {source}"))?;
    sys::mkdir(here, name, 0o755).step("make a mount point")?;
    let name = sys::c(name).step("name a mount point")?;
    sys::attach(tree.as_fd(), here, &name).step(&format!("attach {source}"))
}

/// Puts below `here` what programs of `tree` need: themselves, their libraries, and `/proc`.
pub(crate) fn furnish(here: BorrowedFd<'_>, tree: &str) -> Result<()> {
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    for name in PROGRAMS {
        let source = format!("{tree}/{name}");
        match fs::read_link(&source) {
            // Where /usr has everything, the others are links into it.
            Ok(target) => {
                sys::symlink(&target.to_string_lossy(), here, name).step(&format!("link {name}"))?
            }
            Err(_) if Path::new(&source).is_dir() => {
                attach(here, &source, name, quiet | libc::MOUNT_ATTR_RDONLY)?;
            }
            Err(_) => {}
        }
    }
    attach(here, "/proc", "proc", quiet | libc::MOUNT_ATTR_NOEXEC)
}

fn overlay(parts: &Parts<'_>) -> Result<()> {
    let highest_first: Vec<String> =
        (0..parts.layers.len()).rev().map(|index| format!("l{index}")).collect();
    // volatile: a sandbox's disk need not survive the host's crash, so its syncs cost nothing.
    // xino: layers and disk are different file systems, whose inode numbers must not be mixed up.
    let options = format!(
        "lowerdir={},upperdir=disk/upper,workdir=disk/work,redirect_dir=on,metacopy=off,index=off,xino=on,volatile",
        highest_first.join(":")
    );
    let sets = sys::capabilities().step("read capabilities")?;
    // Leaving id 0 drops the capabilities over files, which the mount needs: put them back.
    sys::set_filesystem_ids(parts.first_uid);
    sys::set_capabilities(sets).step("keep capabilities")?;
    let mounted = sys::mount("overlay", ROOT, "overlay", libc::MS_NODEV, &options);
    sys::set_filesystem_ids(0);
    mounted.step("mount the overlay")?;
    highest_first
        .iter()
        .map(String::as_str)
        .chain(["disk"])
        .try_for_each(|part| sys::detach(part).step(&format!("let go of {part}")))
}
