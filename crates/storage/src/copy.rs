//! Copies of trees: of what a sandbox wrote, as a layer.
//!
//! What is copied is the upper side of an overlay, so it holds whiteouts (character devices 0:0),
//! directories that hide those below them, and directories that were renamed; as a layer at the same
//! place of the same stack they mean the same. Both trees are still, and closed to everybody but root:
//! no path that is walked can change into another meanwhile, and no link is followed.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
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

/// Copies the content of the directory `from` and its own attributes to the directory `to`, which is
/// there and empty, but for what `leave_out` names: paths without a leading slash. Owners, modes,
/// times, extended attributes, holes and hard links stay as they are. Sockets, and devices other than
/// whiteouts, stay behind.
///
/// # Errors
/// Those of the file system. `to` is to be thrown away then.
pub(crate) fn tree(from: &Path, to: &Path, leave_out: &[&str]) -> io::Result<()> {
    let mut copy = Copy { from, to, leave_out, linked: HashMap::new() };
    copy.content(Path::new(""))?;
    copy.describe(Path::new(""), &fs::symlink_metadata(from)?)
}

/// Whether a directory holds nothing but what `leave_out` names, and directories that lead there.
///
/// # Errors
/// Those of the file system.
pub(crate) fn is_empty(root: &Path, leave_out: &[&str]) -> io::Result<bool> {
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
    /// First copies of files with several names, by inode.
    linked: HashMap<u64, PathBuf>,
}

impl Copy<'_> {
    fn content(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(self.from.join(dir))? {
            let path = dir.join(entry?.file_name());
            if !self.leave_out.iter().any(|left| path == Path::new(left)) {
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        let metadata = fs::symlink_metadata(&from)?;
        let kind = metadata.file_type();
        if !kind.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&metadata.ino()) {
                return fs::hard_link(first, to);
            }
            self.linked.insert(metadata.ino(), to.clone());
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
            self.content(path)?;
        } else if kind.is_file() {
            file(&from, &to, metadata.len())?;
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
/// disk.
fn file(from: &Path, to: &Path, length: u64) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut options = OpenOptions::new();
    let mut copy = options.write(true).create_new(true).mode(0o600).open(to)?;
    copy.set_len(length)?;
    let mut at = 0;
    while let Some(start) = seek(&source, rustix::fs::SeekFrom::Data(at))? {
        let end = seek(&source, rustix::fs::SeekFrom::Hole(start))?.unwrap_or(length);
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
