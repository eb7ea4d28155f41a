//! Certificates that an operator gives: read, checked, and refused with a reason.

use std::{fs, path::Path, time::SystemTime};

use atoll_core::{Error, Result, error::codes};
use rustls::{
    InconsistentKeys,
    client::verify_server_name,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::domain::Domain;

/// Reads a certificate, with those between it and its root behind it, and its key.
///
/// # Errors
/// `CERTIFICATE_UNUSABLE` when a file cannot be read, the key is of another certificate, or the
/// certificate is not valid now.
pub(crate) fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| unusable(certificate, &format!("is not in PEM form: {error}")))?;
    let leaf = chain.first().ok_or_else(|| unusable(certificate, "holds no certificate"))?;
    check_dates(certificate, leaf)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| unusable(key, &format!("holds no private key in PEM form: {error}")))?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            unusable(key, &format!("is not the key of {}", certificate.display()))
        }
        other => unusable(key, &format!("cannot be used: {other}")),
    })
}

/// Those of the deployment's names that `certified` does not cover.
pub(crate) fn uncovered(certified: &CertifiedKey, domain: &Domain) -> Vec<String> {
    let parsed = certified.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    let covers = |name: &str| {
        let name = ServerName::try_from(name);
        parsed
            .as_ref()
            .zip(name.ok())
            .is_some_and(|(leaf, name)| verify_server_name(leaf, &name).is_ok())
    };
    let names = [("", ""), ("api.", "api."), ("49983-isandbox.", "*.")];
    names
        .iter()
        .filter(|(label, _)| !covers(&format!("{label}{}", domain.name())))
        .map(|(_, shown)| format!("{shown}{}", domain.name()))
        .collect()
}

fn check_dates(path: &Path, leaf: &CertificateDer<'_>) -> Result<()> {
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|error| unusable(path, &format!("holds no valid certificate: {error}")))?;
    let validity = parsed.validity();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > validity.not_after.timestamp() {
        return Err(unusable(path, &format!("expired on {}", validity.not_after)));
    }
    if now < validity.not_before.timestamp() {
        return Err(unusable(path, &format!("is not valid before {}", validity.not_before)));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| unusable(path, &format!("cannot be read: {error}")))
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(codes::CERTIFICATE_UNUSABLE, format!("{} {why}.", path.display()))
}
