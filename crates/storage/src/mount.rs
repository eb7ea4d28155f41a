//! What is mounted where, from `/proc/self/mountinfo`.

use std::{
    io,
    path::{Path, PathBuf},
};

/// One line of mountinfo, as far as the pool cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// File system type.
    pub(crate) kind: String,
    /// The device.
    pub(crate) source: PathBuf,
    /// The file system itself can be written, whatever the mount says.
    pub(crate) writable: bool,
}

/// The topmost mount at exactly `point`, a path without symbolic links.
pub(crate) fn find(point: &Path) -> io::Result<Option<Mount>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?, point))
}

/// The file behind a loop device, if `device` is one.
pub(crate) fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    Some(PathBuf::from(std::fs::read_to_string(path).ok()?.trim_end_matches('\n')))
}

/// `36 35 98:0 /root /point rw,nodev shared:1 - btrfs /dev/loop0 rw,space_cache=v2`
fn parse(mountinfo: &str, point: &Path) -> Option<Mount> {
    mountinfo.lines().rev().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        if Path::new(&unescape(mount.split(' ').nth(4)?)) != point {
            return None;
        }
        let mut fields = system.split(' ');
        let (kind, source, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Mount {
            kind: kind.to_owned(),
            source: PathBuf::from(unescape(source)),
            writable: options.split(',').any(|option| option == "rw"),
        })
    })
}

/// The kernel writes blank, tab, newline and backslash in octal.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
40 27 7:0 / /data\\040dir/pool rw,nosuid,nodev shared:9 master:1 - btrfs /dev/loop0 rw,subvol=/
41 27 7:1 / /other rw - btrfs /dev/loop1 rw
42 41 7:2 / /other rw - btrfs /dev/loop2 ro,subvol=/
";

    #[test]
    fn a_mount_is_found_by_its_point() {
        let mount = parse(MOUNTS, Path::new("/data dir/pool")).unwrap();
        assert_eq!(mount.source, Path::new("/dev/loop0"));
        assert_eq!(mount.kind, "btrfs");
        assert!(mount.writable);
        assert_eq!(parse(MOUNTS, Path::new("/data dir")), None);
    }

    #[test]
    fn of_two_mounts_at_a_point_the_later_one_counts() {
        let mount = parse(MOUNTS, Path::new("/other")).unwrap();
        assert_eq!(mount.source, Path::new("/dev/loop2"));
        assert!(!mount.writable);
    }
}
