//! Archives that clients have uploaded for COPY steps and imports, by team and hash.
//!
//! ```text
//! <data-dir>/uploads/<team>/<hash>   whole, or not there
//!                          /.part-…  being written
//! ```
//!
//! The hash is the client's name for what it will want to copy; it says nothing of the bytes. Within a
//! team one may overwrite another's.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

/// Largest archive, bytes.
const LARGEST: u64 = 16 << 30;
/// Most archives of a team, and their bytes: they stay until somebody prunes them, on the disk that the
/// node's own files are on.
const MOST_OF_TEAM: Room = Room { files: 10_000, bytes: 4 * LARGEST };
/// Whether there is room is asked again after as many bytes: others may be uploaded meanwhile.
const ASKED_EVERY: u64 = 64 << 20;
/// Most bytes of a piece that is read at once.
const PIECE: usize = 256 << 10;

/// How much a team has.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    files: u64,
    bytes: u64,
}

/// The archives of all teams.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Those below the data directory. What was being written when an earlier run ended is removed.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        let files = Self { dir: data_dir.join("uploads") };
        let clean = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&files.dir)?;
            for team in fs::read_dir(&files.dir)? {
                for entry in fs::read_dir(team?.path())? {
                    let entry = entry?;
                    if entry.file_name().as_encoded_bytes().starts_with(b".part-") {
                        fs::remove_file(entry.path())?;
                    }
                }
            }
            Ok(())
        };
        clean().map_err(|error| unusable("open", &files.dir, &error))?;
        Ok(files)
    }

    /// Where an archive is.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for what cannot be the name of a team or a hash: they become paths.
    fn path(&self, team: &str, hash: &str) -> Result<PathBuf> {
        let is_plain = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !is_plain(team) || !is_plain(hash) {
            return Err(Error::new(codes::INVALID_REQUEST, format!("{hash:?} is not a hash.")));
        }
        Ok(self.dir.join(team).join(hash))
    }

    pub(crate) fn has(&self, team: &str, hash: &str) -> Result<bool> {
        Ok(self.path(team, hash)?.is_file())
    }

    /// Where it is, if it is there.
    pub(crate) fn find(&self, team: &str, hash: &str) -> Result<PathBuf> {
        let path = self.path(team, hash)?;
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::new(codes::FILES_MISSING, format!("no files with the hash {hash} are here.")))
    }

    /// Its content, in pieces.
    pub(crate) async fn read(
        &self,
        team: &str,
        hash: &str,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
        let path = self.find(team, hash)?;
        let file = tokio::fs::File::open(&path).await;
        let file = file.map_err(|error| unusable("open", &path, &error))?;
        Ok(ReaderStream::with_capacity(file, PIECE))
    }

    /// Stores one.
    pub(crate) async fn put(
        &self,
        team: &str,
        hash: &str,
        archive: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<()> {
        let path = self.path(team, hash)?;
        let dir = self.dir.join(team);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| unusable("make", &dir, &error))?;
        check_room(dir.clone(), MOST_OF_TEAM).await?;
        let part = tempfile::Builder::new().prefix(".part-").tempfile_in(&dir);
        // Dropped before it has its name, it is removed.
        let part = part.map_err(|error| unusable("write in", &dir, &error))?;
        let file = part.as_file().try_clone().map_err(|error| unusable("open", &dir, &error))?;
        let mut file = tokio::fs::File::from_std(file);
        receive(&mut file, archive, &path, MOST_OF_TEAM).await?;
        file.sync_all().await.map_err(|error| unusable("write", &path, &error))?;
        let named = tokio::task::spawn_blocking(move || {
            check(part.path())?;
            part.persist(&path).map_err(|error| unusable("write", &path, &error.error))?;
            Ok(())
        });
        named.await.unwrap_or_else(|error| {
            Err(Error::new(codes::INTERNAL, format!("an upload was lost: {error}.")))
        })
    }

    /// Deletes those of a team but for the ones that `keep` names; says how many, and their bytes.
    pub(crate) fn prune(&self, team: &str, keep: impl Fn(&str) -> bool) -> Result<(u64, u64)> {
        let dir = self.path(team, "x")?.with_file_name("");
        let (mut count, mut bytes) = (0, 0);
        let mut prune = || -> io::Result<()> {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let is_kept = name.to_str().is_none_or(|name| name.starts_with('.') || keep(name));
                if !is_kept {
                    bytes += entry.metadata()?.len();
                    fs::remove_file(entry.path())?;
                    count += 1;
                }
            }
            Ok(())
        };
        match prune() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable("prune", &dir, &error))
            }
            _ => Ok((count, bytes)),
        }
    }
}

/// Refuses more than a team may have. What is being written counts, so that no two take one room.
async fn check_room(dir: PathBuf, most: Room) -> Result<()> {
    let look = move || {
        let mut found = Room::default();
        let entries = fs::read_dir(&dir).map_err(|error| unusable("list", &dir, &error))?;
        // Those that go meanwhile do not count.
        for metadata in entries.flatten().filter_map(|entry| entry.metadata().ok()) {
            found.files += 1;
            found.bytes += metadata.len();
        }
        if found.files < most.files && found.bytes <= most.bytes {
            return Ok(());
        }
        let (files, gib) = (most.files, most.bytes >> 30);
        let message = format!("a team may keep {files} archives with {gib} GiB for its builds.");
        Err(Error::new(codes::TOO_LARGE, message)
            .with_fix("Prune those that no build needs any more."))
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| {
        Err(Error::new(codes::INTERNAL, format!("an upload was lost: {error}.")))
    })
}

async fn receive(
    file: &mut tokio::fs::File,
    mut archive: BoxStream<'static, io::Result<Bytes>>,
    path: &Path,
    most: Room,
) -> Result<()> {
    let (mut bytes, mut asked) = (0, 0);
    while let Some(piece) = archive.next().await {
        let piece = piece.map_err(|error| {
            Error::new(codes::INVALID_REQUEST, format!("the upload broke off: {error}."))
        })?;
        bytes += piece.len() as u64;
        if bytes > LARGEST {
            let message = format!("an archive may have {} GiB.", LARGEST >> 30);
            return Err(Error::new(codes::TOO_LARGE, message));
        }
        file.write_all(&piece).await.map_err(|error| unusable("write", path, &error))?;
        if bytes - asked >= ASKED_EVERY {
            asked = bytes;
            check_room(path.with_file_name(""), most).await?;
        }
    }
    file.flush().await.map_err(|error| unusable("write", path, &error))
}

/// Refuses what is no archive at all, so that the upload fails and not a build later.
fn check(path: &Path) -> Result<()> {
    const TAR_MAGIC: std::ops::Range<usize> = 257..262;
    let mut head = [0; 512];
    let mut length = 0;
    let mut read = || -> io::Result<()> {
        let mut file = fs::File::open(path)?;
        while length < head.len() {
            match file.read(&mut head[length..])? {
                0 => break,
                count => length += count,
            }
        }
        Ok(())
    };
    read().map_err(|error| unusable("read", path, &error))?;
    let head = &head[..length];
    let is_compressed =
        head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    // Two blocks of zeros are an empty one.
    let is_tar =
        length == 512 && (&head[TAR_MAGIC] == b"ustar" || head.iter().all(|&byte| byte == 0));
    if is_compressed || is_tar {
        return Ok(());
    }
    Err(Error::new(codes::INVALID_REQUEST, "the upload is not a tar archive.")
        .with_fix("Upload a tar archive, plain or compressed with gzip or zstd."))
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    crate::file::unusable(format_args!("{what} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_team_has_so_much_room_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let check = |files, bytes| check_room(dir.path().to_owned(), Room { files, bytes });
        check(1, 0).await.unwrap();
        fs::write(dir.path().join("a"), "12345").unwrap();
        // Also one that is being written.
        fs::write(dir.path().join(".part-b"), "12345").unwrap();
        check(3, 10).await.unwrap();
        for (files, bytes) in [(2, 10), (3, 9)] {
            assert_eq!(check(files, bytes).await.unwrap_err().code, codes::TOO_LARGE);
        }
    }
}
