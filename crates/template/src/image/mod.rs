//! Images of containers: from a registry, or from an archive that someone made of one.
//!
//! Both give an [`Image`]: what its configuration says, and its layers as files, as they came. They
//! are unpacked in a sandbox; nothing here looks into a layer.
//!
//! - [`reference`]: `ghcr.io/a/b:tag`, as people write it;
//! - [`registries`]: which addresses may be asked at all, since the one who names an image makes this
//!   node fetch it; [`client`] holds every connection to that;
//! - [`session`]: one registry and what it is told of who asks; [`amazon`] for passwords of Amazon's;
//! - [`manifest`]: what images are described with; [`remote`]: which image a tag is, and its blobs,
//!   which [`download`] fetches;
//! - [`archive`]: the other source.

mod amazon;
pub mod archive;
mod client;
mod download;
mod manifest;
pub mod reference;
pub mod registries;
pub mod remote;
mod session;

use std::path::PathBuf;

use atoll_core::{Error, error::codes};

pub use archive::open_archive;
pub use reference::Reference;
pub use registries::Registries;
pub use remote::{Remote, resolve};

/// An image whose layers are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of its manifest, `sha256:…`; of what `docker save` writes, of its configuration.
    pub digest: String,
    /// What it says of how it is to be run.
    pub config: ImageConfig,
    /// Its layers, the lowest first. One may be there more than once, with the same file.
    pub layers: Vec<LayerFile>,
}

/// A layer in a file: a tar archive, maybe compressed, as its first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file, `sha256:…`.
    pub digest: String,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What an image says of how it is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Variables, in order.
    pub env: Vec<(String, String)>,
    /// User, maybe with a group, by name or number; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub workdir: String,
    /// The program.
    pub entrypoint: Vec<String>,
    /// Its arguments, or all of the command.
    pub cmd: Vec<String>,
}

/// The registry does not give what is asked for.
fn unavailable(message: impl Into<String>) -> Error {
    Error::new(codes::IMAGE_UNAVAILABLE, message)
}

/// What there is cannot be used.
fn refused(message: impl Into<String>) -> Error {
    Error::new(codes::IMAGE_REFUSED, message)
}

/// Text of others, fit for one line of a message.
fn told(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(300).collect::<String>().trim().to_owned()
}
