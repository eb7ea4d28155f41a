//! What a client must know: `<data-dir>/env`, for `source`.

use atoll_core::Result;

use super::{Arguments, data_dir::DataDir, keys::Keys};

/// Name of the file in the data directory. It is there exactly while Atoll is ready.
pub(crate) const FILE: &str = "env";

/// What clients are told.
#[derive(Clone)]
pub(crate) struct Environment {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) domain: String,
    pub(crate) api_key: String,
    access_token: String,
    pub(crate) development: bool,
}

impl Environment {
    pub(crate) fn new(arguments: &Arguments, keys: &Keys) -> Self {
        let ports = &arguments.ports;
        // A wildcard address is for listening; clients on this machine use loopback.
        let host = if arguments.listen.is_unspecified() {
            "127.0.0.1".to_owned()
        } else {
            match arguments.listen {
                std::net::IpAddr::V4(address) => address.to_string(),
                std::net::IpAddr::V6(address) => format!("[{address}]"),
            }
        };
        let domain = arguments
            .domain
            .clone()
            .unwrap_or_else(|| format!("sbx.localhost:{}", ports.proxy_port));
        Self {
            api_url: format!("http://{host}:{}", ports.api_port),
            sandbox_url: format!("http://{host}:{}", ports.proxy_port),
            domain,
            api_key: keys.api_key.clone(),
            access_token: keys.access_token.clone(),
            development: keys.are_development(),
        }
    }

    fn render(&self) -> String {
        let lines = [
            ("E2B_API_KEY", &self.api_key),
            ("E2B_ACCESS_TOKEN", &self.access_token),
            ("E2B_API_URL", &self.api_url),
            ("E2B_SANDBOX_URL", &self.sandbox_url),
            ("E2B_DOMAIN", &self.domain),
        ];
        lines.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect()
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`.
    pub(crate) fn write(&self, directory: &DataDir) -> Result<()> {
        // The published keys are no secret, and people source this file as themselves.
        let mode = if self.development { 0o644 } else { 0o600 };
        directory.write(FILE, &self.render(), mode)
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
