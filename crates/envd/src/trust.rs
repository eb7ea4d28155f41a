//! The certificate authorities that programs in the sandbox trust.
//!
//! Egress inspection needs one more than the image has. It is appended to the bundle that most
//! programs read, and kept apart too: to be found and removed when another one comes, and for
//! `update-ca-certificates` to pick up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const OURS: &str = "/usr/local/share/ca-certificates/e2b-ca.crt";

/// No trust store is larger: the guest's root writes it, envd holds it.
const MAX_STORE: u64 = 8 << 20;

/// What every PEM certificate starts with.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// The files of a trust store.
#[derive(Debug)]
pub struct TrustStore {
    bundle: PathBuf,
    ours: PathBuf,
}

impl TrustStore {
    /// The image's.
    pub fn system() -> Self {
        Self { bundle: BUNDLE.into(), ours: OURS.into() }
    }

    /// Trusts the certificates in `pem` instead of those of the previous call; an empty one only
    /// forgets those. Doing it twice is doing it once.
    ///
    /// # Errors
    /// `InvalidInput` for text without a certificate, `InvalidData` for a trust store that is no
    /// file or too large, and those of the file system.
    pub fn install(&self, pem: &str) -> io::Result<()> {
        let pem = pem.trim();
        if !pem.is_empty() && !pem.contains(CERTIFICATE) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no certificate in bundle"));
        }
        let new = if pem.is_empty() { String::new() } else { format!("{pem}\n") };
        let old = read_or_empty(&self.ours)?;
        let mut bundle = read_or_empty(&self.bundle)?;
        remove_first(&mut bundle, &old);
        if !new.is_empty() && bundle.last().is_some_and(|last| *last != b'\n') {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(new.as_bytes());
        replace(&self.bundle, &bundle)?;
        replace(&self.ours, new.as_bytes())
    }
}

fn read_or_empty(path: &Path) -> io::Result<Vec<u8>> {
    // Not to be held up by a fifo that the guest's root put there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_STORE {
        let message = format!("{} is no trust store", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut content = Vec::new();
    file.take(MAX_STORE).read_to_end(&mut content)?;
    Ok(content)
}

fn remove_first(text: &mut Vec<u8>, part: &[u8]) {
    if part.is_empty() {
        return;
    }
    if let Some(start) = text.windows(part.len()).position(|window| window == part) {
        text.drain(start..start + part.len());
    }
}

/// Readers see the old file or the new one, never half of it. The file behind a link is replaced.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let draft = path.with_extension("crt.new");
    // Others can write to some of these directories: whatever has the name goes, and nothing that
    // is put there since is followed.
    let _ = fs::remove_file(&draft);
    OpenOptions::new().write(true).create_new(true).open(&draft)?.write_all(content)?;
    fs::rename(&draft, &path).inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "-----BEGIN CERTIFICATE-----\nimage\n-----END CERTIFICATE-----";

    fn certificate(name: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
    }

    fn store(directory: &tempfile::TempDir) -> TrustStore {
        TrustStore {
            bundle: directory.path().join("certs/ca-certificates.crt"),
            ours: directory.path().join("local/e2b-ca.crt"),
        }
    }

    fn bundle(store: &TrustStore) -> String {
        fs::read_to_string(&store.bundle).unwrap()
    }

    // Rules: INIT-12
    #[test]
    fn a_new_authority_takes_the_place_of_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        fs::create_dir(directory.path().join("certs")).unwrap();
        fs::write(&store.bundle, IMAGE).unwrap();
        store.install(&certificate("one")).unwrap();
        store.install(&certificate("one")).unwrap();
        assert_eq!(bundle(&store), format!("{IMAGE}\n{}", certificate("one")));
        store.install(&certificate("two")).unwrap();
        assert_eq!(bundle(&store), format!("{IMAGE}\n{}", certificate("two")));
        store.install("").unwrap();
        assert_eq!(bundle(&store), format!("{IMAGE}\n"));
    }

    // Rules: INIT-12
    #[test]
    fn an_image_without_a_trust_store_gets_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        store.install(&certificate("one")).unwrap();
        assert_eq!(bundle(&store), certificate("one"));
    }

    // Rules: INIT-3
    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        assert!(store.install("not a certificate").is_err());
        assert!(!store.bundle.exists());
    }

    #[test]
    fn what_is_no_trust_store_is_left_alone_and_not_waited_for() {
        use rustix::fs::{CWD, FileType, mknodat};
        let directory = tempfile::tempdir().unwrap();
        let store = TrustStore { bundle: directory.path().join("bundle"), ..store(&directory) };
        mknodat(CWD, &store.bundle, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(store.install(&certificate("one")).is_err());
        fs::remove_file(&store.bundle).unwrap();
        File::create(&store.bundle).unwrap().set_len(MAX_STORE + 1).unwrap();
        assert!(store.install(&certificate("one")).is_err());
        assert!(!store.ours.exists());
    }
}
