//! What a client must know: `<data-dir>/env`, for `source`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use atoll_core::Result;
use atoll_front::Domain;

use super::{Arguments, data_dir::DataDir, keys::Keys};

/// Name of the file in the data directory. It is there exactly while Atoll is ready.
pub(crate) const FILE: &str = "env";

/// Where programs look for certificates to trust: OpenSSL and all that asks it, Node, Python's
/// requests, and curl, which heeds another variable of OpenSSL's before the first.
const TRUST: [&str; 4] =
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// What clients are told.
#[derive(Clone)]
pub(crate) struct Environment {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    /// Where the front is reached without names.
    pub(crate) front: SocketAddr,
    pub(crate) domain: Domain,
    /// Certificates that clients have to trust, in one file with those that the host trusts.
    trust: Option<PathBuf>,
    pub(crate) api_key: String,
    access_token: String,
    pub(crate) development: bool,
}

impl Environment {
    pub(crate) fn new(
        arguments: &Arguments,
        keys: &Keys,
        domain: Domain,
        front_port: u16,
        trust: Option<PathBuf>,
    ) -> Self {
        let ports = &arguments.ports;
        // A wildcard address is for listening; clients on this machine use loopback.
        let host = match arguments.listen {
            address if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address,
        };
        let at = |port| SocketAddr::new(host, port);
        Self {
            api_url: format!("http://{}", at(ports.api_port)),
            sandbox_url: format!("http://{}", at(ports.proxy_port)),
            front: at(front_port),
            domain,
            trust,
            api_key: keys.api_key.clone(),
            access_token: keys.access_token.clone(),
            development: keys.are_development(),
        }
    }

    fn render(&self) -> String {
        let mut lines = vec![
            ("E2B_API_KEY", self.api_key.clone()),
            ("E2B_ACCESS_TOKEN", self.access_token.clone()),
            ("E2B_DOMAIN", self.domain.to_string()),
            // So that the SDKs work where the domain's names do not resolve.
            ("E2B_API_URL", self.api_url.clone()),
            ("E2B_SANDBOX_URL", self.sandbox_url.clone()),
        ];
        if let Some(bundle) = &self.trust {
            // What is trusted anyway is in it too: curl and Python replace their own by it, Node adds
            // it, and it takes the place of a company's own authority that a shell may have named in
            // these variables before.
            let bundle = bundle.display().to_string();
            lines.extend(TRUST.map(|name| (name, bundle.clone())));
        }
        lines.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`.
    pub(crate) fn write(&self, directory: &DataDir) -> Result<()> {
        // The published keys are no secret, and people source this file as themselves.
        let mode = if self.development { 0o644 } else { 0o600 };
        directory.write(FILE, &self.render(), mode)?;
        // Who started Atoll with sudo is who sources it.
        let starter = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
        if let Some(uid) = starter
            && let Err(error) = std::os::unix::fs::chown(directory.join(FILE), Some(uid), None)
        {
            tracing::warn!(%error, "the file of client settings stays root's");
        }
        Ok(())
    }

    /// Removes the file: it must not promise what does not run.
    pub(crate) fn forget(&self, directory: &DataDir) {
        if let Err(error) = std::fs::remove_file(directory.join(FILE))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the file of client settings could not be removed");
        }
    }
}

/// As a shell reads it literally.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}
