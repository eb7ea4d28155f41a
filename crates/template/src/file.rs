//! Errors of files in the data directory.

use std::{fmt::Display, io};

use atoll_core::{Error, error::codes};

/// `what` could not be done.
pub(crate) fn unusable(what: impl Display, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
        _ => codes::DATA_DIR_UNUSABLE,
    };
    Error::new(code, format!("cannot {what}: {error}."))
}
