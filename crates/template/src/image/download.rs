//! A blob becomes a file, and is what its digest says.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt, AsyncWriteExt},
};

use super::{manifest::Blob, reference::Digest, refused, session::Session, unavailable};

/// How often a blob is begun or gone on with, and the first pause before that.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// Counts the bytes of all blobs.
pub(super) struct Meter<'a> {
    done: AtomicU64,
    all: u64,
    progress: &'a (dyn Fn(u64, u64) + Send + Sync),
}

impl<'a> Meter<'a> {
    pub(super) fn new(all: u64, progress: &'a (dyn Fn(u64, u64) + Send + Sync)) -> Self {
        Self { done: AtomicU64::new(0), all, progress }
    }

    fn add(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        (self.progress)(before + bytes, self.all);
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A file that is removed unless it is kept.
pub(super) struct Fetched(Option<PathBuf>);

impl Fetched {
    /// It stays.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// A file that grows.
struct Growing {
    file: File,
    hash: Sha256,
    bytes: u64,
}

/// Fetches a blob to a new file.
pub(super) async fn fetch(
    session: &Session,
    blob: &Blob,
    path: PathBuf,
    meter: &Meter<'_>,
) -> Result<Fetched> {
    // Not on another thread: that could make the file after it has been removed.
    let file = fs::File::create_new(&path).map_err(|error| unusable(&path, &error))?;
    let fetched = Fetched(Some(path.clone()));
    let mut growing = Growing { file: File::from_std(file), hash: Sha256::new(), bytes: 0 };
    let mut pause = PAUSE;
    let mut attempt = 1;
    loop {
        match growing.go_on(session, blob, &path, meter).await {
            Ok(()) => break,
            Err(error) if error.code != codes::IMAGE_UNAVAILABLE || attempt == ATTEMPTS => {
                return Err(error);
            }
            Err(error) => tracing::debug!(%error, digest = %blob.digest, "fetching goes on"),
        }
        attempt += 1;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    growing.file.flush().await.map_err(|error| unusable(&path, &error))?;
    if Digest::of(&growing.hash.finalize()) != blob.digest {
        let image = session.reference();
        return Err(refused(format!(
            "the layer {} of {image} is not what its digest says.",
            blob.digest
        )));
    }
    Ok(fetched)
}

impl Growing {
    /// Fetches what is missing, from where it was broken off if the registry can.
    async fn go_on(
        &mut self,
        session: &Session,
        blob: &Blob,
        path: &Path,
        meter: &Meter<'_>,
    ) -> Result<()> {
        if self.bytes == blob.size {
            return Ok(());
        }
        let mut response = session.get("blobs", blob.digest.as_str(), "*/*", self.bytes).await?;
        if self.bytes > 0 && !continues(&response, self.bytes) {
            self.begin_again(meter).await.map_err(|error| unusable(path, &error))?;
        }
        let image = session.reference();
        let broke_off =
            || unavailable(format!("the registry broke off while a layer of {image} was fetched."));
        while let Some(chunk) = response.chunk().await.map_err(|_| broke_off())? {
            self.bytes += chunk.len() as u64;
            if self.bytes > blob.size {
                let digest = &blob.digest;
                return Err(refused(format!(
                    "the layer {digest} of {image} is larger than its manifest says."
                )));
            }
            self.hash.update(&chunk);
            self.file.write_all(&chunk).await.map_err(|error| unusable(path, &error))?;
            meter.add(chunk.len() as u64);
        }
        if self.bytes == blob.size { Ok(()) } else { Err(broke_off()) }
    }

    async fn begin_again(&mut self, meter: &Meter<'_>) -> io::Result<()> {
        meter.take_back(self.bytes);
        self.file.rewind().await?;
        self.file.set_len(0).await?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }
}

/// Whether a response begins where the file ends.
fn continues(response: &Response, bytes: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let begins = range.is_some_and(|range| range.starts_with(&format!("bytes {bytes}-")));
    response.status() == StatusCode::PARTIAL_CONTENT && begins
}

/// A file of an image cannot be kept.
pub(super) fn unusable(path: &Path, error: &io::Error) -> Error {
    crate::file::unusable(format_args!("keep the image in {}", path.display()), error)
}
