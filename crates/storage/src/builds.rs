//! Build manifests: which layers a build of a template consists of, and how its sandboxes are made.
//! A snapshot of a sandbox is a build too.
//!
//! A manifest is what makes a build exist: it is written last and removed first. One that is damaged
//! is set aside in memory: it is not given to anybody, and nothing that it may need is deleted until
//! it is deleted itself.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_core::{Error, LayerId, Result, TemplateId, error::codes, lifecycle::Kept};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    checked::{self, Found},
    file::{private_dir, sync_dir, unusable},
};

const EXTENSION: &str = "json";

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
    /// Digest of what it was built from, in hexadecimal; empty of a snapshot, which was not built.
    pub recipe_digest: String,
    /// What a step of a build has left, for later builds and no sandbox of a team.
    #[serde(default)]
    pub step: Option<StepResult>,
    /// The build that it was made from, if there is one.
    #[serde(default)]
    pub parent: Option<String>,
    /// Variables for every process of its sandboxes.
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    /// What runs in its sandboxes whenever they boot.
    #[serde(default)]
    pub start: Option<StartCommand>,
    /// What is saved under the build's id ([`Handle::saved`](crate::Handle::saved)), if it is a
    /// snapshot.
    #[serde(default)]
    pub snapshot: Option<Kept>,
    /// Of a snapshot with memory, the exact layers that its processes ran on, lowest first, the
    /// runtime layer included.
    #[serde(default)]
    pub stack: Vec<LayerId>,
    /// Of a snapshot with memory, what only the node and the envd in it know.
    #[serde(default)]
    pub control_secret: Option<String>,
}

/// What makes a [`BuildManifest`] the result of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The team whose it is.
    pub team: String,
    /// The step, as people wrote it.
    pub text: String,
    /// When a build last began from it or led to it.
    pub used_at: Timestamp,
}

/// A command that a template's sandboxes start with. It runs as the template's user, in its working
/// directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// The command.
    pub command: String,
    /// One that succeeds when the first can be used; without it, that is when something listens.
    pub ready: Option<String>,
}

impl BuildManifest {
    /// All layers that it needs.
    pub(crate) fn needs(&self) -> Vec<LayerId> {
        self.layers.iter().chain(&self.stack).cloned().collect()
    }
}

/// What there is under an id; none if it is damaged.
type Known = BTreeMap<Uuid, Option<BuildManifest>>;

/// The manifests of a data directory, one file each.
#[derive(Debug)]
pub(crate) struct Builds {
    dir: PathBuf,
    known: Mutex<Known>,
}

impl Builds {
    /// Reads all manifests.
    pub(crate) fn open(data_dir: &Path) -> Result<Arc<Self>> {
        let dir = data_dir.join("builds");
        private_dir(&dir)?;
        let builds = Self { dir, known: Mutex::default() };
        let entries = fs::read_dir(&builds.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| unusable("list", &builds.dir, &error))? {
            builds.load(&entry.path())?;
        }
        Ok(Arc::new(builds))
    }

    fn load(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            // What a crash left of a write.
            return fs::remove_file(path).map_err(|error| unusable("remove", path, &error));
        }
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|id| uuid(id).ok());
        let Some(id) = id.filter(|id| self.path(id) == path) else {
            tracing::warn!(path = %path.display(), "not a build manifest; left alone");
            return Ok(());
        };
        let manifest = match checked::read::<BuildManifest>(path, "build")? {
            Found::Nothing => return Ok(()),
            Found::Whole(manifest) => Some(manifest),
            // Of a former version; from now on it has its checksum.
            Found::Bare(manifest) => {
                checked::write(path, "build", &manifest)?;
                Some(manifest)
            }
            Found::Damaged(why) => {
                tracing::error!(error = %self.damaged(&id), why, "a build cannot be used");
                None
            }
        };
        // One under another's name would be found by neither.
        let manifest = manifest.filter(|manifest| uuid(&manifest.id).is_ok_and(|own| own == id));
        self.lock().insert(id, manifest);
        Ok(())
    }

    fn path(&self, id: &Uuid) -> PathBuf {
        self.dir.join(format!("{id}.{EXTENSION}"))
    }

    fn damaged(&self, id: &Uuid) -> Error {
        let message = format!("{} is not what was written.", self.path(id).display());
        Error::new(codes::LAYER_CORRUPT, message).with_fix(
            "Delete the template or snapshot, and build it again; the base template is built \
             again at the next start.",
        )
    }

    /// Stores a manifest, and gives the one whose place it takes.
    pub(crate) fn put(&self, manifest: BuildManifest) -> Result<Option<BuildManifest>> {
        let id = uuid(&manifest.id)?;
        checked::write(&self.path(&id), "build", &manifest)?;
        Ok(self.lock().insert(id, Some(manifest)).flatten())
    }

    /// Removes a manifest, damaged or not; false if there was none. It does not come back when this
    /// returns.
    pub(crate) fn remove(&self, id: &Uuid) -> Result<(bool, Option<BuildManifest>)> {
        if !self.lock().contains_key(id) {
            return Ok((false, None));
        }
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unusable("remove", &path, &error));
            }
            _ => {}
        }
        let manifest = self.lock().remove(id).flatten();
        sync_dir(&self.dir)?;
        Ok((true, manifest))
    }

    /// The manifest with this id.
    pub(crate) fn get(&self, id: &Uuid) -> Result<Option<BuildManifest>> {
        match self.lock().get(id) {
            None => Ok(None),
            Some(Some(manifest)) => Ok(Some(manifest.clone())),
            Some(None) => Err(self.damaged(id)),
        }
    }

    /// All manifests that are whole.
    pub(crate) fn list(&self) -> Vec<BuildManifest> {
        self.lock().values().flatten().cloned().collect()
    }

    /// Names of what is saved of builds, also of those that are damaged.
    pub(crate) fn names(&self) -> HashSet<String> {
        self.lock().keys().map(Uuid::to_string).collect()
    }

    /// Looks at which layers the manifests need, and keeps them from changing meanwhile. None if that
    /// is not known.
    pub(crate) fn marked<T>(&self, look: impl FnOnce(Option<HashSet<LayerId>>) -> T) -> T {
        let known = self.lock();
        let whole: Option<Vec<&BuildManifest>> = known.values().map(Option::as_ref).collect();
        look(whole.map(|whole| whole.into_iter().flat_map(BuildManifest::needs).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn uuid(id: &str) -> Result<Uuid> {
    Uuid::parse_str(id)
        .map_err(|_| Error::new(codes::INVALID_REQUEST, format!("{id:?} is not a build id.")))
}
