//! What an entry makes.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use atoll_archive::{Entry, Extent, Kind};
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
        XattrFlags,
    },
    io::Errno,
    thread::{CapabilitySet, capability_is_in_bounding_set},
};

use super::{
    Notices,
    tree::{Identity, Tree, identity, parts, refused},
    unreadable, whiteout,
};
use crate::tool::{Failure, Outcome, shown};

/// What is written at once.
const BUFFER: usize = 256 << 10;
/// Run as the file's owner or group: of another owner than was meant this would be dangerous.
const SET_ID: u32 = 0o6000;
/// The attribute that gives a program capabilities.
const CAPABILITY: &[u8] = b"security.capability";

/// Owner and mode of everything, where the archive's are not taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Override {
    /// User and group.
    pub(crate) owner: (u32, u32),
    /// Permissions.
    pub(crate) mode: Option<u32>,
}

/// A tree to which an archive is applied.
pub(crate) struct Layer {
    pub(crate) tree: Tree,
    /// For COPY: the archive is no layer of an image but files of a user.
    files: Option<Override>,
    /// Their times are set last: what is made in them changes them.
    directories: Vec<(Vec<u8>, Identity, Timestamps)>,
    buffer: Vec<u8>,
}

/// Where an entry goes.
struct Place<'a> {
    directory: Rc<OwnedFd>,
    name: &'a [u8],
    whole: &'a [u8],
}

impl Place<'_> {
    fn failed(&self, error: Errno) -> Failure {
        match error {
            Errno::NAMETOOLONG | Errno::INVAL => refused(format!("{}: {error}", shown(self.whole))),
            _ => Failure::disk(shown(self.whole), error),
        }
    }

    fn stat(&self) -> Outcome<Option<Stat>> {
        match rustix::fs::statat(&*self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn open(&self, flags: OFlags) -> Outcome<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.directory, self.name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| self.failed(error))
    }
}

impl Layer {
    /// For a layer of an image.
    pub(crate) fn new(tree: Tree) -> Self {
        Self { tree, files: None, directories: Vec::new(), buffer: vec![0; BUFFER] }
    }

    /// For files of a COPY.
    pub(crate) fn of_files(tree: Tree, files: Override) -> Self {
        Self { files: Some(files), ..Self::new(tree) }
    }

    /// Applies an entry.
    pub(crate) fn apply(
        &mut self,
        entry: &Entry,
        data: &mut dyn Read,
        notices: &mut Notices,
    ) -> Outcome {
        let link = if entry.kind == Kind::HardLink { entry.link.as_slice() } else { b"" };
        // Of images some writers begin the targets of hard links at the root.
        let link = link.strip_prefix(b"/").unwrap_or(link);
        self.apply_as(entry, &entry.path, link, data, notices)
    }

    /// Applies an entry under another name; `link` is what a hard link leads to.
    pub(crate) fn apply_as(
        &mut self,
        entry: &Entry,
        whole: &[u8],
        link: &[u8],
        data: &mut dyn Read,
        notices: &mut Notices,
    ) -> Outcome {
        let parts = parts(whole)?;
        if self.files.is_none() && whiteout::apply(&mut self.tree, &parts)? {
            return Ok(());
        }
        match entry.kind {
            Kind::Device => {
                notices.add("devices are left out", whole);
                return Ok(());
            }
            Kind::Other(_) => {
                notices.add("entries of an unknown kind are left out", whole);
                return Ok(());
            }
            _ => {}
        }
        let Some((name, parents)) = parts.split_last() else {
            return self.apply_to_root(entry, notices);
        };
        let directory = match self.tree.directory(parents, true)? {
            Some(directory) => directory,
            None => return Err(refused(format!("{} is in no directory", shown(whole)))),
        };
        let place = Place { directory, name, whole };
        match entry.kind {
            Kind::Directory => self.directory(entry, &place, notices),
            Kind::HardLink => self.hard_link(link, &place),
            Kind::Symlink => self.symlink(entry, &place, notices),
            Kind::Fifo => self.fifo(entry, &place, notices),
            _ => self.file(entry, data, &place, notices),
        }
    }

    /// Sets the times of directories.
    pub(crate) fn finish(mut self) -> Outcome {
        for (name, made, times) in std::mem::take(&mut self.directories).into_iter().rev() {
            let Some(directory) = self.tree.directory(&parts(&name)?, false)? else { continue };
            let failed = |error| Failure::disk(shown(&name), error);
            // Another has taken its place.
            if identity(&rustix::fs::fstat(&*directory).map_err(failed)?) == made {
                rustix::fs::futimens(&*directory, &times).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn apply_to_root(&mut self, entry: &Entry, notices: &mut Notices) -> Outcome {
        if entry.kind != Kind::Directory {
            return Err(refused("the archive would replace the root itself"));
        }
        match self.tree.directory(&[], false)? {
            Some(root) if self.files.is_none() => self.describe(&*root, entry, b".", notices),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, entry: &Entry, place: &Place<'_>, notices: &mut Notices) -> Outcome {
        let found = place.stat()?;
        let is_directory = found.as_ref().is_some_and(is_directory);
        if let (Some(_), Some(stat)) = (self.files, &found)
            && !self.tree.is_made(stat)
        {
            // Of the image: it stays as it is. A link must lead to a directory.
            return self.tree.directory(&parts(place.whole)?, true).map(drop);
        }
        if !is_directory {
            self.clear(place, found.as_ref())?;
            rustix::fs::mkdirat(&*place.directory, place.name, Mode::RWXU)
                .map_err(|error| place.failed(error))?;
        }
        let directory = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.describe(&directory, entry, place.whole, notices)
    }

    fn file(
        &mut self,
        entry: &Entry,
        data: &mut dyn Read,
        place: &Place<'_>,
        notices: &mut Notices,
    ) -> Outcome {
        self.clear(place, place.stat()?.as_ref())?;
        let mut file = File::from(place.open(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
        self.write(entry, data, &mut file, place)?;
        self.describe(&file, entry, place.whole, notices)
    }

    fn write(
        &mut self,
        entry: &Entry,
        data: &mut dyn Read,
        file: &mut File,
        place: &Place<'_>,
    ) -> Outcome {
        let failed = |error| Failure::disk(shown(place.whole), error);
        let whole = [Extent { offset: 0, length: entry.stored }];
        let extents = entry.sparse.as_ref().map_or(&whole[..], |(_, extents)| extents);
        for extent in extents {
            if entry.sparse.is_some() {
                file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
            }
            let mut left = extent.length;
            while left > 0 {
                let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let length = data
                    .read(&mut self.buffer[..most])
                    .map_err(|error| unreadable(error.into()))?;
                if length == 0 {
                    return Err(refused(format!("{} is cut short", shown(place.whole))));
                }
                file.write_all(&self.buffer[..length]).map_err(failed)?;
                left -= length as u64;
            }
        }
        match &entry.sparse {
            Some((size, _)) => file.set_len(*size).map_err(failed),
            None => Ok(()),
        }
    }

    fn symlink(&mut self, entry: &Entry, place: &Place<'_>, notices: &mut Notices) -> Outcome {
        if entry.link.is_empty() {
            return Err(refused(format!("{} is a link to nothing", shown(place.whole))));
        }
        self.clear(place, place.stat()?.as_ref())?;
        rustix::fs::symlinkat(&entry.link, &*place.directory, place.name)
            .map_err(|error| place.failed(error))?;
        self.describe_by_name(entry, place, notices)
    }

    fn fifo(&mut self, entry: &Entry, place: &Place<'_>, notices: &mut Notices) -> Outcome {
        self.clear(place, place.stat()?.as_ref())?;
        let mode = Mode::from_raw_mode(self.mode(entry) & !SET_ID);
        rustix::fs::mknodat(&*place.directory, place.name, FileType::Fifo, mode, 0)
            .map_err(|error| place.failed(error))?;
        self.describe_by_name(entry, place, notices)
    }

    fn hard_link(&mut self, link: &[u8], place: &Place<'_>) -> Outcome {
        let nothing = || {
            let (name, link) = (shown(place.whole), shown(link));
            refused(format!("{name} is a hard link to {link}, which is not there"))
        };
        let parts = parts(link)?;
        let (name, parents) = parts.split_last().ok_or_else(nothing)?;
        let directory = self.tree.directory(parents, false)?.ok_or_else(nothing)?;
        let target = Place { directory, name, whole: link };
        let stat = target.stat()?.ok_or_else(nothing)?;
        if is_directory(&stat) {
            let message = format!("{} is a hard link to a directory", shown(place.whole));
            return Err(refused(message));
        }
        if self.files.is_some() && !self.tree.is_made(&stat) {
            return Err(nothing());
        }
        let found = place.stat()?;
        self.tree.made(&stat);
        if found.as_ref().is_some_and(|found| identity(found) == identity(&stat)) {
            return Ok(());
        }
        self.clear(place, found.as_ref())?;
        let (from, to) = (&*target.directory, &*place.directory);
        match rustix::fs::linkat(from, target.name, to, place.name, AtFlags::empty()) {
            // It was in the directory that this has just replaced.
            Err(Errno::NOENT) => Err(nothing()),
            result => result.map_err(|error| place.failed(error)),
        }
    }

    /// Makes room for an entry: what an image's layer has under that name goes. Of the files that a
    /// COPY finds only those go that are no directories.
    fn clear(&mut self, place: &Place<'_>, found: Option<&Stat>) -> Outcome {
        let Some(stat) = found else { return Ok(()) };
        if self.files.is_some() && is_directory(stat) {
            return Err(refused(format!("{} is a directory already", shown(place.whole))));
        }
        self.tree.remove(place.directory.as_fd(), place.name, false)
    }

    fn mode(&self, entry: &Entry) -> u32 {
        self.files.and_then(|files| files.mode).unwrap_or(entry.mode) & 0o7777
    }

    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        // The highest means "no change" to the kernel.
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (user, group) = match self.files {
            Some(files) => files.owner,
            None => (id(entry.uid)?, id(entry.gid)?),
        };
        Some((Uid::from_raw(user), Gid::from_raw(group)))
    }

    /// Owner, attributes, mode and times of a file or directory, in the order in which the kernel
    /// does not undo one by the next.
    fn describe(
        &mut self,
        file: impl AsFd,
        entry: &Entry,
        name: &[u8],
        notices: &mut Notices,
    ) -> Outcome {
        let file = file.as_fd();
        let failed = |error| Failure::disk(shown(name), error);
        let mut mode = self.mode(entry);
        let owned = self
            .owner(entry)
            .map(|(user, group)| rustix::fs::fchown(file, Some(user), Some(group)));
        match owned {
            Some(Ok(())) => {}
            // Ids that a sandbox does not have.
            None | Some(Err(Errno::INVAL)) => {
                notices.add("owners that a sandbox cannot have: root instead", name);
                mode &= !SET_ID;
            }
            Some(Err(error)) => return Err(failed(error)),
        }
        if self.files.is_none() {
            attributes(file, entry, name, notices);
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(failed)?;
        let stat = rustix::fs::fstat(file).map_err(failed)?;
        self.tree.made(&stat);
        if entry.kind == Kind::Directory {
            self.directories.push((name.to_vec(), identity(&stat), times(entry)));
            return Ok(());
        }
        rustix::fs::futimens(file, &times(entry)).map_err(failed)
    }

    /// The same for what cannot be opened.
    fn describe_by_name(
        &mut self,
        entry: &Entry,
        place: &Place<'_>,
        notices: &mut Notices,
    ) -> Outcome {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.owner(entry).map(|(user, group)| {
            rustix::fs::chownat(&*place.directory, place.name, Some(user), Some(group), flags)
        });
        match owned {
            Some(Ok(())) => {}
            None | Some(Err(Errno::INVAL)) => {
                notices.add("owners that a sandbox cannot have: root instead", place.whole);
            }
            Some(Err(error)) => return Err(place.failed(error)),
        }
        if let Some(stat) = place.stat()? {
            self.tree.made(&stat);
        }
        rustix::fs::utimensat(&*place.directory, place.name, &times(entry), flags)
            .map_err(|error| place.failed(error))
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.modified;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Sets those attributes that mean something in a sandbox.
fn attributes(file: BorrowedFd<'_>, entry: &Entry, name: &[u8], notices: &mut Notices) {
    for (attribute, value) in &entry.attributes {
        if attribute == CAPABILITY && !can_be_had(value) {
            // A program that asks for them by its file could not be started at all.
            notices.add("capabilities of files that a sandbox does not have are left out", name);
        } else if (attribute.starts_with(b"user.") || attribute == CAPABILITY)
            && rustix::fs::fsetxattr(file, attribute.as_slice(), value, XattrFlags::empty())
                .is_err()
        {
            notices.add("attributes that cannot be set here are left out", name);
        }
    }
}

/// Whether a sandbox has all capabilities that a file gives: permitted ones, as two times two words
/// after the first.
fn can_be_had(value: &[u8]) -> bool {
    let word = |index: usize| {
        let bytes = value.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (Some(low), Some(high)) = (word(1), word(3)) else { return false };
    let permitted = u64::from(low) | u64::from(high) << 32;
    (0..64).filter(|bit| permitted >> bit & 1 == 1).all(|bit| {
        let set = CapabilitySet::from_bits_retain(1 << bit);
        capability_is_in_bounding_set(set).unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capabilities_that_can_be_had_are_given() {
        let value = |low: u32, high: u32| {
            [0x0200_0001, low, 0, high, 0].map(u32::to_le_bytes).as_flattened().to_vec()
        };
        assert!(can_be_had(&value(0, 0)));
        // To change owners, and one that no kernel has.
        assert!(can_be_had(&value(1, 0)));
        assert!(!can_be_had(&value(1, 1 << 31)));
        assert!(!can_be_had(b"short"));
    }
}
