//! Writable disks: one btrfs subvolume with a quota per sandbox.
//!
//! ```text
//!            refill ──► ready ──► take_disk ──► Disk
//!                                                │ destroy, or drop
//!                                                ▼
//!                                              reaper: deletes what was dropped, retries what
//!                                                      failed, removes left-over quota groups
//! ```
//!
//! A deleted subvolume is gone at once; the kernel frees its space within seconds, by itself.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_core::{Result, error::codes};
use tokio::sync::{Notify, mpsc};

use crate::{
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
    pool: Pool,
    dir: PathBuf,
    /// How many are kept ready.
    target: usize,
    ready: Mutex<VecDeque<Subvolume>>,
    taken: Notify,
    stop: Notify,
    next: AtomicU64,
    reaper: mpsc::UnboundedSender<Doomed>,
}

/// A disk that exists. The plain data of it: dropping one deletes nothing.
#[derive(Debug)]
struct Subvolume {
    name: String,
    qgroup: u64,
}

/// What the reaper is to delete.
#[derive(Debug)]
pub(crate) enum Doomed {
    Subvolume { name: String, qgroup: u64 },
    Qgroup(u64),
}

impl Disks {
    /// Opens the disks directory and deletes what is in it: nobody owns the disks of a previous
    /// run. The receiver is for [`reap`].
    pub(crate) fn open(
        pool: Pool,
        target: usize,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Doomed>)> {
        let dir = pool.dir.join("disks");
        crate::file::private_dir(&dir)?;
        let (reaper, doomed) = mpsc::unbounded_channel();
        let disks = Self {
            dir,
            target,
            ready: Mutex::default(),
            taken: Notify::new(),
            stop: Notify::new(),
            next: AtomicU64::new(0),
            reaper,
            pool,
        };
        disks.delete_all()?;
        Ok((Arc::new(disks), doomed))
    }

    /// Takes a ready disk, or makes one, and limits it to `limit` bytes.
    pub(crate) async fn take(self: &Arc<Self>, limit: u64) -> Result<Disk> {
        // Whatever the template asks for, no sandbox can fill the pool by itself.
        let (_, total) = self.pool.usage()?;
        let limit = limit.min(total / SHARE);
        let ready = self.lock_ready().pop_front();
        self.taken.notify_one();
        let disks = Arc::clone(self);
        // A `Disk` from the first moment on, so that whatever fails or is dropped deletes it.
        let ready = ready.map(|subvolume| Disk { disks: Arc::clone(self), subvolume, limit });
        blocking(move || {
            let disk = match ready {
                Some(disk) => disk,
                None => Disk { subvolume: disks.make()?, disks, limit },
            };
            File::open(disk.root())
                .and_then(|root| btrfs::set_limit(&root, limit))
                .map_err(|error| failed(codes::POOL_FAILED, "limit a disk", &error))?;
            Ok(disk)
        })
        .await
    }

    /// Makes a disk without a limit.
    fn make(&self) -> Result<Subvolume> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let fill = || -> io::Result<u64> {
            let parent = File::open(&self.dir)?;
            btrfs::create_subvolume(&parent, &name)?;
            let root = self.dir.join(&name);
            for part in ["upper", "work"] {
                let part = root.join(part);
                DirBuilder::new().mode(0o755).create(&part)?;
                // Whatever this process's umask is.
                fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
                chown(&part, Some(0), Some(0))?;
            }
            btrfs::subvolume_id(&File::open(&root)?)
        };
        fill().map(|qgroup| Subvolume { name: name.clone(), qgroup }).map_err(|error| {
            // Half of it may be there.
            if let Err(error) = self.delete(&name) {
                tracing::warn!(%error, disk = name, "a half-made disk stays until the next start");
            }
            failed(codes::POOL_FAILED, "make a disk", &error)
        })
    }

    /// Deletes a subvolume. One that is not there counts as deleted.
    fn delete(&self, name: &str) -> io::Result<()> {
        match File::open(&self.dir).and_then(|parent| btrfs::delete_subvolume(&parent, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes every disk, and hands every quota group that is left to the reaper.
    fn delete_all(&self) -> Result<()> {
        let entries = fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &self.dir, &error))? {
            if let Some(name) = entry.file_name().to_str() {
                self.delete(name).map_err(|error| unusable("delete", &entry.path(), &error))?;
            }
        }
        let qgroups = btrfs::qgroups(&self.pool.sysfs)
            .map_err(|error| failed(codes::POOL_FAILED, "list the quota groups", &error))?;
        // 5 is the top-level subvolume, which has no limit and goes nowhere.
        for id in qgroups.into_iter().filter(|id| *id != 5) {
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

    fn doom(&self, doomed: Doomed) {
        // The reaper is gone only when the service has ended; the next start deletes all disks.
        drop(self.reaper.send(doomed));
    }

    /// Deletes one thing; gives it back, reduced to what remains, if that has to wait.
    fn try_delete(&self, doomed: Doomed) -> Option<Doomed> {
        let qgroup = match doomed {
            Doomed::Qgroup(id) => id,
            Doomed::Subvolume { name, qgroup } => match self.delete(&name) {
                Ok(()) => qgroup,
                Err(error) => {
                    tracing::warn!(%error, disk = name, "cannot delete a disk yet");
                    return Some(Doomed::Subvolume { name, qgroup });
                }
            },
        };
        let removed = File::open(&self.dir).and_then(|dir| btrfs::remove_qgroup(&dir, qgroup));
        match removed {
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
}

impl Disk {
    fn root(&self) -> PathBuf {
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

    /// Bytes used and the limit. An empty disk uses 16 KiB, the file system's own.
    ///
    /// # Errors
    /// `POOL_FAILED` when the kernel does not tell.
    pub async fn usage(&self) -> Result<(u64, u64)> {
        let (sysfs, qgroup, limit) =
            (self.disks.pool.sysfs.clone(), self.subvolume.qgroup, self.limit);
        blocking(move || {
            let used = btrfs::qgroup_usage(&sysfs, qgroup)
                .map_err(|error| failed(codes::POOL_FAILED, "read a disk's use", &error))?;
            Ok((used, limit))
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
        let name = std::mem::take(&mut self.subvolume.name);
        self.disks.doom(Doomed::Subvolume { name, qgroup: self.subvolume.qgroup });
    }
}
