//! `POST /files/compose`: joins files that were uploaded as parts of a larger one.
//!
//! The parts are copied one after the other into a temporary file next to the destination, which
//! takes its place when it is complete; then the parts are removed. A request that is given up
//! leaves the destination as it was, and no temporary file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use super::upload::WrittenFile;
use super::{RestError, metadata::Metadata};
use crate::guest::Guest;
use crate::users::User;
use crate::{disk, random};

/// Bytes copied before looking whether the caller is still there.
const STEP: u64 = 16 << 20;

/// Body of the request.
#[derive(Debug, Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    #[serde(default)]
    username: Option<String>,
}

/// Handles `POST /files/compose`.
pub async fn compose(
    State(guest): State<Arc<Guest>>,
    body: Bytes,
) -> Result<Json<WrittenFile>, RestError> {
    let request: Compose = serde_json::from_slice(&body)
        .map_err(|error| RestError::bad_request(format!("invalid request body: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(RestError::bad_request("source_paths must not be empty"));
    }
    if request.destination.is_empty() {
        return Err(RestError::bad_request("destination is required"));
    }
    let user = super::select_user(&guest, request.username.as_deref().unwrap_or_default())?;
    let destination = super::resolve(&guest, &request.destination, &user)?;
    let sources = request
        .source_paths
        .iter()
        .map(|path| super::resolve(&guest, path, &user))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = sources.iter().find(|path| **path == destination) {
        return Err(RestError::bad_request(format!(
            "source and destination are the same file: {}",
            path.display()
        )));
    }
    join(sources, destination.clone(), user.clone()).await?;
    super::log_event("file_compose", "File composed of parts", &destination, &user);
    Ok(Json(WrittenFile::new(&destination, Metadata::new())))
}

async fn join(sources: Vec<PathBuf>, destination: PathBuf, owner: User) -> Result<(), RestError> {
    let target = destination.clone();
    let (sources, mut temporary) = run(move || {
        // All of them, before anything is written.
        for path in &sources {
            open_part(path)?;
        }
        Ok((sources, Temporary::create(&target, &owner)?))
    })
    .await?;
    for path in sources.clone() {
        let mut part = run(move || open_part(&path)).await?;
        loop {
            let copied;
            (copied, part, temporary) = run(move || {
                let copied = io::copy(&mut (&part).take(STEP), &mut &temporary.file)
                    .map_err(|error| failure("error composing file", &error))?;
                Ok((copied, part, temporary))
            })
            .await?;
            if copied == 0 {
                break;
            }
        }
    }
    run(move || {
        temporary.place(&destination)?;
        for path in sources {
            match std::fs::remove_file(&path) {
                Err(error) if !disk::is_missing(&error) => {
                    return Err(failure("error removing source file", &error));
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await
}

/// Runs `work` where it may block.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestError> + Send + 'static,
) -> Result<T, RestError> {
    disk::blocking(work)
        .await
        .map_err(|error| RestError::internal(format!("error composing file: {error}")))?
}

fn open_part(path: &Path) -> Result<File, RestError> {
    let shown = path.display();
    let not_regular = || RestError::bad_request(format!("source is not a regular file: {shown}"));
    let failed = |error: io::Error| {
        if disk::is_missing(&error) {
            let message = format!("source file not found: {shown}");
            RestError::new(StatusCode::NOT_FOUND, message)
        } else {
            failure("error opening source file", &error)
        }
    };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(not_regular());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    if file.metadata().map_err(failed)?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// The file being put together. Unless it is placed, dropping it removes it.
struct Temporary {
    file: File,
    path: PathBuf,
    placed: bool,
}

impl Temporary {
    fn create(destination: &Path, owner: &User) -> Result<Self, RestError> {
        if destination.is_dir() {
            let message = format!("path is a directory: {}", destination.display());
            return Err(RestError::bad_request(message));
        }
        if let Some(parent) = destination.parent() {
            disk::create_dirs(parent, owner)
                .map_err(|error| failure("error creating parent directories", &error))?;
        }
        let failed = |error: io::Error| failure("error creating file", &error);
        let mut path = destination.as_os_str().to_owned();
        path.push(format!(".e2b-compose.{}.tmp", random::hex().map_err(failed)?));
        let path = PathBuf::from(path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644))
            .map_err(|error| failed(error.into()))?;
        let temporary = Self { file: File::from(file), path, placed: false };
        let (uid, gid) = disk::ids(owner);
        rustix::fs::fchown(&temporary.file, uid, gid).map_err(|error| failed(error.into()))?;
        Ok(temporary)
    }

    fn place(mut self, destination: &Path) -> Result<(), RestError> {
        std::fs::rename(&self.path, destination)
            .map_err(|error| failure("error renaming file", &error))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // There is nobody left to tell; a file that is gone already is fine.
            let _removed = std::fs::remove_file(&self.path);
        }
    }
}

fn failure(what: &str, error: &io::Error) -> RestError {
    if disk::is_full(error) {
        RestError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("{what}: not enough disk space available"),
        )
    } else {
        RestError::internal(format!("{what}: {error}"))
    }
}
