//! What the log of a sandbox is made of, from envd to the REST API.

use serde::{Deserialize, Serialize};

/// Longest line that envd writes, with its newline, bytes: what Linux writes to a pipe whole or not
/// at all (`PIPE_BUF`).
pub const LINE_MAX: usize = 4096;

/// How much a line matters; later ones matter more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "rest", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For whoever looks for a fault.
    Debug,
    /// What happened.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something failed.
    Error,
}

impl LogLevel {
    /// Its name on every wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}
