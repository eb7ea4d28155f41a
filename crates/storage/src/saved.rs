//! What is saved of sandboxes that do not run: a copy of the disk, and a checkpoint of the memory if
//! there is one.
//!
//! ```text
//! <data-dir>/pool/saved/<name>/disk     read-only copy: one subvolume, as in `disks`
//!                             /memory/  what a checkpoint consists of; empty without one
//!                             /sealed   written last: without it the rest is incomplete
//! ```
//!
//! What is sealed is on disk, whole, whenever the machine stops, and never changes. Work on a name
//! waits for other work on it, also for some whose caller has left.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use atoll_core::{Error, Result, error::codes};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    accounts, btrfs,
    disks::{Disk, Disks, Doomed},
    file::{blocking, failed, private_dir, unusable, write_atomic},
};

/// Longer names than any id. They become directories.
const MAX_NAME: usize = 64;

/// All that is saved in a pool.
#[derive(Debug)]
pub(crate) struct Saves {
    disks: Arc<Disks>,
    dir: PathBuf,
    /// Names that are worked on.
    busy: Mutex<HashSet<String>>,
    idle: Condvar,
}

/// The content of `sealed`, of which a line with the SHA-256 of the first line follows.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    /// Id of the subvolume `disk`.
    disk: u64,
    /// Name of the disk that it is a copy of.
    source: String,
    /// Id of that one's subvolume.
    source_id: u64,
}

/// Something saved, and complete. The plain name of it: dropping it deletes nothing.
#[derive(Clone, Debug)]
pub struct Saved {
    saves: Arc<Saves>,
    name: String,
}

impl Saved {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the checkpoint is, for root alone; empty if there is none.
    pub fn memory_dir(&self) -> PathBuf {
        self.saves.memory(&self.name)
    }

    /// Deletes it. What branched from it is unaffected.
    ///
    /// # Errors
    /// `POOL_FAILED` when something of it is in use. It is incomplete then.
    pub async fn destroy(self) -> Result<()> {
        self.saves.drop_saved(&self.name).await
    }
}

impl Saves {
    /// Opens the directory and deletes what is in it, apart from what is to be kept. Also gives the
    /// ids of the subvolumes that are left.
    pub(crate) fn open(
        disks: &Arc<Disks>,
        keep: &HashSet<String>,
    ) -> Result<(Arc<Self>, HashSet<u64>)> {
        let dir = disks.pool.dir.join("saved");
        private_dir(&dir)?;
        let saves =
            Self { disks: Arc::clone(disks), dir, busy: Mutex::default(), idle: Condvar::new() };
        let mut left = HashSet::new();
        let entries = fs::read_dir(&saves.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &saves.dir, &error))? {
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
                left.extend(copy_id(&path).map_err(|error| unusable("open", &path, &error))?);
            } else {
                saves.remove(&path).map_err(|error| unusable("remove", &path, &error))?;
            }
        }
        Ok((Arc::new(saves), left))
    }

    fn root(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn memory(&self, name: &str) -> PathBuf {
        self.root(name).join("memory")
    }

    /// Begins something to save: an empty directory for a checkpoint, in place of all that had the
    /// name.
    pub(crate) async fn begin(self: &Arc<Self>, name: &str) -> Result<PathBuf> {
        self.work_on(name, |saves, name| {
            let root = saves.root(name);
            saves.remove(&root).map_err(|error| unusable("remove", &root, &error))?;
            private_dir(&root)?;
            private_dir(&saves.memory(name))?;
            Ok(saves.memory(name))
        })
        .await
    }

    /// Copies a disk and seals the copy, together with what is in the directory for the checkpoint.
    pub(crate) async fn seal(self: &Arc<Self>, disk: &Disk, name: &str) -> Result<Saved> {
        let (from, source, source_id) = (disk.root(), disk.name().to_owned(), disk.id());
        self.work_on(name, move |saves, name| {
            let root = saves.root(name);
            private_dir(&root)?;
            private_dir(&saves.memory(name))?;
            saves.remove_copy(&root).map_err(|error| unusable("clear", &root, &error))?;
            let copy = || -> io::Result<u64> {
                let parent = File::open(&root)?;
                btrfs::snapshot(&File::open(&from)?, &parent, "disk", true)?;
                // The checkpoint, before the file that vouches for it.
                rustix::fs::syncfs(&parent)?;
                btrfs::subvolume_id(&File::open(root.join("disk"))?)
            };
            let disk = copy().map_err(|error| failed(codes::POOL_FAILED, "save a disk", &error))?;
            write_seal(&root, &Seal { disk, source, source_id })?;
            Ok(Saved { saves: Arc::clone(saves), name: name.to_owned() })
        })
        .await
    }

    /// What is saved under this name, if it is complete.
    pub(crate) async fn find(self: &Arc<Self>, name: &str) -> Result<Option<Saved>> {
        self.work_on(name, |saves, name| {
            let saved = || Saved { saves: Arc::clone(saves), name: name.to_owned() };
            Ok(read_seal(&saves.root(name))?.map(|_| saved()))
        })
        .await
    }

    /// Makes a disk with the content of a saved one.
    pub(crate) async fn branch(self: &Arc<Self>, saved: &Saved, limit: u64) -> Result<Disk> {
        self.work_on(&saved.name, move |saves, name| {
            let root = saves.root(name);
            let Some(seal) = read_seal(&root)? else {
                return Err(Error::new(codes::NOT_FOUND, format!("{name} is not saved any more.")));
            };
            let copy = root.join("disk");
            let mut ancestors = accounts::read_lineage(&saves.disks.pool, &copy)
                .map_err(|error| unusable("read the lineage of", &copy, &error))?;
            if !saves.disks.exists(&seal.source) {
                ancestors.push(seal.source_id);
            }
            saves.disks.branch(&copy, &ancestors, limit)
        })
        .await
    }

    /// Deletes what there is under this name.
    pub(crate) async fn drop_saved(self: &Arc<Self>, name: &str) -> Result<()> {
        self.work_on(name, |saves, name| {
            let delete = saves.remove(&saves.root(name));
            delete.map_err(|error| {
                failed(codes::POOL_FAILED, format_args!("delete what is saved as {name}"), &error)
            })
        })
        .await
    }

    /// Does something with a name, alone.
    async fn work_on<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Arc<Self>, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
            let message = format!("{name:?} is no name to save something under.");
            return Err(Error::new(codes::INVALID_REQUEST, message));
        }
        let (saves, name) = (Arc::clone(self), name.to_owned());
        blocking(move || {
            let _busy = Busy::enter(&saves, &name);
            work(&saves, &name)
        })
        .await
    }

    /// Deletes everything in `root`, and first what makes it complete.
    fn remove(&self, root: &Path) -> io::Result<()> {
        self.remove_copy(root)?;
        unless_absent(fs::remove_dir_all(root))
    }

    /// Deletes the seal, then the copy of the disk.
    fn remove_copy(&self, root: &Path) -> io::Result<()> {
        unless_absent(fs::remove_file(root.join("sealed")))?;
        if let Some(id) = copy_id(root)? {
            btrfs::delete_subvolume(&File::open(root)?, "disk")?;
            self.disks.doom(Doomed::Qgroup(id));
        }
        Ok(())
    }
}

/// A name that is worked on.
struct Busy<'a> {
    saves: &'a Saves,
    name: &'a str,
}

impl<'a> Busy<'a> {
    /// Waits until nobody else works on it.
    fn enter(saves: &'a Saves, name: &'a str) -> Self {
        let busy = saves.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy = saves
            .idle
            .wait_while(busy, |busy| busy.contains(name))
            .unwrap_or_else(PoisonError::into_inner);
        busy.insert(name.to_owned());
        Self { saves, name }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.saves.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
        self.saves.idle.notify_all();
    }
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The id of the copy of a disk in `root`, if there is one.
fn copy_id(root: &Path) -> io::Result<Option<u64>> {
    match File::open(root.join("disk")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        copy => Ok(Some(btrfs::subvolume_id(&copy?)?)),
    }
}

fn digest(line: &str) -> String {
    hex::encode(Sha256::digest(line))
}

fn write_seal(root: &Path, seal: &Seal) -> Result<()> {
    let line = serde_json::to_string(seal).map_err(|error| {
        Error::new(codes::INTERNAL, format!("cannot describe a copy: {error}."))
    })?;
    write_atomic(&root.join("sealed"), format!("{line}\n{}\n", digest(&line)).as_bytes())
}

/// The seal of what is in `root`, if it is complete; an error if it is damaged.
fn read_seal(root: &Path) -> Result<Option<Seal>> {
    let path = root.join("sealed");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| unusable("read", &path, &error))?,
    };
    let seal = std::str::from_utf8(&text).ok().and_then(parse_seal);
    let copy = copy_id(root).map_err(|error| unusable("open the disk in", root, &error))?;
    match seal {
        Some(seal) if copy == Some(seal.disk) => Ok(Some(seal)),
        _ => {
            let message = format!("what is saved in {} is damaged.", root.display());
            Err(Error::new(codes::LAYER_CORRUPT, message)
                .with_fix("Kill the sandbox or delete the snapshot that it belongs to."))
        }
    }
}

fn parse_seal(text: &str) -> Option<Seal> {
    let (line, rest) = text.split_once('\n')?;
    if rest != format!("{}\n", digest(line)) {
        return None;
    }
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_that_is_torn_or_altered_anywhere_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Seal { disk: 300, source: "a".into(), source_id: 256 };
        write_seal(dir.path(), &seal).unwrap();
        let text = fs::read_to_string(dir.path().join("sealed")).unwrap();
        assert_eq!(parse_seal(&text).unwrap().disk, 300);
        for end in 0..text.len() {
            assert!(parse_seal(&text[..end]).is_none(), "{end}");
        }
        assert!(parse_seal(&text.replace("300", "301")).is_none());
        assert!(parse_seal(&format!("{text} ")).is_none());
    }
}
