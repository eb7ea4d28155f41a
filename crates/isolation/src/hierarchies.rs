//! Which cgroup controller is where on this host: v1, v2, or some of each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};

/// The share of memory that may be in buffers of sockets.
const SOCKETS_SHARE: u64 = 4;

/// A controller and the interface it has here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Controller {
    pub(crate) directory: PathBuf,
    pub(crate) unified: bool,
}

impl Controller {
    /// The same controller in a group below.
    pub(crate) fn part(&self, name: &str) -> Self {
        Self { directory: self.directory.join(name), unified: self.unified }
    }

    pub(crate) fn set(&self, file: &str, value: impl ToString) -> io::Result<()> {
        fs::write(self.directory.join(file), value.to_string())
    }

    /// Swap is refused where the kernel accounts for it: a limit of memory is then that.
    pub(crate) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        if self.unified {
            self.set("memory.max", bytes)?;
            return optional(self.set("memory.swap.max", 0));
        }
        self.set("memory.limit_in_bytes", bytes)?;
        // v1 counts socket buffers apart, and without a limit of their own.
        optional(self.set("memory.kmem.tcp.limit_in_bytes", bytes / SOCKETS_SHARE))?;
        optional(self.set("memory.memsw.limit_in_bytes", bytes))
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

/// Where this host's controllers are.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    pub(crate) memory: Controller,
    pub(crate) pids: Controller,
    pub(crate) cpu: Controller,
    pub(crate) accounting: Controller,
    /// The v2 hierarchy, even when it has no controllers: it still ends a whole group at once.
    pub(crate) unified: Option<PathBuf>,
    /// What stops a group: v2 wherever it is mounted, else v1's controller if there is one.
    pub(crate) freezer: Option<Controller>,
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
            delegate(root, root, &["cpu", "memory", "pids"])?;
        }
        Self::from_table(&table, &|root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        })
    }

    pub(crate) fn from_table(
        table: &str,
        controllers_of: &dyn Fn(&Path) -> String,
    ) -> Result<Self> {
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
        let freezer = match &unified {
            Some(root) => Some(Controller { directory: root.clone(), unified: true }),
            None => find("freezer"),
        };
        let (memory, pids) = (required("memory")?, required("pids")?);
        Ok(Self { memory, pids, cpu, accounting, unified, freezer })
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

    /// Whether the hierarchy at `root` has a group for users and one for envd in each sandbox's.
    pub(crate) fn is_split(&self, root: &Path) -> bool {
        root == self.memory.directory
            || root == self.pids.directory
            || self.unified.as_deref() == Some(root)
    }

    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = [&self.memory, &self.pids, &self.cpu, &self.accounting]
            .into_iter()
            .chain(&self.freezer)
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

/// Lets children of `directory` use those of `controllers` that the v2 root has.
pub(crate) fn delegate(root: &Path, directory: &Path, controllers: &[&str]) -> Result<()> {
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = controllers
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

/// The mount table of a host with both.
#[cfg(test)]
pub(crate) const MIXED: &str = "\
25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_mixes_both_takes_controllers_where_they_are() {
        let found = Hierarchies::from_table(MIXED, &|_| "hugetlb".to_owned()).unwrap();
        assert!(!found.memory.unified && !found.cpu.unified);
        assert_eq!(found.cpu.directory, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(found.roots().len(), 4);
    }

    #[test]
    fn a_host_without_v2_freezes_with_v1() {
        let table = format!(
            "{}\n30 25 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer",
            MIXED.replace("cgroup2", "tmpfs")
        );
        let found = Hierarchies::from_table(&table, &|_| String::new()).unwrap();
        let freezer = found.freezer.clone().unwrap();
        assert!(!freezer.unified);
        assert!(found.roots().contains(&freezer.directory));
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
}
