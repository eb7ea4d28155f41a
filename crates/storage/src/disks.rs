//! Writable disks: one btrfs subvolume with a quota per sandbox.
//!
//! ```text
//!            refill ──► ready ──► take_disk ──► Disk ◄── branch, of a saved one
//!                                   adopt_disk ──► │ ──► leave, for a later run of this program
//!                                                  │ destroy, or drop
//!                                                  ▼
//!                                                reaper: deletes what was dropped, retries what
//!                                                        failed, removes left-over quota groups
//! ```
//!
//! A deleted subvolume is gone at once; the kernel frees its space within seconds, by itself.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_core::{Result, error::codes};
use tokio::sync::{Notify, mpsc};

use crate::{
    accounts::{self, Lineage},
    btrfs,
    file::{blocking, failed, unusable},
    pool::Pool,
};

/// A disk may take at most one part in this many of the pool.
const SHARE: u64 = 4;

/// How often what could not be deleted is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The disks of a pool. Shared by the handles, the disks and the two background tasks.
#[derive(Debug)]
pub(crate) struct Disks {
    pub(crate) pool: Pool,
    dir: PathBuf,
    /// How many are kept ready.
    target: usize,
    ready: Mutex<VecDeque<Subvolume>>,
    /// Those of a previous run that nobody has adopted, by name.
    kept: Mutex<HashMap<String, Subvolume>>,
    taken: Notify,
    stop: Notify,
    reaper: mpsc::UnboundedSender<Doomed>,
}

/// A disk that exists. The plain data of it: dropping one deletes nothing.
#[derive(Debug, Default)]
pub(crate) struct Subvolume {
    name: String,
    id: u64,
    /// The qgroup that has its limit: see [`accounts`].
    account: u64,
    lineage: Lineage,
}

/// What the reaper is to delete.
#[derive(Debug)]
pub(crate) enum Doomed {
    Disk(Subvolume),
    Qgroup(u64),
}

impl Disks {
    /// Opens the disks directory and deletes what is in it, apart from those to `keep`: nobody owns
    /// the other disks of a previous run. The receiver is for [`reap`].
    pub(crate) fn open(
        pool: Pool,
        target: usize,
        keep: &HashSet<String>,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Doomed>)> {
        let dir = pool.dir.join("disks");
        crate::file::private_dir(&dir)?;
        let (reaper, doomed) = mpsc::unbounded_channel();
        let disks = Self {
            dir,
            target,
            ready: Mutex::default(),
            kept: Mutex::default(),
            taken: Notify::new(),
            stop: Notify::new(),
            reaper,
            pool,
        };
        disks.delete_all_but(keep)?;
        Ok((Arc::new(disks), doomed))
    }

    /// Takes a ready disk, or makes one, and limits it to `limit` bytes.
    pub(crate) async fn take(self: &Arc<Self>, limit: u64) -> Result<Disk> {
        // Whatever the template asks for, no sandbox can fill the pool by itself.
        self.pool.check_host()?;
        let (_, total) = self.pool.usage()?;
        let limit = limit.min(total / SHARE);
        let ready = self.lock_ready().pop_front();
        self.taken.notify_one();
        let disks = Arc::clone(self);
        // A `Disk` from the first moment on, so that whatever fails or is dropped deletes it.
        let ready = ready.map(|subvolume| Disk::new(self, subvolume, limit));
        blocking(move || {
            let disk = match ready {
                Some(disk) => disk,
                None => Disk::new(&disks, disks.make()?, limit),
            };
            File::open(&disks.dir)
                .and_then(|dir| btrfs::set_limit(&dir, disk.subvolume.account, limit))
                .map_err(|error| failed(codes::POOL_FAILED, "limit a disk", &error))?;
            Ok(disk)
        })
        .await
    }

    /// The disk of this name, of a previous run or left.
    pub(crate) async fn adopt(self: &Arc<Self>, name: &str) -> Result<Option<Disk>> {
        let Some(subvolume) = self.lock_kept().remove(name) else { return Ok(None) };
        let limit = btrfs::qgroup_limit(&self.pool.sysfs, subvolume.account);
        match limit {
            Ok(limit) => {
                let limit = limit.saturating_add(subvolume.lineage.inherited);
                Ok(Some(Disk::new(self, subvolume, limit)))
            }
            Err(error) => {
                self.lock_kept().insert(subvolume.name.clone(), subvolume);
                Err(failed(codes::POOL_FAILED, "read a disk's limit", &error))
            }
        }
    }

    /// Makes a disk with the content of the subvolume at `source`, which has that of others. Blocks.
    pub(crate) fn branch(
        self: &Arc<Self>,
        source: &Path,
        lineage: &Lineage,
        limit: u64,
    ) -> Result<Disk> {
        self.pool.check_host()?;
        let (_, total) = self.pool.usage()?;
        let limit = limit.min(total / SHARE);
        let subvolume = self.create(|parent, name| {
            let root = self.dir.join(name);
            if *lineage != Lineage::default() {
                accounts::write_lineage(&root, lineage)?;
            }
            btrfs::snapshot(&File::open(source)?, parent, name, false)?;
            // What the overlay keeps there is the mount's own, among it the mark of a volatile one,
            // with which it could not be mounted again.
            fs::remove_dir_all(root.join("work"))?;
            make_part(&root.join("work"))
        })?;
        let mut disk = Disk::new(self, subvolume, limit);
        // The limit comes last: a full disk would not let the rest be done.
        (disk.subvolume.account, disk.limit) =
            accounts::open(&self.pool, disk.subvolume.id, lineage, limit)
                .map_err(|error| failed(codes::POOL_FAILED, "limit a disk", &error))?;
        Ok(disk)
    }

    /// Makes a disk without a limit.
    fn make(&self) -> Result<Subvolume> {
        self.create(|parent, name| {
            btrfs::create_subvolume(parent, name)?;
            let root = self.dir.join(name);
            make_part(&root.join("upper"))?;
            make_part(&root.join("work"))
        })
    }

    /// Makes a subvolume by `fill`, or none if that fails.
    fn create(&self, fill: impl FnOnce(&File, &str) -> io::Result<()>) -> Result<Subvolume> {
        // Never used twice, by whichever run: whoever keeps a name may rely on it.
        let name = uuid::Uuid::new_v4().simple().to_string();
        let made = File::open(&self.dir)
            .and_then(|parent| fill(&parent, &name))
            .and_then(|()| self.look_up(&name));
        made.map_err(|error| {
            // Half of it may be there.
            if let Err(error) = self.delete(&name) {
                tracing::warn!(%error, disk = name, "a half-made disk stays until the next start");
            }
            failed(codes::POOL_FAILED, "make a disk", &error)
        })
    }

    /// The subvolume of this name.
    fn look_up(&self, name: &str) -> io::Result<Subvolume> {
        let root = self.dir.join(name);
        let id = btrfs::subvolume_id(&File::open(&root)?)?;
        let (account, lineage) = (accounts::find(&self.pool, id), accounts::read_lineage(&root));
        Ok(Subvolume { name: name.to_owned(), id, account, lineage })
    }

    /// Where the disk of this name is, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(self.dir.join(name)).filter(|root| fits && root.exists())
    }

    /// Deletes a subvolume. One that is not there counts as deleted.
    fn delete(&self, name: &str) -> io::Result<()> {
        match btrfs::delete_subvolume(&self.dir, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => accounts::remove_lineage(&self.dir.join(name)),
        }
    }

    /// Deletes the disks that are not to be kept. One that cannot be is no reason not to start.
    fn delete_all_but(&self, keep: &HashSet<String>) -> Result<()> {
        let entries = fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &self.dir, &error))? {
            let path = entry.path();
            // Of a disk, or of its lineage.
            let Some(name) = path.file_stem().and_then(OsStr::to_str) else { continue };
            if !keep.contains(name) {
                if let Err(error) = self.delete(name) {
                    tracing::warn!(%error, disk = name, "a disk stays until the next start");
                }
            } else if path.extension().is_none() {
                match self.look_up(name) {
                    Ok(subvolume) => drop(self.lock_kept().insert(name.to_owned(), subvolume)),
                    Err(error) => tracing::warn!(%error, disk = name, "a kept disk is of no use"),
                }
            }
        }
        Ok(())
    }

    /// Hands the quota groups of a previous run to the reaper, apart from those of its disks that are
    /// kept and of the `others`. Before any disk is made.
    pub(crate) fn sweep_qgroups(&self, others: &HashSet<u64>) -> Result<()> {
        let qgroups = btrfs::qgroups(&self.pool.sysfs)
            .map_err(|error| failed(codes::POOL_FAILED, "list the quota groups", &error))?;
        let mut keep: HashSet<u64> = self.lock_kept().values().map(|kept| kept.id).collect();
        keep.extend(others);
        // 5 is the top-level subvolume, which has no limit and goes nowhere.
        keep.insert(5);
        for id in qgroups.into_iter().filter(|id| !keep.contains(&btrfs::subvolume_of(*id))) {
            self.doom(Doomed::Qgroup(id));
        }
        Ok(())
    }

    /// Keeps the ready disks at their number. Never returns.
    pub(crate) async fn refill(self: Arc<Self>) {
        loop {
            while self.lock_ready().len() < self.target {
                let disks = Arc::clone(&self);
                let made = blocking(move || {
                    let subvolume = disks.make()?;
                    disks.lock_ready().push_back(subvolume);
                    Ok(())
                });
                if let Err(error) = made.await {
                    tracing::warn!(%error, "cannot prepare a disk");
                    tokio::time::sleep(RETRY).await;
                }
            }
            self.taken.notified().await;
        }
    }

    /// Lets the reaper finish what it was sent, and end.
    pub(crate) fn stop_reaper(&self) {
        self.stop.notify_one();
    }

    /// Deletes the ready disks.
    pub(crate) async fn drain(self: &Arc<Self>) -> Result<()> {
        let disks = Arc::clone(self);
        blocking(move || {
            let ready = std::mem::take(&mut *disks.lock_ready());
            for subvolume in ready {
                disks
                    .delete(&subvolume.name)
                    .map_err(|error| failed(codes::POOL_FAILED, "delete a disk", &error))?;
            }
            Ok(())
        })
        .await
    }

    /// How many disks are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock_ready().len()
    }

    fn lock_ready(&self) -> MutexGuard<'_, VecDeque<Subvolume>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_kept(&self) -> MutexGuard<'_, HashMap<String, Subvolume>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the reaper delete something.
    pub(crate) fn doom(&self, doomed: Doomed) {
        // The reaper is gone only when the service has ended; the next start deletes what is not
        // to be kept.
        drop(self.reaper.send(doomed));
    }

    /// Deletes one thing; gives it back, reduced to what remains, if that has to wait.
    fn try_delete(&self, doomed: Doomed) -> Option<Doomed> {
        let qgroup = match doomed {
            Doomed::Qgroup(id) => id,
            Doomed::Disk(disk) => {
                if let Err(error) = self.delete(&disk.name) {
                    tracing::warn!(%error, disk = disk.name, "cannot delete a disk yet");
                    return Some(Doomed::Disk(disk));
                }
                if disk.account != disk.id
                    && let Err(error) = accounts::remove(&self.pool, disk.account)
                {
                    tracing::debug!(%error, disk = disk.name, "an account is left over");
                }
                disk.id
            }
        };
        match accounts::remove(&self.pool, qgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Some(Doomed::Qgroup(qgroup))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, qgroup, "a quota group is left over");
                None
            }
            _ => None,
        }
    }
}

/// Makes the upper or work directory of a disk.
fn make_part(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    // Whatever this process's umask is.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    chown(path, Some(0), Some(0))
}

/// The reaper: deletes what it is sent, and tries again what cannot be deleted yet. Ends when
/// it is told to.
pub(crate) async fn reap(disks: Arc<Disks>, mut doomed: mpsc::UnboundedReceiver<Doomed>) {
    let mut waiting: Vec<Doomed> = Vec::new();
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            () = disks.stop.notified() => doomed.close(),
            count = doomed.recv_many(&mut batch, usize::MAX) => {
                if count == 0 {
                    return;
                }
            }
            () = tokio::time::sleep(RETRY), if !waiting.is_empty() => {
                batch = std::mem::take(&mut waiting);
            }
        }
        let disks = Arc::clone(&disks);
        let rest = blocking(move || {
            Ok(batch.into_iter().filter_map(|one| disks.try_delete(one)).collect::<Vec<_>>())
        });
        match rest.await {
            Ok(rest) => waiting.extend(rest),
            Err(error) => tracing::warn!(%error, "the reaper lost a batch"),
        }
    }
}

/// A sandbox's writable disk: the upper and work directory of its overlay. Dropping it deletes it,
/// in the background.
#[derive(Debug)]
pub struct Disk {
    disks: Arc<Disks>,
    subvolume: Subvolume,
    limit: u64,
    /// It is not to be deleted.
    left: bool,
}

impl Disk {
    fn new(disks: &Arc<Disks>, subvolume: Subvolume, limit: u64) -> Self {
        Self { disks: Arc::clone(disks), subvolume, limit, left: false }
    }

    /// Its name, which no other disk of this pool has, had or will have.
    pub fn name(&self) -> &str {
        &self.subvolume.name
    }

    /// The subvolume it is.
    pub(crate) fn id(&self) -> u64 {
        self.subvolume.id
    }

    /// What it has of others.
    pub(crate) fn lineage(&self) -> &Lineage {
        &self.subvolume.lineage
    }

    /// The qgroup that has its limit.
    pub(crate) fn account(&self) -> u64 {
        self.subvolume.account
    }

    /// Forgets it without deleting it: what runs on it goes on after this program has ended.
    /// [`Handle::adopt_disk`](crate::Handle::adopt_disk) has it again.
    pub fn leave(mut self) {
        self.left = true;
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.disks.dir.join(&self.subvolume.name)
    }

    /// The overlay's upper directory: mode 0755, owned by id 0.
    pub fn upper(&self) -> PathBuf {
        self.root().join("upper")
    }

    /// The overlay's work directory.
    pub fn work(&self) -> PathBuf {
        self.root().join("work")
    }

    /// Bytes used and the limit, with what it has from a snapshot. An empty disk uses 16 KiB, the file
    /// system's own.
    ///
    /// # Errors
    /// `POOL_FAILED` when the kernel does not tell.
    pub async fn usage(&self) -> Result<(u64, u64)> {
        let (sysfs, qgroup, limit) =
            (self.disks.pool.sysfs.clone(), self.subvolume.account, self.limit);
        let inherited = self.subvolume.lineage.inherited;
        blocking(move || {
            let used = btrfs::qgroup_usage(&sysfs, qgroup)
                .map_err(|error| failed(codes::POOL_FAILED, "read a disk's use", &error))?;
            Ok((used.saturating_add(inherited), limit))
        })
        .await
    }

    /// Deletes it. Nothing may be mounted on it any more. It is gone when this returns, even when
    /// the caller stops waiting; its space is free seconds later.
    ///
    /// # Errors
    /// `POOL_FAILED` when it is still in use; it is then deleted as soon as it is not.
    pub async fn destroy(self) -> Result<()> {
        blocking(move || {
            let deleted = self.disks.delete(&self.subvolume.name);
            // Dropping `self` hands what remains to the reaper.
            deleted.map_err(|error| failed(codes::POOL_FAILED, "delete a disk", &error))
        })
        .await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let subvolume = std::mem::take(&mut self.subvolume);
        if self.left {
            self.disks.lock_kept().insert(subvolume.name.clone(), subvolume);
        } else {
            self.disks.doom(Doomed::Disk(subvolume));
        }
    }
}
