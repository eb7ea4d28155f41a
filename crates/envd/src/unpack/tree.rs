//! How a name of an archive becomes a directory and a last part.
//!
//! Names are walked part by part from a descriptor of the root, and no part is left to the kernel to
//! follow: links are read and walked in the same way, `..` is the part walked before and never above
//! the root, and an absolute link begins at the root. So nothing outside can be named, whatever
//! links there are, and a link that leads nowhere yet gets the directories it names, as it does
//! where images are usually unpacked.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

use crate::tool::{Failure, Outcome, Reason, shown};

/// Links on the way of one name, as for the kernel.
const MOST_LINKS: usize = 40;
/// Directories within each other. Each takes a descriptor while a tree is removed.
const DEEPEST: usize = 500;
/// Bytes of a name, and of one of its parts, as for the kernel.
const LONGEST_NAME: usize = 4096;
const LONGEST_PART: usize = 255;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Which file this is, whatever its names.
pub(crate) type Identity = (u64, u64);

/// The identity in a status.
pub(crate) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// A tree of files and what has been made in it.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// Everything that this archive has made.
    made: HashSet<Identity>,
    /// Whether links of this archive are followed; those that were there before always are.
    pub(crate) follows_own_links: bool,
    /// Who owns directories that no entry describes.
    pub(crate) owner: Option<(u32, u32)>,
    /// The directory found last: most entries are in that of the entry before.
    last: Option<(Vec<Vec<u8>>, Rc<OwnedFd>)>,
}

impl Tree {
    /// The tree at `path`.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| Failure::disk(path.display(), error))?;
        Ok(Self {
            root: Rc::new(root),
            made: HashSet::new(),
            follows_own_links: true,
            owner: None,
            last: None,
        })
    }

    /// Remembers that the archive has made this.
    pub(crate) fn made(&mut self, stat: &Stat) {
        self.made.insert(identity(stat));
    }

    /// Whether the archive has made this.
    pub(crate) fn is_made(&self, stat: &Stat) -> bool {
        self.made.contains(&identity(stat))
    }

    /// The directory that these parts name; made as needed if `make`, otherwise none where it is
    /// not there.
    pub(crate) fn directory(
        &mut self,
        parts: &[&[u8]],
        make: bool,
    ) -> Outcome<Option<Rc<OwnedFd>>> {
        if let Some((name, directory)) = &self.last
            && name.iter().map(Vec::as_slice).eq(parts.iter().copied())
        {
            return Ok(Some(Rc::clone(directory)));
        }
        let directory = self.walk(parts, make)?;
        if let Some(directory) = &directory {
            let name = parts.iter().map(|part| part.to_vec()).collect();
            self.last = Some((name, Rc::clone(directory)));
        }
        Ok(directory)
    }

    fn walk(&mut self, parts: &[&[u8]], make: bool) -> Outcome<Option<Rc<OwnedFd>>> {
        let name = || shown(&parts.join(&b'/'));
        let mut path = vec![Rc::clone(&self.root)];
        let mut ahead: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            let Some(here) = path.last().map(Rc::clone) else { break };
            if part == b".." {
                path.truncate((path.len() - 1).max(1));
                continue;
            }
            match rustix::fs::openat(&*here, &part, DIRECTORY, Mode::empty()) {
                Ok(directory) => path.push(Rc::new(directory)),
                Err(Errno::NOENT) if make => path.push(Rc::new(self.make(&here, &part)?)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let target = self.link(&here, &part, &name)?;
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(refused(format!("{} leads through too many links", name())));
                    }
                    if target.starts_with(b"/") {
                        path.truncate(1);
                    }
                    for part in target.rsplit(|byte| *byte == b'/') {
                        if !part.is_empty() && part != b"." {
                            ahead.push_front(part.to_vec());
                        }
                    }
                }
                Err(error) => return Err(Failure::disk(name(), error)),
            }
            if path.len() > DEEPEST {
                return Err(refused(format!("{} is too deep", name())));
            }
        }
        Ok(path.pop())
    }

    /// What the link `part` of `here` leads to.
    fn link(&self, here: &OwnedFd, part: &[u8], name: &impl Fn() -> String) -> Outcome<Vec<u8>> {
        let stat = rustix::fs::statat(here, part, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Failure::disk(name(), error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            let message = format!("{}: {} is not a directory", name(), shown(part));
            return Err(refused(message));
        }
        if !self.follows_own_links && self.is_made(&stat) {
            let message = format!("{}: {} is a link of the same archive", name(), shown(part));
            return Err(refused(message));
        }
        let target = rustix::fs::readlinkat(here, part, Vec::new())
            .map_err(|error| Failure::disk(name(), error))?;
        Ok(target.into_bytes())
    }

    /// Makes a directory that no entry has described yet.
    fn make(&mut self, here: &OwnedFd, part: &[u8]) -> Outcome<OwnedFd> {
        let make = || {
            rustix::fs::mkdirat(here, part, Mode::from_raw_mode(0o755))?;
            let directory = rustix::fs::openat(here, part, DIRECTORY, Mode::empty())?;
            if let Some((user, group)) = self.owner {
                let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                rustix::fs::fchown(&directory, Some(user), Some(group))?;
            }
            let stat = rustix::fs::fstat(&directory)?;
            Ok((directory, stat))
        };
        let (directory, stat) = make().map_err(|error: Errno| Failure::disk(shown(part), error))?;
        self.made(&stat);
        Ok(directory)
    }

    /// Removes what has that name, with all that is in it; nothing if it is not there. With `kept`,
    /// what this archive has made stays.
    pub(crate) fn remove(&mut self, directory: BorrowedFd<'_>, name: &[u8], kept: bool) -> Outcome {
        // What was found before may be gone.
        self.last = None;
        self.remove_below(directory, name, kept, 0)
    }

    fn remove_below(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        kept: bool,
        depth: usize,
    ) -> Outcome {
        let failed = |error| Failure::disk(shown(name), error);
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let stays = kept && self.is_made(&stat);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let flags = AtFlags::empty();
            return if stays { Ok(()) } else { unlink(parent, name, flags).map_err(failed) };
        }
        if depth > DEEPEST {
            return Err(refused(format!("{} is too deep to be removed", shown(name))));
        }
        let directory =
            rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()).map_err(failed)?;
        for child in children(directory.as_fd()).map_err(failed)? {
            self.remove_below(directory.as_fd(), &child, kept, depth + 1)?;
        }
        if stays {
            return Ok(());
        }
        match unlink(parent, name, AtFlags::REMOVEDIR) {
            // Something in it stays, and so does it.
            Err(Errno::NOTEMPTY) if kept => Ok(()),
            result => result.map_err(failed),
        }
    }
}

fn unlink(parent: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    rustix::fs::unlinkat(parent, name, flags)
}

/// The names in a directory.
pub(crate) fn children(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// The parts of a name, which must lie below the tree; none for the tree itself.
pub(crate) fn parts(name: &[u8]) -> Outcome<Vec<&[u8]>> {
    if name.starts_with(b"/") {
        return Err(refused(format!("{} is an absolute name", shown(name))));
    }
    if name.len() > LONGEST_NAME {
        return Err(refused(format!("a name is too long: {}…", shown(&name[..LONGEST_PART]))));
    }
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<&[u8]> = parts.collect();
    if parts.contains(&&b".."[..]) {
        return Err(refused(format!("{} leads outside", shown(name))));
    }
    if let Some(part) = parts.iter().find(|part| part.len() > LONGEST_PART) {
        return Err(refused(format!("a name is too long: {}…", shown(&part[..LONGEST_PART]))));
    }
    Ok(parts)
}

/// The archive is at fault.
pub(crate) fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Reason::Refused, message)
}
