//! The digest and the size of a tree: of a layer's content.
//!
//! SHA-256 over a walk that does not depend on the file system: entries in order of their names as
//! bytes, each with its path, type, permissions, owner and extended attributes, and then its
//! content, link target or device number. Every variable part is preceded by its length, so no two
//! trees read alike. Times are left out: they say when a layer was made, not what it is.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How much a tree holds: what a tear shows in, without reading every byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    /// Entries of all kinds below the root.
    entries: u64,
    /// Content of files, bytes.
    bytes: u64,
}

impl Size {
    /// Content of files, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size of the tree under `root`; of none, nothing.
    pub(crate) fn of(root: &Path) -> io::Result<Self> {
        let mut size = Self::default();
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && dir == root => break,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                // Of the entry itself: links are not followed.
                let meta = entry.metadata()?;
                size.entries += 1;
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else if meta.is_file() {
                    size.bytes += meta.len();
                }
            }
        }
        Ok(size)
    }
}

/// The digest of the tree under `root` in hexadecimal; none if `stop` was raised meanwhile.
pub(crate) fn tree(root: &Path, stop: &AtomicBool) -> io::Result<Option<String>> {
    let mut hash = Sha256::new();
    hash.update(b"atoll layer 1\n");
    if !entry(&mut hash, root, Path::new(""), stop)? {
        return Ok(None);
    }
    Ok(Some(hex::encode(hash.finalize())))
}

/// Adds `root/path` and all below; false if stopped.
fn entry(hash: &mut Sha256, root: &Path, path: &Path, stop: &AtomicBool) -> io::Result<bool> {
    if stop.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full)?;
    field(hash, path.as_os_str().as_bytes());
    field(hash, &[kind(&meta)]);
    for number in [meta.mode() & 0o7777, meta.uid(), meta.gid()] {
        hash.update(number.to_be_bytes());
    }
    attributes(hash, &full)?;
    let file_type = meta.file_type();
    if file_type.is_symlink() {
        field(hash, fs::read_link(&full)?.as_os_str().as_bytes());
    } else if file_type.is_file() {
        return content(hash, &full, meta.len(), stop);
    } else if file_type.is_dir() {
        let mut names = fs::read_dir(&full)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            if !entry(hash, root, &path.join(name), stop)? {
                return Ok(false);
            }
        }
    } else {
        // An overlay's whiteout is a character device 0:0.
        hash.update(meta.rdev().to_be_bytes());
    }
    Ok(true)
}

fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn kind(meta: &Metadata) -> u8 {
    let file_type = meta.file_type();
    match () {
        () if file_type.is_file() => b'f',
        () if file_type.is_dir() => b'd',
        () if file_type.is_symlink() => b'l',
        () if file_type.is_char_device() => b'c',
        () if file_type.is_block_device() => b'b',
        () if file_type.is_fifo() => b'p',
        () => b's',
    }
}

fn content(hash: &mut Sha256, path: &Path, len: u64, stop: &AtomicBool) -> io::Result<bool> {
    hash.update(len.to_be_bytes());
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(true),
            count => hash.update(&buffer[..count]),
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
    }
}

/// Adds the extended attributes, by name, of the entry itself.
fn attributes(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut names: Vec<CString> = read_attribute(|buffer| rustix::fs::llistxattr(path, buffer))?
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| CString::new(OsStr::from_bytes(name).to_owned().into_vec()).ok())
        .collect();
    names.sort();
    hash.update((names.len() as u64).to_be_bytes());
    for name in names {
        let value = read_attribute(|buffer| rustix::fs::lgetxattr(path, name.as_c_str(), buffer))?;
        field(hash, name.as_bytes());
        field(hash, &value);
    }
    Ok(())
}

/// Calls with a buffer that the kernel's limit of 64 KiB fits; no attributes at all is empty.
pub(crate) fn read_attribute(
    call: impl FnOnce(&mut [u8]) -> Result<usize, rustix::io::Errno>,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    match call(&mut buffer) {
        Ok(len) => buffer.truncate(len),
        Err(rustix::io::Errno::NOTSUP) => buffer.clear(),
        Err(error) => return Err(error.into()),
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/file"), "content").unwrap();
        symlink("file", dir.path().join("a/link")).unwrap();
        dir
    }

    fn digest(dir: &Path) -> String {
        tree(dir, &AtomicBool::new(false)).unwrap().unwrap()
    }

    #[test]
    fn equal_trees_have_one_digest_wherever_and_whenever_they_were_made() {
        let (one, two) = (sample(), sample());
        assert_eq!(digest(one.path()), digest(two.path()));
        assert_eq!(digest(one.path()).len(), 64);
    }

    #[test]
    fn every_difference_that_a_sandbox_would_see_changes_it() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("content", |dir| fs::write(dir.join("a/file"), "kontent").unwrap()),
            ("name", |dir| fs::rename(dir.join("a/file"), dir.join("a/other")).unwrap()),
            ("mode", |dir| {
                fs::set_permissions(dir.join("a/file"), fs::Permissions::from_mode(0o4755))
                    .unwrap();
            }),
            ("target", |dir| {
                fs::remove_file(dir.join("a/link")).unwrap();
                symlink("else", dir.join("a/link")).unwrap();
            }),
            ("type", |dir| {
                fs::remove_file(dir.join("a/link")).unwrap();
                fs::write(dir.join("a/link"), "file").unwrap();
            }),
            ("attribute", |dir| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(dir.join("a/file"), "trusted.test", b"x", flags).unwrap();
            }),
        ];
        let plain = sample();
        for (what, change) in changes {
            let changed = sample();
            change(changed.path());
            assert_ne!(digest(plain.path()), digest(changed.path()), "{what}");
        }
    }

    #[test]
    fn a_raised_stop_ends_the_walk_without_a_digest() {
        assert_eq!(tree(sample().path(), &AtomicBool::new(true)).unwrap(), None);
    }
}
