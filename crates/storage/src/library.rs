//! Builds and the layers that they share: what is in use, and what becomes of the rest.
//!
//! A layer is in use by the manifests that name it, by leases, which sandboxes have, running or
//! paused, and by who builds templates, until a manifest names it. It is deleted when the last of
//! these goes: with the build, at the end of a lease, or in a sweep, which finds also what a crash
//! left between two steps of that.
//!
//! ```text
//! delete_build:  manifest ─► what is saved of it ─► layers that nothing else uses
//!                a crash here ▲ or here ▲ leaves garbage, and no build; the next start removes it
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use atoll_core::{Error, LayerId, Result, error::codes};

use crate::{
    builds::{self, BuildManifest, Builds},
    file::blocking,
    layers::Layers,
    saved::Saves,
};

/// What there is of templates and snapshots.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) layers: Arc<Layers>,
    pub(crate) builds: Arc<Builds>,
    saves: Arc<Saves>,
    /// One manifest is written or removed at a time.
    writing: Mutex<()>,
}

/// Keeps layers from being deleted while it lives.
///
/// Dropping it deletes nothing, because what it stands for may live on, for a later run of this
/// program; what is unused then goes in a [sweep](crate::Handle::sweep). [`end`](Self::end) deletes
/// at once.
#[derive(Debug)]
pub struct Lease {
    library: Arc<Library>,
    layers: Vec<LayerId>,
}

impl Lease {
    /// The layers that it keeps.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// Lets go of the layers, and deletes those that nothing else uses. Nothing may be mounted on
    /// them any more.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when one cannot be removed; the next start does it.
    pub async fn end(self) -> Result<()> {
        let (library, layers) = (Arc::clone(&self.library), self.layers.clone());
        drop(self);
        blocking(move || library.free(&layers)).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.library.layers.release(&self.layers);
    }
}

impl Library {
    pub(crate) fn new(layers: Arc<Layers>, builds: Arc<Builds>, saves: Arc<Saves>) -> Arc<Self> {
        Arc::new(Self { layers, builds, saves, writing: Mutex::default() })
    }

    /// Keeps layers while the lease lives.
    pub(crate) fn lease(self: &Arc<Self>, layers: &[LayerId]) -> Result<Lease> {
        self.layers.acquire(layers)?;
        Ok(Lease { library: Arc::clone(self), layers: layers.to_vec() })
    }

    /// Stores a manifest in place of one with the same id, whose layers go if nothing else uses them.
    pub(crate) async fn put(self: &Arc<Self>, manifest: BuildManifest) -> Result<()> {
        let library = Arc::clone(self);
        blocking(move || {
            let _writing = library.writing.lock().unwrap_or_else(PoisonError::into_inner);
            // Until the manifest keeps them.
            let lease = library.lease(&manifest.needs())?;
            let own = manifest.layers.clone();
            let replaced = library.builds.put(manifest)?;
            library.layers.set_kept(&own, false);
            drop(lease);
            library.free(&replaced.map(|replaced| replaced.needs()).unwrap_or_default())
        })
        .await
    }

    /// The manifest of a build of which nothing is missing.
    pub(crate) async fn build(self: &Arc<Self>, id: &str) -> Result<Option<BuildManifest>> {
        let Ok(uuid) = builds::uuid(id) else { return Ok(None) };
        let Some(manifest) = self.builds.get(&uuid)? else { return Ok(None) };
        self.layers.check(&manifest.needs()).map_err(|error| {
            Error::new(
                codes::LAYER_CORRUPT,
                format!("build {id} cannot be used: {}", error.message),
            )
            .with_fix(error.fix)
        })?;
        if manifest.snapshot.is_some() && self.saves.find(&uuid.to_string()).await?.is_none() {
            let message = format!("what is saved of snapshot {id} is missing.");
            return Err(Error::new(codes::LAYER_CORRUPT, message)
                .with_fix("Delete the snapshot; take another one."));
        }
        Ok(Some(manifest))
    }

    /// Deletes a build, what is saved of it, and the layers that nothing else uses.
    pub(crate) async fn delete(self: &Arc<Self>, id: &str) -> Result<bool> {
        let Ok(uuid) = builds::uuid(id) else { return Ok(false) };
        let library = Arc::clone(self);
        blocking(move || {
            let writing = library.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let (found, manifest) = library.builds.remove(&uuid)?;
            drop(writing);
            // Also when there is no manifest: a former call may have come no further.
            library.saves.delete(&uuid.to_string())?;
            library.free(&manifest.map(|manifest| manifest.needs()).unwrap_or_default())?;
            Ok(found)
        })
        .await
    }

    /// Deletes a layer that is no longer to be kept, unless it is in use.
    pub(crate) async fn discard(self: &Arc<Self>, id: LayerId) -> Result<()> {
        let library = Arc::clone(self);
        blocking(move || {
            library.layers.set_kept(std::slice::from_ref(&id), false);
            library.free(&[id])
        })
        .await
    }

    /// Deletes those of these layers that are not in use. Blocks.
    fn free(&self, layers: &[LayerId]) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        self.remove(|id| layers.contains(id)).map(drop)
    }

    /// Deletes all layers that are not in use; gives those.
    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<Vec<LayerId>> {
        let library = Arc::clone(self);
        blocking(move || library.remove(|_| true)).await
    }

    fn remove(&self, which: impl Fn(&LayerId) -> bool) -> Result<Vec<LayerId>> {
        // Once they are taken out, no manifest and no lease can be made of them.
        let unused = self.builds.marked(|marked| {
            let Some(marked) = marked else {
                tracing::warn!("no layer is deleted while a build manifest is damaged");
                return Vec::new();
            };
            self.layers.take_unused(|id| which(id) && !marked.contains(id))
        });
        let mut outcome = Ok(());
        for id in &unused {
            let removed = self.layers.remove(id);
            outcome = outcome.and(removed);
        }
        outcome.map(|()| unused)
    }
}
