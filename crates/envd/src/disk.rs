//! Steps on the file system that the file routes and the Filesystem service share.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::users::User;

/// Runs `work` where it may block. Once started it runs to its end, even if the caller goes away.
///
/// # Errors
/// When the work panicked, or the runtime is shutting down.
pub async fn blocking<T, F>(work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Whether the error says that nothing has this name: a parent that is a file counts, too.
pub fn is_missing(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOENT | Errno::NOTDIR))
}

/// Whether the error says that the disk, or the sandbox's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOSPC | Errno::DQUOT))
}

/// The system's error number, if the error came from a system call.
pub fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// Creates a directory and its missing parents, each with mode 0755 and owned by `owner`. What
/// exists is left as it is.
///
/// # Errors
/// `ENOTDIR` when a file is in the way, else what the system says.
pub fn create_dirs(path: &Path, owner: &User) -> io::Result<()> {
    let mut missing = Vec::new();
    for dir in path.ancestors() {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(Errno::NOTDIR.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(dir),
            Err(error) => return Err(error),
        }
    }
    for dir in missing.into_iter().rev() {
        match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let (uid, gid) = ids(owner);
                rustix::fs::chownat(CWD, dir, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // Somebody else was faster.
            Err(Errno::EXIST) if dir.is_dir() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The user's ids as the arguments of a `chown`.
pub fn ids(owner: &User) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::users;

    #[test]
    fn only_new_directories_change_hands() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("old")).unwrap();
        fs::set_permissions(dir.path().join("old"), fs::Permissions::from_mode(0o700)).unwrap();
        let daemon = users::lookup("daemon").unwrap().unwrap();
        create_dirs(&dir.path().join("old/new/newer"), &daemon).unwrap();

        let seen = |path: &str| {
            let meta = fs::metadata(dir.path().join(path)).unwrap();
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        };
        assert_eq!(seen("old"), (0o700, 0, 0));
        assert_eq!(seen("old/new"), (0o755, daemon.uid, daemon.gid));
        assert_eq!(seen("old/new/newer"), (0o755, daemon.uid, daemon.gid));
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let root = users::lookup("root").unwrap().unwrap();
        let error = create_dirs(&dir.path().join("file/sub"), &root).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::NOTDIR));
    }
}
