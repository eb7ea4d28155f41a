//! Archives become files: `envd unpack` for the layers of an image, `envd copy` for COPY steps.
//!
//! Whoever wrote an archive is not trusted, though all of this runs in the sandbox that is being
//! built, where there is nothing to win: the tree that results must be the one that the archive
//! describes, and an attempt to leave it is told as what it is.
//!
//! - [`tree`]: how a name becomes a directory descriptor and a last part, whatever links say;
//! - [`entry`]: what an entry makes there, with owner, mode and times;
//! - [`whiteout`]: what a layer deletes of those below;
//! - [`copy`]: where the files of a COPY go.

pub mod copy;
mod entry;
#[cfg(test)]
mod tests;
mod tree;
mod whiteout;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use atoll_archive::{Archive, Entry, Error, Limited, TooLarge, decompress};
use rustix::fs::Mode;

use crate::tool::{Arguments, Failure, Outcome, Reason, shown, usage};

/// Bytes that an archive may expand to, if nothing else is said: the disk is the real limit.
const MOST_BYTES: u64 = 1 << 40;
/// Entries that an archive may have, if nothing else is said. Large images have 500,000; each takes
/// some 50 bytes of memory.
const MOST_ENTRIES: u64 = 10_000_000;

/// What an archive may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the archive without its compression.
    pub(crate) bytes: u64,
    /// Entries.
    pub(crate) entries: u64,
}

impl Limits {
    /// As the flags say.
    fn of(args: &Arguments) -> Outcome<Self> {
        Ok(Self {
            bytes: args.number("limit", 10)?.unwrap_or(MOST_BYTES),
            entries: args.number("entries", 10)?.unwrap_or(MOST_ENTRIES),
        })
    }
}

/// `envd unpack [--archive FILE] [--limit BYTES] [--entries N] DIR`: applies a layer of an image, of
/// FILE or standard input, to the tree at DIR, which is made if it is not there.
///
/// # Errors
/// `Refused` for what the archive is, `Disk` for the rest.
pub fn command(args: impl IntoIterator<Item = String>) -> Outcome<Vec<String>> {
    let args = Arguments::parse(args, &["archive", "limit", "entries"], &[])?;
    let [directory] = args.rest.as_slice() else {
        return Err(usage("envd unpack [--archive FILE] [--limit BYTES] [--entries N] DIR"));
    };
    let archive = open(args.value("archive"))?;
    std::fs::create_dir_all(directory).map_err(|error| Failure::disk(directory, error))?;
    // From here on modes are those of the archive.
    rustix::process::umask(Mode::empty());
    unpack(archive, Path::new(directory), Limits::of(&args)?)
}

/// The archive: a file, or standard input.
fn open(path: Option<&str>) -> Outcome<Box<dyn Read>> {
    let Some(path) = path else { return Ok(Box::new(io::stdin())) };
    match File::open(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new(Reason::Missing, format!("there is no archive {path}")))
        }
        Err(error) => Err(Failure::disk(path, error)),
    }
}

/// Applies a layer to the tree at `directory`.
fn unpack(archive: impl Read, directory: &Path, limits: Limits) -> Outcome<Vec<String>> {
    let mut layer = entry::Layer::new(tree::Tree::open(directory)?);
    let mut notices = Notices::default();
    each(archive, limits, |entry, data| layer.apply(entry, data, &mut notices))?;
    layer.finish()?;
    Ok(notices.lines())
}

/// Calls `apply` with every entry and its data.
fn each(
    archive: impl Read,
    limits: Limits,
    mut apply: impl FnMut(&Entry, &mut dyn Read) -> Outcome,
) -> Outcome {
    let content = decompress(archive).map_err(|error| unreadable(error.into()))?;
    let mut archive = Archive::new(Limited::new(content, limits.bytes));
    let mut entries = 0;
    while let Some(entry) = archive.next().map_err(unreadable)? {
        entries += 1;
        if entries > limits.entries {
            let message = format!("the archive has more than {} entries", limits.entries);
            return Err(Failure::new(Reason::Refused, message));
        }
        apply(&entry, &mut archive)?;
    }
    // What the compression says of the whole comes last.
    archive.drain().map_err(|error| unreadable(error.into()))
}

fn unreadable(error: Error) -> Failure {
    let message = match error {
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the archive cannot be read: it ends too early".to_owned()
        }
        // Says it all.
        Error::Io(error) if error.get_ref().is_some_and(|error| error.is::<TooLarge>()) => {
            error.to_string()
        }
        error => format!("the archive cannot be read: {error}"),
    };
    Failure::new(Reason::Refused, message)
}

/// What was left out, counted: a hostile archive is not to fill the log.
#[derive(Debug, Default)]
pub(crate) struct Notices(BTreeMap<&'static str, (u64, String)>);

impl Notices {
    /// `what` was done to the entry of that name.
    pub(crate) fn add(&mut self, what: &'static str, name: &[u8]) {
        self.0.entry(what).or_insert_with(|| (0, shown(name))).0 += 1;
    }

    fn lines(self) -> Vec<String> {
        let line = |(what, (count, first)): (&str, (u64, String))| match count {
            1 => format!("{what}: {first}"),
            _ => format!("{what}: {first} and {} more", count - 1),
        };
        self.0.into_iter().map(line).collect()
    }
}
