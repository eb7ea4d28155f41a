//! A directory for the time of a measurement.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, error::codes};

/// A new directory that only this user can enter; removed with all in it when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in the directory for temporary files (`TMPDIR`).
    ///
    /// # Errors
    /// When that cannot be written to.
    pub(super) fn make() -> io::Result<Self> {
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("atoll-bench-{}", hex::encode(unique)));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "scratch directory is left");
        }
    }
}

/// The error for a step on this machine that failed.
pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(codes::INTERNAL, format!("{what}: {error}."))
}
