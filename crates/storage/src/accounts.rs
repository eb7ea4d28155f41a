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
//! room, whoever wrote it. The names of the ancestors are in `lineage` in the branch, where its
//! copies find them. An ancestor that is still there is another sandbox, which goes on writing: it
//! is not counted, nor is what the branch has from it, just as the layers of a template are not.
//!
//! Full quotas count for every subvolume all that it holds, and need none of this.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::{btrfs, pool::Pool};

/// What a branch may grow in any case. Without it a full disk could never be used again: to mount
/// it and to boot from it takes some writing.
const HEADROOM: u64 = 4 << 20;

/// The qgroup that has the limit of a subvolume: its own, or a group it is in.
pub(crate) fn find(pool: &Pool, subvolume: u64) -> u64 {
    let group = btrfs::group_of(subvolume);
    if btrfs::qgroup_dir(&pool.sysfs, group).exists() { group } else { subvolume }
}

/// Makes the account of a branch and limits it; gives the account and its limit.
pub(crate) fn open(
    pool: &Pool,
    subvolume: u64,
    ancestors: &[u64],
    limit: u64,
) -> io::Result<(u64, u64)> {
    let dir = File::open(&pool.dir)?;
    let account = if pool.simple_quotas && !ancestors.is_empty() {
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
    let used = btrfs::qgroup_usage(&pool.sysfs, account)?;
    let limit = limit.max(used.saturating_add(HEADROOM));
    btrfs::set_limit(&dir, account, limit)?;
    Ok((account, limit))
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

/// Notes in the disk at `root` what it descends from.
pub(crate) fn write_lineage(root: &Path, ancestors: &[u64]) -> io::Result<()> {
    let lines: String = ancestors.iter().map(|id| format!("{id}\n")).collect();
    fs::write(root.join("lineage"), lines)
}

/// The ancestors of the disk at `root` that wrote something which is still held.
pub(crate) fn read_lineage(pool: &Pool, root: &Path) -> io::Result<Vec<u64>> {
    let text = match fs::read_to_string(root.join("lineage")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let ids = text.lines().filter_map(|line| line.parse().ok());
    Ok(ids.filter(|id| btrfs::qgroup_dir(&pool.sysfs, *id).exists()).collect())
}
