//! An image in a registry: first which one a reference means, then its layers.

use std::{collections::BTreeSet, path::Path};

use atoll_core::Result;
use atoll_wire::build::Credentials;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};

use super::{
    Image, ImageConfig, LayerFile, Reference, Registries,
    download::{Fetched, Meter, fetch},
    manifest::{self, ACCEPT, Blob, Config, Described, LARGEST},
    reference::Digest,
    refused,
    session::{Session, bounded},
};

/// Layers that are fetched at the same time.
const AT_ONCE: usize = 3;
/// Indexes within indexes.
const DEEPEST: usize = 3;

/// An image that a registry has, with everything known of it but its layers.
pub struct Remote {
    session: Session,
    digest: Digest,
    config: ImageConfig,
    layers: Vec<Blob>,
}

/// Asks a registry which image `reference` is. The addresses asked are public ones or those of
/// `registries`.
///
/// # Errors
/// `IMAGE_UNAVAILABLE` with what the registry said, `IMAGE_REFUSED` for what is no image, or another
/// than its digest says, `REGISTRY_REFUSED`.
pub async fn resolve(
    reference: &str,
    credentials: Option<&Credentials>,
    registries: &Registries,
) -> Result<Remote> {
    let reference: Reference = reference.parse()?;
    let image = reference.to_string();
    let session = Session::open(reference.clone(), credentials, registries).await?;
    let mut wanted = reference.digest.clone();
    let mut name = reference.manifest().to_owned();
    for _ in 0..DEEPEST {
        let text = bounded(session.get("manifests", &name, ACCEPT, 0).await?, LARGEST).await?;
        let digest = digest_of(&text);
        if wanted.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(refused(format!("the manifest of {image} is not what its digest says.")));
        }
        match manifest::read(&image, &text)? {
            Described::Elsewhere(blob) => {
                name = blob.digest.to_string();
                wanted = Some(blob.digest);
            }
            Described::Here { config, layers } => {
                let config = configuration(&session, &image, &config).await?;
                return Ok(Remote { session, digest, config, layers });
            }
        }
    }
    Err(refused(format!("the indexes of {image} lead to no manifest.")))
}

async fn configuration(session: &Session, image: &str, blob: &Blob) -> Result<ImageConfig> {
    let response = session.get("blobs", blob.digest.as_str(), "*/*", 0).await?;
    let text = bounded(response, LARGEST).await?;
    if digest_of(&text) != blob.digest {
        return Err(refused(format!("the configuration of {image} is not what its digest says.")));
    }
    Ok(Config::read(image, &text)?.settings())
}

fn digest_of(text: &[u8]) -> Digest {
    Digest::of(&Sha256::digest(text))
}

impl Remote {
    /// The digest of its manifest, `sha256:…`: of that for this machine, if there are several.
    pub fn digest(&self) -> &str {
        self.digest.as_str()
    }

    /// How it is to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Bytes of its layers as they are fetched; one that it has twice counts once.
    pub fn bytes(&self) -> u64 {
        self.blobs().iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    fn blobs(&self) -> BTreeSet<&Blob> {
        self.layers.iter().collect()
    }

    /// Fetches its layers to files in `directory`, which is there. `progress` is told how many bytes
    /// of how many are here, often. If the future is dropped or fails, the files are removed.
    ///
    /// # Errors
    /// `IMAGE_UNAVAILABLE`, also when the registry breaks off again and again; `IMAGE_REFUSED` when
    /// there are more bytes than `limit`, or others than their digest says; `REGISTRY_REFUSED`;
    /// `DISK_FULL` and `DATA_DIR_UNUSABLE` for the files.
    pub async fn fetch(
        &self,
        directory: &Path,
        limit: u64,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Image> {
        let (all, image) = (self.bytes(), self.session.reference());
        if all > limit {
            let (all, limit) = (all >> 20, limit >> 20);
            return Err(refused(format!(
                "{image} has {all} MiB of layers; {limit} MiB are the most."
            )));
        }
        let meter = Meter::new(all, progress);
        let fetches = self.blobs().into_iter().cloned().map(|blob| {
            let path = directory.join(blob.digest.digits());
            let (session, meter) = (&self.session, &meter);
            async move { fetch(session, &blob, path, meter).await }
        });
        let files: Vec<Fetched> =
            stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect().await?;
        let layers = self.layers.iter().map(|blob| LayerFile {
            path: directory.join(blob.digest.digits()),
            digest: blob.digest.to_string(),
            bytes: blob.size,
        });
        let layers = layers.collect();
        files.into_iter().for_each(Fetched::keep);
        Ok(Image { digest: self.digest.to_string(), config: self.config.clone(), layers })
    }
}
