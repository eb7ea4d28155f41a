//! An image of a known size, in an archive of an OCI layout.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

/// Files of this size fill it: much of what images hold is smaller, most of their bytes are not.
const FILE_BYTES: u64 = 64 * 1024;
/// Over so many layers.
const FILLERS: u64 = 4;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image in files of a directory.
pub(super) struct Image {
    /// All of it.
    pub(super) archive: PathBuf,
    /// Its layers, lowest first: compressed archives.
    pub(super) layers: Vec<PathBuf>,
    /// Their bytes, uncompressed.
    pub(super) bytes: u64,
}

/// A layer on disk.
struct Layer {
    path: PathBuf,
    digest: String,
    diff_id: String,
    size: u64,
    bytes: u64,
}

impl Image {
    /// Writes an image with the archive `root` as its first layer, and files over it until there are
    /// `bytes` bytes.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub(super) fn write(directory: &Path, root: &Path, bytes: u64) -> io::Result<Self> {
        let first = Layer::write(&directory.join("layer-0"), |layer| {
            io::copy(&mut BufReader::new(File::open(root)?), layer).map(drop)
        })?;
        let files = bytes.saturating_sub(first.bytes).div_ceil(FILE_BYTES * FILLERS);
        let mut layers = vec![first];
        for number in 1..=FILLERS {
            let path = directory.join(format!("layer-{number}"));
            layers.push(Layer::write(&path, |layer| fill(layer, number, files))?);
        }
        let archive = directory.join("image.tar");
        assemble(&archive, &layers)?;
        Ok(Self {
            archive,
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            layers: layers.into_iter().map(|layer| layer.path).collect(),
        })
    }
}

impl Layer {
    fn write(
        path: &Path,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let mut plain = Hashing::new(GzEncoder::new(Hashing::new(file), Compression::fast()));
        content(&mut plain)?;
        let (encoder, diff_id, bytes) = plain.finish();
        let (mut file, digest, size) = encoder.finish()?.finish();
        file.flush()?;
        Ok(Self { path: path.to_owned(), digest, diff_id, size, bytes })
    }
}

/// Half of each file cannot be compressed.
fn fill(layer: &mut dyn Write, number: u64, files: u64) -> io::Result<()> {
    let mut builder = Builder::new(layer);
    let mut content = vec![b'x'; FILE_BYTES as usize];
    for index in 0..files {
        getrandom::fill(&mut content[..FILE_BYTES as usize / 2]).map_err(io::Error::other)?;
        let path = format!("srv/fill/{number}/{}/{index}", index % 64);
        append(&mut builder, &path, &content)?;
    }
    builder.finish()
}

fn append(builder: &mut Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(content.len() as u64);
    builder.append_data(&mut header, path, content)
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

/// Puts layers, what describes them, and what names that into one archive.
fn assemble(path: &Path, layers: &[Layer]) -> io::Result<()> {
    let mut archive = Builder::new(BufWriter::new(File::create(path)?));
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for layer in layers {
        let mut file = File::open(&layer.path)?;
        archive.append_data(&mut header(layer.size), blob(&layer.digest), &mut file)?;
    }
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = describe(&mut archive, CONFIG, &config)?;
    let layer =
        |layer: &Layer| json!({ "mediaType": LAYER, "digest": layer.digest, "size": layer.size });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    let manifest = describe(&mut archive, MANIFEST, &manifest)?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    append(&mut archive, "index.json", index.to_string().as_bytes())?;
    archive.into_inner()?.flush()
}

/// Adds a document, and returns how others refer to it.
fn describe(archive: &mut Builder<impl Write>, kind: &str, document: &Value) -> io::Result<Value> {
    let text = document.to_string();
    let digest = digest(&Sha256::digest(&text));
    append(archive, &blob(&digest), text.as_bytes())?;
    Ok(json!({ "mediaType": kind, "digest": digest, "size": text.len() }))
}

/// As images name processors.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(hash: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Passes on what is written, and knows its digest and size.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, digest(&self.hash.finalize()), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use flate2::read::GzDecoder;

    use super::*;

    /// All files of an archive, by name.
    fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
        files
    }

    #[test]
    fn every_reference_in_an_image_leads_to_what_has_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root.tar");
        let mut builder = Builder::new(File::create(&root).unwrap());
        append(&mut builder, "etc/os-release", b"ID=debian\n").unwrap();
        builder.into_inner().unwrap();
        let image = Image::write(directory.path(), &root, 1 << 20).unwrap();
        // Headers come on top.
        assert!((1 << 20..2 << 20).contains(&image.bytes), "{}", image.bytes);
        assert_eq!(image.layers.len(), 5);

        let files = files(&image.archive);
        let follow = |reference: &Value| {
            let found = &files[&blob(reference["digest"].as_str().unwrap())];
            assert_eq!(reference["digest"], digest(&Sha256::digest(found)));
            assert_eq!(reference["size"], found.len());
            found
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(follow(&manifest["config"])).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!((layers.len(), diff_ids.len()), (5, 5));
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let mut plain = Vec::new();
            GzDecoder::new(&follow(layer)[..]).read_to_end(&mut plain).unwrap();
            assert_eq!(*diff_id, digest(&Sha256::digest(&plain)));
        }
        assert!(files.contains_key("oci-layout"));
    }
}
