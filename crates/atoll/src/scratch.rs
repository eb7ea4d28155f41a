//! A directory for the time of one command.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A new directory that only this user can enter; removed with all in it when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in the directory for temporary files (`TMPDIR`).
    ///
    /// # Errors
    /// When that cannot be written to.
    pub(crate) fn make() -> io::Result<Self> {
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("atoll-{}", hex::encode(unique)));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
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
