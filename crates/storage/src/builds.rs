//! Build manifests: which layers a build of a template consists of, and how its sandboxes are made.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_core::{Error, LayerId, Result, TemplateId, error::codes};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::file::{blocking, private_dir, unusable, write_atomic};

/// A build of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildManifest {
    /// Its id: a UUID.
    pub id: String,
    /// The template it is a build of.
    pub template: TemplateId,
    /// The template's first alias, bare.
    pub alias: Option<String>,
    /// What the root is stacked from, lowest first. The runtime layer, which holds envd, goes on
    /// top of these and is not among them: it belongs to the node.
    pub layers: Vec<LayerId>,
    /// Version of envd that it was last offered with.
    pub envd_version: String,
    /// Virtual CPUs of its sandboxes.
    pub vcpu: u32,
    /// Memory of its sandboxes, MiB.
    pub memory_mb: u32,
    /// Disk of its sandboxes, MiB.
    pub disk_mb: u32,
    /// User of commands that name none.
    pub default_user: String,
    /// Working directory of commands that name none; none is the user's home.
    pub default_workdir: Option<String>,
    /// When it was built.
    pub created_at: Timestamp,
    /// Digest of what it was built from, in hexadecimal.
    pub recipe_digest: String,
}

/// The manifests of a data directory, one file each.
#[derive(Debug)]
pub(crate) struct Builds {
    dir: PathBuf,
    known: Mutex<BTreeMap<Uuid, BuildManifest>>,
}

impl Builds {
    /// Reads all manifests.
    pub(crate) fn open(data_dir: &Path) -> Result<Arc<Self>> {
        let dir = data_dir.join("builds");
        private_dir(&dir)?;
        let mut known = BTreeMap::new();
        let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &dir, &error))? {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(|error| unusable("read", &path, &error))?;
            let manifest: BuildManifest = serde_json::from_slice(&text).map_err(|error| {
                let message = format!("{} is not a build manifest: {error}.", path.display());
                Error::new(codes::LAYER_CORRUPT, message)
                    .with_fix("Delete the file and build its template again.")
            })?;
            known.insert(uuid(&manifest.id)?, manifest);
        }
        Ok(Arc::new(Self { dir, known: Mutex::new(known) }))
    }

    /// Stores a manifest in place of one with the same id.
    pub(crate) async fn put(self: &Arc<Self>, manifest: BuildManifest) -> Result<()> {
        // The id becomes a file name.
        let id = uuid(&manifest.id)?;
        let builds = Arc::clone(self);
        blocking(move || {
            let text = serde_json::to_vec_pretty(&manifest).map_err(|error| {
                Error::new(codes::INTERNAL, format!("cannot describe a build: {error}."))
            })?;
            write_atomic(&builds.dir.join(format!("{id}.json")), &text)?;
            builds.lock().insert(id, manifest);
            Ok(())
        })
        .await
    }

    /// The manifest with this id.
    pub(crate) fn get(&self, id: &str) -> Option<BuildManifest> {
        self.lock().get(&Uuid::parse_str(id).ok()?).cloned()
    }

    /// All manifests.
    pub(crate) fn list(&self) -> Vec<BuildManifest> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, BuildManifest>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uuid(id: &str) -> Result<Uuid> {
    Uuid::parse_str(id)
        .map_err(|_| Error::new(codes::INVALID_REQUEST, format!("{id:?} is not a build id.")))
}
