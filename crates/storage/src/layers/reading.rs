//! Reading layers: for their digests, and to see whether they are what was written.

use std::{
    fs, io,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use atoll_core::{LayerId, Result, error::codes};
use tokio::sync::mpsc;

use super::{LayerInfo, Layers};
use crate::{
    digest,
    file::{blocking, failed, unusable, write_atomic},
};

/// The file that says in which boot of the machine the layers are in use.
pub(super) const BOOT: &str = "boot";

/// The file in a layer that says that it cannot be used.
pub(super) const DAMAGED: &str = "damaged";

impl Layers {
    /// Whether the machine has stopped while the layers were in use.
    pub(super) fn machine_stopped(&self) -> Result<bool> {
        let path = self.dir.join(BOOT);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(unusable("read", &path, &error)),
            Ok(former) => Ok(former != boot()?),
        }
    }

    /// Notes that the layers are in use, and nothing is wrong with them.
    pub(super) fn mark_boot(&self) -> Result<()> {
        write_atomic(&self.dir.join(BOOT), &boot()?)
    }

    /// Counts a layer that was read.
    fn count_read(&self) -> Result<()> {
        let one_less = |suspect: usize| suspect.checked_sub(1);
        match self.suspect.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(1) => self.mark_boot(),
            _ => Ok(()),
        }
    }

    /// Reads no layer any more; the next start takes it up again.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Notes that the layers are not in use any more. Of those that are suspect the next start has to
    /// know.
    pub(crate) fn close(&self) -> Result<()> {
        if self.suspect.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let path = self.dir.join(BOOT);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Reads a layer, and notes its digest or compares it with that which it has; false if it was
    /// stopped.
    fn read(&self, id: &LayerId) -> Result<bool> {
        let root = self.dir.join(id.as_str());
        let digest = match digest::tree(&self.tree(id), &self.stop) {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(false),
            // Deleted meanwhile.
            Err(_) if !root.join("layer.json").exists() => return Ok(true),
            Err(error) => {
                self.set_info(id, None);
                let what = format_args!("read layer {id}");
                return Err(failed(codes::LAYER_CORRUPT, what, &error));
            }
        };
        let _files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let info = self.lock().get(id).and_then(|known| known.info.clone());
        let Some(mut info) = info else { return Ok(true) };
        match info.digest.replace(digest.clone()) {
            None => write_atomic(&root.join("digest"), digest.as_bytes())?,
            Some(noted) if noted == digest => {}
            Some(_) => {
                self.set_info(id, None);
                write_atomic(&root.join(DAMAGED), b"")?;
                return Err(self.damaged(id));
            }
        }
        self.set_info(id, Some(info));
        Ok(true)
    }

    fn set_info(&self, id: &LayerId, info: Option<LayerInfo>) {
        if let Some(known) = self.lock().get_mut(id) {
            known.info = info;
        }
    }
}

/// Which boot of the machine this is.
fn boot() -> Result<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id")
        .map_err(|error| failed(codes::DATA_DIR_UNUSABLE, "read the id of the boot", &error))
}

/// Reads layers, one at a time. Never returns while the layers exist.
pub(crate) async fn read_all(layers: Arc<Layers>, mut unread: mpsc::UnboundedReceiver<LayerId>) {
    while let Some(id) = unread.recv().await {
        let (worker, layer) = (Arc::clone(&layers), id.clone());
        let read = blocking(move || {
            let read = worker.read(&layer);
            if !matches!(read, Ok(false)) {
                worker.count_read()?;
            }
            read
        });
        if let Err(error) = read.await {
            tracing::error!(layer = %id, %error, "a layer has no valid digest");
        }
    }
}
