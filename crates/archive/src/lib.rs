//! Reads tar archives that others wrote, compressed or not: layers of images, and files of builds.
//!
//! Whoever wrote an archive is not trusted: nothing is held in memory that has no limit, every
//! length is checked, and what is wrong is an error and never a panic. What a name may be is the
//! caller's affair, who knows where it leads.
//!
//! - [`decompress`]: gzip, zstd or neither, by the first bytes;
//! - [`Limited`]: of that no more than may be;
//! - [`Archive`]: the entries, one after the other, with the data of each;
//! - known: ustar, the old format before it, PAX and GNU's long names, sparse files and numbers.

mod compression;
mod header;
mod limited;
mod pax;
mod reader;
mod sparse;

pub use compression::decompress;
pub use header::{Entry, Kind};
pub use limited::{Limited, TooLarge};
pub use reader::Archive;
pub use sparse::Extent;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what it should be; says how.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be read, ends too early, or its compression is damaged.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(why.into()))
}
