//! What is saved of sandboxes that do not run: a copy of the disk, and a checkpoint of the memory if
//! there is one.
//!
//! ```text
//! <data-dir>/pool/saved/<name>/disk     read-only copy: one subvolume, as in `disks`
//!                             /memory/  what a checkpoint consists of, if there is one: a read-only
//!                                       subvolume with a limit
//!                             /sealed   written last: without it the rest is incomplete
//! ```
//!
//! What is sealed is on disk, whole, whenever the machine stops, and never changes. The seal vouches
//! for the identity of the disk's copy and for names and lengths in `memory`; for every byte of both
//! the file system does, which has checksums of all data and metadata: what was torn or altered below
//! it fails to be read (EIO), and is never read as something else. Work on a name waits for other work
//! on it, also for some whose caller has left.
//!
//! A checkpoint is about as large as the memory that its sandbox uses, but its guest has a say in that:
//! what processes share until one of them writes to it is saved once for each. So room is set aside
//! before one is written, and is its limit as well: the pause fails, and not the writes of all other
//! sandboxes.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use atoll_core::{Error, Result, error::codes};
use serde::{Deserialize, Serialize};

use crate::{
    accounts::{self, Lineage},
    btrfs, builds,
    checked::{self, Found},
    digest::Size,
    disks::{Disk, Disks, Doomed},
    file::{blocking, failed, private_dir, set_private, unusable},
};

/// Longer names than any id. They become directories.
const MAX_NAME: usize = 64;

/// One part in this many of the pool is not for checkpoints, but for what runs and for what describes
/// the rest.
const RESERVE: u64 = 16;

/// A checkpoint gets more room than it must have only up to one part in this many of what is to spare.
const GREED: u64 = 8;

/// What describes the files of a checkpoint, bytes.
const OVERHEAD: u64 = 1 << 20;

/// All that is saved in a pool.
#[derive(Debug)]
pub(crate) struct Saves {
    disks: Arc<Disks>,
    dir: PathBuf,
    /// Names that are worked on.
    busy: Mutex<HashSet<String>>,
    idle: Condvar,
    /// Bytes of the pool that are set aside for checkpoints being written, by name.
    room: Mutex<HashMap<String, u64>>,
}

/// The content of `sealed`.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    /// Id of the subvolume `disk`.
    disk: u64,
    /// Of a disk that goes on where the copied one ended, and in its place.
    lineage: Lineage,
    /// Bytes that count for the copied disk.
    held: u64,
    /// Of the directory `memory`.
    memory: Size,
}

impl Seal {
    /// What a disk has of others that goes on from this, saved under `name`. What is saved of a build
    /// belongs to no disk: all of it is inherited.
    fn lineage_for(&self, name: &str) -> Lineage {
        if builds::uuid(name).is_ok() {
            return Lineage { ancestors: Vec::new(), inherited: self.held };
        }
        self.lineage.clone()
    }
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

    /// Where the checkpoint is, for root alone; nothing or an empty directory if there is none.
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
        keep: impl Fn(&str) -> bool,
    ) -> Result<(Arc<Self>, HashSet<u64>)> {
        let dir = disks.pool.dir.join("saved");
        private_dir(&dir)?;
        let saves = Self {
            disks: Arc::clone(disks),
            dir,
            busy: Mutex::default(),
            idle: Condvar::new(),
            room: Mutex::default(),
        };
        let mut left = HashSet::new();
        let entries = fs::read_dir(&saves.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &saves.dir, &error))? {
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(&keep) {
                for part in ["disk", "memory"] {
                    match btrfs::subvolume_at(&path.join(part)) {
                        Ok(id) => left.extend(id),
                        Err(error) => tracing::warn!(%error, ?path, part, "of no use"),
                    }
                }
            } else if let Err(error) = saves.remove(&path) {
                // No reason not to start.
                tracing::warn!(%error, ?path, "something saved stays until the next start");
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

    /// Where something of this name is, complete or not.
    pub(crate) fn find_dir(&self, name: &str) -> Option<PathBuf> {
        Some(self.root(name)).filter(|root| fits(name) && root.exists())
    }

    /// Begins something to save: an empty directory for a checkpoint, in place of all that had the
    /// name, and with room for `least` to `most` bytes.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        name: &str,
        least: u64,
        most: u64,
    ) -> Result<PathBuf> {
        self.work_on(name, move |saves, name| {
            let root = saves.root(name);
            saves.clear(name).map_err(|error| unusable("remove", &root, &error))?;
            saves.disks.pool.check_host()?;
            let limit = saves.set_aside(name, least, most)?;
            let made = saves.make_memory(name, limit);
            if made.is_err() {
                saves.give_room_back(name);
            }
            made
        })
        .await
    }

    /// Makes the directory for a checkpoint of at most `limit` bytes.
    fn make_memory(&self, name: &str, limit: u64) -> Result<PathBuf> {
        let (root, memory) = (self.root(name), self.memory(name));
        private_dir(&root)?;
        let make = || -> io::Result<()> {
            let root = File::open(&root)?;
            btrfs::create_subvolume(&root, "memory")?;
            btrfs::set_limit(&root, btrfs::subvolume_id(&File::open(&memory)?)?, limit)
        };
        make().map_err(|error| unusable("make", &memory, &error))?;
        set_private(&memory)?;
        Ok(memory)
    }

    /// Sets bytes of the pool aside until what has the name is sealed or deleted: `least`, or up to
    /// `most` where there is plenty. Gives how many.
    fn set_aside(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let (free, total) = self.disks.pool.free()?;
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let others: u64 = room.values().sum();
        let spare = free.saturating_sub(others).saturating_sub(total / RESERVE);
        let bytes = most.min(spare / GREED).max(least).saturating_add(OVERHEAD);
        if bytes > spare {
            let message = format!(
                "the disk pool has {} MiB to spare for a checkpoint that may take {} MiB.",
                spare >> 20,
                least >> 20
            );
            return Err(Error::new(codes::DISK_FULL, message).with_fix(
                "Kill sandboxes or delete snapshots; pausing with `memory: false` takes no room.",
            ));
        }
        room.insert(name.to_owned(), bytes);
        Ok(bytes)
    }

    fn give_room_back(&self, name: &str) {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Copies a disk and seals the copy, together with what is in the directory for the checkpoint.
    pub(crate) async fn seal(self: &Arc<Self>, disk: &Disk, name: &str) -> Result<Saved> {
        let (from, id, account) = (disk.root(), disk.id(), disk.account());
        let mut lineage = disk.lineage().clone();
        self.work_on(name, move |saves, name| {
            let root = saves.root(name);
            private_dir(&root)?;
            saves.remove_copy(&root).map_err(|error| unusable("clear", &root, &error))?;
            let pool = &saves.disks.pool;
            lineage.ancestors = accounts::living(pool, &lineage.ancestors);
            lineage.ancestors.push(id);
            saves.complete(name, &from, || {
                let used = btrfs::qgroup_usage(&pool.sysfs, account)?;
                let held = lineage.inherited.saturating_add(used);
                Ok((lineage, held))
            })
        })
        .await
    }

    /// Copies what is saved, and seals the copy. Who goes on from that of a build is not its writer.
    pub(crate) async fn copy(self: &Arc<Self>, from: &Saved, to: &str) -> Result<Saved> {
        if from.name == to || !fits(to) {
            return Err(no_name(to));
        }
        let (saves, from, to) = (Arc::clone(self), from.name.clone(), to.to_owned());
        blocking(move || {
            // In one order, whoever copies what to where.
            let (first, second) = if from < to { (&from, &to) } else { (&to, &from) };
            let _first = Busy::enter(&saves, first);
            let _second = Busy::enter(&saves, second);
            let seal = saves.seal_of(&from)?;
            let root = saves.root(&to);
            saves.clear(&to).map_err(|error| unusable("remove", &root, &error))?;
            private_dir(&root)?;
            let made = saves
                .copy_memory(&from, &to)
                .map_err(|error| failed(codes::POOL_FAILED, "copy a checkpoint", &error))
                .and_then(|()| {
                    let (disk, held) = (saves.root(&from).join("disk"), seal.held);
                    saves.complete(&to, &disk, || Ok((seal.lineage_for(&from), held)))
                });
            if made.is_err()
                && let Err(error) = saves.clear(&to)
            {
                tracing::warn!(%error, name = to, "half a copy stays until the next start");
            }
            made
        })
        .await
    }

    /// Makes the checkpoint of `to` a copy of that of `from`, if that has one.
    fn copy_memory(&self, from: &str, to: &str) -> io::Result<()> {
        let memory = self.memory(from);
        if btrfs::subvolume_at(&memory)?.is_none() {
            return Ok(());
        }
        btrfs::snapshot(&File::open(memory)?, &File::open(self.root(to))?, "memory", true)
    }

    /// Adds a copy of the disk at `from` to what has a name, and seals both. What counts of the disk
    /// is known when the copy is made: everything is written then.
    fn complete(
        self: &Arc<Self>,
        name: &str,
        from: &Path,
        count: impl FnOnce() -> io::Result<(Lineage, u64)>,
    ) -> Result<Saved> {
        let root = self.root(name);
        let copy = || -> io::Result<Seal> {
            let parent = File::open(&root)?;
            btrfs::snapshot(&File::open(from)?, &parent, "disk", true)?;
            let memory = self.memory(name);
            if btrfs::subvolume_at(&memory)?.is_some() {
                btrfs::set_read_only(&File::open(&memory)?)?;
            }
            // The checkpoint, before the file that vouches for it.
            rustix::fs::syncfs(&parent)?;
            let disk = btrfs::subvolume_id(&File::open(root.join("disk"))?)?;
            let (lineage, held) = count()?;
            Ok(Seal { disk, lineage, held, memory: Size::of(&memory)? })
        };
        let seal = copy().map_err(|error| failed(codes::POOL_FAILED, "save a disk", &error))?;
        checked::write(&root.join("sealed"), "seal", &seal)?;
        self.give_room_back(name);
        Ok(Saved { saves: Arc::clone(self), name: name.to_owned() })
    }

    /// The seal of what must be there.
    fn seal_of(&self, name: &str) -> Result<Seal> {
        read_seal(&self.root(name))?
            .ok_or_else(|| Error::new(codes::NOT_FOUND, format!("{name} is not saved any more.")))
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
            let seal = saves.seal_of(name)?;
            let pool = &saves.disks.pool;
            let lineage = if pool.simple_quotas {
                let lineage = seal.lineage_for(name);
                let ancestors = accounts::living(pool, &lineage.ancestors);
                Lineage { ancestors, ..lineage }
            } else {
                Lineage::default()
            };
            saves.disks.branch(&saves.root(name).join("disk"), &lineage, limit)
        })
        .await
    }

    /// Looks at the upper side of a saved disk, which stays there meanwhile.
    pub(crate) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        saved: &Saved,
        look: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.work_on(&saved.name, move |saves, name| {
            saves.seal_of(name)?;
            look(&saves.root(name).join("disk/upper"))
        })
        .await
    }

    /// Deletes what there is under this name.
    pub(crate) async fn drop_saved(self: &Arc<Self>, name: &str) -> Result<()> {
        self.work_on(name, |saves, name| saves.delete_alone(name)).await
    }

    /// As [`drop_saved`](Self::drop_saved), of a name that fits. Blocks.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        let _busy = Busy::enter(self, name);
        self.delete_alone(name)
    }

    fn delete_alone(&self, name: &str) -> Result<()> {
        self.clear(name).map_err(|error| {
            failed(codes::POOL_FAILED, format_args!("delete what is saved as {name}"), &error)
        })
    }

    /// Does something with a name, alone.
    async fn work_on<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Arc<Self>, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !fits(name) {
            return Err(no_name(name));
        }
        let (saves, name) = (Arc::clone(self), name.to_owned());
        blocking(move || {
            let _busy = Busy::enter(&saves, &name);
            work(&saves, &name)
        })
        .await
    }

    /// Deletes everything under a name, and gives its room back.
    fn clear(&self, name: &str) -> io::Result<()> {
        self.remove(&self.root(name))?;
        self.give_room_back(name);
        Ok(())
    }

    /// Deletes everything in `root`, and first what makes it complete.
    fn remove(&self, root: &Path) -> io::Result<()> {
        self.remove_copy(root)?;
        self.remove_part(root, "memory")?;
        unless_absent(fs::remove_dir_all(root))
    }

    /// Deletes the seal, then the copy of the disk.
    fn remove_copy(&self, root: &Path) -> io::Result<()> {
        unless_absent(fs::remove_file(root.join("sealed")))?;
        self.remove_part(root, "disk")
    }

    /// Deletes a subvolume, if it is there.
    fn remove_part(&self, root: &Path, part: &str) -> io::Result<()> {
        if let Some(id) = btrfs::subvolume_at(&root.join(part))? {
            btrfs::delete_subvolume(root, part)?;
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

/// Whether a name can be that of a directory. Ids of sandboxes and of builds can.
fn fits(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(fits)
}

fn no_name(name: &str) -> Error {
    Error::new(codes::INVALID_REQUEST, format!("{name:?} is no name to save something under."))
}

/// The seal of what is in `root`, if it is complete; an error if it is damaged.
fn read_seal(root: &Path) -> Result<Option<Seal>> {
    let seal = match checked::read::<Seal>(&root.join("sealed"), "seal")? {
        Found::Nothing => return Ok(None),
        Found::Whole(seal) => Some(seal),
        Found::Bare(_) | Found::Damaged(_) => None,
    };
    let look = || Ok((btrfs::subvolume_at(&root.join("disk"))?, Size::of(&root.join("memory"))?));
    let (copy, memory) =
        look().map_err(|error: io::Error| unusable("look at what is in", root, &error))?;
    match seal {
        Some(seal) if copy == Some(seal.disk) && memory == seal.memory => Ok(Some(seal)),
        _ => {
            let message = format!("what is saved in {} is damaged.", root.display());
            Err(Error::new(codes::LAYER_CORRUPT, message)
                .with_fix("Kill the sandbox or delete the snapshot that it belongs to."))
        }
    }
}
