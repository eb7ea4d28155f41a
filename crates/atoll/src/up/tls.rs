//! What the front proves its names with, and what clients have to trust for it: `<data-dir>/tls`.
//!
//! Without a certificate of the operator's, an authority of this deployment's own vouches for its
//! names. It stays as long as the domain does, so clients that trust it go on doing so.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use atoll_front::{Authority, Certificates, Domain, Identity};
use atoll_template::{CLIENT_BUNDLE_MARK, host_bundle};

use super::{Arguments, data_dir::DataDir};
use crate::terminal;

const DIRECTORY: &str = "tls";
const CERTIFICATE: &str = "tls/ca.pem";
const KEY: &str = "tls/ca-key.pem";
/// The authority's certificate and those that the host trusts.
const BUNDLE: &str = "tls/bundle.pem";

/// What the front proves its names with; and a file for clients to trust, unless the certificate is
/// the operator's.
///
/// # Errors
/// `CERTIFICATE_UNUSABLE`, `DATA_DIR_UNUSABLE` or `DISK_FULL`.
pub(crate) fn prepare(
    arguments: &Arguments,
    directory: &DataDir,
    domain: &Domain,
) -> Result<(Identity, Option<PathBuf>)> {
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        let (certificate, key) = (certificate.clone(), key.clone());
        return Ok((Identity::load(Certificates::Files { certificate, key }, domain)?, None));
    }
    let authority = authority(directory, domain)?;
    directory.write(BUNDLE, &bundle(&authority), 0o644)?;
    let identity = Identity::load(Certificates::Local(Box::new(authority)), domain)?;
    Ok((identity, Some(directory.join(BUNDLE))))
}

/// The authority that is there, or a new one.
fn authority(directory: &DataDir, domain: &Domain) -> Result<Authority> {
    let path = directory.join(CERTIFICATE);
    if let Some(certificate) = read(&path)? {
        let key_path = directory.join(KEY);
        let key = read(&key_path)?.ok_or_else(|| damaged(&key_path, "it is not there"))?;
        let known = Authority::load(&certificate, &key, domain);
        if let Some(authority) = known.map_err(|why| damaged(&path, &why))? {
            return Ok(authority);
        }
        terminal::say(
            "A new local certificate authority is made: the old one is for another domain or about to expire.",
        );
        fs::remove_file(&path).map_err(|error| damaged(&path, &error.to_string()))?;
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory.join(DIRECTORY));
    made.map_err(|error| {
        let message = format!("cannot make {}: {error}.", directory.join(DIRECTORY).display());
        Error::new(codes::DATA_DIR_UNUSABLE, message)
    })?;
    let authority = Authority::generate(domain)?;
    // The certificate last: while it is not there, the key counts for nothing.
    directory.write(KEY, &authority.key_pem(), 0o600)?;
    directory.write(CERTIFICATE, authority.certificate_pem(), 0o644)?;
    Ok(authority)
}

fn bundle(authority: &Authority) -> String {
    let host = host_bundle().and_then(|path| match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the host's certificates");
            None
        }
    });
    let host = host.unwrap_or_default();
    format!("{CLIENT_BUNDLE_MARK}\n{}\n{}", authority.certificate_pem().trim_end(), host)
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(damaged(path, &error.to_string())),
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    let message = format!("{} cannot be used: {why}.", path.display());
    Error::new(codes::CERTIFICATE_UNUSABLE, message).with_fix(
        "Delete <data-dir>/tls to have a new local authority, and source <data-dir>/env again.",
    )
}
