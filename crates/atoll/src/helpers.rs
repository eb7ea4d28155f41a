//! The programs that this binary carries: static, and of this very build.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use sha2::{Digest, Sha256};

/// The daemon inside every sandbox.
pub(crate) const ENVD: &[u8] = include_bytes!(env!("ATOLL_ENVD"));
/// The program that starts container sandboxes.
const LAUNCHER: &[u8] = include_bytes!(env!("ATOLL_LAUNCHER"));

/// Puts the launcher below `directory`, unless this build's is there, and returns its path.
///
/// # Errors
/// `DATA_DIR_UNUSABLE` when it cannot be written.
pub(crate) fn install_launcher(directory: &Path) -> Result<PathBuf> {
    let digest = hex::encode(Sha256::digest(LAUNCHER));
    let path = directory.join(format!("atoll-launcher-{}", &digest[..16]));
    write_program(directory, &path, LAUNCHER).map_err(|error| {
        Error::new(codes::DATA_DIR_UNUSABLE, format!("cannot write {}: {error}.", path.display()))
    })?;
    Ok(path)
}

fn write_program(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}
