//! The programs that this binary carries: static, and of this very build.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};

/// The daemon inside every sandbox.
pub(crate) const ENVD: &[u8] = include_bytes!(env!("ATOLL_ENVD"));
/// The code interpreter's server, for templates that start it.
pub(crate) const INTERPRETER: &[u8] = include_bytes!(env!("ATOLL_INTERPRETER"));
/// The program that starts container sandboxes.
const LAUNCHER: &[u8] = include_bytes!(env!("ATOLL_LAUNCHER"));

/// The launcher, ready to be run.
pub(crate) struct Launcher(File);

impl Launcher {
    /// Writes this build's launcher below `directory`, in place of whatever is there, and opens it.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL` when it cannot be written.
    pub(crate) fn install(directory: &Path) -> Result<Self> {
        let path = directory.join("atoll-launcher");
        write_program(directory, &path, LAUNCHER).map(Self).map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
                _ => codes::DATA_DIR_UNUSABLE,
            };
            Error::new(code, format!("cannot write {}: {error}.", path.display()))
        })
    }

    /// A path to the very file that was written, whatever happens to its name: it is run as root.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// Writes `content` to `path` below `directory`, in place of whatever is there, and opens it. It can
/// be run through the descriptor.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_program(directory: &Path, path: &Path, content: &[u8]) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let partial = path.with_extension("partial");
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&partial)?;
    file.write_all(content)?;
    // Opened anew: a file that is open for writing cannot be run.
    let program =
        OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    drop(file);
    fs::rename(&partial, path)?;
    Ok(program)
}
