//! Single steps on the file system: look, make, move, remove. All of them block.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use atoll_wire::rpc::filesystem::EntryInfo;
use connectrpc::ConnectError;
use rustix::io::Errno;

use super::entry;
use crate::disk;
use crate::users::{Names, User};

/// Describes what stands at `path`.
///
/// # Errors
/// `not_found`.
pub fn stat(path: &Path) -> Result<EntryInfo, ConnectError> {
    entry::read(path, &Names::load()).map_err(|error| {
        if disk::is_missing(&error) {
            ConnectError::not_found(format!("file not found: {}", path.display()))
        } else {
            failure("error getting file info", path, &error)
        }
    })
}

/// Makes a directory and its missing parents, owned by `owner`.
///
/// # Errors
/// `already_exists` for a directory, `invalid_argument` for anything else that has the name.
pub fn make_dir(path: &Path, owner: &User) -> Result<EntryInfo, ConnectError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(ConnectError::already_exists(format!(
                "directory already exists: {}",
                path.display()
            )));
        }
        Ok(_) => {
            return Err(ConnectError::invalid_argument(format!(
                "path already exists but it is not a directory: {}",
                path.display()
            )));
        }
        Err(error) if disk::is_missing(&error) => {}
        Err(error) => return Err(failure("error getting file info", path, &error)),
    }
    disk::create_dirs(path, owner)
        .map_err(|error| failure("error creating directory", path, &error))?;
    stat(path)
}

/// Moves a file or directory, replacing a file or empty directory at the destination. Missing
/// parents of the destination are made, owned by `owner`.
///
/// # Errors
/// `not_found` for the source; `internal`, above all when the two lie on different file systems.
pub fn rename(source: &Path, destination: &Path, owner: &User) -> Result<EntryInfo, ConnectError> {
    let missing =
        || ConnectError::not_found(format!("source file not found: {}", source.display()));
    let failed = |error: io::Error| failure("error renaming", source, &error);
    fs::symlink_metadata(source)
        .map_err(|error| if disk::is_missing(&error) { missing() } else { failed(error) })?;
    if let Some(parent) = destination.parent() {
        disk::create_dirs(parent, owner)
            .map_err(|error| failure("error creating directory", parent, &error))?;
    }
    // The source may have gone by now. "Not a directory", which says so elsewhere, is about the
    // destination here.
    fs::rename(source, destination).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => failed(error),
    })?;
    stat(destination)
}

/// Removes what stands at `path`, with everything below it. A link is removed, not followed. That
/// there is nothing is success.
///
/// # Errors
/// `invalid_argument` for a path that ends in `.` or `..`; `internal`, with what the system says.
pub fn remove(path: &Path) -> Result<(), ConnectError> {
    let path = removable(path)?;
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if !disk::is_missing(&error) => Err(failure("error removing", path, &error)),
        _ => Ok(()),
    }
}

/// The path without slashes at its end, with which the system would follow a link, and empty what
/// it leads to.
fn removable(path: &Path) -> Result<&Path, ConnectError> {
    let bytes = path.as_os_str().as_bytes();
    let length = bytes.iter().rposition(|byte| *byte != b'/').map_or(bytes.len(), |last| last + 1);
    let bytes = &bytes[..length];
    if bytes.ends_with(b"/.") || bytes.ends_with(b"/..") {
        // It names a directory by way of another, so its own name cannot be taken away.
        let message = format!("cannot remove a path that ends in a dot: {}", path.display());
        return Err(ConnectError::invalid_argument(message));
    }
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

fn failure(what: &str, path: &Path, error: &io::Error) -> ConnectError {
    let message = format!("{what} {}: {error}", path.display());
    match disk::errno(error) {
        Some(Errno::NAMETOOLONG | Errno::LOOP) => ConnectError::invalid_argument(message),
        Some(Errno::NOSPC | Errno::DQUOT) => ConnectError::resource_exhausted(message),
        _ => ConnectError::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use connectrpc::ErrorCode;

    use super::*;
    use crate::users;

    fn daemon() -> User {
        users::lookup("daemon").unwrap().unwrap()
    }

    // Rules: DIR-1, DIR-2, DIR-3
    #[test]
    fn a_directory_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let entry = make_dir(&path, &daemon()).unwrap();
        assert_eq!(entry.path, path.to_str().unwrap());
        assert_eq!((entry.owner.as_str(), entry.permissions.as_str()), ("daemon", "drwxr-xr-x"));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().uid(), daemon().uid);

        let again = make_dir(&path, &daemon()).unwrap_err();
        assert_eq!(again.code, ErrorCode::AlreadyExists);
        fs::write(path.join("file"), "").unwrap();
        let file = make_dir(&path.join("file"), &daemon()).unwrap_err();
        assert_eq!(file.code, ErrorCode::InvalidArgument);
    }

    // Rules: DIR-4, DIR-5, DIR-7
    #[test]
    fn moving_replaces_files_and_makes_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("old"), "new content").unwrap();
        fs::write(path("taken"), "gone").unwrap();
        let entry = rename(&path("old"), &path("taken"), &daemon()).unwrap();
        assert_eq!((entry.name.as_str(), entry.size), ("taken", 11));
        assert_eq!(fs::read(path("taken")).unwrap(), b"new content");

        rename(&path("taken"), &path("x/y/z"), &daemon()).unwrap();
        assert_eq!(fs::metadata(path("x/y")).unwrap().uid(), daemon().uid);
        let error = rename(&path("old"), &path("p/q"), &daemon()).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(!path("p").exists(), "a move that cannot be made leaves no directories");
    }

    // Rules: DIR-6
    #[test]
    fn moving_a_directory_onto_what_is_in_the_way_fails() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("full/sub")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for destination in ["full", "file"] {
            let destination = dir.path().join(destination);
            let error = rename(&dir.path().join("other"), &destination, &daemon()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
        }
    }

    // Rules: DIR-9, DIR-10
    #[test]
    fn removing_spares_what_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("tree/sub")).unwrap();
        fs::create_dir(path("kept")).unwrap();
        fs::write(path("kept/file"), "").unwrap();
        symlink(path("kept"), path("tree/sub/link")).unwrap();
        symlink("kept", path("link")).unwrap();
        symlink("kept", path("other")).unwrap();
        for name in ["tree", "link", "other//", "missing", "kept/file/below"] {
            remove(&path(name)).unwrap();
            remove(&path(name)).unwrap();
        }
        for name in ["kept/.", "kept/../", "link/.."] {
            let error = remove(&path(name)).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{name}");
        }
        assert!(path("other").symlink_metadata().is_err());
        assert!(!path("tree").exists() && path("link").symlink_metadata().is_err());
        assert!(path("kept/file").exists());
    }

    // Rules: STAT-2
    #[test]
    fn below_a_file_there_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(stat(&dir.path().join("file/x")).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(stat(&dir.path().join("missing")).unwrap_err().code, ErrorCode::NotFound);
        let error = make_dir(&dir.path().join("file/x"), &daemon()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
    }
}
