//! `envd copy`: where the files of a COPY go, by Docker's rules.
//!
//! An archive holds what the client found for the step's source, under names from the context's root.
//! A directory gives what is in it; a pattern gives what lies below its part without wildcards; a
//! file is put under the destination's name, or into it where that is a directory. Links are copied
//! as they are, wherever they lead.

use std::{io::Read, os::fd::AsFd, path::Path};

use atoll_archive::{Entry, Kind};
use rustix::fs::{AtFlags, FileType, Mode};

use super::{
    Limits, Notices, each,
    entry::{Layer, Override},
    open,
    tree::{Tree, parts, refused},
};
use crate::{
    tool::{Arguments, Failure, Outcome, Reason, shown, usage},
    users::{self, Names},
};

const USAGE: &str = "envd copy [--archive FILE] [--limit BYTES] [--entries N] [--workdir DIR] \
                     --user NAME [--owner USER[:GROUP]] [--mode OCTAL] SOURCE DESTINATION";

/// A COPY step.
pub(crate) struct Copy<'a> {
    source: &'a str,
    destination: Vec<u8>,
    /// The destination is a directory, whether it is there or not.
    into: bool,
    files: Override,
}

/// The command in [`USAGE`].
///
/// # Errors
/// `Refused` for what the archive is, `Missing` when it has no such source, `NoUser`, `Disk`.
pub fn command(args: impl IntoIterator<Item = String>) -> Outcome<Vec<String>> {
    let valued = ["archive", "limit", "entries", "workdir", "user", "owner", "mode"];
    let args = Arguments::parse(args, &valued, &[])?;
    let ([source, destination], Some(user)) = (args.rest.as_slice(), args.value("user")) else {
        return Err(usage(USAGE));
    };
    let mode = args.number("mode", 8)?.and_then(|mode| u32::try_from(mode).ok());
    let owner = match args.value("owner").filter(|owner| !owner.is_empty()) {
        Some(owner) => owner_named(owner)?,
        None => owner_named(user)?,
    };
    let files = Override { owner, mode: mode.map(|mode| mode & 0o7777) };
    let workdir = match args.value("workdir") {
        Some(workdir) => workdir.to_owned(),
        None => home(user)?,
    };
    let step = Copy::new(source, destination, &workdir, files);
    rustix::process::umask(Mode::empty());
    step.run(open(args.value("archive"))?, Path::new("/"), Limits::of(&args)?)
}

/// Where a user works who has not said where.
fn home(user: &str) -> Outcome<String> {
    let account = users::lookup(user).map_err(|error| Failure::disk("/etc/passwd", error))?;
    let home = account.map(|account| account.home.to_string_lossy().into_owned());
    Ok(home.unwrap_or_else(|| "/".to_owned()))
}

/// `user`, `user:group`, either of them maybe a number. A user alone is with its own group.
fn owner_named(owner: &str) -> Outcome<(u32, u32)> {
    let nobody = |what, name| Failure::new(Reason::NoUser, format!("there is no {what} {name}"));
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (owner, None),
    };
    let account = users::lookup(user).map_err(|error| Failure::disk("/etc/passwd", error))?;
    let uid = account.as_ref().map(|account| account.uid).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| nobody("user", user))?;
    let gid = match group {
        Some(group) => Names::load().group_id(group).or_else(|| group.parse().ok()),
        None => Some(account.map_or(uid, |account| account.gid)),
    };
    Ok((uid, gid.ok_or_else(|| nobody("group", group.unwrap_or_default()))?))
}

impl<'a> Copy<'a> {
    pub(crate) fn new(source: &'a str, destination: &str, workdir: &str, files: Override) -> Self {
        let into = matches!(destination.rsplit('/').next(), Some("" | "." | ".."));
        // An absolute destination takes the place of the directory.
        let destination = Path::new("/").join(workdir).join(destination);
        let destination = destination.into_os_string().into_encoded_bytes();
        Self { source, destination: normal(&destination), into, files }
    }

    /// Copies to the tree at `root`.
    pub(crate) fn run(
        &self,
        archive: impl Read,
        root: &Path,
        limits: Limits,
    ) -> Outcome<Vec<String>> {
        let mut tree = Tree::open(root)?;
        tree.follows_own_links = false;
        tree.owner = Some(self.files.owner);
        let into = self.into || is_directory(&mut tree, &self.destination)?;
        let source = normal(self.source.as_bytes());
        let base = base(&source);
        let mut layer = Layer::of_files(tree, self.files);
        let mut notices = Notices::default();
        let mut found = false;
        each(archive, limits, |entry, data| {
            parts(&entry.path)?;
            let place = |name: &[u8], kind| self.place(name, kind, &source, base, into);
            let Some(name) = place(&entry.path, entry.kind) else { return Ok(()) };
            found = true;
            let link = hard_link(entry, place)?;
            layer.apply_as(entry, &name, &link, data, &mut notices)
        })?;
        if !found {
            let message = format!("{}: no such file or directory to copy", self.source);
            return Err(Failure::new(Reason::Missing, message));
        }
        layer.finish()?;
        Ok(notices.lines())
    }

    /// The name under which an entry is made; none if it is not of the source.
    fn place(
        &self,
        name: &[u8],
        kind: Kind,
        source: &[u8],
        base: Option<&[u8]>,
        into: bool,
    ) -> Option<Vec<u8>> {
        let name = normal(name);
        let below = |directory: &[u8]| {
            if directory.is_empty() {
                return Some(name.clone());
            }
            let rest = name.strip_prefix(directory)?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| rest.to_vec())
        };
        let rest = match below(source) {
            // The source itself, and no directory.
            Some(rest) if rest.is_empty() && kind != Kind::Directory => {
                let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
                if into { last } else { rest }
            }
            Some(rest) => rest,
            None => below(base?)?,
        };
        let whole = [&self.destination, &b"/"[..], &rest].concat();
        Some(normal(&whole))
    }
}

/// Where a hard link leads; it must be to a file that is copied too.
fn hard_link(entry: &Entry, place: impl Fn(&[u8], Kind) -> Option<Vec<u8>>) -> Outcome<Vec<u8>> {
    if entry.kind != Kind::HardLink {
        return Ok(Vec::new());
    }
    parts(&entry.link)?;
    place(&entry.link, Kind::File).ok_or_else(|| {
        let (name, link) = (shown(&entry.path), shown(&entry.link));
        refused(format!("{name} is a hard link to {link}, which is not copied"))
    })
}

/// Of a pattern the directories before the first wildcard; none if there is none.
fn base(source: &[u8]) -> Option<&[u8]> {
    let wildcard = source.iter().position(|byte| b"*?[{(".contains(byte))?;
    let end = source[..wildcard].iter().rposition(|byte| *byte == b'/');
    Some(end.map_or(b"", |end| &source[..end]))
}

/// A name without `.`, `..` and empty parts, by its text alone. Not above the root.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn is_directory(tree: &mut Tree, name: &[u8]) -> Outcome<bool> {
    let parts = parts(name)?;
    let Some((last, parents)) = parts.split_last() else { return Ok(true) };
    let Some(directory) = tree.directory(parents, false)? else { return Ok(false) };
    let stat = rustix::fs::statat(directory.as_fd(), *last, AtFlags::SYMLINK_NOFOLLOW);
    Ok(match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Directory) => true,
        // To a directory, or nowhere yet.
        Ok(FileType::Symlink) => matches!(tree.directory(&parts, false), Ok(Some(_))),
        _ => false,
    })
}
