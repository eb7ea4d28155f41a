//! What outlives the node's process: one file a sandbox, with all that the next start needs to find
//! it again and to go on.
//!
//! ```text
//! <data-dir>/sandboxes/<id>.json      a line with version and checksum, then JSON
//!                     /<id>.partial   being written; what a crash left of one is removed
//!                     /<id>.torn      set aside: not what was written. While it is there, what is
//!                                     saved of the sandbox stays
//! ```
//!
//! A file is written under another name and renamed: it is the old one or the new one, never half,
//! for as long as the machine runs. What is to outlive the machine too, a paused sandbox, is flushed
//! to the disk, and so is what replaces it; whatever runs ends with the machine anyway, and so do
//! frozen processes, of which the disk is left. The checksum finds what a machine that stopped has
//! left half-written.
//!
//! Files hold secrets of sandboxes, and so are root's alone.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use atoll_core::{
    Error, LayerId, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_isolation::Identity;
use atoll_storage::BuildManifest;
use atoll_wire::node::{EndReason, Resume, SandboxRecord};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a file begins with, before its version.
const MAGIC: &str = "atoll-sandbox";
/// The version that is written, and the only one that is read.
const VERSION: &str = "2";

const ENTRY: &str = "json";
const PARTIAL: &str = "partial";
const TORN: &str = "torn";

/// What is known of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Where it is in its life.
    pub(crate) state: State,
    /// What defines it.
    pub(crate) record: SandboxRecord,
    /// Grows with each entry of it.
    pub(crate) revision: u64,
    /// What its envd reported as version; empty before it has.
    pub(crate) envd_version: String,
    /// The build that it was made of, or taken back to, which may be gone since.
    pub(crate) build: BuildManifest,
    /// Where its run is, if it has one.
    pub(crate) run: Option<RunEntry>,
    /// Of the checkpoint that is saved of it.
    pub(crate) memory: Option<Memory>,
    /// How it is to go on, while it is being resumed.
    pub(crate) resume: Option<Resume>,
    /// Why it ends, once it does.
    pub(crate) reason: Option<EndReason>,
    /// Its frozen processes have ended with the node, and its users are to be told by the next one.
    pub(crate) has_lost_memory: bool,
}

/// Where a run is on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunEntry {
    /// Its first process, and what belongs to that.
    pub(crate) identity: Identity,
    /// Number of its network slot.
    pub(crate) slot: u32,
    /// Name of its disk.
    pub(crate) disk: String,
    /// What a checkpoint of it is restored with.
    pub(crate) memory: Memory,
}

/// What goes with the memory of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Layers of its root, lowest first, the one with envd included.
    pub(crate) stack: Vec<LayerId>,
    /// What only the node and its envd know.
    pub(crate) control_secret: String,
}

/// What the other services must leave alone at start, because a sandbox lives in it or is saved in
/// it. All else of an earlier run is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Names of control groups.
    pub groups: HashSet<String>,
    /// Numbers of network slots.
    pub slots: HashSet<u32>,
    /// Names of disks and of what is saved.
    pub disks: HashSet<String>,
}

/// The journal of a node.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

/// A journal as it was found at start.
#[derive(Debug)]
pub struct Opened {
    pub(crate) journal: Journal,
    pub(crate) entries: Vec<Entry>,
    /// Ids of those of which the file is damaged: what is saved of them may be of use to somebody.
    damaged: Vec<String>,
}

impl Journal {
    /// Opens the journal in `data_dir`, which this process alone uses, and reads it.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`; the former too when a newer Atoll wrote it.
    pub fn open(data_dir: &Path) -> Result<Opened> {
        let directory = data_dir.join("sandboxes");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)))
            .map_err(|error| unusable("make", &directory, &error))?;
        let journal = Self { directory };
        let mut entries = Vec::new();
        for path in journal.files(ENTRY)? {
            entries.extend(read(&path)?);
        }
        for path in journal.files(PARTIAL)? {
            fs::remove_file(&path).map_err(|error| unusable("remove", &path, &error))?;
        }
        let stem = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        let damaged = journal.files(TORN)?.iter().filter_map(stem).collect();
        Ok(Opened { journal, entries, damaged })
    }

    fn files(&self, extension: &str) -> Result<Vec<PathBuf>> {
        let list = || fs::read_dir(&self.directory)?.collect::<io::Result<Vec<_>>>();
        let files = list().map_err(|error| unusable("list", &self.directory, &error))?;
        let mut paths: Vec<_> = files.iter().map(fs::DirEntry::path).collect();
        paths.retain(|path| path.extension().is_some_and(|found| found == extension));
        Ok(paths)
    }

    /// Writes what is known of a sandbox, in place of what was there; `durable` waits for the disk.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`.
    pub(crate) fn write(&self, entry: &Entry, durable: bool) -> Result<()> {
        let path = self.path(&entry.record.id, ENTRY);
        let partial = self.path(&entry.record.id, PARTIAL);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(encode(entry)?.as_bytes())?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&partial, &path)?;
            if durable {
                File::open(&self.directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|error| unusable("write", &path, &error))
    }

    /// Forgets a sandbox. One that is not there counts as forgotten.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE`.
    pub(crate) fn forget(&self, id: &SandboxId) -> Result<()> {
        let path = self.path(id, ENTRY);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, id: &SandboxId, extension: &str) -> PathBuf {
        self.directory.join(format!("{id}.{extension}"))
    }
}

impl Entry {
    /// The first of a sandbox that is to be made.
    pub(crate) fn new(record: SandboxRecord, build: BuildManifest) -> Self {
        Self {
            state: State::Starting,
            record,
            revision: 0,
            envd_version: String::new(),
            build,
            run: None,
            memory: None,
            resume: None,
            reason: None,
            has_lost_memory: false,
        }
    }

    /// Makes a snapshot what the sandbox is resumed from.
    pub(crate) fn go_back_to(&mut self, snapshot: &BuildManifest) {
        self.memory = Memory::of(snapshot);
        self.build = snapshot.clone();
    }

    /// All layers that it may need. `runtime` is the one with envd, put above every template's.
    pub(crate) fn layers(&self, runtime: &LayerId) -> Vec<LayerId> {
        let run = self.run.as_ref().map(|run| &run.memory);
        let stacks = [run, self.memory.as_ref()].into_iter().flatten().flat_map(|of| &of.stack);
        let mut layers = needs(&self.build, runtime);
        layers.extend(stacks.cloned());
        layers.sort();
        layers.dedup();
        layers
    }
}

/// All layers that a sandbox of this build may need.
pub(crate) fn needs(build: &BuildManifest, runtime: &LayerId) -> Vec<LayerId> {
    build.layers.iter().chain(&build.stack).chain([runtime]).cloned().collect()
}

impl Memory {
    /// Of a snapshot; none if it is one of the disk alone.
    pub(crate) fn of(snapshot: &BuildManifest) -> Option<Self> {
        let control_secret = snapshot.control_secret.clone()?;
        (snapshot.snapshot == Some(Kept::Checkpoint))
            .then(|| Self { stack: snapshot.stack.clone(), control_secret })
    }
}

impl Opened {
    /// Whether it is not known of every sandbox what it consists of.
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// What the other services must leave alone when they start.
    pub fn keep(&self) -> Keep {
        let mut keep = Keep { disks: self.damaged.iter().cloned().collect(), ..Keep::default() };
        for entry in &self.entries {
            if keeps_saved(entry.state) {
                keep.disks.insert(entry.record.id.to_string());
            }
            let Some(run) = entry.run.as_ref().filter(|_| keeps_run(entry.state)) else { continue };
            keep.groups.insert(run.identity.cgroup.clone());
            keep.slots.insert(run.slot);
            keep.disks.insert(run.disk.clone());
        }
        keep
    }
}

/// Whether a run that the journal knows is to go on: others were never answered for, or are to end.
pub(crate) fn keeps_run(state: State) -> bool {
    match state {
        State::Running
        | State::Snapshotting
        | State::Pausing(_)
        | State::Paused(Kept::Frozen)
        | State::Resuming(Kept::Frozen) => true,
        State::Starting | State::Paused(_) | State::Resuming(_) | State::Ending => false,
    }
}

/// Whether a sandbox in this state outlives the machine.
pub(crate) fn outlives_machine(state: State) -> bool {
    matches!(state, State::Paused(_) | State::Resuming(_))
}

fn keeps_saved(state: State) -> bool {
    !matches!(state, State::Starting | State::Ending)
}

fn encode(entry: &Entry) -> io::Result<String> {
    let body = serde_json::to_string(entry)?;
    Ok(format!("{MAGIC} {VERSION} {}\n{body}\n", checksum(&body)))
}

fn checksum(body: &str) -> String {
    hex::encode(Sha256::digest(body))
}

/// What reading a file can come to.
#[derive(Debug, PartialEq)]
enum Found {
    Entry(Box<Entry>),
    OtherVersion(String),
    Torn,
}

fn decode(text: &str) -> Found {
    let Some((head, rest)) = text.split_once('\n') else { return Found::Torn };
    let mut words = head.split(' ');
    let (Some(MAGIC), Some(version)) = (words.next(), words.next()) else { return Found::Torn };
    if version != VERSION {
        return Found::OtherVersion(version.to_owned());
    }
    let body = rest.strip_suffix('\n').unwrap_or(rest);
    if words.next() != Some(&checksum(body)) {
        return Found::Torn;
    }
    serde_json::from_str(body).map_or(Found::Torn, |entry| Found::Entry(Box::new(entry)))
}

/// Reads a file; none of one that is torn, which is set aside.
fn read(path: &Path) -> Result<Option<Entry>> {
    let bytes = fs::read(path).map_err(|error| unusable("read", path, &error))?;
    let found = str::from_utf8(&bytes).map_or(Found::Torn, decode);
    match found {
        Found::Entry(entry) if path.file_stem() == Some(entry.record.id.as_str().as_ref()) => {
            Ok(Some(*entry))
        }
        Found::OtherVersion(version) => {
            let message = format!(
                "{} has version {version}, and this Atoll reads {VERSION}.",
                path.display()
            );
            Err(Error::new(codes::DATA_DIR_UNUSABLE, message).with_fix(
                "Start the Atoll that wrote it, and end its sandboxes before you start this one.",
            ))
        }
        Found::Entry(_) | Found::Torn => {
            let aside = path.with_extension(TORN);
            fs::rename(path, &aside).map_err(|error| unusable("set aside", path, &error))?;
            tracing::error!(
                file = %aside.display(),
                "what was known of a sandbox is damaged, and the sandbox is lost"
            );
            Ok(None)
        }
    }
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
        _ => codes::DATA_DIR_UNUSABLE,
    };
    Error::new(code, format!("cannot {what} {}: {error}.", path.display()))
}

#[cfg(test)]
mod tests {
    use atoll_wire::node::OnTimeout;
    use tempfile::TempDir;

    use super::*;

    fn entry(id: &str, state: State) -> Entry {
        let mut entry = crate::tests::entry(state);
        entry.record.id = id.parse().unwrap();
        let stack = vec!["layer".parse().unwrap()];
        Entry {
            revision: 7,
            memory: Some(Memory { stack, control_secret: "secret".to_owned() }),
            resume: Some(Resume { timeout: 15, on_timeout: Some(OnTimeout::Kill) }),
            reason: Some(EndReason::Expired),
            ..entry
        }
    }

    fn open(directory: &TempDir) -> Opened {
        Journal::open(directory.path()).unwrap()
    }

    fn files(directory: &TempDir) -> Vec<String> {
        let list = fs::read_dir(directory.path().join("sandboxes")).unwrap();
        let mut names: Vec<_> =
            list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_last_is_read_again_until_it_is_forgotten() {
        let directory = TempDir::new().unwrap();
        let journal = open(&directory).journal;
        let paused = entry("i1", State::Paused(Kept::Disk));
        let other = entry("i2", State::Running);
        journal.write(&entry("i1", State::Running), false).unwrap();
        journal.write(&paused, true).unwrap();
        journal.write(&other, false).unwrap();
        assert!(!open(&directory).is_damaged());
        let mut found = open(&directory).entries;
        found.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        assert_eq!(found, [paused, other.clone()]);
        journal.forget(&"i1".parse().unwrap()).unwrap();
        journal.forget(&"i1".parse().unwrap()).unwrap();
        assert_eq!(open(&directory).entries, [other]);
        assert_eq!(files(&directory), ["i2.json"]);
    }

    #[test]
    fn nobody_else_can_read_it() {
        let directory = TempDir::new().unwrap();
        open(&directory).journal.write(&entry("i1", State::Running), false).unwrap();
        let mode = |name: &str| {
            fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("sandboxes"), mode("sandboxes/i1.json")), (0o700, 0o600));
    }

    #[test]
    fn a_file_that_is_damaged_anywhere_is_set_aside_and_the_others_are_read() {
        let directory = TempDir::new().unwrap();
        let journal = open(&directory).journal;
        let whole = encode(&entry("i1", State::Running)).unwrap();
        journal.write(&entry("i2", State::Running), false).unwrap();
        let path = directory.path().join("sandboxes/i1.json");
        let torn_at = (0..whole.len() - 1).step_by(7).map(|length| whole[..length].to_owned());
        let changed = [whole.replace("\"vcpu\":2", "\"vcpu\":4"), whole.replacen('a', "b", 1)];
        for damaged in torn_at.chain(changed) {
            fs::write(&path, &damaged).unwrap();
            let found = open(&directory);
            assert_eq!(found.entries.len(), 1, "{damaged}");
            let disks = found.keep().disks;
            assert!(found.is_damaged());
            assert!(disks.contains("i1"), "what is saved of it is not to be deleted");
            assert_eq!(files(&directory), ["i1.torn", "i2.json"]);
        }
    }

    #[test]
    fn a_file_of_another_sandbox_is_none() {
        let directory = TempDir::new().unwrap();
        open(&directory).journal.write(&entry("i1", State::Running), false).unwrap();
        let at = |name: &str| directory.path().join("sandboxes").join(name);
        fs::rename(at("i1.json"), at("i2.json")).unwrap();
        assert_eq!(open(&directory).entries, []);
        assert_eq!(files(&directory), ["i2.torn"]);
    }

    #[test]
    fn what_a_newer_atoll_wrote_is_left_alone() {
        let directory = TempDir::new().unwrap();
        open(&directory);
        let text = encode(&entry("i1", State::Running)).unwrap().replacen(" 2 ", " 3 ", 1);
        fs::write(directory.path().join("sandboxes/i1.json"), text).unwrap();
        let error = Journal::open(directory.path()).unwrap_err();
        assert_eq!(error.code, codes::DATA_DIR_UNUSABLE);
        assert_eq!(files(&directory), ["i1.json"]);
    }

    #[test]
    fn what_was_being_written_at_a_crash_is_removed() {
        let directory = TempDir::new().unwrap();
        let running = entry("i1", State::Running);
        open(&directory).journal.write(&running, false).unwrap();
        fs::write(directory.path().join("sandboxes/i1.partial"), "half").unwrap();
        assert_eq!(open(&directory).entries, [running]);
        assert_eq!(files(&directory), ["i1.json"]);
    }

    #[test]
    fn what_was_saved_is_kept_until_the_sandbox_ends() {
        let directory = TempDir::new().unwrap();
        let journal = open(&directory).journal;
        for (id, state) in [
            ("i1", State::Paused(Kept::Disk)),
            ("i2", State::Ending),
            ("i3", State::Starting),
            ("i4", State::Resuming(Kept::Disk)),
        ] {
            journal.write(&entry(id, state), true).unwrap();
        }
        let disks = ["i1", "i4"].map(str::to_owned).into();
        assert_eq!(open(&directory).keep(), Keep { disks, ..Keep::default() });
    }
}
