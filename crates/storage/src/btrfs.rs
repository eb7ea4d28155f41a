//! The few btrfs ioctls that making, limiting and deleting a disk needs.
//!
//! Called directly rather than through the `btrfs` program: each takes microseconds, a process
//! start takes milliseconds. Structures and numbers are those of the kernel's `linux/btrfs.h`.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// The root directory of every subvolume has this inode number.
const SUBVOLUME_ROOT_INODE: u64 = 256;

const QUOTA_ENABLE: u64 = 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_REFERENCED: u64 = 1;

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InodeLookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `btrfs_ioctl_fs_info_args`, of which only the file system's id is read.
#[repr(C)]
struct FileSystemInfo {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// `btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaArgs {
    command: u64,
    status: u64,
}

/// `btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroup: u64,
}

/// `btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimitArgs {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// The raw calls. Each is unsafe because the kernel reads or writes through the pointer.
mod raw {
    #![allow(unsafe_code)]
    use super::*;

    const MAGIC: u8 = 0x94;

    nix::ioctl_write_ptr!(subvolume_create, MAGIC, 14, VolumeArgs);
    nix::ioctl_write_ptr!(subvolume_destroy, MAGIC, 15, VolumeArgs);
    nix::ioctl_readwrite!(inode_lookup, MAGIC, 18, InodeLookupArgs);
    nix::ioctl_read!(file_system_info, MAGIC, 31, FileSystemInfo);
    nix::ioctl_readwrite!(quota_control, MAGIC, 40, QuotaArgs);
    nix::ioctl_write_ptr!(qgroup_create, MAGIC, 42, QgroupCreateArgs);
    // Declared as a read by the kernel, although the kernel only reads the structure.
    nix::ioctl_read!(qgroup_limit, MAGIC, 43, QgroupLimitArgs);
}

fn volume_args(name: &str) -> io::Result<VolumeArgs> {
    let mut args = VolumeArgs { fd: 0, name: [0; 4088] };
    // Shorter by one at least: the kernel wants the terminating zero.
    if name.is_empty() || name.len() >= args.name.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(args)
}

/// Makes the empty subvolume `name` in the directory `parent`.
#[allow(unsafe_code)]
pub(crate) fn create_subvolume(parent: &File, name: &str) -> io::Result<()> {
    let args = volume_args(name)?;
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::subvolume_create(parent.as_raw_fd(), &args) }?;
    Ok(())
}

/// Deletes the subvolume `name` of the directory `parent`, whatever it holds. The kernel frees its
/// space afterwards, in the background.
#[allow(unsafe_code)]
pub(crate) fn delete_subvolume(parent: &File, name: &str) -> io::Result<()> {
    let args = volume_args(name)?;
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::subvolume_destroy(parent.as_raw_fd(), &args) }?;
    Ok(())
}

/// The id of the subvolume that `dir` is in; its qgroup is `0/<id>`.
#[allow(unsafe_code)]
pub(crate) fn subvolume_id(dir: &File) -> io::Result<u64> {
    let mut args = InodeLookupArgs { tree: 0, object: SUBVOLUME_ROOT_INODE, name: [0; 4080] };
    // SAFETY: `args` is a live structure of the kernel's layout that the call may write.
    unsafe { raw::inode_lookup(dir.as_raw_fd(), &mut args) }?;
    Ok(args.tree)
}

/// The file system's id as `/sys/fs/btrfs` spells it.
#[allow(unsafe_code)]
pub(crate) fn file_system_id(dir: &File) -> io::Result<uuid::Uuid> {
    let mut info = FileSystemInfo { max_id: 0, devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: `info` is a live structure of the kernel's layout that the call may write.
    unsafe { raw::file_system_info(dir.as_raw_fd(), &mut info) }?;
    Ok(uuid::Uuid::from_bytes(info.fsid))
}

/// Turns quotas on; harmless when they are on.
///
/// Simple quotas (kernel 6.7) charge an extent to the subvolume that wrote it, which is all that
/// separate disks need, and spare the back-reference walk of every commit. Older kernels get the
/// full ones.
#[allow(unsafe_code)]
pub(crate) fn enable_quotas(dir: &File) -> io::Result<()> {
    let mut args = QuotaArgs { command: QUOTA_ENABLE_SIMPLE, status: 0 };
    // SAFETY: `args` is a live structure of the kernel's layout that the call may write.
    let simple = unsafe { raw::quota_control(dir.as_raw_fd(), &mut args) };
    if simple.is_err_and(|errno| errno == nix::errno::Errno::EINVAL) {
        args.command = QUOTA_ENABLE;
        // SAFETY: as above.
        unsafe { raw::quota_control(dir.as_raw_fd(), &mut args) }?;
        return Ok(());
    }
    simple?;
    Ok(())
}

/// Limits the subvolume that `subvolume` is the root of to `bytes`, file system overhead included.
#[allow(unsafe_code)]
pub(crate) fn set_limit(subvolume: &File, bytes: u64) -> io::Result<()> {
    let mut args = QgroupLimitArgs {
        qgroup: 0, // that of the subvolume itself
        flags: LIMIT_MAX_REFERENCED,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: `args` is a live structure of the kernel's layout that the call may write.
    unsafe { raw::qgroup_limit(subvolume.as_raw_fd(), &mut args) }?;
    Ok(())
}

/// Removes the qgroup of a deleted subvolume. Kernels from 6.11 do that by themselves (`NotFound`
/// here), those before never; `ResourceBusy` means that the subvolume is not yet freed.
#[allow(unsafe_code)]
pub(crate) fn remove_qgroup(dir: &File, id: u64) -> io::Result<()> {
    let args = QgroupCreateArgs { create: 0, qgroup: id };
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::qgroup_create(dir.as_raw_fd(), &args) }?;
    Ok(())
}

/// Bytes that a qgroup of the file system with sysfs directory `sysfs` holds: what is on disk, and
/// what is written but not yet there.
pub(crate) fn qgroup_usage(sysfs: &Path, id: u64) -> io::Result<u64> {
    let dir = sysfs.join(format!("qgroups/0_{id}"));
    let read = |name: &str| -> io::Result<u64> {
        std::fs::read_to_string(dir.join(name))?
            .trim()
            .parse()
            .map_err(|_| io::ErrorKind::InvalidData.into())
    };
    Ok(read("referenced")?.saturating_add(read("rsv_data")?))
}

/// Ids of the qgroups of single subvolumes.
pub(crate) fn qgroups(sysfs: &Path) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(sysfs.join("qgroups"))? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("0_"));
        ids.extend(id.and_then(|id| id.parse::<u64>().ok()));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size is part of an ioctl's number, so a wrong one calls something else.
    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<VolumeArgs>(), 4096);
        assert_eq!(size_of::<InodeLookupArgs>(), 4096);
        assert_eq!(size_of::<FileSystemInfo>(), 1024);
        assert_eq!(size_of::<QuotaArgs>(), 16);
        assert_eq!(size_of::<QgroupCreateArgs>(), 16);
        assert_eq!(size_of::<QgroupLimitArgs>(), 48);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(volume_args("").is_err());
        assert!(volume_args(&"x".repeat(4088)).is_err());
        assert!(volume_args(&"x".repeat(4087)).is_ok());
    }
}
