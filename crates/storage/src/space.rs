//! How many bytes one tree of the pool alone holds.
//!
//! The kernel tells for each extent of a file whether something else holds it too, a copy of the disk
//! or of the file (FIEMAP, `linux/fiemap.h`). Quota groups cannot say that: simple ones charge who
//! wrote, whoever holds it.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use atoll_core::{Error, Result, error::codes};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::Semaphore;

use crate::file::{blocking, failed};

/// Walks at once: each keeps a processor busy, and a caller may ask for many.
const AT_ONCE: usize = 2;
static WALKS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Most names below a tree: a sandbox could have enough of them to fill this program's memory.
const MOST_NAMES: usize = 1_000_000;

/// Extents that are asked for at once.
const BATCH: usize = 64;

const LAST: u32 = 0x1;
const INLINE: u32 = 0x200;
const SHARED: u32 = 0x2000;

/// `fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    unused: [u64; 2],
    flags: u32,
    unused_too: [u32; 3],
}

/// `fiemap` with its array.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    unused: u32,
    extents: [Extent; BATCH],
}

/// The raw call. It is unsafe because the kernel writes through the pointer.
mod raw {
    #![allow(unsafe_code)]
    use super::Map;

    // The number has the size of the structure without its array.
    nix::ioctl_readwrite_bad!(fiemap, nix::request_code_readwrite!(b'f', 11, 32), Map);
}

/// Bytes that these trees alone hold; none if there are none of them.
pub(crate) async fn unique(roots: Vec<PathBuf>) -> Result<Option<u64>> {
    /// Stops the walk of a caller who has left.
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    if roots.is_empty() {
        return Ok(None);
    }
    // It is never closed.
    let _walk = WALKS.acquire().await;
    let stop = Stop(Arc::default());
    let stopped = Arc::clone(&stop.0);
    blocking(move || {
        let mut sum = 0;
        for root in roots {
            let bytes = tree(&root, &stopped, MOST_NAMES)
                .map_err(|error| failed(codes::POOL_FAILED, "measure a disk", &error))?;
            sum += bytes.ok_or_else(|| {
                let message = format!("it has more than {MOST_NAMES} files, too many to measure.");
                Error::new(codes::TOO_LARGE, message)
            })?;
        }
        Ok(Some(sum))
    })
    .await
}

/// Bytes that the files below `root` alone hold; none if there are more than `most` names. What goes
/// away meanwhile does not count.
///
/// A sandbox may be writing there. Every path is resolved from the root, without following links: it
/// cannot lead elsewhere, nor into a device or a pipe. What is too deep for a path is left out.
fn tree(root: &Path, stop: &AtomicBool, most: usize) -> io::Result<Option<u64>> {
    let root = match File::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        root => root?,
    };
    let open = |path: &Path, flags: OFlags| -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?.into())
    };
    let (mut sum, mut names) = (0, 0);
    let mut linked = HashSet::new();
    let mut dirs = vec![PathBuf::from(".")];
    while let Some(path) = dirs.pop() {
        let Ok(dir) = open(&path, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        for entry in rustix::fs::Dir::new(dir)? {
            names += 1;
            if names > most || stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = path.join(std::ffi::OsStr::new(
                <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()),
            ));
            match entry.file_type() {
                rustix::fs::FileType::Directory => dirs.push(path),
                rustix::fs::FileType::RegularFile => {
                    let Ok(file) = open(&path, OFlags::RDONLY) else { continue };
                    let meta = file.metadata()?;
                    // A file with two names is one file.
                    if meta.is_file()
                        && (meta.nlink() < 2 || linked.insert((meta.dev(), meta.ino())))
                    {
                        sum += unshared(&file)?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(Some(sum))
}

/// Bytes of a file that nothing else holds.
#[allow(unsafe_code)]
fn unshared(file: &File) -> io::Result<u64> {
    let mut map = Map {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: BATCH as u32,
        unused: 0,
        extents: [Extent::default(); BATCH],
    };
    let mut sum = 0;
    loop {
        // SAFETY: `map` is a live structure of the kernel's layout, which says how many extents it
        // has room for.
        unsafe { raw::fiemap(file.as_raw_fd(), &mut map) }?;
        let found = map.extents.iter().take(map.mapped as usize);
        sum += found
            .filter(|extent| extent.flags & (SHARED | INLINE) == 0)
            .map(|extent| extent.length)
            .sum::<u64>();
        let last = map.extents.iter().take(map.mapped as usize).next_back();
        match last {
            Some(last) if last.flags & LAST == 0 => {
                map.start = last.logical.saturating_add(last.length);
                map.length = u64::MAX - map.start;
            }
            _ => return Ok(sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_too_many_names_is_not_measured() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("d")).unwrap();
        for name in ["d/a", "d/b", "d/c"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        // Dots are names too.
        let measured = |most| tree(root.path(), &AtomicBool::new(false), most).unwrap();
        assert_eq!((measured(8), measured(7)), (Some(0), None));
    }

    /// The kernel goes by the layout.
    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Extent>(), 56);
        assert_eq!(size_of::<Map>(), 32 + BATCH * 56);
    }
}
