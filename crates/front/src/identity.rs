//! The certificate in use, and its renewal: those of the local authority before they expire, an
//! operator's when the files change. Connections that are open keep the one they began with.

use std::{
    fs,
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

/// When a file was last changed, and how long it is, bytes.
type Stamp = (SystemTime, u64);

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
        let due = match &self.current.read().unwrap_or_else(PoisonError::into_inner).version {
            Version::Expires(at) => *at < SystemTime::now() + EARLY,
            files @ Version::Files(_) => self.source.version().is_some_and(|now| now != *files),
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
                if let Some(version) = self.source.version() {
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
    Some((metadata.modified().ok()?, metadata.len()))
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
