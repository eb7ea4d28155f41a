//! Layers, writable disks and the pool that holds the disks.
//!
//! A sandbox's root is an overlay: the [layers](LayerInfo) of its template below, read-only and
//! shared, and a [`Disk`] of its own on top, with a limit. A [`BuildManifest`] says which layers.
//!
//! ```text
//! <data-dir>/pool.img        sparse image file of a btrfs file system with quotas
//!           /pool            where it is mounted
//!           /pool/disks/<n>  a disk: one subvolume, `upper/` and `work/`
//!           /pool/saved/<n>  a copy of a disk, and a checkpoint: [`Saved`]
//!           /layers/<id>     a layer
//!           /builds/<id>.json
//! ```
//!
//! Everything here is for root alone: what a sandbox's root wrote lies there as root's.
//!
//! The data directory must belong to this process alone; the program locks it first.

mod accounts;
mod btrfs;
mod builds;
mod checked;
mod copy;
mod digest;
mod disks;
mod file;
mod layers;
mod library;
mod mount;
mod pool;
mod saved;
mod space;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use atoll_core::{Error, LayerId, Result, error::codes};
use tokio::task::JoinSet;

use crate::{
    builds::Builds,
    disks::Disks,
    file::{blocking, unusable},
    layers::Layers,
    library::Library,
    pool::Pool,
    saved::Saves,
};
pub use crate::{
    builds::{BuildManifest, StartCommand, StepResult},
    disks::Disk,
    layers::{Layer, LayerDraft, LayerInfo},
    library::Lease,
    saved::Saved,
};

/// Configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Size of a new pool, bytes; none is half of what is free there, and at least 8 GiB. A pool
    /// that exists keeps its size.
    pub pool_bytes: Option<u64>,
    /// Disks kept ready.
    pub disks: usize,
    /// Names of disks and of what is saved that a previous run left and somebody still owns. All
    /// others are deleted at start, apart from what is saved of builds.
    pub keep: HashSet<String>,
}

/// The mounted pool and the tasks that work on it.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    pool: Pool,
    /// Ends by itself when told to.
    reaper: tokio::task::JoinHandle<()>,
    /// Aborted at the end.
    tasks: JoinSet<()>,
}

/// Access to the storage; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pool: Pool,
    disks: Arc<Disks>,
    saves: Arc<Saves>,
    library: Arc<Library>,
}

impl Service {
    /// Mounts the pool, which it makes if need be, and removes what a previous run left behind:
    /// disks and saved states that are not to be kept, and unfinished layers; nothing else.
    ///
    /// # Errors
    /// `PRIVILEGE_MISSING`, `TOOL_MISSING`, `HOST_FEATURE_MISSING`, `DISK_FULL`, `POOL_FAILED`,
    /// `DATA_DIR_UNUSABLE` or `BAD_OPTION`, each with what to do.
    pub async fn start(options: Options) -> Result<Self> {
        let Options { data_dir, pool_bytes, disks: target, keep } = options;
        let (handle, doomed, unread) = blocking(move || {
            let (layers, unread) = Layers::open(&data_dir)?;
            let builds = Builds::open(&data_dir)?;
            let pool = Pool::open(&data_dir, pool_bytes)?;
            let (disks, doomed) = Disks::open(pool.clone(), target, &keep)?;
            let of_builds = builds.names();
            let (saves, left) =
                Saves::open(&disks, |name| keep.contains(name) || of_builds.contains(name))?;
            disks.sweep_qgroups(&left)?;
            let library = Library::new(layers, builds, Arc::clone(&saves));
            Ok((Handle { pool, disks, saves, library }, doomed, unread))
        })
        .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&handle.disks).refill());
        tasks.spawn(layers::read_all(Arc::clone(&handle.library.layers), unread));
        let reaper = tokio::spawn(disks::reap(Arc::clone(&handle.disks), doomed));
        Ok(Self { pool: handle.pool.clone(), handle, reaper, tasks })
    }

    /// How others use it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Deletes the disks that are ready or dropped, and unmounts the pool unless a disk is still
    /// in use. The image stays.
    pub async fn shutdown(mut self) {
        self.handle.library.layers.stop();
        self.tasks.shutdown().await;
        if let Err(error) = self.handle.disks.drain().await {
            tracing::warn!(%error, "disks are left for the next start to delete");
        }
        self.handle.disks.stop_reaper();
        if let Err(error) = self.reaper.await {
            tracing::warn!(%error, "the reaper failed");
        }
        let (pool, layers) = (self.pool, Arc::clone(&self.handle.library.layers));
        let closed = blocking(move || {
            pool.close();
            layers.close()
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "the next start reads all layers again");
        }
    }
}

impl Handle {
    /// A disk that nobody used before, limited to `limit_bytes`, file system overhead included, and
    /// to a quarter of the pool.
    ///
    /// # Errors
    /// `DISK_FULL` or `POOL_FAILED`.
    pub async fn take_disk(&self, limit_bytes: u64) -> Result<Disk> {
        self.disks.take(limit_bytes).await
    }

    /// The disk of this name, with its content and its limit: one that the start has kept, or that
    /// was left since. None if there is no such disk, or if somebody has it.
    ///
    /// # Errors
    /// `POOL_FAILED` when the kernel does not tell its limit.
    pub async fn adopt_disk(&self, name: &str) -> Result<Option<Disk>> {
        self.disks.adopt(name).await
    }

    /// Begins to save something: gives an empty directory, for root alone, for a checkpoint of
    /// memory. Whatever had this name is deleted. Without a checkpoint there is no need to begin.
    ///
    /// From `least` to `most` bytes of the pool are set aside for it until it is sealed or dropped, as
    /// there is plenty or not, and to write more of it fails (EDQUOT): no checkpoint fills the pool
    /// for those who run. `least` is what the frozen sandbox uses; there may be more to write, up to
    /// `most`.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that is not made of up to 64 letters, digits, `-` and `_`;
    /// `DISK_FULL`, also when the pool has not that much to set aside; `DATA_DIR_UNUSABLE`.
    pub async fn begin_saved(&self, name: &str, least: u64, most: u64) -> Result<PathBuf> {
        self.saves.begin(name, least, most).await
    }

    /// Saves a copy of a disk as it is at this moment, and with it the checkpoint that was written
    /// since [`begin_saved`](Self::begin_saved). When this returns it is complete, on disk, and does
    /// not change any more; before, and if it fails, it is not there. It replaces an earlier copy of
    /// that name. Nothing should be writing to the disk.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for such a name, `DISK_FULL`, `POOL_FAILED` or `DATA_DIR_UNUSABLE`.
    pub async fn seal(&self, disk: &Disk, name: &str) -> Result<Saved> {
        self.saves.seal(disk, name).await
    }

    /// Makes an independent copy of what is saved, disk and checkpoint, under another name, in place
    /// of all that had it. It shares their data: only what describes them is written. As in
    /// [`seal`](Self::seal) it is there whole, or not at all.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is not saved any more, `LAYER_CORRUPT` when it is damaged,
    /// `INVALID_REQUEST` for such a name or its own; `DISK_FULL`, `POOL_FAILED` or
    /// `DATA_DIR_UNUSABLE`.
    pub async fn copy_saved(&self, from: &Saved, to: &str) -> Result<Saved> {
        self.saves.copy(from, to).await
    }

    /// What is saved under this name; none if there is nothing or it is incomplete.
    ///
    /// # Errors
    /// `LAYER_CORRUPT` when it was complete and is damaged, `INVALID_REQUEST` for such a name,
    /// `DATA_DIR_UNUSABLE` when it cannot be read.
    pub async fn saved(&self, name: &str) -> Result<Option<Saved>> {
        self.saves.find(name).await
    }

    /// A disk with the content of a saved one, to which it adds nothing and from which nothing can
    /// be taken. It is limited as in [`take_disk`](Self::take_disk): what the saved disk holds
    /// counts. Under the id of a build it counts for good, and any number of disks may branch from it;
    /// under another name the branch takes the place of the saved disk, and to delete what that held
    /// makes room. Even a full one may grow by 4 MiB, or it could not be used; and by 512 KiB, when it
    /// is 16 MiB above its limit for that reason.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is not saved any more, `LAYER_CORRUPT` when it is damaged, `DISK_FULL`,
    /// `POOL_FAILED` or `DATA_DIR_UNUSABLE`.
    pub async fn branch(&self, saved: &Saved, limit_bytes: u64) -> Result<Disk> {
        self.saves.branch(saved, limit_bytes).await
    }

    /// Deletes what is saved under this name, complete or not; there may be nothing.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for such a name; `POOL_FAILED` when something of it is in use.
    pub async fn drop_saved(&self, name: &str) -> Result<()> {
        self.saves.drop_saved(name).await
    }

    /// Bytes that would be free if the disk of this name and what is saved under it were deleted, and
    /// nothing else; none if there is neither. What a disk and a copy of it share counts for neither.
    ///
    /// Counted are the data of files, by extents as the kernel tells them. Left out is what describes
    /// them, and with it the content of files of less than 2 KiB; an extent that something else holds
    /// in part counts as shared, and of one that was overwritten in part what is still to be read.
    /// Takes about a second for 100,000 files; two callers at once get their turn, and dropping the
    /// future ends it.
    ///
    /// # Errors
    /// `TOO_LARGE` when there are more than a million files; `POOL_FAILED` when the kernel does not
    /// tell.
    pub async fn unique_bytes(&self, name: &str) -> Result<Option<u64>> {
        let dirs = [self.disks.find(name), self.saves.find_dir(name)];
        space::unique(dirs.into_iter().flatten().collect()).await
    }

    /// How many disks are ready to be taken.
    pub fn ready_disks(&self) -> usize {
        self.disks.ready()
    }

    /// The tree of a layer, to be mounted read-only with mapped ids.
    pub fn layer_dir(&self, id: &LayerId) -> PathBuf {
        self.library.layers.tree(id)
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn new_layer(&self) -> Result<LayerDraft> {
        self.library.layers.draft().await
    }

    /// Makes a layer of what a sandbox wrote below `part` of its root before its disk was saved; of all
    /// if that is empty, and none if it wrote nothing. What is called `leave_out`, paths from `part` on,
    /// stays behind. `limit_bytes` is that of its disk.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is not saved any more, `LAYER_CORRUPT` when it is damaged, `TOO_LARGE` for
    /// far more than the disk holds, more files than a layer may have, or deeper directories;
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn layer_of(
        &self,
        saved: &Saved,
        limit_bytes: u64,
        part: &'static str,
        leave_out: &'static [&'static str],
        layer: Layer,
    ) -> Result<Option<LayerId>> {
        let look = move |upper: &Path| {
            let tree = upper.join(part);
            copy::is_empty(&tree, leave_out).map_err(|error| unusable("read", &tree, &error))
        };
        if self.saves.look(saved, look).await? {
            return Ok(None);
        }
        let draft = self.new_layer().await?;
        // Files may share data, as copies made by `cp` do: then there is more of it than on the disk.
        let bounds = copy::Bounds::with_data(limit_bytes.saturating_mul(2));
        let fill = move |upper: &Path| {
            let tree = upper.join(part);
            copy::tree(&tree, &draft.dir(), leave_out, bounds)
                .map_err(|error| not_copied(&tree, &error))?;
            Ok(draft)
        };
        self.saves.look(saved, fill).await?.commit(layer).await.map(Some)
    }

    /// All layers that can be used.
    pub async fn layers(&self) -> Vec<LayerInfo> {
        self.library.layers.list()
    }

    /// Keeps a layer that no manifest names for as long as this service runs. One that is made now is
    /// kept until a manifest names it.
    pub fn keep_layer(&self, id: &LayerId) {
        self.library.layers.set_kept(std::slice::from_ref(id), true);
    }

    /// Deletes a layer that was made and is not wanted, unless something uses it.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when it cannot be removed; the next start does it.
    pub async fn discard_layer(&self, id: &LayerId) -> Result<()> {
        self.library.discard(id.clone()).await
    }

    /// Keeps layers from being deleted while the lease lives.
    ///
    /// # Errors
    /// `TEMPLATE_MISSING` when one is gone, `LAYER_CORRUPT` when one is damaged.
    pub async fn lease(&self, layers: &[LayerId]) -> Result<Lease> {
        self.library.lease(layers)
    }

    /// Deletes the layers that no manifest and no lease uses, and gives their ids: what a crash has
    /// left, and runtime layers of former versions. To be called once after each start, when
    /// everything that was adopted has its lease; and not at all in a run in which it is not known what
    /// that is, because a journal is damaged.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when one cannot be removed; the next start does it.
    pub async fn sweep(&self) -> Result<Vec<LayerId>> {
        self.library.sweep().await
    }

    /// Stores a manifest, in place of one with the same id. That of a snapshot comes after what is
    /// saved of it.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when the id is no UUID, `TEMPLATE_MISSING` or `LAYER_CORRUPT` when a layer
    /// is missing or damaged, `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn put_build(&self, manifest: &BuildManifest) -> Result<()> {
        self.library.put(manifest.clone()).await
    }

    /// The manifest of a build; none if there is no such build here.
    ///
    /// # Errors
    /// `LAYER_CORRUPT` when it is damaged, or something that it needs is missing or damaged.
    pub async fn build(&self, id: &str) -> Result<Option<BuildManifest>> {
        self.library.build(id).await
    }

    /// All manifests that are not damaged.
    pub async fn builds(&self) -> Vec<BuildManifest> {
        self.library.builds.list()
    }

    /// Deletes a build, damaged or not: its manifest, what is saved of it, and the layers that no
    /// other build and no lease uses. Returns whether there was such a build. From the first moment
    /// on there is none; a call that fails after that can be repeated.
    ///
    /// # Errors
    /// `POOL_FAILED` when something of it is in use, `DATA_DIR_UNUSABLE` when it cannot be removed.
    pub async fn delete_build(&self, id: &str) -> Result<bool> {
        self.library.delete(id).await
    }

    /// Bytes used and total of the pool.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when the kernel does not tell.
    pub fn usage(&self) -> Result<(u64, u64)> {
        self.pool.usage()
    }
}

/// Why there is no layer of a tree. What its writer has overdone is no fault of the data directory.
fn not_copied(tree: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    if matches!(error.kind(), ErrorKind::FileTooLarge | ErrorKind::InvalidFilename) {
        let message = format!("what was written is too much to be kept: {error}.");
        return Error::new(codes::TOO_LARGE, message)
            .with_fix("Leave less behind: remove what was only needed meanwhile.");
    }
    unusable("copy to a layer", tree, error)
}
