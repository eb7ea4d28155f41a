//! Writing one uploaded file, in place.
//!
//! The order of calls is part of the contract, because watchers see it: a new file is created,
//! given to its owner, then written; an existing one is given to its owner, truncated by the open,
//! then written, and keeps its inode, mode, links and open handles. There is no temporary file:
//! an upload that breaks off leaves what had arrived. A small file is written by one call, however
//! the network cut it up.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use http::StatusCode;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::RestError;
use super::metadata::{self, Metadata};
use crate::disk;
use crate::users::User;

/// Bytes collected before a write. Anything smaller is one write.
const WRITE_SIZE: usize = 256 << 10;

/// A file that is being uploaded. Dropping it closes the file as it is.
#[derive(Debug)]
pub struct FileSink {
    open: Option<Open>,
    /// Bytes of content so far, written or not.
    received: u64,
}

/// What moves to the blocking thread and back.
#[derive(Debug)]
struct Open {
    file: File,
    buffer: Vec<u8>,
}

impl FileSink {
    /// Creates or truncates the file, and its missing parents.
    ///
    /// # Errors
    /// 400 when something that is not a regular file has the name, 507 when there is no room for
    /// another, 500 for the rest.
    pub async fn create(path: PathBuf, owner: User) -> Result<Self, RestError> {
        let file = disk::blocking(move || open(&path, &owner))
            .await
            .map_err(|error| RestError::internal(format!("error opening file: {error}")))??;
        Ok(Self { open: Some(Open { file, buffer: Vec::new() }), received: 0 })
    }

    /// Appends to the file.
    ///
    /// # Errors
    /// 507 when the disk is full, 500 for the rest.
    pub async fn write(&mut self, content: &[u8]) -> Result<(), RestError> {
        self.received += content.len() as u64;
        let Some(open) = &mut self.open else { return Err(closed()) };
        open.buffer.extend_from_slice(content);
        if open.buffer.len() < WRITE_SIZE { Ok(()) } else { self.flush(None).await }
    }

    /// Writes what is left, replaces the file's metadata and closes it.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn finish(mut self, metadata: Metadata) -> Result<(), RestError> {
        self.flush(Some(metadata)).await
    }

    /// On failure the file is closed; a caller that goes away closes it when the write is done.
    async fn flush(&mut self, metadata: Option<Metadata>) -> Result<(), RestError> {
        let Some(mut open) = self.open.take() else { return Err(closed()) };
        let outcome = disk::blocking(move || {
            open.file.write_all(&open.buffer)?;
            open.buffer.clear();
            if let Some(metadata) = metadata {
                metadata::replace(&open.file, &metadata)?;
            }
            Ok(open)
        });
        self.open = Some(outcome.await.flatten().map_err(|error| self.failure(&error))?);
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> RestError {
        if disk::is_full(error) {
            RestError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!(
                    "attempted to write {} bytes: not enough disk space available",
                    self.received
                ),
            )
        } else {
            RestError::internal(format!("error writing file: {error}"))
        }
    }
}

fn closed() -> RestError {
    RestError::internal("error writing file: it is closed")
}

/// Opens the destination, blocking.
fn open(path: &Path, owner: &User) -> Result<File, RestError> {
    if let Some(parent) = path.parent() {
        disk::create_dirs(parent, owner)
            .map_err(|error| failure("error creating parent directories", &error))?;
    }
    let exists = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(RestError::bad_request(format!("path is a directory: {}", path.display())));
        }
        // Writing to a fifo or a device would hold the thread for as long as the guest likes.
        Ok(found) if !found.is_file() => return Err(not_regular(path)),
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failure("error getting file info", &error)),
    };
    let (uid, gid) = disk::ids(owner);
    let chown_failed = |error: io::Error| failure("error changing file ownership", &error);
    if exists {
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::empty())
            .map_err(|error| chown_failed(error.into()))?;
    }
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
        .map(File::from)
        .map_err(|error| failure("error opening file", &error.into()))?;
    // The guest may have put something else there in the meantime.
    match file.metadata() {
        Ok(opened) if opened.is_file() => {}
        Ok(_) => return Err(not_regular(path)),
        Err(error) => return Err(failure("error getting file info", &error)),
    }
    if !exists {
        rustix::fs::fchown(&file, uid, gid).map_err(|error| chown_failed(error.into()))?;
    }
    Ok(file)
}

fn not_regular(path: &Path) -> RestError {
    RestError::bad_request(format!("path is not a regular file: {}", path.display()))
}

/// A failure before any content: a full disk means that there is no room for a name.
fn failure(what: &str, error: &io::Error) -> RestError {
    if disk::is_full(error) {
        RestError::new(StatusCode::INSUFFICIENT_STORAGE, "not enough inodes available")
    } else {
        RestError::internal(format!("{what}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users;

    #[tokio::test]
    async fn small_content_is_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let length = || std::fs::metadata(&path).unwrap().len();
        let root = users::lookup("root").unwrap().unwrap();
        let mut sink = FileSink::create(path.clone(), root).await.unwrap();
        for piece in ["a", "b", "c"] {
            sink.write(piece.as_bytes()).await.unwrap();
            assert_eq!(length(), 0);
        }
        sink.finish(Metadata::new()).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }

    #[tokio::test]
    async fn large_content_is_written_as_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let root = users::lookup("root").unwrap().unwrap();
        let mut sink = FileSink::create(path.clone(), root).await.unwrap();
        let piece = vec![b'x'; WRITE_SIZE];
        sink.write(&piece).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), WRITE_SIZE as u64);
        sink.write(b"end").await.unwrap();
        drop(sink);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), WRITE_SIZE as u64);
    }
}
