//! What counts against a disk's limit.
//!
//! Simple quotas charge an extent to the subvolume that wrote it, until nothing holds the extent any
//! more. For a fresh disk, its own quota group is therefore all there is to count. A branch also
//! holds what the disks that it descends from wrote:
//!
//! ```text
//!   a fresh disk: group 0/256, limited         its branch: group 1/260, limited
//!                                                           ├── 0/260  what the branch wrote
//!                                                           └── 0/256  what is left of the disk
//! ```
//!
//! So a sandbox that is paused and resumed again and again has one limit, and what it deletes makes
//! room, whoever wrote it. The ancestors are in the disk's [`Lineage`], which no sandbox can reach.
//!
//! A snapshot is a build: any number of sandboxes branch from it. Each of them has all that it holds
//! by then counted as a constant, and its own group for what it writes. So siblings share nothing but
//! data: what one deletes or a later snapshot holds is none of the others' business; and however long
//! a chain of forks or rewinds is, no disk of it holds more than its limit. What a snapshot holds
//! makes no room for those who branched from it when they delete it. Nor does it for its writer until
//! the snapshot is deleted: it and all its snapshots hold no more than its limit together.
//!
//! Full quotas count for every subvolume all that it holds, and need none of this.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    btrfs,
    checked::{self, Found},
    pool::Pool,
};

/// What a branch may grow in any case. Without it a full disk could not be used again: to mount
/// it and to boot from it takes some writing.
pub(crate) const HEADROOM: u64 = 4 << 20;

/// How far above its limit that may bring a disk, over all its branches.
const MOST_ABOVE: u64 = 4 * HEADROOM;

/// What a branch may grow that is as far above its limit as can be: the kernel wants so much set aside
/// to mount an overlay, and little of it remains written.
const BARE: u64 = 512 << 10;

/// What a disk has of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    /// The subvolumes, long gone, whose qgroups are in its account's group.
    pub(crate) ancestors: Vec<u64>,
    /// Bytes that it was given and that its account does not count.
    pub(crate) inherited: u64,
}

/// The qgroup that has the limit of a subvolume: its own, or a group it is in.
pub(crate) fn find(pool: &Pool, subvolume: u64) -> u64 {
    let group = btrfs::group_of(subvolume);
    if btrfs::qgroup_dir(&pool.sysfs, group).exists() { group } else { subvolume }
}

/// Makes the account of a branch and limits what the branch holds; gives the account and that limit.
pub(crate) fn open(
    pool: &Pool,
    subvolume: u64,
    lineage: &Lineage,
    limit: u64,
) -> io::Result<(u64, u64)> {
    let Lineage { ancestors, inherited } = lineage;
    let dir = File::open(&pool.dir)?;
    let account = if !ancestors.is_empty() {
        let group = btrfs::group_of(subvolume);
        btrfs::create_group(&dir, group)?;
        btrfs::assign(&dir, subvolume, group, true)?;
        for ancestor in ancestors {
            match btrfs::assign(&dir, *ancestor, group, true) {
                // Nothing was left of it, and the reaper came first.
                Err(error) if is_gone(pool, *ancestor, &error) => {}
                assigned => assigned?,
            }
        }
        group
    } else {
        subvolume
    };
    let held = inherited.saturating_add(btrfs::qgroup_usage(&pool.sysfs, account)?);
    let limit = with_headroom(limit, held);
    btrfs::set_limit(&dir, account, limit - inherited)?;
    Ok((account, limit))
}

/// The limit of a disk that begins with so many bytes: more than those.
fn with_headroom(limit: u64, held: u64) -> u64 {
    let headroom = held.saturating_add(HEADROOM).min(limit.saturating_add(MOST_ABOVE));
    limit.max(headroom).max(held.saturating_add(BARE))
}

/// Removes a qgroup that no subvolume needs. `ResourceBusy`: not yet.
pub(crate) fn remove(pool: &Pool, qgroup: u64) -> io::Result<()> {
    let dir = File::open(&pool.dir)?;
    if btrfs::is_group(qgroup) {
        // Its members stay, for other groups. Which they are, the kernel tells nobody.
        for member in btrfs::qgroups(&pool.sysfs)?.into_iter().filter(|id| !btrfs::is_group(*id)) {
            match btrfs::assign(&dir, member, qgroup, false) {
                Err(error) if is_gone(pool, member, &error) => {}
                taken => taken?,
            }
        }
    } else if pool.simple_quotas
        && btrfs::qgroup_usage(&pool.sysfs, qgroup).is_ok_and(|used| used > 0)
    {
        // Others hold what it wrote. Not every kernel refuses.
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    btrfs::remove_qgroup(&dir, qgroup)
}

/// Whether an assignment failed because there is no such member: the kernel calls that invalid when
/// there is no qgroup, and not found when there is no relation.
fn is_gone(pool: &Pool, member: u64, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound => true,
        io::ErrorKind::InvalidInput => !btrfs::qgroup_dir(&pool.sysfs, member).exists(),
        _ => false,
    }
}

/// Drops those ancestors of which nothing is held any more.
pub(crate) fn living(pool: &Pool, ancestors: &[u64]) -> Vec<u64> {
    let lives = |id: &u64| btrfs::qgroup_dir(&pool.sysfs, *id).exists();
    ancestors.iter().copied().filter(lives).collect()
}

/// Where the lineage of the disk at `root` is: beside it, where no sandbox has it mounted.
fn lineage_file(root: &Path) -> PathBuf {
    root.with_extension("lineage")
}

/// Notes what the disk at `root` has of others. Not synced: a disk that is to outlive the machine is,
/// with its whole file system.
pub(crate) fn write_lineage(root: &Path, lineage: &Lineage) -> io::Result<()> {
    let text = checked::text("lineage", lineage).map_err(io::Error::other)?;
    fs::write(lineage_file(root), text)
}

/// What the disk at `root` has of others. Nothing, if that is lost: no reason to lose the disk too.
pub(crate) fn read_lineage(root: &Path) -> Lineage {
    match checked::read(&lineage_file(root), "lineage") {
        Ok(Found::Whole(lineage)) => return lineage,
        Ok(Found::Nothing) => {}
        Ok(Found::Bare(_)) => tracing::warn!(?root, "nothing vouches for a disk's lineage"),
        Ok(Found::Damaged(why)) => tracing::warn!(?root, why, "a disk's lineage is damaged"),
        Err(error) => tracing::warn!(?root, %error, "a disk's lineage cannot be read"),
    }
    Lineage::default()
}

/// Forgets it.
pub(crate) fn remove_lineage(root: &Path) -> io::Result<()> {
    match fs::remove_file(lineage_file(root)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_gets_headroom_but_not_again_and_again() {
        const LIMIT: u64 = 100 << 20;
        let (mut held, mut grown) = (0, 0);
        assert_eq!(with_headroom(LIMIT, held), LIMIT);
        assert_eq!(with_headroom(LIMIT, LIMIT), LIMIT + HEADROOM);
        for _ in 0..20 {
            // Whoever fills it fills all.
            grown = with_headroom(LIMIT, held) - held;
            held += grown;
        }
        assert_eq!(grown, BARE);
        assert!(held <= LIMIT + MOST_ABOVE + 16 * BARE, "{held}");
    }
}
