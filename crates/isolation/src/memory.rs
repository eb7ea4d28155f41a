//! Whether the driver takes checkpoints: known once they have been tried.

use std::sync::OnceLock;

use atoll_core::{Error, Result, error::codes, lifecycle::Kept};

use crate::checkpoint::Checkpoints;

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

    pub(crate) fn checkpoints(&self) -> Result<Checkpoints> {
        let missing = || Error::new(codes::DRIVER_UNSUPPORTED, "the driver takes no checkpoints.");
        self.0.get().cloned().ok_or_else(missing)
    }
}
