//! Which CRIU there is, and what it is told.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
};

use atoll_launcher::checkpoint::{BOOT_ID, EMPTY, FREEZER, HOOK, IMAGES, LOG_FD, NET_NS_FD};
use tokio::process::Command;

use super::{Error, target::Target};

/// The oldest that can be used: those before cannot dump a process that holds a TCP socket on newer
/// kernels, and envd always does.
pub const OLDEST: Version = Version(4, 2, 1);

/// Where a restore leaves the first process's number, below its directory for work.
pub(crate) const PID_FILE: &str = "pid";

/// A tree's path of the program.
const PROGRAM: &str = "usr/sbin/criu";
/// Where a tree may have its dynamic linker, and the libraries for it.
const LINKERS: [(&str, &str); 2] = [
    ("lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
    ("lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
];

/// What connects the network namespace of a dump to that of a restore.
const SLOT: &str = "slot";
/// As `SLOT`, for the list of processors.
const PROCESSORS: &str = "cpus";
/// What there is in the launcher's file system of devices.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", EMPTY, BOOT_ID];

/// How long it may take CRIU to stop processes that are frozen: seconds. It takes milliseconds, or never.
const PATIENCE: u32 = 3;

/// The largest file without a name, but open, that is kept in the images: bytes.
const LARGEST_NAMELESS: u64 = 128 << 20;

/// A release's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A CRIU that is there and not too old.
#[derive(Clone, Debug)]
pub struct Criu {
    /// Directory with `usr` and the like: `/`, or one that CRIU was unpacked to.
    tree: PathBuf,
    /// The program, below the tree.
    program: PathBuf,
    version: Version,
}

impl Criu {
    /// The one in `tree`, which has its libraries, tar and gzip with it; or else the host's own.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none, it does not run or is older than [`OLDEST`].
    pub async fn find(tree: Option<&Path>) -> Result<Self, Error> {
        // It is run with another working directory.
        let tree = tree.map(std::path::absolute).transpose();
        let tree = tree.map_err(|error| missing(format!("its directory is unknown: {error}")))?;
        let (tree, program) = match tree {
            Some(tree) if tree.join(PROGRAM).is_file() => (tree, PathBuf::from(PROGRAM)),
            Some(tree) => return Err(missing(format!("{} has no {PROGRAM}", tree.display()))),
            None => (PathBuf::from("/"), in_path().ok_or_else(|| missing("there is no criu"))?),
        };
        let mut criu = Self { tree, program, version: OLDEST };
        let command = criu.on_host();
        let output = Command::new(&command[0])
            .args(&command[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| missing(format!("{} does not run: {error}", command[0])))?;
        let text = String::from_utf8_lossy(&output.stdout);
        criu.version = parse_version(&text).ok_or_else(|| missing("it tells no version"))?;
        if criu.version < OLDEST {
            return Err(missing(format!("{} is older than {OLDEST}", criu.version)));
        }
        Ok(criu)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The directory that has it, and what it needs.
    pub(crate) fn tree(&self) -> &Path {
        &self.tree
    }

    /// How to run it from the host: a tree's program by the tree's own dynamic linker.
    fn on_host(&self) -> Vec<String> {
        let text = |path: &str| self.tree.join(path).to_string_lossy().into_owned();
        let program = self.tree.join(&self.program).to_string_lossy().into_owned();
        if self.tree == Path::new("/") {
            return vec![program];
        }
        match LINKERS.iter().find(|(linker, _)| self.tree.join(linker).exists()) {
            Some((linker, libraries)) => {
                vec![text(linker), "--library-path".to_owned(), text(libraries), program]
            }
            None => vec![program],
        }
    }

    /// How to run it where the launcher has put the tree at the root.
    fn inside(&self) -> Arguments {
        Arguments(vec![Path::new("/").join(&self.program).to_string_lossy().into_owned()])
    }

    /// The command that dumps `target`, which may be frozen, where the launcher's `DumpSpec` says.
    pub(crate) fn dump(&self, target: &Target, frozen: bool) -> Vec<String> {
        let mut command = self.inside();
        command.all(&["dump", "--leave-running"]);
        command.pair("--tree", target.pid);
        command.pair("--images-dir", format!("/{IMAGES}"));
        // Its statistics come last, when the images are sealed: they go beside them.
        command.pair("--work-dir", "/");
        // While they are stopped: see the launcher's hook.
        command.pair("--action-script", format!("/{HOOK}"));
        command.common();
        command.pair("--timeout", PATIENCE);
        // Connections that nobody has accepted yet would fail it; their other ends try again.
        command.all(&["--skip-in-flight"]);
        command.pair("--ghost-limit", LARGEST_NAMELESS);
        command.pair("--external", format!("net[{}]:{SLOT}", target.net_ns));
        for (point, node) in &target.devices {
            command.pair("--external", format!("mnt[{point}]:{node}"));
        }
        if let Some(point) = &target.processors {
            command.pair("--external", format!("mnt[{point}]:{PROCESSORS}"));
        }
        if let Some(log) = &target.log {
            command.pair("--external", log);
        }
        // overlayfs cannot say what file an inotify watch is on: it is looked for. Without watches
        // this costs nothing.
        command.all(&["--force-irmap"]);
        for directory in &target.directories {
            command.pair("--irmap-scan-path", directory);
        }
        if frozen {
            command.pair("--freeze-cgroup", format!("/{FREEZER}"));
        }
        command.0
    }

    /// The command that restores where the launcher's `RestoreSpec` says, with `old_log` the pipe
    /// that was the log at the dump.
    pub(crate) fn restore(&self, old_log: Option<&str>) -> Vec<String> {
        let mut command = self.inside();
        // As a sibling of CRIU, and so a child of the daemon.
        command.all(&["restore", "--restore-detached", "--restore-sibling"]);
        command.pair("--images-dir", format!("/{IMAGES}"));
        command.pair("--work-dir", "/work");
        command.pair("--pidfile", format!("/work/{PID_FILE}"));
        command.pair("--root", "/root");
        command.common();
        command.pair("--inherit-fd", format!("fd[{NET_NS_FD}]:{SLOT}"));
        if let Some(log) = old_log {
            command.pair("--inherit-fd", format!("fd[{LOG_FD}]:{log}"));
        }
        for node in DEVICES {
            command.pair("--external", format!("mnt[{node}]:/dev/{node}"));
        }
        command.pair("--external", format!("mnt[{PROCESSORS}]:/cpus"));
        command.0
    }
}

/// A command that grows.
struct Arguments(Vec<String>);

impl Arguments {
    fn all(&mut self, arguments: &[&str]) {
        self.0.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    fn pair(&mut self, option: &str, value: impl ToString) {
        self.0.extend([option.to_owned(), value.to_string()]);
    }

    /// What holds for both.
    fn common(&mut self) {
        self.all(&[
            // Errors only.
            "-v1",
            // Not the host's root.
            "--unprivileged",
            // Connections within the sandbox live on.
            "--tcp-established",
            // The control group is the driver's, and rules about packets are the slot's.
            "--manage-cgroups=ignore",
            "--file-locks",
            // Files that are open under a name that is gone.
            "--link-remap",
        ]);
        self.pair("--network-lock", "skip");
    }
}

fn missing(cause: impl Into<String>) -> Error {
    Error::Missing(cause.into())
}

/// The program in `PATH`, without the leading slash.
fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("criu")).find(|at| at.is_file())?;
    let found = std::path::absolute(found).ok()?;
    found.strip_prefix("/").ok().map(Path::to_path_buf)
}

/// From `Version: 4.2.1` and the like; a part that is left out is zero.
fn parse_version(text: &str) -> Option<Version> {
    let line = text.lines().find_map(|line| line.strip_prefix("Version:"))?;
    let number = line.trim().split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut parts = number.split('.').map(str::parse::<u32>);
    let first = parts.next()?.ok()?;
    let mut next = || parts.next().and_then(Result::ok).unwrap_or(0);
    Some(Version(first, next(), next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let parse = |text: &str| parse_version(text);
        assert_eq!(parse("Version: 4.2.1\n"), Some(Version(4, 2, 1)));
        assert_eq!(parse("Version: 3.17\nGitID: v3.17-1\n"), Some(Version(3, 17, 0)));
        assert_eq!(parse("Version: 5.0-rc1\n"), Some(Version(5, 0, 0)));
        assert!(parse("Version: 4.2.1").is_some_and(|version| version >= OLDEST));
        assert!(parse("Version: 4.2").is_some_and(|version| version < OLDEST));
        for bad in ["", "4.2.1", "Version:", "Version: new"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_dump_and_its_restore_name_the_same_things() {
        let criu = Criu { tree: "/".into(), program: "usr/sbin/criu".into(), version: OLDEST };
        let target = Target {
            pid: 42,
            first_uid: 65536,
            net_ns: 4_026_531_833,
            devices: vec![("/proc/kmsg".to_owned(), "null".to_owned())],
            processors: Some("/sys/devices/system/cpu".to_owned()),
            log: Some("pipe:[7]".to_owned()),
            directories: vec!["/home".to_owned()],
            boot_id: String::new(),
        };
        let dump = criu.dump(&target, false);
        let restore = criu.restore(Some("pipe:[7]"));
        let has = |command: &[String], pair: [&str; 2]| command.windows(2).any(|two| two == pair);
        for pair in [
            ["--external", "net[4026531833]:slot"],
            ["--external", "mnt[/proc/kmsg]:null"],
            ["--external", "mnt[/sys/devices/system/cpu]:cpus"],
            ["--external", "pipe:[7]"],
            ["--irmap-scan-path", "/home"],
            ["--tree", "42"],
        ] {
            assert!(has(&dump, pair), "{pair:?} is not in {dump:?}");
        }
        for pair in [
            ["--inherit-fd", "fd[3]:slot"],
            ["--inherit-fd", "fd[4]:pipe:[7]"],
            ["--external", "mnt[null]:/dev/null"],
            ["--external", "mnt[cpus]:/cpus"],
        ] {
            assert!(has(&restore, pair), "{pair:?} is not in {restore:?}");
        }
        assert!(!dump.contains(&"--freeze-cgroup".to_owned()));
    }
}
