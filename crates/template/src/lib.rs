//! Recipes to layers: how templates are built.
//!
//! Two things are made at the start where they are missing or their recipe has changed: the template
//! `base` (a Debian with a `user`, Python, Node and a compiler), and the runtime layer (envd and the
//! code interpreter), which goes on top of every template's layers.
//!
//! ```text
//! ensure_base ── recipe digest known? ── yes ──► its manifest
//!                       │ no
//!                       ▼
//!    layer draft ◄── base.sh (mmdebstrap) ◄── provision.sh, inside the tree
//!         │ commit
//!         ▼
//!    layer, manifest
//! ```

mod base;
mod build;
mod file;
mod host;
pub mod image;
mod process;
mod progress;
mod runtime;

use std::{path::PathBuf, sync::Arc};

use atoll_core::{LayerId, Result};
use atoll_storage::BuildManifest;
use tokio::sync::Mutex;

pub use crate::{
    build::{BuildOptions, Builds, BuildsHandle},
    host::{CLIENT_BUNDLE_MARK, host_bundle},
    progress::Progress,
};

/// Certificates that templates are to trust beyond their distribution's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CaBundle {
    /// No others.
    #[default]
    None,
    /// What this host trusts, such as a company's own authority.
    Host,
    /// Those of a PEM file.
    File(PathBuf),
}

/// Configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Certificates that templates are to trust.
    pub ca_bundle: CaBundle,
    /// The envd program: a static binary.
    pub envd: &'static [u8],
    /// The code interpreter's server: a static binary, which only templates start that want it.
    pub interpreter: &'static [u8],
    /// Its version, as its `/health` and the API report it.
    pub envd_version: String,
}

impl Options {
    /// The programs of the runtime layer, by the names they have in it.
    fn runtime(&self) -> [(&'static str, &'static [u8]); 2] {
        [("envd", self.envd), ("code-interpreter", self.interpreter)]
    }
}

/// Builds templates; cheap to clone. Nothing of it runs between calls, so there is no service to
/// start or stop.
#[derive(Clone, Debug)]
pub struct Handle {
    options: Arc<Options>,
    storage: atoll_storage::Handle,
    /// One build at a time: two callers who want the same thing get the same.
    building: Arc<Mutex<()>>,
}

impl Handle {
    /// A builder whose layers and manifests go to `storage`.
    pub fn new(options: Options, storage: atoll_storage::Handle) -> Self {
        Self { options: Arc::new(options), storage, building: Arc::default() }
    }

    /// The layer that holds `/usr/bin/envd` and `/usr/bin/code-interpreter`, and nothing else; made
    /// if it is not there. It is not deleted while storage runs; that of other programs goes with the
    /// last sandbox or snapshot that needs it, or in storage's sweep.
    ///
    /// # Errors
    /// `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn ensure_runtime_layer(&self) -> Result<LayerId> {
        let _building = self.building.lock().await;
        runtime::ensure(&self.storage, self.options.runtime()).await
    }

    /// The `base` template, and whether it was built now: that takes one to three minutes and needs
    /// the network. Dropping the future ends the build and removes what it made.
    ///
    /// # Errors
    /// `BUILD_FAILED` with the end of the output, `TOOL_MISSING`, `BAD_OPTION` for a CA bundle that
    /// cannot be used, `DISK_FULL` or `DATA_DIR_UNUSABLE`.
    pub async fn ensure_base(&self, progress: &dyn Progress) -> Result<(BuildManifest, bool)> {
        let _building = self.building.lock().await;
        base::ensure(&self.storage, &self.options, progress).await
    }
}
