//! What is to be dumped, as CRIU has to be told: the parts of it that are not the sandbox's own.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use atoll_network::IDS_PER_SLOT;

use super::images;
use crate::{boot_id, identity::MOST_DESCRIPTORS};

/// The launcher's name of the file system with a sandbox's devices; what hides files and directories
/// of /proc is mounted from there too. Guests cannot mount.
const DEVICES: &str = "devices";
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Where a program may watch files. A dump that meets a watch elsewhere fails; to look through all that
/// a sandbox has could take for ever.
const WATCHED: [&str; 18] = [
    "/app",
    "/code",
    "/data",
    "/etc",
    "/home",
    "/mnt",
    "/media",
    "/opt",
    "/project",
    "/repo",
    "/root",
    "/run",
    "/src",
    "/srv",
    "/tmp",
    "/var",
    "/work",
    "/workspace",
];

/// A sandbox's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first one.
    pub(crate) pid: u32,
    /// Host id of its root.
    pub(crate) first_uid: u32,
    /// Number of the network namespace.
    pub(crate) net_ns: u64,
    /// Mount points of devices, and which device is there.
    pub(crate) devices: Vec<(String, String)>,
    /// Mount point of the list of processors.
    pub(crate) processors: Option<String>,
    /// The log's pipe, as /proc names it.
    pub(crate) log: Option<String>,
    /// Where files may be that somebody watches.
    pub(crate) directories: Vec<String>,
    /// What it takes for its boot's id.
    pub(crate) boot_id: String,
}

impl Target {
    /// Looks at the sandbox whose first process is `pid`, and whose ids begin at `first_uid`. Must not
    /// be reaped meanwhile. Blocks, for as long as the kernel takes.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn read(pid: u32, first_uid: u32) -> io::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let table = fs::read_to_string(proc.join("mountinfo"))?;
        let (devices, processors) = mounts(&table);
        Ok(Self {
            pid,
            first_uid,
            net_ns: fs::metadata(proc.join("ns/net"))?.ino(),
            devices,
            processors,
            log: log(&proc, first_uid)?,
            directories: directories(&proc.join("root")),
            boot_id: boot_id(&proc.join("root"))?,
        })
    }
}

/// Devices, and the processors, from a mountinfo(5) table.
fn mounts(table: &str) -> (Vec<(String, String)>, Option<String>) {
    let mut devices = Vec::new();
    let mut processors = None;
    for line in table.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else { continue };
        let mut fields = fields.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let mut rest = rest.split(' ');
        if (rest.next(), rest.next()) == (Some("tmpfs"), Some(DEVICES)) {
            devices.push((point.to_owned(), root.trim_start_matches('/').to_owned()));
        } else if point == PROCESSORS {
            processors = Some(point.to_owned());
        }
    }
    (devices, processors)
}

/// The first process's one pipe that does not belong to any id of the sandbox: it was made outside.
fn log(proc: &Path, first_uid: u32) -> io::Result<Option<String>> {
    for entry in fs::read_dir(proc.join("fd"))?.take(MOST_DESCRIPTORS) {
        let path = entry?.path();
        // Descriptors come and go.
        let (Ok(name), Ok(metadata)) = (fs::read_link(&path), fs::metadata(&path)) else {
            continue;
        };
        let name = name.to_string_lossy();
        let inside = (first_uid..first_uid.saturating_add(IDS_PER_SLOT)).contains(&metadata.uid());
        if name.starts_with("pipe:[") && !inside {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

/// Those of [`WATCHED`] that are directories. Links are left out: they could lead anywhere.
fn directories(root: &Path) -> Vec<String> {
    let is_directory = |name: &&str| {
        let metadata = fs::symlink_metadata(root.join(name.trim_start_matches('/')));
        metadata.is_ok_and(|metadata| metadata.is_dir())
    };
    WATCHED.iter().copied().filter(is_directory).map(str::to_owned).collect()
}

fn boot_id(root: &Path) -> io::Result<String> {
    let content = images::read(&root.join(boot_id::PATH.trim_start_matches('/')));
    let text = String::from_utf8(content.map_err(io::Error::other)?).unwrap_or_default();
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "its boot's id is none");
    Some(text).filter(|text| boot_id::is_one(text)).ok_or_else(strange)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables() {
        let table = "\
247 90 0:119 / / rw,nodev - overlay overlay rw\n\
235 242 0:111 /null /dev/null rw,nosuid - tmpfs devices rw\n\
139 241 0:111 /null /proc/keys rw,nosuid - tmpfs devices rw\n\
143 241 0:111 /empty /proc/pressure ro - tmpfs devices rw\n\
144 241 0:140 / /dev/shm rw - tmpfs tmpfs rw\n\
234 246 0:22 /devices/system/cpu /sys/devices/system/cpu ro - sysfs sysfs ro\n\
broken\n";
        let (devices, processors) = mounts(table);
        let pair = |point: &str, node: &str| (point.to_owned(), node.to_owned());
        assert_eq!(
            devices,
            [
                pair("/dev/null", "null"),
                pair("/proc/keys", "null"),
                pair("/proc/pressure", "empty")
            ]
        );
        assert_eq!(processors.as_deref(), Some("/sys/devices/system/cpu"));
    }

    #[test]
    fn only_directories_are_looked_through() {
        let root = tempfile::tempdir().unwrap();
        for name in ["home", "usr", "proc", "tmp", "elsewhere"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/", root.path().join("srv")).unwrap();
        fs::write(root.path().join("app"), "").unwrap();
        assert_eq!(directories(root.path()), ["/home", "/tmp"]);
    }
}
