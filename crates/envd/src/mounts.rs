//! What is mounted in the sandbox, as the kernel tells it. Nothing here touches a mounted file
//! system, which might not answer, but [`flush`].

use std::{
    collections::HashSet,
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// File systems on a disk of the sandbox. Those of the kernel, of memory and of other machines have
/// nothing to flush, or might hold a flush up for ever.
const ON_DISK: [&str; 5] = ["overlay", "btrfs", "ext4", "xfs", "f2fs"];

/// A mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`, the same for all mounts of a file system.
    device: String,
    /// Where it is.
    pub path: PathBuf,
    /// Type of the file system.
    kind: String,
    writable: bool,
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn list() -> io::Result<Vec<Mount>> {
    let text = fs::read(MOUNTINFO)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Writes to disk what the sandbox's file systems hold in memory. Blocking, for as long as the disk
/// takes.
///
/// # Errors
/// Of the first file system that cannot be flushed; the others are flushed all the same.
pub fn flush() -> io::Result<()> {
    let mut seen = HashSet::new();
    let mut result = Ok(());
    for mount in list()? {
        let on_disk = mount.writable && ON_DISK.contains(&mount.kind.as_str());
        if on_disk && seen.insert(mount.device.clone()) {
            result = result.and(flush_one(&mount.path));
        }
    }
    result
}

fn flush_one(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let open = rustix::fs::open(path, flags, Mode::empty());
    // What has another mount on top of it cannot be reached, nor written to.
    let Ok(file) = open else { return Ok(()) };
    rustix::fs::syncfs(file)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// A line of `mountinfo`: id, parent, device, root, mount point, options, optional fields, a dash,
/// type, source, options of the file system.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let path = fields.nth(1)?;
    let options = fields.next()?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Mount {
        device: text(device),
        path: OsString::from_vec(unescape(path)).into(),
        kind: text(kind),
        writable: options.split(|byte| *byte == b',').any(|option| option == b"rw"),
    })
}

/// Blanks and backslashes stand in octal, as `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let escaped = (*byte == b'\\').then(|| after.get(..3)).flatten().and_then(octal);
        out.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Whether something is mounted at exactly this path, an absolute one.
pub fn is_mount_point(mounts: &[Mount], path: &str) -> bool {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    };
    mounts.iter().any(|mount| mount.path.as_os_str().as_bytes() == path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line =
            br"36 35 98:0 /mnt1 /mnt/a\040b\134 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.path, Path::new(r"/mnt/a b\"));
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("98:0", "ext3"));
        assert!(mount.writable);
        assert!(!parse(b"1 2 0:1 / / ro - overlay overlay rw").unwrap().writable);
        for broken in [&b""[..], b"1 2 0:1 / /", b"1 2 0:1 / / rw shared:1"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn mount_points_are_those_of_the_kernel() {
        let mounts = list().unwrap();
        assert!(is_mount_point(&mounts, "/") && is_mount_point(&mounts, "/proc/"));
        assert!(!is_mount_point(&mounts, "/proc/self") && !is_mount_point(&mounts, "proc"));
        flush().unwrap();
    }
}
