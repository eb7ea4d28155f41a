//! A block of host user ids that no other Atoll on this host uses.
//!
//! Sandboxes of two instances must not share a host id: kernel limits count against ids. Blocks are
//! claimed by locking a file below `/run`, so a claim ends with its process, and a reboot clears all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use atoll_core::{Error, InstanceId, Result, error::codes};

/// Slots of an instance: more than any tier allows at once, with room for those being torn down.
pub(crate) const SLOTS: u32 = 1024;
/// Host ids of one slot.
const IDS: u32 = atoll_network::IDS_PER_SLOT;
/// systemd keeps 0x80000 to 0x6fffffff for containers; this is its upper part, out of the way of
/// what useradd hands out to people.
const FIRST: u32 = 0x1000_0000;
const BLOCKS: u32 = (0x6fff_0000 - FIRST) / (SLOTS * IDS);

const DIRECTORY: &str = "/run/atoll";

/// A claimed block; given back when dropped.
pub(crate) struct Claim {
    first_uid: u32,
    _lock: File,
}

impl Claim {
    /// Claims a block: the one this instance had before if it can, else any free one.
    ///
    /// # Errors
    /// `HOST_FEATURE_MISSING` when `/run` cannot be written or all blocks are taken.
    pub(crate) fn take(instance: &InstanceId) -> Result<Self> {
        Self::take_in(Path::new(DIRECTORY), instance, &has_links)
    }

    fn take_in(
        directory: &Path,
        instance: &InstanceId,
        alive: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let cannot = |error: io::Error| {
            Error::new(
                codes::HOST_FEATURE_MISSING,
                format!("cannot claim user ids in {}: {error}.", directory.display()),
            )
        };
        // Anyone who can open these files can lock them, so nobody else can.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(cannot)?;
        let mut free = None;
        for block in 0..BLOCKS {
            let path = directory.join(format!("ids-{block}"));
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(cannot)?;
            if file.try_lock().is_err() {
                continue;
            }
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(cannot)?;
            if holder == instance.as_str() {
                return Self::hold(block, file, instance).map_err(cannot);
            }
            // A killed instance's sandboxes may still run with the ids of its block.
            if free.is_none() && (holder.is_empty() || !alive(&holder)) {
                free = Some((block, file));
            }
        }
        let Some((block, file)) = free else {
            return Err(Error::new(
                codes::HOST_FEATURE_MISSING,
                format!("all {BLOCKS} blocks of user ids are claimed by other instances."),
            )
            .with_fix("Stop an Atoll that runs on this host."));
        };
        Self::hold(block, file, instance).map_err(cannot)
    }

    fn hold(block: u32, mut file: File, instance: &InstanceId) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(instance.as_str().as_bytes())?;
        Ok(Self { first_uid: FIRST + block * SLOTS * IDS, _lock: file })
    }

    /// The first host id of the block.
    pub(crate) fn first_uid(&self) -> u32 {
        self.first_uid
    }
}

/// Whether an instance has network links, and so sandboxes, on this host.
fn has_links(instance: &str) -> bool {
    let prefix = format!("a{instance}n");
    fs::read_dir("/sys/class/net").is_ok_and(|links| {
        links.flatten().any(|link| link.file_name().to_string_lossy().starts_with(&prefix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    #[test]
    fn two_instances_get_two_blocks_and_one_gets_its_own_back() {
        let directory = tempfile::tempdir().unwrap();
        let take = |name: &str| {
            Claim::take_in(directory.path(), &instance(name), &|_| true).map(|c| (c.first_uid(), c))
        };
        let (first, held) = take("aaaaaa").unwrap();
        let (second, other) = take("bbbbbb").unwrap();
        assert_eq!(second - first, SLOTS * IDS);
        drop((held, other));
        assert_eq!(take("bbbbbb").unwrap().0, second);
    }

    #[test]
    fn the_block_of_a_killed_instance_is_left_alone_while_its_sandboxes_live() {
        let directory = tempfile::tempdir().unwrap();
        let take = |name: &str, alive: bool| {
            Claim::take_in(directory.path(), &instance(name), &|_| alive).unwrap().first_uid()
        };
        let killed = take("aaaaaa", true);
        assert_ne!(take("bbbbbb", true), killed);
        assert_eq!(take("cccccc", false), killed);
    }
}
