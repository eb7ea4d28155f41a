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
mod digest;
mod disks;
mod file;
mod layers;
mod mount;
mod pool;
mod saved;

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use atoll_core::{Error, LayerId, Result, error::codes};
use tokio::task::JoinSet;

pub use crate::{
    builds::BuildManifest,
    disks::Disk,
    layers::{Layer, LayerDraft, LayerInfo},
    saved::Saved,
};
use crate::{
    builds::Builds, disks::Disks, file::blocking, layers::Layers, pool::Pool, saved::Saves,
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
    /// others are deleted at start.
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
    layers: Arc<Layers>,
    builds: Arc<Builds>,
}

impl Service {
    /// Mounts the pool, which it makes if need be, and removes what a previous run left behind:
    /// disks and saved states that are not to be kept, and unfinished layers; nothing else.
    ///
    /// # Errors
    /// `PRIVILEGE_MISSING`, `TOOL_MISSING`, `HOST_FEATURE_MISSING`, `DISK_FULL`, `POOL_FAILED`,
    /// `DATA_DIR_UNUSABLE` or `BAD_OPTION`, each with what to do; `LAYER_CORRUPT` for a description
    /// that cannot be read.
    pub async fn start(options: Options) -> Result<Self> {
        let Options { data_dir, pool_bytes, disks: target, keep } = options;
        let (handle, doomed, undigested) = blocking(move || {
            let (layers, undigested) = Layers::open(&data_dir)?;
            let builds = Builds::open(&data_dir)?;
            let pool = Pool::open(&data_dir, pool_bytes)?;
            let (disks, doomed) = Disks::open(pool.clone(), target, &keep)?;
            let (saves, left) = Saves::open(&disks, &keep)?;
            disks.sweep_qgroups(&left)?;
            Ok((Handle { pool, disks, saves, layers, builds }, doomed, undigested))
        })
        .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&handle.disks).refill());
        tasks.spawn(layers::digest_all(Arc::clone(&handle.layers), undigested));
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
        self.handle.layers.stop();
        self.tasks.shutdown().await;
        if let Err(error) = self.handle.disks.drain().await {
            tracing::warn!(%error, "disks are left for the next start to delete");
        }
        self.handle.disks.stop_reaper();
        if let Err(error) = self.reaper.await {
            tracing::warn!(%error, "the reaper failed");
        }
        let pool = self.pool;
        let closed = blocking(move || {
            pool.close();
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "the disk pool stays mounted");
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
    /// # Errors
    /// `INVALID_REQUEST` for a name that is not made of up to 64 letters, digits, `-` and `_`;
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn begin_saved(&self, name: &str) -> Result<PathBuf> {
        self.saves.begin(name).await
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
    /// counts, unless it is held by a disk that still exists. Even a full one may grow by 4 MiB, or
    /// it could not be used.
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

    /// How many disks are ready to be taken.
    pub fn ready_disks(&self) -> usize {
        self.disks.ready()
    }

    /// The tree of a layer, to be mounted read-only with mapped ids.
    pub fn layer_dir(&self, id: &LayerId) -> PathBuf {
        self.layers.tree(id)
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn new_layer(&self) -> Result<LayerDraft> {
        self.layers.draft().await
    }

    /// All layers.
    pub async fn layers(&self) -> Vec<LayerInfo> {
        self.layers.list()
    }

    /// Deletes a layer. No sandbox may be running on it.
    ///
    /// # Errors
    /// `CONFLICT` when a build consists of it, `NOT_FOUND` when there is none,
    /// `DATA_DIR_UNUSABLE` when it cannot be removed.
    pub async fn delete_layer(&self, id: &LayerId) -> Result<()> {
        if let Some(build) = self.builds.list().iter().find(|build| build.layers.contains(id)) {
            let message = format!("build {} consists of layer {id}.", build.id);
            return Err(Error::new(codes::CONFLICT, message).with_fix("Delete the build first."));
        }
        self.layers.delete(id.clone()).await
    }

    /// Stores a manifest, in place of one with the same id.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when the id is no UUID, `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn put_build(&self, manifest: &BuildManifest) -> Result<()> {
        self.builds.put(manifest.clone()).await
    }

    /// The manifest of a build; none if there is no such build here.
    ///
    /// # Errors
    /// `LAYER_CORRUPT` when a layer of it is missing.
    pub async fn build(&self, id: &str) -> Result<Option<BuildManifest>> {
        let Some(manifest) = self.builds.get(id) else { return Ok(None) };
        match manifest.layers.iter().find(|layer| !self.layers.has(layer)) {
            Some(layer) => {
                let message = format!("layer {layer} of build {id} is missing.");
                Err(Error::new(codes::LAYER_CORRUPT, message))
            }
            None => Ok(Some(manifest)),
        }
    }

    /// All manifests.
    pub async fn builds(&self) -> Vec<BuildManifest> {
        self.builds.list()
    }

    /// Bytes used and total of the pool.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when the kernel does not tell.
    pub fn usage(&self) -> Result<(u64, u64)> {
        self.pool.usage()
    }
}
