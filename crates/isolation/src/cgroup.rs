//! Limits and accounting, on cgroup v1, v2 and hosts that mix them.
//!
//! ```text
//! atoll-<instance>/           what all sandboxes together may have
//!     <name>/                 one sandbox: its limits, and what it uses
//!         user/               whatever users start: a little less than the sandbox's limits
//!         envd/               envd alone, for which the rest is kept
//! ```
//!
//! So users who take all memory, or all process numbers, take them from each other, and envd can
//! still answer. Processes are in the lowest groups only, as v2 demands. A hierarchy of v1 that has
//! neither memory nor pids has no need of the lowest two.
//!
//! Which controller is where (`hierarchies`) is found out once; nothing else in Atoll knows of
//! versions.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use atoll_core::{Error, InstanceId, Result, error::codes};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use crate::hierarchies::Hierarchies;
use crate::{
    Limits,
    hierarchies::{Controller, delegate},
};

const CPU_PERIOD_US: u64 = 100_000;
/// Where users' processes are, and the launcher before.
const USER: &str = "user";
/// Where envd is once it runs.
const ENVD: &str = "envd";

/// What is kept for envd: a share of the sandbox's limit, and no more than this.
const RESERVE_SHARE: u64 = 8;
const MEMORY_RESERVE: u64 = 128 << 20;
const PROCESS_RESERVE: u64 = 64;

/// The file that lists a group's processes, and takes new ones.
const PROCESSES: &str = "cgroup.procs";

/// From vfork(2) to exec(2) a process takes less than one of these.
const FORK_ATTEMPTS: u32 = 100;
const FORK_PAUSE: Duration = Duration::from_millis(2);

const REMOVE_ATTEMPTS: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

impl Controller {
    /// Makes a group of v1's memory controller count, and limit, what its children use: kernels
    /// before 5.11 leave the choice.
    fn count_children(&self, name: &str) -> Result<()> {
        let file = self.directory.join(name).join("memory.use_hierarchy");
        match fs::read_to_string(&file) {
            Ok(text) if number(&text) == 0 => {
                fs::write(&file, "1").map_err(|error| cannot("unite", &file, &error))
            }
            // v2, and newer kernels' v1, know nothing else.
            _ => Ok(()),
        }
    }
}

/// Resource use of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far, microseconds.
    pub cpu_us: u64,
    /// Memory without what the kernel could drop at once, bytes.
    pub memory: u64,
    /// Page cache, bytes.
    pub cache: u64,
}

/// The groups of one instance.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Hierarchies,
    name: String,
}

impl Cgroups {
    /// Makes the instance's parent groups.
    ///
    /// # Errors
    /// `HOST_FEATURE_MISSING` when a hierarchy is missing or cannot be written.
    pub fn open(instance: &InstanceId) -> Result<Self> {
        Self::open_in(Hierarchies::detect()?, instance)
    }

    pub(crate) fn open_in(hierarchies: Hierarchies, instance: &InstanceId) -> Result<Self> {
        let name = format!("atoll-{instance}");
        for root in hierarchies.roots() {
            let directory = root.join(&name);
            make(&directory).map_err(|error| cannot("create", &directory, &error))?;
        }
        if let Some(root) = &hierarchies.unified {
            delegate(root, &root.join(&name), &["cpu", "memory", "pids"])?;
        }
        hierarchies.memory.count_children(&name)?;
        let all = hierarchies.pids.directory.join(&name).join("pids.max");
        fs::write(&all, most_processes().to_string())
            .map_err(|error| cannot("limit", &all, &error))?;
        Ok(Self { hierarchies, name })
    }

    /// Where this host's controllers are.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// A group for one sandbox, without limits yet.
    ///
    /// # Errors
    /// `SANDBOX_START_FAILED` when the kernel refuses; nothing is left then.
    pub fn create(&self, name: &str) -> Result<Cgroup> {
        let cgroup = self.group(name);
        let made = cgroup.directories.iter().try_for_each(|directory| {
            // One that exists may hold processes of an earlier run: it is not to be shared.
            fs::create_dir(directory).map_err(|error| {
                Error::new(
                    codes::SANDBOX_START_FAILED,
                    format!("cannot create the cgroup {}: {error}.", directory.display()),
                )
            })
        });
        // Processor time needs no parts: envd's priority is enough, within one group.
        let shared = made.and_then(|()| match (&self.hierarchies.unified, &cgroup.unified) {
            (Some(root), Some(directory)) => delegate(root, directory, &["memory", "pids"]),
            _ => Ok(()),
        });
        if let Err(error) = shared {
            cgroup.try_remove();
            return Err(error);
        }
        Ok(cgroup)
    }

    fn group(&self, name: &str) -> Cgroup {
        let place = |controller: &Controller| Controller {
            directory: controller.directory.join(&self.name).join(name),
            unified: controller.unified,
        };
        let roots = self.hierarchies.roots();
        let (split, whole): (Vec<PathBuf>, Vec<PathBuf>) =
            roots.into_iter().partition(|root| self.hierarchies.is_split(root));
        let place_all = |roots: Vec<PathBuf>| -> Vec<PathBuf> {
            roots.into_iter().map(|root| root.join(&self.name).join(name)).collect()
        };
        let (split, whole) = (place_all(split), place_all(whole));
        let part = |part: &str| split.iter().map(|group| group.join(part)).collect::<Vec<_>>();
        let (user, envd) = (part(USER), part(ENVD));
        Cgroup {
            directories: [&whole, &split, &user, &envd].into_iter().flatten().cloned().collect(),
            user: [whole, user].concat(),
            envd,
            memory: place(&self.hierarchies.memory),
            pids: place(&self.hierarchies.pids),
            cpu: place(&self.hierarchies.cpu),
            accounting: place(&self.hierarchies.accounting),
            freezer: self.hierarchies.freezer.as_ref().map(place),
            name: name.to_owned(),
            unified: self.hierarchies.unified.as_ref().map(|root| root.join(&self.name).join(name)),
        }
    }

    /// Every group of this instance that exists, by name.
    pub fn existing(&self) -> Vec<(String, Cgroup)> {
        let mut names: Vec<String> = self
            .hierarchies
            .roots()
            .iter()
            .filter_map(|root| fs::read_dir(root.join(&self.name)).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names.into_iter().map(|name| (name.clone(), self.group(&name))).collect()
    }

    /// The group of this name, if it exists.
    pub fn find(&self, name: &str) -> Option<Cgroup> {
        // Looked for among those there are: so the name cannot lead anywhere else.
        self.existing().into_iter().find(|(existing, _)| existing == name).map(|(_, group)| group)
    }

    /// Removes the instance's parent groups, if they are empty.
    pub fn remove(&self) {
        for root in self.hierarchies.roots() {
            // A group still in use is not empty, and stays.
            let _ = fs::remove_dir(root.join(&self.name));
        }
    }
}

/// What all sandboxes together may have, so that the host can always start a process: three
/// quarters of what the kernel allows.
fn most_processes() -> u64 {
    const KERNEL_DEFAULT: u64 = 32_768;
    let limits = ["pid_max", "threads-max"].iter().filter_map(|name| {
        fs::read_to_string(Path::new("/proc/sys/kernel").join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    });
    limits.min().unwrap_or(KERNEL_DEFAULT) / 4 * 3
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn cannot(verb: &str, directory: &Path, error: &io::Error) -> Error {
    Error::new(
        codes::HOST_FEATURE_MISSING,
        format!("cannot {verb} the cgroup {}: {error}.", directory.display()),
    )
    .with_fix("Run Atoll as root, with the cgroup file systems mounted writable.")
}

/// One sandbox's group, in every hierarchy. Dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    name: String,
    /// All of them, those above before those below.
    directories: Vec<PathBuf>,
    /// Those that users' processes are in, one in each hierarchy.
    user: Vec<PathBuf>,
    /// Those that envd is moved to; it stays where it is in the other hierarchies.
    envd: Vec<PathBuf>,
    memory: Controller,
    pids: Controller,
    cpu: Controller,
    accounting: Controller,
    freezer: Option<Controller>,
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// Its name, which no other group of the instance has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files that a process writes `0` to in order to join, as a user's.
    pub fn join_files(&self) -> Vec<PathBuf> {
        self.user.iter().map(|directory| directory.join(PROCESSES)).collect()
    }

    /// Moves the first process, alone, to where users' processes cannot starve it. Those it has
    /// forked already stay. The kernel may take tens of milliseconds. One that is apart already, as
    /// adopted ones are, is not touched.
    ///
    /// The caller must see to it that `pid` is not reaped meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses; a process that has ended is left alone.
    pub fn set_apart(&self, pid: u32) -> io::Result<()> {
        for directory in &self.envd {
            if listed(directory).contains(&pid) {
                continue;
            }
            match fs::write(directory.join(PROCESSES), pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// Sets the sandbox's limits.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn limit(&self, limits: Limits) -> io::Result<()> {
        let quota = u64::from(limits.vcpu.max(1)) * CPU_PERIOD_US;
        let processes = u64::from(limits.processes);
        self.pids.set("pids.max", processes)?;
        self.pids.part(USER).set("pids.max", of_users(processes, PROCESS_RESERVE))?;
        if self.cpu.unified {
            self.cpu.set("cpu.max", format!("{quota} {CPU_PERIOD_US}"))?;
        } else {
            self.cpu.set("cpu.cfs_period_us", CPU_PERIOD_US)?;
            self.cpu.set("cpu.cfs_quota_us", quota)?;
        }
        self.memory.limit_memory(limits.memory)?;
        self.memory.part(USER).limit_memory(of_users(limits.memory, MEMORY_RESERVE))
    }

    /// Resource use so far.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn usage(&self) -> io::Result<Usage> {
        let read = |controller: &Controller, file: &str| {
            fs::read_to_string(controller.directory.join(file))
        };
        let cpu_us = if self.accounting.unified {
            field(&read(&self.accounting, "cpu.stat")?, "usage_usec")
        } else {
            number(&read(&self.accounting, "cpuacct.usage")?) / 1000
        };
        let statistics = read(&self.memory, "memory.stat")?;
        let (total, cache) = if self.memory.unified {
            (number(&read(&self.memory, "memory.current")?), field(&statistics, "file"))
        } else {
            let usage = number(&read(&self.memory, "memory.usage_in_bytes")?);
            (usage, field(&statistics, "total_cache"))
        };
        Ok(Usage { cpu_us, memory: total.saturating_sub(cache), cache })
    }

    /// Processes killed so far because the group's memory was used up.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let read = |controller: &Controller, file: &str| {
            Ok(field(&fs::read_to_string(controller.directory.join(file))?, "oom_kill"))
        };
        if self.memory.unified {
            return read(&self.memory, "memory.events");
        }
        // v1 counts each where its victim was.
        let parts = [self.memory.clone(), self.memory.part(USER), self.memory.part(ENVD)];
        parts.iter().map(|part| read(part, "memory.oom_control")).sum()
    }

    /// Processes of the group that the host sees.
    pub fn processes(&self) -> Vec<u32> {
        self.directories.iter().flat_map(|directory| listed(directory)).collect()
    }

    /// Stops every process of the group, and returns when none runs any more. Blocks for as long as
    /// the kernel takes; when that is too long, they all go on. One that is stopped already stays so.
    ///
    /// # Errors
    /// `Unsupported` when this host cannot, `TimedOut` when the processes do not stop; or as the
    /// kernel says, for one when the group is gone.
    pub fn freeze(&self) -> io::Result<()> {
        self.freezer()?.freeze()
    }

    /// Brings a frozen group of v2 past all that is between vfork(2) and exec(2), where nothing but the
    /// freezer can stop it, and freezes it again. Blocks as [`freeze`](Self::freeze) does.
    ///
    /// # Errors
    /// As for [`freeze`](Self::freeze); `TimedOut` also when one stays there, and it is frozen then.
    pub(crate) fn freeze_outside_forks(&self) -> io::Result<()> {
        let freezer = self.freezer()?;
        for _ in 0..FORK_ATTEMPTS {
            if !freezer.is_in_fork(&[USER, ENVD]) {
                return Ok(());
            }
            freezer.thaw()?;
            std::thread::sleep(FORK_PAUSE);
            freezer.freeze()?;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Lets the processes go on. May block for a while, as any change of a group may.
    ///
    /// # Errors
    /// As for [`freeze`](Self::freeze), apart from `TimedOut`.
    pub fn thaw(&self) -> io::Result<()> {
        self.freezer()?.thaw()
    }

    pub(crate) fn freezer(&self) -> io::Result<&Controller> {
        self.freezer.as_ref().ok_or(io::ErrorKind::Unsupported.into())
    }

    /// The group in the v2 hierarchy, where that can be frozen.
    pub(crate) fn unified_freezer(&self) -> Option<&Path> {
        let freezer = self.freezer.as_ref().filter(|freezer| freezer.unified)?;
        Some(&freezer.directory)
    }

    /// Whether a process that is killed while it is frozen ends only when it is thawed.
    pub(crate) fn outlives_kill_when_frozen(&self) -> bool {
        self.freezer.as_ref().is_some_and(|freezer| !freezer.unified)
    }

    /// Sends SIGKILL to every process of the group, frozen or not.
    pub fn kill(&self) {
        let at_once = self
            .unified
            .as_ref()
            .is_some_and(|directory| fs::write(directory.join("cgroup.kill"), "1").is_ok());
        if !at_once {
            self.processes().into_iter().for_each(|pid| self.kill_member(pid));
        }
        // Not before: they would run again for a moment. It fails when the group is gone.
        if self.outlives_kill_when_frozen() {
            let _ = self.thaw();
        }
    }

    /// Kills one process. It is looked up again once it is held: the number that was listed may
    /// have become another's.
    fn kill_member(&self, pid: u32) {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        // It may have ended since it was listed.
        let Ok(held) = pidfd_open(number, PidfdFlags::empty()) else { return };
        if self.processes().contains(&pid) {
            let _ = pidfd_send_signal(held, Signal::KILL);
        }
    }

    /// Removes the group once its last process is gone, ending what is left in it.
    ///
    /// # Errors
    /// When the kernel still holds it after a second.
    pub async fn remove(&self) -> io::Result<()> {
        for _ in 0..REMOVE_ATTEMPTS {
            if self.try_remove() {
                return Ok(());
            }
            self.kill();
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
        let left: Vec<String> = self
            .directories
            .iter()
            .filter(|directory| directory.exists())
            .map(|directory| directory.display().to_string())
            .collect();
        Err(io::Error::other(format!("cgroups are still in use: {}", left.join(", "))))
    }

    /// Removes what can be removed; true when nothing is left.
    fn try_remove(&self) -> bool {
        // Those below first.
        let left =
            self.directories.iter().rev().filter(|directory| match fs::remove_dir(directory) {
                Ok(()) => false,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            });
        left.count() == 0
    }
}

/// The processes in a group, as the host numbers them.
fn listed(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// What users may have of a limit.
fn of_users(limit: u64, most_kept: u64) -> u64 {
    limit - (limit / RESERVE_SHARE).min(most_kept)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The number behind `name` in a file of such lines.
pub(crate) fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .map_or(0, |(_, value)| number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { vcpu: 2, memory: 512 << 20, processes: 1000 };

    /// A sandbox's group, limited, in a directory that stands for the hierarchies of `table`.
    fn limited(table: &str, offered: &str) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap();
        let table = table.replace("/sys/fs/cgroup", root);
        let hierarchies = Hierarchies::from_table(&table, &|_| offered.to_owned()).unwrap();
        for root in hierarchies.roots() {
            fs::create_dir_all(root.join("atoll-abcdef")).unwrap();
            fs::write(root.join("cgroup.controllers"), offered).unwrap();
        }
        let cgroups = Cgroups { hierarchies, name: "atoll-abcdef".to_owned() };
        let cgroup = cgroups.create("b0").unwrap();
        cgroup.limit(LIMITS).unwrap();
        (directory, cgroup)
    }

    fn relative(directory: &tempfile::TempDir, paths: &[PathBuf]) -> Vec<String> {
        let relative = |path: &PathBuf| path.strip_prefix(directory.path()).unwrap().to_owned();
        let mut names: Vec<String> =
            paths.iter().map(|path| relative(path).to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn on_v1_users_have_a_part_where_memory_or_processes_are_counted() {
        let (directory, cgroup) = limited(crate::hierarchies::MIXED, "hugetlb");
        assert_eq!(
            relative(&directory, &cgroup.join_files()),
            [
                "cpu,cpuacct/atoll-abcdef/b0/cgroup.procs",
                "memory/atoll-abcdef/b0/user/cgroup.procs",
                "pids/atoll-abcdef/b0/user/cgroup.procs",
                "unified/atoll-abcdef/b0/user/cgroup.procs",
            ]
        );
        assert_eq!(
            relative(&directory, &cgroup.envd),
            [
                "memory/atoll-abcdef/b0/envd",
                "pids/atoll-abcdef/b0/envd",
                "unified/atoll-abcdef/b0/envd",
            ]
        );
        let read = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
        assert_eq!(read("memory/atoll-abcdef/b0/memory.limit_in_bytes"), "536870912");
        assert_eq!(read("memory/atoll-abcdef/b0/user/memory.limit_in_bytes"), "469762048");
        assert_eq!(read("memory/atoll-abcdef/b0/user/memory.memsw.limit_in_bytes"), "469762048");
        assert_eq!(read("pids/atoll-abcdef/b0/pids.max"), "1000");
        assert_eq!(read("pids/atoll-abcdef/b0/user/pids.max"), "936");
        let unified = directory.path().join("unified/atoll-abcdef/b0");
        assert!(!unified.join("cgroup.subtree_control").exists());
    }

    #[test]
    fn on_v2_no_process_is_beside_a_group() {
        let table = "29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let (directory, cgroup) = limited(table, "cpuset cpu io memory pids");
        assert_eq!(
            relative(&directory, &cgroup.join_files()),
            ["atoll-abcdef/b0/user/cgroup.procs"]
        );
        assert_eq!(relative(&directory, &cgroup.envd), ["atoll-abcdef/b0/envd"]);
        let read = |file: &str| {
            fs::read_to_string(directory.path().join("atoll-abcdef/b0").join(file)).unwrap()
        };
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
        assert_eq!(
            (read("memory.max"), read("user/memory.max")),
            ("536870912".into(), "469762048".into())
        );
        assert_eq!((read("pids.max"), read("user/pids.max")), ("1000".into(), "936".into()));
        assert_eq!(read("cpu.max"), "200000 100000");
    }

    #[test]
    fn what_is_kept_for_envd_does_not_grow_with_the_sandbox() {
        assert_eq!(of_users(8 << 30, MEMORY_RESERVE), (8 << 30) - (128 << 20));
        assert_eq!(of_users(64 << 20, MEMORY_RESERVE), 56 << 20);
    }

    #[test]
    fn statistics() {
        let text = "cache 12\nfile 34\nusage_usec 56\n";
        assert_eq!(field(text, "file"), 34);
        assert_eq!(field(text, "absent"), 0);
    }
}
