//! What the host lends to a build, and what it passes on to the template.
//!
//! Lent, and gone when the build is done: apt's proxies and the like, pip's index, the proxy
//! variables and the host's trusted certificates, so that a build works where the host's own
//! `apt` and `pip` work. Passed on, if the operator says so: certificates to trust.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

use atoll_core::{Error, Result, error::codes};

use crate::CaBundle;

/// Where distributions keep the certificates the host trusts, in one file.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Variables that say where packages come from. Those with paths of the host are not among them.
const VARIABLES: [&str; 15] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_PROXY",
    "PIP_TIMEOUT",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES",
];

/// Where the build finds its inputs inside the tree.
const INSIDE: &str = "/atoll-build";

/// The certificates that a template is to trust beyond its distribution's; none if empty.
pub(crate) fn extra_certificates(bundle: &CaBundle) -> Result<Vec<u8>> {
    let path = match bundle {
        CaBundle::None => return Ok(Vec::new()),
        CaBundle::Host => match host_bundle() {
            Some(path) => path,
            None => return Ok(Vec::new()),
        },
        CaBundle::File(path) => path.clone(),
    };
    let unreadable = |why: &str| {
        let message = format!("the CA bundle {} cannot be used: {why}.", path.display());
        Error::new(codes::BAD_OPTION, message).with_fix("Name a file of certificates in PEM form.")
    };
    let text = fs::read(&path).map_err(|error| unreadable(&error.to_string()))?;
    let marker = b"-----BEGIN CERTIFICATE-----";
    if !text.windows(marker.len()).any(|window| window == marker) {
        return Err(unreadable("it holds no certificate"));
    }
    Ok(text)
}

/// How the bundles begin that `atoll up` writes for clients, so that [`host_bundle`] does not take
/// one for the host's: the shell that starts Atoll may have such a bundle in its variables.
pub const CLIENT_BUNDLE_MARK: &str = "# Written by Atoll for its clients.";

/// The file of certificates that the host trusts.
pub fn host_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let named = named.filter(|path| !is_for_clients(path));
    named.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

fn is_for_clients(path: &Path) -> bool {
    let mut start = [0; CLIENT_BUNDLE_MARK.len()];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == CLIENT_BUNDLE_MARK.as_bytes()
}

/// Writes into `dir` what the scripts of the base template expect there.
pub(crate) fn write_inputs(dir: &Path, extra_certificates: &[u8]) -> io::Result<()> {
    fs::write(dir.join("apt.conf"), apt_settings())?;
    let mut environment = String::new();
    for name in VARIABLES {
        if let Ok(value) = std::env::var(name) {
            environment.push_str(&format!("export {name}={}\n", quoted(&value)));
        }
    }
    if let Some(path) = pip_configuration() {
        fs::copy(path, dir.join("pip.conf"))?;
        environment.push_str(&format!("export PIP_CONFIG_FILE={INSIDE}/pip.conf\n"));
    }
    if let Some(bundle) = host_bundle() {
        fs::copy(bundle, dir.join("ca-build.pem"))?;
        environment.push_str(&format!("export PIP_CERT={INSIDE}/ca-build.pem\n"));
    }
    fs::write(dir.join("environment"), environment)?;
    if !extra_certificates.is_empty() {
        fs::write(dir.join("ca-extra.pem"), extra_certificates)?;
    }
    Ok(())
}

/// pip's configuration on the host: the first that pip itself would heed most.
fn pip_configuration() -> Option<PathBuf> {
    let named = std::env::var_os("PIP_CONFIG_FILE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let personal = home
        .into_iter()
        .flat_map(|home| [home.join(".config/pip/pip.conf"), home.join(".pip/pip.conf")]);
    let global = PathBuf::from("/etc/pip.conf");
    named.into_iter().chain(personal).chain([global]).find(|path| path.is_file())
}

/// How the host's apt fetches: proxies, retries, checks. Nothing if there is no `apt-config`.
fn apt_settings() -> String {
    let output =
        Command::new("apt-config").args(["dump", "--format", "%f \"%v\";%n", "Acquire"]).output();
    match output {
        Ok(output) => fetch_settings(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => {
            tracing::debug!(%error, "no settings of the host's apt");
            String::new()
        }
    }
}

/// Of all `Acquire` settings those about fetching, not about which indexes there are.
fn fetch_settings(dump: &str) -> String {
    let wanted = |name: &str| {
        let part = name.strip_prefix("Acquire::").and_then(|rest| rest.split("::").next());
        part.is_some_and(|part| {
            ["http", "https", "Retries", "Check-Valid-Until", "Check-Date", "Max-FutureTime"]
                .iter()
                .chain(&["ForceIPv4", "ForceIPv6", "Queue-Mode"])
                .any(|known| known.eq_ignore_ascii_case(part))
        })
    };
    dump.lines()
        .filter(|line| line.split(' ').next().is_some_and(wanted))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_atoll_wrote_for_clients_is_not_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle.pem");
        for (content, expected) in
            [(format!("{CLIENT_BUNDLE_MARK}\n-----BEGIN"), true), ("-----BEGIN".into(), false)]
        {
            fs::write(&path, &content).unwrap();
            assert_eq!(is_for_clients(&path), expected, "{content}");
        }
        assert!(!is_for_clients(&directory.path().join("none")));
    }

    #[test]
    fn only_settings_about_fetching_are_lent() {
        let dump = "Acquire \"\";\n\
            Acquire::cdrom::mount \"/media/cdrom/\";\n\
            Acquire::IndexTargets::deb::DEP-11 \"\";\n\
            Acquire::http::Proxy \"http://proxy:3128\";\n\
            Acquire::https::Verify-Peer \"true\";\n\
            Acquire::Check-Valid-Until \"false\";\n";
        assert_eq!(
            fetch_settings(dump),
            "Acquire::http::Proxy \"http://proxy:3128\";\n\
             Acquire::https::Verify-Peer \"true\";\n\
             Acquire::Check-Valid-Until \"false\";\n"
        );
    }

    #[test]
    fn a_value_reaches_the_shell_as_it_is() {
        let value = "a 'b' $(c) `d` \\ \"e\"\n;f";
        let script = format!("printf %s {}", quoted(value));
        let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let missing = extra_certificates(&CaBundle::File(path.clone())).unwrap_err();
        assert_eq!(missing.code, codes::BAD_OPTION);
        fs::write(&path, "nothing").unwrap();
        let empty = extra_certificates(&CaBundle::File(path.clone())).unwrap_err();
        assert!(empty.message.contains("no certificate"), "{empty}");
        fs::write(&path, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").unwrap();
        assert!(!extra_certificates(&CaBundle::File(path)).unwrap().is_empty());
        assert!(extra_certificates(&CaBundle::None).unwrap().is_empty());
    }
}
