//! The server's directory: what it writes there, and a place for each kernel.
//!
//! ```text
//! <dir>/python/atoll_kernel   what Python kernels load
//!      /kernels/<n>/          a kernel's sockets and files; `pid`, for the supervisor
//!      /ready                 the server's process, once early kernels have started
//! ```

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::process::{Pid, getpid};

use crate::supervisor::SERVER;

/// Where it is unless another is given.
pub(crate) const DIRECTORY: &str = "/run/code-interpreter";

/// Where envd writes which sandbox this is.
const SANDBOX_ID: &str = "/run/e2b/.E2B_SANDBOX_ID";

/// The directory of kernels' directories.
const KERNELS: &str = "kernels";

/// The file with the number of a server's process that is ready.
const READY: &str = "ready";

/// The file with the number of a kernel's process.
const PID: &str = "pid";

/// The hidden cell that sets up a Python kernel; the package's place is to be filled in.
const LOAD: &str = include_str!("../python/load.py");

/// Paths below the directory of the package, and what is there.
macro_rules! package {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../python/atoll_kernel/", $path)))),*]
    };
}

/// The package for Python kernels.
const PACKAGE: &[(&str, &str)] = package![
    "__init__.py",
    "charts/__init__.py",
    "charts/axis.py",
    "charts/bars.py",
    "charts/boxes.py",
    "charts/names.py",
    "charts/pies.py",
    "charts/points.py",
    "forks.py",
    "imports.py",
    "pictures.py",
    "plain.py",
    "results.py",
    "seeds.py",
    "shell.py",
    "streams.py",
];

/// The directory of a server that runs.
#[derive(Debug)]
pub(crate) struct Home {
    directory: PathBuf,
    python_setup: String,
    /// How many kernels have had a place.
    kernels: AtomicU64,
}

impl Home {
    /// Makes it, in place of what an earlier server left.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn create(directory: &Path) -> io::Result<Self> {
        for part in ["python", KERNELS] {
            match fs::remove_dir_all(directory.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        withdraw_ready(directory)?;
        let python = directory.join("python");
        for (path, text) in PACKAGE {
            let path = python.join("atoll_kernel").join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, text)?;
        }
        fs::DirBuilder::new().mode(0o700).create(directory.join(KERNELS))?;
        let python_setup = LOAD.replace("@DIRECTORY@", &python.to_string_lossy());
        Ok(Self { directory: directory.to_owned(), python_setup, kernels: AtomicU64::new(0) })
    }

    /// The hidden cell that sets up a Python kernel.
    pub(crate) fn python_setup(&self) -> &str {
        &self.python_setup
    }

    /// Makes a place for a kernel.
    ///
    /// # Errors
    /// Those of making a directory.
    pub(crate) fn kernel(&self) -> io::Result<KernelHome> {
        let number = self.kernels.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.directory.join(KERNELS).join(number);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(KernelHome { path })
    }

    /// Says that the server, which is this process, is ready.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn set_ready(&self) -> io::Result<()> {
        fs::write(self.directory.join(READY), getpid().as_raw_nonzero().to_string())
    }
}

/// Whether the server with this directory has said that it is ready. What one said that is no more, as
/// before the sandbox was booted from its disk, does not count.
pub(crate) fn is_ready(directory: &Path) -> bool {
    let Ok(pid) = fs::read_to_string(directory.join(READY)) else { return false };
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(SERVER.as_bytes())
}

/// Takes back that a server is ready: it is no more.
///
/// # Errors
/// Those of removing a file.
pub(crate) fn withdraw_ready(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(READY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The processes of the kernels that have a place, by what they noted.
pub(crate) fn kernel_processes(directory: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(directory.join(KERNELS)) else { return Vec::new() };
    let noted = |entry: fs::DirEntry| fs::read_to_string(entry.path().join(PID)).ok();
    let pids = entries.flatten().filter_map(noted);
    pids.filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)).collect()
}

/// A kernel's place. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct KernelHome {
    path: PathBuf,
}

impl KernelHome {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes the kernel's process.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn note(&self, pid: Pid) -> io::Result<()> {
        fs::write(self.path.join(PID), pid.as_raw_nonzero().to_string())
    }
}

impl Drop for KernelHome {
    fn drop(&mut self) {
        // What is left is removed by the next server.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Which sandbox this is, if envd has said so.
pub(crate) fn sandbox_id() -> Option<String> {
    fs::read_to_string(SANDBOX_ID).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_server_finds_nothing_of_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("d");
        let home = Home::create(&directory).unwrap();
        let kernel = home.kernel().unwrap();
        kernel.note(Pid::INIT).unwrap();
        home.set_ready().unwrap();
        // Said, but not by a server.
        assert!(directory.join(READY).exists() && !is_ready(&directory));
        assert_eq!(kernel_processes(&directory), [Pid::INIT]);
        std::mem::forget(kernel);
        let home = Home::create(&directory).unwrap();
        assert!(!directory.join(READY).exists() && kernel_processes(&directory).is_empty());
        let (first, second) = (home.kernel().unwrap(), home.kernel().unwrap());
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }

    #[test]
    fn all_files_of_the_package_are_carried() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/atoll_kernel");
        let mut directories = vec![root.clone()];
        let mut found = Vec::new();
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "py") {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        let mut carried: Vec<_> = PACKAGE.iter().map(|(path, _)| *path).collect();
        carried.sort_unstable();
        assert_eq!(carried, found);
    }
}
