//! An image in an archive: an OCI layout, or what `docker save` writes.
//!
//! Every file of the archive goes to a file of our own naming, in one pass, since what describes them
//! may come last. Names of the archive are only ever looked up in the list of those.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use atoll_archive::{Archive, Error as ArchiveError, Kind, Limited, decompress};
use atoll_core::{Error, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    Image, LayerFile,
    download::unusable,
    manifest::{self, Blob, Config, Described},
    reference::Digest,
    refused, told,
};

/// Entries of an archive: a few for each layer.
const MOST_ENTRIES: usize = 10_000;
/// Links from one name to another.
const MOST_LINKS: usize = 8;
/// Indexes within indexes.
const DEEPEST: usize = 3;
/// Bytes of all content besides files that are kept: names, padding, and entries of kinds that are
/// skipped. A few MiB of an archive can expand to more than could be read in years, and reading it
/// cannot be stopped from outside.
const MOST_SKIPPED: u64 = 64 << 20;
/// How the archive is called in messages.
const NAME: &str = "the archive";

/// A file of the archive.
struct Stored {
    path: PathBuf,
    digest: Digest,
    bytes: u64,
}

/// All that is in the archive. Dropping it removes the files that are not kept.
#[derive(Default)]
struct Contents {
    files: HashMap<String, Stored>,
    links: HashMap<String, String>,
    kept: Vec<PathBuf>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        for stored in self.files.values().filter(|stored| !self.kept.contains(&stored.path)) {
            let _ = fs::remove_file(&stored.path);
        }
    }
}

/// What `docker save` says of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Reads the image in the archive at `archive`, which may be compressed with gzip or zstd, and puts
/// its layers into files in `directory`, which is there. It blocks for as long as that takes.
///
/// # Errors
/// `IMAGE_REFUSED` for what holds no image, holds several, is damaged or expands to more than `limit`
/// bytes; `IMAGE_UNAVAILABLE` when the image is not for this machine; `DISK_FULL` and
/// `DATA_DIR_UNUSABLE` for the files.
pub fn open_archive(archive: &Path, directory: &Path, limit: u64) -> Result<Image> {
    let file = File::open(archive).map_err(|error| unusable(archive, &error))?;
    let mut contents = Contents::default();
    contents.read(file, directory, limit)?;
    let image = if contents.find("index.json").is_some() && contents.find("oci-layout").is_some() {
        contents.layout()?
    } else if contents.find("manifest.json").is_some() {
        contents.saved(limit)?
    } else {
        return Err(refused(
            "the archive holds no image: neither an OCI layout nor what `docker save` writes.",
        ));
    };
    contents.kept = image.layers.iter().map(|layer| layer.path.clone()).collect();
    Ok(image)
}

fn damaged(error: impl Into<ArchiveError>) -> Error {
    refused(format!("the archive cannot be read: {}.", told(&error.into().to_string())))
}

impl Contents {
    fn read(&mut self, file: File, directory: &Path, limit: u64) -> Result<()> {
        let content = decompress(file).map_err(damaged)?;
        let most = limit.saturating_add(MOST_SKIPPED);
        let mut archive = Archive::new(Limited::new(content, most));
        let mut left = limit;
        let mut buffer = vec![0; 256 << 10];
        let mut count = 0;
        while let Some(entry) = archive.next().map_err(damaged)? {
            count += 1;
            if count > MOST_ENTRIES {
                return Err(refused(format!("the archive has more than {MOST_ENTRIES} entries.")));
            }
            let Some(name) = normal(&entry.path) else { continue };
            let target = |start: &str| {
                let link = String::from_utf8_lossy(&entry.link);
                normal(format!("{start}{link}").as_bytes())
            };
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    let path = directory.join(format!("part-{count}"));
                    // Listed before it is written, so that it is removed whatever happens.
                    let empty = Digest::of(&Sha256::digest([]));
                    let stored = Stored { path: path.clone(), digest: empty, bytes: 0 };
                    if let Some(earlier) = self.files.insert(name.clone(), stored) {
                        let _ = fs::remove_file(earlier.path);
                    }
                    let (digest, bytes) =
                        store(&mut archive, &path, &mut left, limit, &mut buffer)?;
                    self.files.insert(name, Stored { path, digest, bytes });
                }
                Kind::HardLink => drop(target("").map(|target| self.links.insert(name, target))),
                Kind::Symlink => {
                    let start = name.rfind('/').map_or("", |end| &name[..=end]).to_owned();
                    target(&start).map(|target| self.links.insert(name, target));
                }
                _ => {}
            }
        }
        archive.drain().map_err(damaged)
    }

    /// The file of a name, maybe behind links.
    fn find(&self, name: &str) -> Option<&Stored> {
        let mut name = normal(name.as_bytes())?;
        for _ in 0..MOST_LINKS {
            if let Some(stored) = self.files.get(&name) {
                return Some(stored);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn named(&self, name: &str) -> Result<&Stored> {
        self.find(name).ok_or_else(|| refused(format!("the archive lacks {}.", told(name))))
    }

    fn document(&self, stored: &Stored) -> Result<Vec<u8>> {
        if stored.bytes > manifest::LARGEST as u64 {
            return Err(refused("a description in the archive is too large."));
        }
        fs::read(&stored.path).map_err(|error| unusable(&stored.path, &error))
    }

    /// A blob of an OCI layout, which must be what its name says.
    fn blob(&self, blob: &Blob) -> Result<&Stored> {
        let stored = self.named(&format!("blobs/sha256/{}", blob.digest.digits()))?;
        if stored.digest == blob.digest && stored.bytes == blob.size {
            return Ok(stored);
        }
        Err(refused(format!(
            "in the archive the blob {} is not what its digest says.",
            blob.digest
        )))
    }

    fn layout(&self) -> Result<Image> {
        let mut stored = self.named("index.json")?;
        for _ in 0..DEEPEST {
            match manifest::read(NAME, &self.document(stored)?)? {
                Described::Elsewhere(blob) => stored = self.blob(&blob)?,
                Described::Here { config, layers } => {
                    let config = Config::read(NAME, &self.document(self.blob(&config)?)?)?;
                    let layers = layers.iter().map(|layer| Ok(layer_file(self.blob(layer)?)));
                    let layers = layers.collect::<Result<_>>()?;
                    let digest = stored.digest.to_string();
                    return Ok(Image { digest, config: config.settings(), layers });
                }
            }
        }
        Err(refused("the indexes of the archive lead to no manifest."))
    }

    fn saved(&self, limit: u64) -> Result<Image> {
        let text = self.document(self.named("manifest.json")?)?;
        let images: Vec<Saved> = serde_json::from_slice(&text).map_err(|error| {
            refused(format!(
                "manifest.json in the archive is malformed: {}.",
                told(&error.to_string())
            ))
        })?;
        let [image] = images.as_slice() else {
            let message =
                format!("the archive holds {} images; save one of them alone.", images.len());
            return Err(refused(message));
        };
        let config = self.named(&image.config)?;
        let digest = config.digest.to_string();
        let config = Config::read(NAME, &self.document(config)?)?;
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(refused("the archive has not the layers that its configuration names."));
        }
        if image.layers.len() > manifest::MOST_LAYERS {
            let (count, most) = (image.layers.len(), manifest::MOST_LAYERS);
            return Err(refused(format!("{NAME} has {count} layers; {most} are the most.")));
        }
        let mut layers = Vec::new();
        // Of all together: one file may be named for each, and is read for each.
        let mut left = limit;
        for (name, id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            let stored = self.named(name)?;
            if content_digest(stored, &mut left, limit)?.as_str() != id {
                let name = told(name);
                return Err(refused(format!(
                    "in the archive the layer {name} is not what its digest says."
                )));
            }
            layers.push(layer_file(stored));
        }
        Ok(Image { digest, config: config.settings(), layers })
    }
}

fn layer_file(stored: &Stored) -> LayerFile {
    let digest = stored.digest.to_string();
    LayerFile { path: stored.path.clone(), digest, bytes: stored.bytes }
}

/// The digest of a layer without its compression, which it hardly ever has in such an archive. Takes
/// what it has from `left`.
fn content_digest(stored: &Stored, left: &mut u64, limit: u64) -> Result<Digest> {
    let file = File::open(&stored.path).map_err(|error| unusable(&stored.path, &error))?;
    let mut content = decompress(file).map_err(damaged)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match content.read(&mut buffer).map_err(damaged)? {
            0 => return Ok(Digest::of(&hash.finalize())),
            length => {
                *left = left.checked_sub(length as u64).ok_or_else(|| too_large(limit))?;
                hash.update(&buffer[..length]);
            }
        }
    }
}

fn too_large(limit: u64) -> Error {
    refused(format!("the archive expands to more than {} MiB.", limit >> 20))
}

/// Writes what is left of an entry to a file.
fn store(
    data: &mut impl Read,
    path: &Path,
    left: &mut u64,
    limit: u64,
    buffer: &mut [u8],
) -> Result<(Digest, u64)> {
    let failed = |error: io::Error| unusable(path, &error);
    let mut file = File::create_new(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let length = data.read(buffer).map_err(damaged)?;
        if length == 0 {
            return Ok((Digest::of(&hash.finalize()), bytes));
        }
        *left = left.checked_sub(length as u64).ok_or_else(|| too_large(limit))?;
        hash.update(&buffer[..length]);
        file.write_all(&buffer[..length]).map_err(failed)?;
        bytes += length as u64;
    }
}

/// A name to be looked up: without `.` and `..`, by its text alone. None if it is no text.
fn normal(name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    for part in std::str::from_utf8(name).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
