//! Files that are there whole or not at all, and errors of the file system with their code.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use atoll_core::{
    Error, Result,
    error::{Code, codes},
};

/// An error of `code` for a failed system call, or one that says that the disk is full.
pub(crate) fn failed(code: Code, what: impl Display, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
        _ => code,
    };
    Error::new(code, format!("cannot {what}: {error}."))
}

/// An error of a file or directory in the data directory.
pub(crate) fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    failed(codes::DATA_DIR_UNUSABLE, format_args!("{what} {}", path.display()), error)
}

/// Makes `path` with its parents if need be, for root alone: a sandbox's root can leave programs
/// behind that are set-user-id root on disk, and no user of the host may reach them.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| unusable("make", path, &error))?;
    set_private(path)
}

/// Closes `path` to all but root.
pub(crate) fn set_private(path: &Path) -> Result<()> {
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
    fs::set_permissions(path, mode).map_err(|error| unusable("close to others", path, &error))
}

/// Waits until what was made in the directory `path` and removed from it is on disk.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| unusable("write", path, &error))
}

/// Writes `path`, for root alone, so that it has the old content or the new one whenever the machine
/// stops.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let draft = path.with_extension("tmp");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        Ok(())
    };
    write().map_err(|error| unusable("write", path, &error))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Runs blocking work off the async threads. It runs to its end even when the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(codes::INTERNAL, format!("storage work was lost: {error}."))),
    }
}
