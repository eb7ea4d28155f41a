//! Limits and accounting, on cgroup v1, v2 and hosts that mix them.
//!
//! Every group of an instance is `atoll-<instance>/<name>` in each hierarchy. Which controller is
//! where is read from the mount table once; nothing else in Atoll knows of versions.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use atoll_core::{Error, InstanceId, Result, error::codes};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Limits;

const CPU_PERIOD_US: u64 = 100_000;
const REMOVE_ATTEMPTS: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// A controller and the interface it has here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Controller {
    directory: PathBuf,
    unified: bool,
}

/// Where this host's controllers are.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    memory: Controller,
    pids: Controller,
    cpu: Controller,
    accounting: Controller,
    /// The v2 hierarchy, even when it has no controllers: it still ends a whole group at once.
    unified: Option<PathBuf>,
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

impl Hierarchies {
    /// Reads this host's mount table.
    ///
    /// # Errors
    /// `HOST_FEATURE_MISSING` naming the controller that is nowhere.
    pub fn detect() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| {
            Error::new(
                codes::HOST_FEATURE_MISSING,
                format!("the mount table is unreadable: {error}."),
            )
        })?;
        let unified = find_unified(&table);
        if let Some(root) = &unified {
            delegate(root, root)?;
        }
        Self::from_table(&table, &|root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        })
    }

    fn from_table(table: &str, controllers_of: &dyn Fn(&Path) -> String) -> Result<Self> {
        let unified = find_unified(table);
        let offered = unified.as_deref().map(controllers_of).unwrap_or_default();
        let find = |name: &str| -> Option<Controller> {
            if let Some(root) =
                unified.as_ref().filter(|_| offered.split(' ').any(|c| c.trim() == name))
            {
                return Some(Controller { directory: root.clone(), unified: true });
            }
            find_v1(table, name).map(|directory| Controller { directory, unified: false })
        };
        let required = |name: &str| {
            find(name).ok_or_else(|| {
                Error::new(
                    codes::HOST_FEATURE_MISSING,
                    format!("no cgroup hierarchy has the {name} controller."),
                )
                .with_fix(format!(
                    "Boot with the {name} controller enabled (cgroup_enable={name}), or mount cgroup2 at /sys/fs/cgroup."
                ))
            })
        };
        let cpu = required("cpu")?;
        let accounting = if cpu.unified { cpu.clone() } else { required("cpuacct")? };
        Ok(Self { memory: required("memory")?, pids: required("pids")?, cpu, accounting, unified })
    }

    /// One line for people: which version has which controller.
    pub fn describe(&self) -> String {
        let version = |controller: &Controller| if controller.unified { "v2" } else { "v1" };
        format!(
            "memory on {}, pids on {}, cpu on {}",
            version(&self.memory),
            version(&self.pids),
            version(&self.cpu)
        )
    }

    fn roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = [&self.memory, &self.pids, &self.cpu, &self.accounting]
            .into_iter()
            .map(|controller| controller.directory.clone())
            .chain(self.unified.clone())
            .collect();
        roots.sort();
        roots.dedup();
        roots
    }
}

fn mounts(table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    // mountinfo(5): fields, a lone dash, then type, source and super options.
    table.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let point = fields.split(' ').nth(4)?;
        let mut rest = rest.split(' ');
        Some((point, rest.next()?, rest.nth(1).unwrap_or("")))
    })
}

fn find_unified(table: &str) -> Option<PathBuf> {
    mounts(table).find(|(_, kind, _)| *kind == "cgroup2").map(|(point, ..)| PathBuf::from(point))
}

fn find_v1(table: &str, controller: &str) -> Option<PathBuf> {
    mounts(table)
        .find(|(_, kind, options)| {
            *kind == "cgroup" && options.split(',').any(|option| option == controller)
        })
        .map(|(point, ..)| PathBuf::from(point))
}

/// Lets children of `directory` use the controllers that the v2 root has.
fn delegate(root: &Path, directory: &Path) -> Result<()> {
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = ["cpu", "memory", "pids"]
        .iter()
        .filter(|name| offered.split_whitespace().any(|offer| offer == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    fs::write(directory.join("cgroup.subtree_control"), wanted.join(" ")).map_err(|error| {
        Error::new(
            codes::HOST_FEATURE_MISSING,
            format!("cgroup controllers cannot be enabled in {}: {error}.", directory.display()),
        )
        .with_fix(
            "In a container, run Atoll with a cgroup namespace of the host, or outside of it.",
        )
    })
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
        let hierarchies = Hierarchies::detect()?;
        let name = format!("atoll-{instance}");
        for root in hierarchies.roots() {
            let directory = root.join(&name);
            make(&directory).map_err(|error| cannot("create", &directory, &error))?;
        }
        if let Some(root) = &hierarchies.unified {
            delegate(root, &root.join(&name))?;
        }
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
        for directory in &cgroup.directories {
            // One that exists may hold processes of an earlier run: it is not to be shared.
            if let Err(error) = fs::create_dir(directory) {
                cgroup.try_remove();
                return Err(Error::new(
                    codes::SANDBOX_START_FAILED,
                    format!("cannot create the cgroup {}: {error}.", directory.display()),
                ));
            }
        }
        Ok(cgroup)
    }

    fn group(&self, name: &str) -> Cgroup {
        let place = |controller: &Controller| Controller {
            directory: controller.directory.join(&self.name).join(name),
            unified: controller.unified,
        };
        Cgroup {
            directories: self
                .hierarchies
                .roots()
                .iter()
                .map(|root| root.join(&self.name).join(name))
                .collect(),
            memory: place(&self.hierarchies.memory),
            pids: place(&self.hierarchies.pids),
            cpu: place(&self.hierarchies.cpu),
            accounting: place(&self.hierarchies.accounting),
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
    directories: Vec<PathBuf>,
    memory: Controller,
    pids: Controller,
    cpu: Controller,
    accounting: Controller,
    unified: Option<PathBuf>,
}

impl Cgroup {
    /// The files that a process writes `0` to in order to join.
    pub fn join_files(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// Sets the sandbox's limits.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn limit(&self, limits: Limits) -> io::Result<()> {
        let quota = u64::from(limits.vcpu.max(1)) * CPU_PERIOD_US;
        let set = |controller: &Controller, file: &str, value: String| {
            fs::write(controller.directory.join(file), value)
        };
        set(&self.pids, "pids.max", limits.processes.to_string())?;
        if self.cpu.unified {
            set(&self.cpu, "cpu.max", format!("{quota} {CPU_PERIOD_US}"))?;
        } else {
            set(&self.cpu, "cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
            set(&self.cpu, "cpu.cfs_quota_us", quota.to_string())?;
        }
        let memory = limits.memory.to_string();
        // Swap is refused where the kernel accounts for it: a limit of memory is then that.
        if self.memory.unified {
            set(&self.memory, "memory.max", memory)?;
            optional(set(&self.memory, "memory.swap.max", "0".to_owned()))
        } else {
            set(&self.memory, "memory.limit_in_bytes", memory.clone())?;
            // v1 counts socket buffers apart, and without a limit of their own.
            let buffers = (limits.memory / 4).to_string();
            optional(set(&self.memory, "memory.kmem.tcp.limit_in_bytes", buffers))?;
            optional(set(&self.memory, "memory.memsw.limit_in_bytes", memory))
        }
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

    /// Processes of the group that the host sees.
    pub fn processes(&self) -> Vec<u32> {
        self.directories
            .iter()
            .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect()
    }

    /// Sends SIGKILL to every process of the group.
    pub fn kill(&self) {
        let at_once = self
            .unified
            .as_ref()
            .is_some_and(|directory| fs::write(directory.join("cgroup.kill"), "1").is_ok());
        if !at_once {
            self.processes().into_iter().for_each(|pid| self.kill_member(pid));
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
        let left = self.directories.iter().filter(|directory| match fs::remove_dir(directory) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
        left.count() == 0
    }
}

fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Without swap accounting the file exists on some kernels and refuses.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .map_or(0, |(_, value)| number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn a_host_that_mixes_both_takes_controllers_where_they_are() {
        let found = Hierarchies::from_table(MIXED, &|_| "hugetlb".to_owned()).unwrap();
        assert!(!found.memory.unified && !found.cpu.unified);
        assert_eq!(found.cpu.directory, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(found.roots().len(), 4);
    }

    #[test]
    fn a_pure_v2_host_has_one_root() {
        let table = "29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let found =
            Hierarchies::from_table(table, &|_| "cpuset cpu io memory pids\n".to_owned()).unwrap();
        assert!(found.memory.unified && found.cpu.unified);
        assert_eq!(found.roots(), [PathBuf::from("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let table = "29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let error = Hierarchies::from_table(table, &|_| "cpu pids".to_owned()).unwrap_err();
        assert!(error.to_string().contains("memory controller"), "{error}");
    }

    #[test]
    fn statistics() {
        let text = "cache 12\nfile 34\nusage_usec 56\n";
        assert_eq!(field(text, "file"), 34);
        assert_eq!(field(text, "absent"), 0);
    }
}
