//! Whether the driver takes checkpoints: known once they have been tried.

use std::sync::OnceLock;

use atoll_core::{Error, Result, error::codes, lifecycle::Kept};

use crate::checkpoint::{Checkpoints, criu::OLDEST};

/// What came of the probe, if it passed.
#[derive(Debug, Default)]
pub(crate) struct Memory(OnceLock<Checkpoints>);

impl Memory {
    /// The probe has passed.
    pub(crate) fn found(&self, checkpoints: Checkpoints) {
        // A second probe finds the same.
        let _ = self.0.set(checkpoints);
    }

    pub(crate) fn kept(&self) -> Kept {
        if self.0.get().is_some() { Kept::Checkpoint } else { Kept::Frozen }
    }

    /// For a sandbox whose memory is in a checkpoint already.
    pub(crate) fn to_restore(&self) -> Result<Checkpoints> {
        self.checkpoints().map_err(|error| {
            let message = "the sandbox's memory was saved with CRIU, and no CRIU works here now: it cannot go on from it, and stays as it was saved.";
            Error { message: message.to_owned(), ..error }.with_fix(format!(
                "Run `atoll doctor`: it says whether CRIU is missing or why it does not work. Atoll needs CRIU {OLDEST} or newer, in PATH or in the directory that --criu or ATOLL_CRIU names; scripts/criu.sh gets one. Then start Atoll again, and resume the sandbox."
            ))
        })
    }

    pub(crate) fn checkpoints(&self) -> Result<Checkpoints> {
        let missing = || Error::new(codes::DRIVER_UNSUPPORTED, "the driver takes no checkpoints.");
        self.0.get().cloned().ok_or_else(missing)
    }
}
