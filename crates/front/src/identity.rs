//! The certificate in use, and its renewal: those of the local authority before they expire, an
//! operator's when the files change. Connections that are open keep the one they began with.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use atoll_core::Result;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{Certificates, certificate, domain::Domain};

/// How often it is looked whether there is something to renew.
const LOOK: Duration = Duration::from_secs(10);

/// How long before its end a certificate of the local authority is replaced.
const EARLY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a front proves its names with: the certificate in use, and where the next comes from.
pub struct Identity {
    source: Certificates,
    domain: Domain,
    current: RwLock<Held>,
}

struct Held {
    certified: Arc<CertifiedKey>,
    version: Version,
}

/// What tells whether a certificate has to be renewed.
#[derive(Clone, PartialEq, Eq)]
enum Version {
    Expires(SystemTime),
    Files([Option<Stamp>; 2]),
}

/// Which file it is, when it was last changed, and how long it is, bytes.
type Stamp = (u64, SystemTime, u64);

impl Identity {
    /// The domain whose names it proves.
    pub(crate) fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Takes up the first certificate for `domain` and the names below it.
    ///
    /// # Errors
    /// - `CERTIFICATE_UNUSABLE`: a certificate cannot be read, has expired, or is not of its key.
    /// - `INTERNAL`: the local authority cannot issue one.
    pub fn load(source: Certificates, domain: &Domain) -> Result<Self> {
        let current = RwLock::new(source.take(domain)?);
        Ok(Self { source, domain: domain.clone(), current })
    }

    /// Renews the certificate if that is due. A certificate that cannot be used leaves the old one
    /// in place.
    fn refresh(&self) {
        // Before the files are read: a change while they are leads to reading them again.
        let found = self.source.version();
        let due = match &self.current.read().unwrap_or_else(PoisonError::into_inner).version {
            Version::Expires(at) => *at < SystemTime::now() + EARLY,
            files @ Version::Files(_) => found.as_ref().is_some_and(|found| found != files),
        };
        if !due {
            return;
        }
        let taken = self.source.take(&self.domain);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match taken {
            Ok(held) => {
                tracing::info!("the TLS certificate was renewed");
                *current = held;
            }
            Err(error) => {
                tracing::error!(%error, "the TLS certificate was not renewed");
                // Said once for each change of the files.
                if let Some(version) = found {
                    current.version = version;
                }
            }
        }
    }
}

impl Certificates {
    fn take(&self, domain: &Domain) -> Result<Held> {
        match self {
            Self::Local(authority) => {
                let (certified, expires) = authority.issue(domain)?;
                Ok(Held { certified: certified.into(), version: Version::Expires(expires) })
            }
            Self::Files { certificate, key } => {
                // Before the files are read: a change while they are leads to reading them again.
                let version = Version::Files([stamp(certificate), stamp(key)]);
                let certified = certificate::load(certificate, key)?;
                for name in certificate::uncovered(&certified, domain) {
                    let path = certificate.display();
                    tracing::warn!("{path} does not cover {name}: clients will refuse that name");
                }
                Ok(Held { certified: certified.into(), version })
            }
        }
    }

    /// Of the files as they are now.
    fn version(&self) -> Option<Version> {
        match self {
            Self::Local(_) => None,
            Self::Files { certificate, key } => {
                Some(Version::Files([stamp(certificate), stamp(key)]))
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?, metadata.len()))
}

impl ResolvesServerCert for Identity {
    /// The same for every name: one certificate covers all.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.certified))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Keeps the certificate good, for ever.
pub(crate) async fn renew(identity: Arc<Identity>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let identity = Arc::clone(&identity);
        // Files are read, keys are made.
        if let Err(error) = tokio::task::spawn_blocking(move || identity.refresh()).await {
            tracing::error!(%error, "the TLS certificate could not be looked after");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command, thread};

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Puts a new certificate and its key in place of what is there.
    fn put(directory: &Path) {
        let key = KeyPair::generate().unwrap();
        let names = ["sbx.localhost".to_owned(), "*.sbx.localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        for (name, text) in [("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
            fs::write(directory.join("new"), text).unwrap();
            fs::rename(directory.join("new"), directory.join(name)).unwrap();
        }
    }

    #[test]
    fn files_that_become_good_while_they_are_read_are_read_again() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path();
        put(directory);
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let source = Certificates::Files { certificate, key: key.clone() };
        let identity = Identity::load(source, &"sbx.localhost".parse().unwrap()).unwrap();
        let in_use = || identity.current.read().unwrap().certified.cert[0].clone();
        let first = in_use();
        // A pipe, so that the reading lasts as long as the test wants.
        fs::remove_file(&key).unwrap();
        assert!(Command::new("mkfifo").arg(&key).status().unwrap().success());
        thread::scope(|scope| {
            scope.spawn(|| identity.refresh());
            let mut pipe = fs::OpenOptions::new().write(true).open(&key).unwrap();
            put(directory);
            pipe.write_all(b"half a key").unwrap();
        });
        assert_eq!(in_use(), first);
        identity.refresh();
        assert_ne!(in_use(), first);
    }
}
