//! Copies of trees: of what a sandbox wrote, as a layer.
//!
//! What is copied is the upper side of an overlay, so it holds whiteouts (character devices 0:0),
//! directories that hide those below them, and directories that were renamed; as a layer at the same
//! place of the same stack they mean the same. Both trees are still, and closed to everybody but root:
//! no path that is walked can change into another meanwhile, and no link is followed.
//!
//! A stranger has written it, and the limit of its disk says little of a copy: data that several files
//! share counts once there, and holes, further names and empty files for nothing or nearly so. A copy
//! has [`Bounds`] therefore, and what is within them can be walked, digested and removed.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
        },
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use crate::digest::read_attribute;

/// Attributes in which overlayfs notes what holds for this one overlay only: where a file came from,
/// and counts of links.
const OF_THE_OVERLAY: [&str; 5] = [
    "trusted.overlay.origin",
    "trusted.overlay.impure",
    "trusted.overlay.nlink",
    "trusted.overlay.uuid",
    "trusted.overlay.upper",
];

/// Directories within directories, as for `envd unpack`. Digesting a tree takes a piece of the stack for
/// each, and removing it a descriptor too: what cannot be removed is in the way of the next start.
const DEEPEST: usize = 500;
/// Most entries of a copy: it takes inodes of the host, of which a disk has no count.
const MOST_ENTRIES: u64 = 2_000_000;
/// Most bytes of all files as they are read, holes too, and once for every name: all is read to make a
/// digest.
const MOST_READ: u64 = 2 << 40;

/// How much a copy may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes that are written; beyond what a disk can hold when files on it share data.
    pub(crate) data: u64,
    entries: u64,
    read: u64,
    depth: usize,
}

impl Bounds {
    /// Those of a copy with as many bytes of data.
    pub(crate) fn with_data(data: u64) -> Self {
        Self { data, entries: MOST_ENTRIES, read: MOST_READ, depth: DEEPEST }
    }
}

/// Takes from what is left of a bound.
fn take(left: &mut u64, amount: u64, what: &str) -> io::Result<()> {
    *left = left.checked_sub(amount).ok_or_else(|| too_much(what))?;
    Ok(())
}

fn too_much(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, what)
}

/// Copies the content of the directory `from` and its own attributes to the directory `to`, which is
/// there and empty, but for what `leave_out` names: paths without a leading slash. Owners, modes,
/// times, extended attributes, holes and hard links stay as they are. Sockets, and devices other than
/// whiteouts, stay behind.
///
/// # Errors
/// Those of the file system, and `FileTooLarge` for what is not within `bounds`. `to` is to be thrown
/// away then.
pub(crate) fn tree(from: &Path, to: &Path, leave_out: &[&str], bounds: Bounds) -> io::Result<()> {
    let metadata = directory(from)?;
    let mut copy = Copy { from, to, leave_out, left: bounds, linked: HashMap::new() };
    copy.content(Path::new(""), 0)?;
    copy.describe(Path::new(""), &metadata)
}

/// What is known of a directory. A link in its place would lead out of what a sandbox wrote.
fn directory(path: &Path) -> io::Result<Metadata> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() { Ok(metadata) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Whether a directory holds nothing but what `leave_out` names, and directories that lead there.
///
/// # Errors
/// Those of the file system.
pub(crate) fn is_empty(root: &Path, leave_out: &[&str]) -> io::Result<bool> {
    directory(root)?;
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let mut ways = leave_out.iter().map(|left| Path::new(left).strip_prefix(&path));
            match ways.find_map(Result::ok) {
                Some(rest) if rest.as_os_str().is_empty() => {}
                Some(_) if entry.file_type()?.is_dir() => dirs.push(path),
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

struct Copy<'a> {
    from: &'a Path,
    to: &'a Path,
    leave_out: &'a [&'a str],
    /// What may still come.
    left: Bounds,
    /// First copies of files with several names, by inode: the directory, which all in it share, and
    /// the name.
    linked: HashMap<u64, (Rc<Path>, OsString)>,
}

impl Copy<'_> {
    fn content(&mut self, dir: &Path, depth: usize) -> io::Result<()> {
        if depth > self.left.depth {
            return Err(too_much("directories are too deep within each other"));
        }
        // All names at once, so that no directory stays open while those below are copied.
        let names = fs::read_dir(self.from.join(dir))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        let dir: Rc<Path> = dir.into();
        for name in names {
            let path = dir.join(&name);
            if !self.leave_out.iter().any(|left| path == Path::new(left)) {
                self.entry(&dir, name, &path, depth)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Rc<Path>,
        name: OsString,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        take(&mut self.left.entries, 1, "there are too many files")?;
        let (from, to) = (self.from.join(path), self.to.join(path));
        let metadata = fs::symlink_metadata(&from)?;
        let kind = metadata.file_type();
        if kind.is_file() {
            // Each name of a file counts: each is read.
            take(&mut self.left.read, metadata.len(), "the files are too large, holes included")?;
        }
        if !kind.is_dir() && metadata.nlink() > 1 {
            if let Some((dir, name)) = self.linked.get(&metadata.ino()) {
                match fs::hard_link(self.to.join(dir).join(name), &to) {
                    // File systems differ in how many names a file may have: this begins another.
                    Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {}
                    // The first was of a kind that stays behind.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    linked => return linked,
                }
            }
            self.linked.insert(metadata.ino(), (Rc::clone(dir), name));
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
            self.content(path, depth + 1)?;
        } else if kind.is_file() {
            file(&from, &to, metadata.len(), &mut self.left.data)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_fifo() {
            make_node(&to, FileType::Fifo)?;
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            make_node(&to, FileType::CharacterDevice)?;
        } else {
            return Ok(());
        }
        self.describe(path, &metadata)
    }

    /// Gives the copy of `path` its attributes.
    fn describe(&self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
        let kind = metadata.file_type();
        if kind.is_dir() || kind.is_file() {
            attributes(&from, &to)?;
        }
        if !kind.is_symlink() {
            // After the owner, who takes set-user-id with it.
            fs::set_permissions(&to, Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
        let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps {
            last_access: time(metadata.atime(), metadata.atime_nsec()),
            last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(rustix::fs::utimensat(CWD, &to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn make_node(path: &Path, kind: FileType) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0)?)
}

/// Copies a file of `length` bytes with its holes: one that is mostly holes may be larger than the
/// disk. Takes what is written from `left`.
fn file(from: &Path, to: &Path, length: u64, left: &mut u64) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut options = OpenOptions::new();
    let mut copy = options.write(true).create_new(true).mode(0o600).open(to)?;
    copy.set_len(length)?;
    let mut at = 0;
    while let Some(start) = seek(&source, rustix::fs::SeekFrom::Data(at))? {
        let end = seek(&source, rustix::fs::SeekFrom::Hole(start))?.unwrap_or(length);
        take(left, end.saturating_sub(start), "there is more in the files than the disk holds")?;
        source.seek(SeekFrom::Start(start))?;
        copy.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut Read::by_ref(&mut source).take(end - start), &mut copy)?;
        if copied < end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}

/// Where the next data or hole begins; none behind the last.
fn seek(file: &impl AsFd, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Err(Errno::NXIO) => Ok(None),
        found => Ok(Some(found?)),
    }
}

fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let names = read_attribute(|buffer| rustix::fs::llistxattr(from, buffer))?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OF_THE_OVERLAY.iter().any(|left| left.as_bytes() == name) {
            continue;
        }
        let name = CString::new(OsStr::from_bytes(name).to_owned().into_vec())?;
        let value = read_attribute(|buffer| rustix::fs::lgetxattr(from, name.as_c_str(), buffer))?;
        rustix::fs::lsetxattr(to, name.as_c_str(), &value, XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { data: 1 << 20, entries: 100, read: 1 << 30, depth: 20 };

    /// Copies what `fill` makes.
    fn copied(fill: impl FnOnce(&Path)) -> (io::Result<()>, tempfile::TempDir) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(from.path());
        (tree(from.path(), to.path(), &[], BOUNDS), to)
    }

    fn chain(root: &Path, depth: usize) {
        fs::create_dir_all(root.join(vec!["d"; depth].join("/"))).unwrap();
    }

    #[test]
    fn what_is_within_the_bounds_is_copied() {
        let (made, to) = copied(|root| {
            chain(root, 20);
            (0..50).for_each(|name| fs::write(root.join(name.to_string()), "x").unwrap());
            File::create(root.join("holes")).unwrap().set_len(1 << 28).unwrap();
            fs::hard_link(root.join("holes"), root.join("twin")).unwrap();
        });
        made.unwrap();
        assert_eq!(fs::metadata(to.path().join("twin")).unwrap().nlink(), 2);
    }

    #[test]
    fn what_is_beyond_them_is_refused() {
        type Fill = fn(&Path);
        let fills: [(&str, Fill); 5] = [
            ("depth", |root| chain(root, 22)),
            ("entries", |root| {
                (0..101).for_each(|name| fs::write(root.join(name.to_string()), "").unwrap());
            }),
            ("holes", |root| File::create(root.join("x")).unwrap().set_len(1 << 31).unwrap()),
            ("names", |root| {
                File::create(root.join("x")).unwrap().set_len(1 << 28).unwrap();
                (0..5).for_each(|name| {
                    fs::hard_link(root.join("x"), root.join(name.to_string())).unwrap();
                });
            }),
            ("data", |root| fs::write(root.join("x"), vec![1; (1 << 20) + 1]).unwrap()),
        ];
        for (what, fill) in fills {
            let error = copied(fill).0.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{what}: {error}");
        }
    }

    #[test]
    fn the_deepest_tree_is_walked_on_a_thread_as_any() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        chain(from.path(), DEEPEST);
        let walk = move || {
            tree(from.path(), to.path(), &[], Bounds::with_data(0)).unwrap();
            let digested =
                crate::digest::tree(to.path(), &std::sync::atomic::AtomicBool::new(false));
            assert!(digested.unwrap().is_some());
        };
        // As tokio makes them.
        std::thread::Builder::new().stack_size(2 << 20).spawn(walk).unwrap().join().unwrap();
    }

    #[test]
    fn several_names_of_what_stays_behind_are_no_failure() {
        let (made, to) = copied(|root| {
            drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
            fs::hard_link(root.join("socket"), root.join("twin")).unwrap();
        });
        made.unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_the_tree_is_not_followed() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = dir.path().join("image");
        symlink("/etc", &link).unwrap();
        assert!(tree(&link, to.path(), &[], BOUNDS).is_err());
        assert!(is_empty(&link, &[]).is_err());
    }
}
