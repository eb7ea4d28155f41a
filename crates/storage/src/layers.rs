//! Layers: read-only directory trees that sandboxes' roots are stacked from.
//!
//! ```text
//! <data-dir>/layers/<id>/fs/         the tree; ids of owners count from 0
//!                       /scratch/    room for who makes it; gone afterwards
//!                       /layer.json  written last: without it the layer is a torn write
//!                       /digest      content digest, computed in the background
//! ```
//!
//! Layers are *not* in the pool. Overlayfs takes inode numbers to be unique within a file system,
//! but a btrfs subvolume counts its own: with a layer and the disk above it in one btrfs, two
//! different files of a sandbox would show the same device and inode, and `mv` and `cp` refuse to
//! touch "the same file". On the host's file system they stay apart (overlay's `xino`). It must be
//! one that can be mounted with mapped ids: ext4, xfs, btrfs and others, but not a network one.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use atoll_core::{Error, LayerId, Result, error::codes};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    digest,
    file::{blocking, failed, private_dir, unusable, write_atomic},
};

/// What is known of a layer when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What it is, for people: `base`, `runtime`.
    pub name: String,
    /// Digest of what it was made from, in hexadecimal: equal recipes need not be made twice.
    pub recipe: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A layer that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its id.
    pub id: LayerId,
    /// What it is.
    pub layer: Layer,
    /// SHA-256 of its content, once that is computed.
    pub digest: Option<String>,
}

/// The layers of a data directory.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    known: Mutex<BTreeMap<LayerId, LayerInfo>>,
    /// Layers whose digest is to be computed.
    undigested: mpsc::UnboundedSender<LayerId>,
    stop: AtomicBool,
}

impl Layers {
    /// Reads what is there and removes torn writes. The receiver is for [`digest_all`].
    pub(crate) fn open(data_dir: &Path) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<LayerId>)> {
        let dir = data_dir.join("layers");
        private_dir(&dir)?;
        check_file_system(&dir)?;
        let (undigested, receiver) = mpsc::unbounded_channel();
        let layers =
            Self { dir, known: Mutex::default(), undigested, stop: AtomicBool::new(false) };
        let entries = fs::read_dir(&layers.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &layers.dir, &error))? {
            layers.load(&entry.path())?;
        }
        Ok((Arc::new(layers), receiver))
    }

    fn load(&self, path: &Path) -> Result<()> {
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(id): Option<LayerId> = id else {
            tracing::warn!(path = %path.display(), "not a layer; left alone");
            return Ok(());
        };
        let described = match fs::read(path.join("layer.json")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::info!(layer = %id, "removing a layer that was not finished");
                return fs::remove_dir_all(path).map_err(|error| unusable("remove", path, &error));
            }
            Err(error) => return Err(unusable("read", &path.join("layer.json"), &error)),
        };
        let layer = serde_json::from_slice(&described).map_err(|error| {
            Error::new(
                codes::LAYER_CORRUPT,
                format!("layer {id} has a broken layer.json: {error}."),
            )
            .with_fix(format!("Delete {} and build its template again.", path.display()))
        })?;
        let digest = fs::read_to_string(path.join("digest")).ok();
        if digest.is_none() {
            self.want_digest(&id);
        }
        self.lock().insert(id.clone(), LayerInfo { id, layer, digest });
        Ok(())
    }

    /// The tree of a layer.
    pub(crate) fn tree(&self, id: &LayerId) -> PathBuf {
        self.dir.join(id.as_str()).join("fs")
    }

    /// All layers.
    pub(crate) fn list(&self) -> Vec<LayerInfo> {
        self.lock().values().cloned().collect()
    }

    /// Whether it is there.
    pub(crate) fn has(&self, id: &LayerId) -> bool {
        self.lock().contains_key(id)
    }

    /// Begins a layer.
    pub(crate) async fn draft(self: &Arc<Self>) -> Result<LayerDraft> {
        let id = LayerId::generate().map_err(|error| {
            Error::new(codes::INTERNAL, format!("the system has no random bytes to give: {error}."))
        })?;
        let draft = LayerDraft { layers: Arc::clone(self), id, committed: false };
        blocking(move || {
            private_dir(&draft.scratch())?;
            let tree = draft.dir();
            fs::create_dir(&tree)
                .and_then(|()| {
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                    fs::set_permissions(&tree, mode)
                })
                .map_err(|error| unusable("make", &tree, &error))?;
            Ok(draft)
        })
        .await
    }

    /// Deletes a layer that is there.
    pub(crate) async fn delete(self: &Arc<Self>, id: LayerId) -> Result<()> {
        let layers = Arc::clone(self);
        blocking(move || {
            let path = layers.dir.join(id.as_str());
            if layers.lock().remove(&id).is_none() {
                return Err(Error::new(codes::NOT_FOUND, format!("there is no layer {id}.")));
            }
            // First what makes it a layer, so that half a layer is never taken for one.
            let described = path.join("layer.json");
            fs::remove_file(&described)
                .and_then(|()| fs::remove_dir_all(&path))
                .map_err(|error| unusable("remove", &path, &error))
        })
        .await
    }

    /// Stops the computation of digests; the next start takes it up again.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn want_digest(&self, id: &LayerId) {
        // The receiver is gone only when the service has ended; the next start finds the layer.
        drop(self.undigested.send(id.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LayerId, LayerInfo>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest(&self, id: &LayerId) -> Result<()> {
        let tree = self.tree(id);
        let digest = digest::tree(&tree, &self.stop).map_err(|error| {
            failed(codes::LAYER_CORRUPT, format_args!("read layer {id}"), &error)
        })?;
        if let Some(digest) = digest {
            write_atomic(&self.dir.join(id.as_str()).join("digest"), digest.as_bytes())?;
            if let Some(info) = self.lock().get_mut(id) {
                info.digest = Some(digest);
            }
        }
        Ok(())
    }
}

/// Refuses file systems that are known not to take id-mapped mounts: the first sandbox would fail
/// with a bare "invalid argument".
fn check_file_system(dir: &Path) -> Result<()> {
    let stat = rustix::fs::statfs(dir).map_err(|error| unusable("measure", dir, &error.into()))?;
    let kind = match stat.f_type as u64 & 0xffff_ffff {
        0x794c_7630 => "overlayfs",
        0x6969 => "NFS",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9p",
        0xff53_4d42 | 0xfe53_4d42 => "SMB",
        _ => return Ok(()),
    };
    let message = format!("{} is on {kind}, where layers cannot be.", dir.display());
    Err(Error::new(codes::DATA_DIR_UNUSABLE, message)
        .with_fix("Choose a --data-dir on a local file system such as ext4, xfs or btrfs."))
}

/// Computes the digests of layers, one at a time. Never returns while the layers exist.
pub(crate) async fn digest_all(
    layers: Arc<Layers>,
    mut undigested: mpsc::UnboundedReceiver<LayerId>,
) {
    while let Some(id) = undigested.recv().await {
        // One that is deleted in the meantime is no failure.
        if !layers.has(&id) {
            continue;
        }
        let (worker, layer) = (Arc::clone(&layers), id.clone());
        if let Err(error) = blocking(move || worker.digest(&layer)).await
            && layers.has(&id)
        {
            tracing::warn!(layer = %id, %error, "no digest of a layer");
        }
    }
}

/// A layer in the making. Dropped without [`commit`](Self::commit), it is removed.
#[derive(Debug)]
pub struct LayerDraft {
    layers: Arc<Layers>,
    id: LayerId,
    committed: bool,
}

impl LayerDraft {
    /// The tree to fill: an empty directory. Ids of owners count from 0.
    pub fn dir(&self) -> PathBuf {
        self.layers.tree(&self.id)
    }

    /// A directory for inputs and other passing things, which only root can enter.
    pub fn scratch(&self) -> PathBuf {
        self.root().join("scratch")
    }

    fn root(&self) -> PathBuf {
        self.layers.dir.join(self.id.as_str())
    }

    /// Makes the tree a layer: it is on disk, whole, when this returns.
    ///
    /// # Errors
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE` when that fails; nothing is left then.
    pub async fn commit(mut self, layer: Layer) -> Result<LayerId> {
        blocking(move || {
            let root = self.root();
            let scratch = self.scratch();
            fs::remove_dir_all(&scratch).map_err(|error| unusable("remove", &scratch, &error))?;
            // The tree before the file that vouches for it.
            fs::File::open(&root)
                .and_then(|root| Ok(rustix::fs::syncfs(root)?))
                .map_err(|error| unusable("write", &root, &error))?;
            let described = serde_json::to_vec_pretty(&layer).map_err(|error| {
                Error::new(codes::INTERNAL, format!("cannot describe a layer: {error}."))
            })?;
            write_atomic(&root.join("layer.json"), &described)?;
            self.committed = true;
            let id = self.id.clone();
            let info = LayerInfo { id: id.clone(), layer, digest: None };
            self.layers.lock().insert(id.clone(), info);
            self.layers.want_digest(&id);
            Ok(id)
        })
        .await
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let root = self.root();
        let remove = move || {
            if let Err(error) = fs::remove_dir_all(&root)
                && error.kind() != io::ErrorKind::NotFound
            {
                let path = root.display();
                tracing::warn!(%path, %error, "an unfinished layer stays until the next start");
            }
        };
        // Tens of thousands of files may be in it: not on an async thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
