//! `atoll template import`: a template of an image in an archive.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use atoll_core::{Error, Result, error::codes};
use sha2::{Digest, Sha256};

use super::{
    build::blocking,
    submit::{self, Order, Upload},
};
use crate::client::{Client, Plan};

const BUFFER: usize = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The archive, compressed or not: of an OCI layout, or from `docker save`.
    archive: PathBuf,
    #[command(flatten)]
    target: submit::Target,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<ExitCode> {
    let order = order(arguments.archive, arguments.target).await?;
    submit::run(client, order).await
}

async fn order(path: PathBuf, target: submit::Target) -> Result<Order> {
    let hashed = path.clone();
    let hash = blocking(move || hash(&hashed).map_err(|error| unusable(&hashed, &error))).await?;
    Ok(Order {
        registration: target.registration(),
        plan: Plan {
            from_archive: Some(hash.clone()),
            start_cmd: target.start,
            ready_cmd: target.ready,
            ..Plan::default()
        },
        uploads: HashMap::from([(hash, Upload::Archive(path))]),
        lines: Vec::new(),
    })
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> Error {
    let message = format!("{} cannot be read: {error}.", path.display());
    Error::new(codes::BAD_OPTION, message).with_fix(
        "Name the file that `docker save -o FILE IMAGE` or `skopeo copy … oci-archive:FILE` wrote.",
    )
}

/// SHA-256 of a whole file, in hexadecimal digits.
pub(crate) fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
