//! Listing a directory tree.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::IntoIter;

use atoll_wire::rpc::filesystem::EntryInfo;
use connectrpc::ConnectError;
use rustix::io::Errno;

use super::entry::describe;
use crate::disk;
use crate::users::Names;

/// Lists what lies below `root`, down to `depth` levels (0 counts as 1), blocking.
///
/// Names are sorted bytewise within a directory, and a directory's own entries follow right after
/// it. A link given as the root is followed, though the entries keep its name in their paths; a
/// link below the root is not. What vanishes on the way is left out, and so is the content of
/// directories that the sandbox's root may not read. `abandoned` ends the walk.
///
/// # Errors
/// `not_found`, `invalid_argument` for what is no directory, `failed_precondition` for a link that
/// leads to itself.
pub fn list(
    root: &Path,
    depth: u32,
    abandoned: &AtomicBool,
) -> Result<Vec<EntryInfo>, ConnectError> {
    check_root(root)?;
    let depth = usize::try_from(depth.max(1)).unwrap_or(usize::MAX);
    let names = Names::load();
    let mut entries = Vec::new();
    // The directories that the walk is in, each with the names still to visit.
    let mut stack = vec![open(root).map_err(|error| failure(root, &error))?];
    while let Some((dir, pending)) = stack.last_mut() {
        if abandoned.load(Ordering::Relaxed) {
            return Err(ConnectError::canceled("the client went away"));
        }
        let Some(name) = pending.next() else {
            stack.pop();
            continue;
        };
        let path = dir.join(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if is_out_of_reach(&error) => continue,
            Err(error) => return Err(failure(&path, &error)),
        };
        entries.push(describe(&path, &found, &names));
        if found.is_dir() && stack.len() < depth {
            match open(&path) {
                Ok(dir) => stack.push(dir),
                Err(error) if is_out_of_reach(&error) => {}
                Err(error) => return Err(failure(&path, &error)),
            }
        }
    }
    Ok(entries)
}

fn check_root(root: &Path) -> Result<(), ConnectError> {
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(ConnectError::invalid_argument(format!(
            "path is not a directory: {}",
            root.display()
        ))),
        Err(error) if disk::errno(&error) == Some(Errno::LOOP) => {
            Err(ConnectError::failed_precondition(format!(
                "cyclic symlink or chain >255 links at \"{}\"",
                root.display()
            )))
        }
        Err(error) if disk::is_missing(&error) => {
            Err(ConnectError::not_found(format!("path not found: {}", root.display())))
        }
        Err(error) => Err(failure(root, &error)),
    }
}

/// A directory and the sorted names in it.
fn open(dir: &Path) -> io::Result<(PathBuf, IntoIter<OsString>)> {
    let mut names =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok((dir.to_owned(), names.into_iter()))
}

/// Whether something has vanished, which processes do with errors of their own, or is in a part
/// of `/proc` or `/sys` that the sandbox does not see.
fn is_out_of_reach(error: &io::Error) -> bool {
    disk::is_missing(error)
        || matches!(
            disk::errno(error),
            Some(Errno::SRCH | Errno::INVAL | Errno::ACCESS | Errno::PERM)
        )
}

fn failure(path: &Path, error: &io::Error) -> ConnectError {
    ConnectError::internal(format!("error reading directory {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use connectrpc::ErrorCode;

    use super::*;

    fn names(root: &Path, depth: u32) -> Vec<String> {
        let entries = list(root, depth, &AtomicBool::new(false)).unwrap();
        entries
            .into_iter()
            .map(|entry| {
                entry.path.strip_prefix(&format!("{}/", root.display())).unwrap().to_owned()
            })
            .collect()
    }

    // Rules: LIST-1, LIST-3, LIST-4, LIST-5, TRAP-29
    #[test]
    fn the_walk_goes_depth_first_in_the_order_of_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["b/c/d", "a"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for file in ["b.txt", "B", "b/z", "b/c/y", "é", "a/x"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        symlink("b", dir.path().join("link")).unwrap();
        symlink("nowhere", dir.path().join("broken")).unwrap();
        let flat = ["B", "a", "b", "b.txt", "broken", "link", "é"];
        assert_eq!(names(dir.path(), 0), flat);
        assert_eq!(names(dir.path(), 1), flat);
        assert_eq!(
            names(dir.path(), 2),
            ["B", "a", "a/x", "b", "b/c", "b/z", "b.txt", "broken", "link", "é"]
        );
        assert_eq!(
            names(dir.path(), u32::MAX),
            ["B", "a", "a/x", "b", "b/c", "b/c/d", "b/c/y", "b/z", "b.txt", "broken", "link", "é"]
        );
    }

    // Rules: LIST-2
    #[test]
    fn a_link_as_root_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/file"), "").unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        assert_eq!(names(&dir.path().join("link"), 1), ["file"]);
    }

    // Rules: LIST-7, LIST-8, LIST-9
    #[test]
    fn what_cannot_be_listed_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink("nowhere", dir.path().join("broken")).unwrap();
        symlink("cycle", dir.path().join("cycle")).unwrap();
        for (name, code, message) in [
            ("missing", ErrorCode::NotFound, "path not found: "),
            ("broken", ErrorCode::NotFound, "path not found: "),
            ("file", ErrorCode::InvalidArgument, "path is not a directory: "),
            ("cycle", ErrorCode::FailedPrecondition, "cyclic symlink or chain >255 links at \""),
        ] {
            let path = dir.path().join(name);
            let error = list(&path, 1, &AtomicBool::new(false)).unwrap_err();
            assert_eq!(error.code, code, "{name}");
            let text = error.message.unwrap_or_default();
            assert!(text.starts_with(message) && text.contains(name), "{text}");
        }
    }

    #[test]
    fn an_abandoned_walk_ends() {
        let error = list(Path::new("/"), u32::MAX, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Canceled);
    }
}
