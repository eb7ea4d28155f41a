//! Layers: read-only directory trees that sandboxes' roots are stacked from.
//!
//! ```text
//! <data-dir>/layers/<id>/fs/         the tree; ids of owners count from 0
//!                       /scratch/    room for who makes it; gone afterwards
//!                       /layer.json  written last: without it the layer is a torn write
//!                       /digest      content digest, computed in the background
//!                       /damaged     the tree was found to differ from that
//!                /boot               the boot of the machine in which they were in use last; none
//!                                    if they were let go of properly
//! ```
//!
//! A layer is flushed to disk before it is described, and never written again. Still, what the host's
//! file system has of it may differ: it may break its promise when the machine stops, and it may have
//! no checksums. So the description counts entries and bytes, which are compared at start until the
//! digest is there; and after the machine has stopped without a shutdown of this program, all layers
//! are read again in the background and compared with their digests. One that differs is set aside
//! for good: no sandbox is started on it, and it is deleted like any other.
//!
//! Layers are *not* in the pool. Overlayfs takes inode numbers to be unique within a file system,
//! but a btrfs subvolume counts its own: with a layer and the disk above it in one btrfs, two
//! different files of a sandbox would show the same device and inode, and `mv` and `cp` refuse to
//! touch "the same file". On the host's file system they stay apart (overlay's `xino`). It must be
//! one that can be mounted with mapped ids: ext4, xfs, btrfs and others, but not a network one.

mod reading;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use atoll_core::{Error, LayerId, Result, error::codes};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(crate) use self::reading::read_all;
use self::reading::{BOOT, DAMAGED};
use crate::{
    checked::{self, Found},
    digest::Size,
    file::{blocking, private_dir, sync_dir, unusable},
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
    /// Content of its files, bytes; 0 of those that the first versions made.
    pub bytes: u64,
}

/// The content of `layer.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    #[serde(flatten)]
    layer: Layer,
    /// Of the tree; none in those of the first versions.
    #[serde(default)]
    size: Option<Size>,
}

/// A layer, and who uses it apart from manifests.
#[derive(Debug)]
struct Known {
    /// None if it is damaged.
    info: Option<LayerInfo>,
    /// How many leases it has.
    leases: usize,
    /// It is not to be deleted although no manifest names it.
    kept: bool,
}

/// The layers of a data directory.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    known: Mutex<BTreeMap<LayerId, Known>>,
    /// Layers that are to be read, for their digest.
    unread: mpsc::UnboundedSender<LayerId>,
    /// How many of the first of those are left that the machine may have torn.
    suspect: AtomicUsize,
    stop: AtomicBool,
    /// Held while something is written into a layer or its files are deleted.
    files: Mutex<()>,
}

impl Layers {
    /// Reads what is there and removes torn writes. The receiver is for [`read_all`].
    pub(crate) fn open(data_dir: &Path) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<LayerId>)> {
        let dir = data_dir.join("layers");
        private_dir(&dir)?;
        check_file_system(&dir)?;
        let (unread, receiver) = mpsc::unbounded_channel();
        let layers = Self {
            dir,
            known: Mutex::default(),
            unread,
            suspect: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            files: Mutex::default(),
        };
        let crashed = layers.machine_stopped()?;
        let entries = fs::read_dir(&layers.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &layers.dir, &error))? {
            // Also where a crash left the draft of it.
            if entry.path().file_stem() != Some(BOOT.as_ref()) {
                layers.load(&entry.path(), crashed)?;
            }
        }
        let suspect = if crashed { layers.lock().len() } else { 0 };
        layers.suspect.store(suspect, Ordering::Relaxed);
        if suspect == 0 {
            layers.mark_boot()?;
        }
        Ok((Arc::new(layers), receiver))
    }

    fn load(&self, path: &Path, crashed: bool) -> Result<()> {
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(id): Option<LayerId> = id else {
            tracing::warn!(path = %path.display(), "not a layer; left alone");
            return Ok(());
        };
        let described = path.join("layer.json");
        let description = match checked::read::<Description>(&described, "layer")? {
            Found::Nothing => {
                tracing::info!(layer = %id, "removing a layer that was not finished");
                return fs::remove_dir_all(path).map_err(|error| unusable("remove", path, &error));
            }
            Found::Whole(description) => Ok(description),
            Found::Bare(description) => {
                checked::write(&described, "layer", &description)?;
                Ok(description)
            }
            Found::Damaged(why) => Err(why),
        };
        let description = match fs::exists(path.join(DAMAGED)) {
            Ok(false) => description,
            _ => Err("it differs from its digest".to_owned()),
        };
        let digest = fs::read_to_string(path.join("digest")).ok().filter(|text| text.len() == 64);
        if digest.is_none() || crashed {
            self.want_digest(&id);
        }
        // A layer that has its digest was whole long after it was made.
        let info = match description {
            Ok(Description { size: Some(size), .. })
                if digest.is_none() && Size::of(&self.tree(&id)).ok() != Some(size) =>
            {
                Err("its tree is incomplete".to_owned())
            }
            Ok(Description { layer, size }) => {
                let bytes = size.map_or(0, |size| size.bytes());
                Ok(LayerInfo { id: id.clone(), layer, digest, bytes })
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &info {
            tracing::error!(error = %self.damaged(&id), why, "a layer cannot be used");
        }
        self.lock().insert(id, Known { info: info.ok(), leases: 0, kept: false });
        Ok(())
    }

    fn damaged(&self, id: &LayerId) -> Error {
        let path = self.dir.join(id.as_str());
        let message = format!("layer {id} in {} is not what was written.", path.display());
        Error::new(codes::LAYER_CORRUPT, message).with_fix(
            "Delete the template or snapshot, and build it again; the base template is built \
             again at the next start.",
        )
    }

    /// The tree of a layer.
    pub(crate) fn tree(&self, id: &LayerId) -> PathBuf {
        self.dir.join(id.as_str()).join("fs")
    }

    /// All layers that can be used.
    pub(crate) fn list(&self) -> Vec<LayerInfo> {
        self.lock().values().filter_map(|known| known.info.clone()).collect()
    }

    /// Whether these layers are there, and as they were written.
    pub(crate) fn check(&self, ids: &[LayerId]) -> Result<()> {
        ids.iter().try_for_each(|id| self.find(&mut self.lock(), id).map(drop))
    }

    /// A layer that can be used.
    fn find<'a>(
        &self,
        known: &'a mut BTreeMap<LayerId, Known>,
        id: &LayerId,
    ) -> Result<&'a mut Known> {
        match known.get_mut(id) {
            Some(known) if known.info.is_some() => Ok(known),
            Some(_) => Err(self.damaged(id)),
            None => {
                let message = format!("layer {id} is not there.");
                Err(Error::new(codes::TEMPLATE_MISSING, message))
            }
        }
    }

    /// Counts a lease of all of these layers, or of none.
    pub(crate) fn acquire(&self, ids: &[LayerId]) -> Result<()> {
        let mut known = self.lock();
        ids.iter().try_for_each(|id| self.find(&mut known, id).map(drop))?;
        for id in ids {
            self.find(&mut known, id)?.leases += 1;
        }
        Ok(())
    }

    /// Counts a lease less.
    pub(crate) fn release(&self, ids: &[LayerId]) {
        let mut known = self.lock();
        for id in ids {
            match known.get_mut(id) {
                Some(known) => known.leases -= 1,
                None => tracing::error!(layer = %id, "a layer went while it was leased"),
            }
        }
    }

    /// Sets whether layers are kept although no manifest may name them.
    pub(crate) fn set_kept(&self, ids: &[LayerId], kept: bool) {
        let mut known = self.lock();
        for id in ids {
            if let Some(known) = known.get_mut(id) {
                known.kept = kept;
            }
        }
    }

    /// Takes out those of the layers that have no lease and are not kept: they are there no more,
    /// but for their files, which [`remove`](Self::remove) deletes.
    pub(crate) fn take_unused(&self, which: impl Fn(&LayerId) -> bool) -> Vec<LayerId> {
        let mut known = self.lock();
        let unused = |(id, known): (&LayerId, &Known)| {
            (known.leases == 0 && !known.kept && which(id)).then(|| id.clone())
        };
        let unused: BTreeSet<LayerId> = known.iter().filter_map(unused).collect();
        known.retain(|id, _| !unused.contains(id));
        unused.into_iter().collect()
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

    /// Deletes the files of a layer that was taken out.
    pub(crate) fn remove(&self, id: &LayerId) -> Result<()> {
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join(id.as_str());
        // First what makes it a layer, so that half a layer is never taken for one.
        match fs::remove_file(path.join("layer.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unusable("remove", &path, &error));
            }
            _ => sync_dir(&path)?,
        }
        fs::remove_dir_all(&path).map_err(|error| unusable("remove", &path, &error))
    }

    fn want_digest(&self, id: &LayerId) {
        // The receiver is gone only when the service has ended; the next start finds the layer.
        drop(self.unread.send(id.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LayerId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Makes the tree a layer: it is on disk, whole, when this returns. If the future is dropped before
    /// it is, there is none: nobody would know of it.
    ///
    /// # Errors
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE` when that fails; nothing is left then.
    pub async fn commit(mut self, layer: Layer) -> Result<LayerId> {
        let waiting = Arc::new(());
        let caller = Arc::downgrade(&waiting);
        let made = blocking(move || {
            let root = self.root();
            let scratch = self.scratch();
            fs::remove_dir_all(&scratch).map_err(|error| unusable("remove", &scratch, &error))?;
            // The tree before the file that vouches for it.
            fs::File::open(&root)
                .and_then(|root| Ok(rustix::fs::syncfs(root)?))
                .map_err(|error| unusable("write", &root, &error))?;
            let tree = self.dir();
            let size = Size::of(&tree).map_err(|error| unusable("measure", &tree, &error))?;
            let description = Description { layer, size: Some(size) };
            if caller.strong_count() == 0 {
                return Err(Error::new(codes::INTERNAL, "nobody waits for the layer any more."));
            }
            checked::write(&root.join("layer.json"), "layer", &description)?;
            self.committed = true;
            let id = self.id.clone();
            let (layer, bytes) = (description.layer, size.bytes());
            let info = LayerInfo { id: id.clone(), layer, digest: None, bytes };
            let known = Known { info: Some(info), leases: 0, kept: true };
            self.layers.lock().insert(id.clone(), known);
            self.layers.want_digest(&id);
            Ok(id)
        });
        let made = made.await;
        drop(waiting);
        made
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
