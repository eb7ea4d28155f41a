//! The few btrfs ioctls that making, copying, limiting and deleting a disk needs.
//!
//! Called directly rather than through the `btrfs` program: each takes microseconds, a process
//! start takes milliseconds. Structures and numbers are those of the kernel's `linux/btrfs.h`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

/// The root directory of every subvolume has this inode number.
const SUBVOLUME_ROOT_INODE: u64 = 256;

const QUOTA_ENABLE: u64 = 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_REFERENCED: u64 = 1;
const SNAPSHOT_READ_ONLY: u64 = 1 << 1;

/// The id of a qgroup has its level in the bits from this one on.
const LEVEL_SHIFT: u32 = 48;

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct SnapshotArgs {
    source: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
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

/// `btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct QgroupAssignArgs {
    assign: u64,
    member: u64,
    group: u64,
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
    nix::ioctl_write_ptr!(snapshot_create, MAGIC, 23, SnapshotArgs);
    nix::ioctl_write_ptr!(subvolume_set_flags, MAGIC, 26, u64);
    nix::ioctl_read!(file_system_info, MAGIC, 31, FileSystemInfo);
    nix::ioctl_readwrite!(quota_control, MAGIC, 40, QuotaArgs);
    nix::ioctl_write_ptr!(qgroup_assign, MAGIC, 41, QgroupAssignArgs);
    nix::ioctl_write_ptr!(qgroup_create, MAGIC, 42, QgroupCreateArgs);
    // Declared as a read by the kernel, although the kernel only reads the structure.
    nix::ioctl_read!(qgroup_limit, MAGIC, 43, QgroupLimitArgs);
}

fn volume_args(name: &[u8]) -> io::Result<VolumeArgs> {
    Ok(VolumeArgs { fd: 0, name: padded(name)? })
}

fn padded<const SIZE: usize>(name: &[u8]) -> io::Result<[u8; SIZE]> {
    let mut field = [0; SIZE];
    // Shorter by one at least: the kernel wants the terminating zero.
    if name.is_empty() || name.len() >= SIZE {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    field[..name.len()].copy_from_slice(name);
    Ok(field)
}

/// Makes the empty subvolume `name` in the directory `parent`.
#[allow(unsafe_code)]
pub(crate) fn create_subvolume(parent: &File, name: &str) -> io::Result<()> {
    let args = volume_args(name.as_bytes())?;
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::subvolume_create(parent.as_raw_fd(), &args) }?;
    Ok(())
}

/// Makes `name` in the directory `parent` a copy of the subvolume that `source` is the root of, as it
/// is at this moment, unwritten pages included. The copy shares all data, and is on disk when this
/// returns.
#[allow(unsafe_code)]
pub(crate) fn snapshot(
    source: &File,
    parent: &File,
    name: &str,
    read_only: bool,
) -> io::Result<()> {
    let args = SnapshotArgs {
        source: source.as_raw_fd().into(),
        transaction: 0,
        flags: if read_only { SNAPSHOT_READ_ONLY } else { 0 },
        unused: [0; 4],
        name: padded(name.as_bytes())?,
    };
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::snapshot_create(parent.as_raw_fd(), &args) }?;
    Ok(())
}

/// Makes the subvolume that `dir` is the root of one that nobody can write.
#[allow(unsafe_code)]
pub(crate) fn set_read_only(dir: &File) -> io::Result<()> {
    // SAFETY: the number is live, and only read by the call.
    unsafe { raw::subvolume_set_flags(dir.as_raw_fd(), &SNAPSHOT_READ_ONLY) }?;
    Ok(())
}

/// Deletes the subvolume `name` of the directory `parent`, whatever it holds: other subvolumes too,
/// which none of Atoll's does, but whoever may write a directory can make them. The kernel frees its
/// space afterwards, in the background.
pub(crate) fn delete_subvolume(parent: &Path, name: &str) -> io::Result<()> {
    match delete_one(parent, name.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            // Those within others come after them.
            for path in subvolumes_in(&parent.join(name))?.iter().rev() {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    continue;
                };
                delete_one(parent, name)?;
            }
            delete_one(parent, name.as_ref())
        }
        deleted => deleted,
    }
}

#[allow(unsafe_code)]
fn delete_one(parent: &Path, name: &OsStr) -> io::Result<()> {
    let (parent, args) = (File::open(parent)?, volume_args(name.as_bytes())?);
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::subvolume_destroy(parent.as_raw_fd(), &args) }?;
    Ok(())
}

/// The subvolumes below a directory that nobody writes any more.
fn subvolumes_in(root: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Of the entry itself: links are not followed.
            let meta = entry.metadata()?;
            if meta.is_dir() {
                if meta.ino() == SUBVOLUME_ROOT_INODE {
                    found.push(entry.path());
                }
                dirs.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The id of the subvolume that `dir` is in; its qgroup is `0/<id>`.
#[allow(unsafe_code)]
pub(crate) fn subvolume_id(dir: &File) -> io::Result<u64> {
    let mut args = InodeLookupArgs { tree: 0, object: SUBVOLUME_ROOT_INODE, name: [0; 4080] };
    // SAFETY: `args` is a live structure of the kernel's layout that the call may write.
    unsafe { raw::inode_lookup(dir.as_raw_fd(), &mut args) }?;
    Ok(args.tree)
}

/// The id of the subvolume whose root is at `path`; none if nothing or something else is there.
pub(crate) fn subvolume_at(path: &Path) -> io::Result<Option<u64>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(dir) if dir.metadata()?.ino() != SUBVOLUME_ROOT_INODE => Ok(None),
        Ok(dir) => subvolume_id(&dir).map(Some),
    }
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
/// Simple quotas (kernel 6.7) charge an extent to the subvolume that wrote it, and spare the walk of
/// back references: with a hundred copies of a disk, touching every file of one of them keeps full
/// quotas, and with them every commit of the pool, busy for half a minute. Older kernels have only
/// the full ones.
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

/// Whether the quotas of the file system with sysfs directory `sysfs` are simple ones.
pub(crate) fn has_simple_quotas(sysfs: &Path) -> bool {
    std::fs::read_to_string(sysfs.join("qgroups/mode")).is_ok_and(|mode| mode.trim() == "squota")
}

/// Limits what a qgroup holds to `bytes`, file system overhead included.
#[allow(unsafe_code)]
pub(crate) fn set_limit(dir: &File, qgroup: u64, bytes: u64) -> io::Result<()> {
    let mut args = QgroupLimitArgs {
        qgroup,
        flags: LIMIT_MAX_REFERENCED,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: `args` is a live structure of the kernel's layout that the call may write.
    unsafe { raw::qgroup_limit(dir.as_raw_fd(), &mut args) }?;
    Ok(())
}

/// The id of the group of qgroups that is named after a subvolume.
pub(crate) fn group_of(subvolume: u64) -> u64 {
    1 << LEVEL_SHIFT | subvolume
}

/// The subvolume that a qgroup belongs to, or that a group of qgroups is named after.
pub(crate) fn subvolume_of(qgroup: u64) -> u64 {
    qgroup & ((1 << LEVEL_SHIFT) - 1)
}

/// Whether this is a group of qgroups.
pub(crate) fn is_group(qgroup: u64) -> bool {
    qgroup >> LEVEL_SHIFT > 0
}

/// Makes a group of qgroups. Subvolumes have theirs from the beginning.
#[allow(unsafe_code)]
pub(crate) fn create_group(dir: &File, id: u64) -> io::Result<()> {
    let args = QgroupCreateArgs { create: 1, qgroup: id };
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::qgroup_create(dir.as_raw_fd(), &args) }?;
    Ok(())
}

/// Puts a subvolume's qgroup into a group, or takes it out: `NotFound` if it was not in it.
#[allow(unsafe_code)]
pub(crate) fn assign(dir: &File, member: u64, group: u64, assign: bool) -> io::Result<()> {
    let args = QgroupAssignArgs { assign: assign.into(), member, group };
    // SAFETY: `args` is a live structure of the kernel's layout, only read by the call.
    unsafe { raw::qgroup_assign(dir.as_raw_fd(), &args) }?;
    Ok(())
}

/// Removes a qgroup. Kernels from 6.11 do that by themselves when a subvolume is gone (`NotFound`
/// here), those before never; `ResourceBusy` means that the subvolume is not yet freed, that
/// something charged to it is still held, or that the group has members.
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
    let dir = qgroup_dir(sysfs, id);
    Ok(number(&dir.join("referenced"))?.saturating_add(number(&dir.join("rsv_data"))?))
}

/// The limit of a qgroup, bytes.
pub(crate) fn qgroup_limit(sysfs: &Path, id: u64) -> io::Result<u64> {
    number(&qgroup_dir(sysfs, id).join("max_referenced"))
}

/// The directory that says what there is to say of a qgroup; there if the qgroup is.
pub(crate) fn qgroup_dir(sysfs: &Path, id: u64) -> PathBuf {
    sysfs.join(format!("qgroups/{}_{}", id >> LEVEL_SHIFT, subvolume_of(id)))
}

fn number(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Ids of all qgroups.
pub(crate) fn qgroups(sysfs: &Path) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(sysfs.join("qgroups"))? {
        let name = entry?.file_name();
        let Some((level, id)) = name.to_str().and_then(|name| name.split_once('_')) else {
            continue;
        };
        if let (Ok(level), Ok(id)) = (level.parse::<u16>(), id.parse::<u64>()) {
            ids.push(u64::from(level) << LEVEL_SHIFT | id);
        }
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
        assert_eq!(size_of::<SnapshotArgs>(), 4096);
        assert_eq!(size_of::<InodeLookupArgs>(), 4096);
        assert_eq!(size_of::<FileSystemInfo>(), 1024);
        assert_eq!(size_of::<QuotaArgs>(), 16);
        assert_eq!(size_of::<QgroupAssignArgs>(), 24);
        assert_eq!(size_of::<QgroupCreateArgs>(), 16);
        assert_eq!(size_of::<QgroupLimitArgs>(), 48);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(volume_args(b"").is_err());
        assert!(volume_args(&[b'x'; 4088]).is_err());
        assert!(volume_args(&[b'x'; 4087]).is_ok());
    }
}
