//! Certificates that a template is to trust beyond its distribution's.

use std::{collections::HashSet, fmt::Write, io};

use super::files::{Root, line_end};

/// Where distributions keep what they trust, in one file.
const BUNDLES: [&str; 5] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];
/// Where they look for what to put into it when it is made anew. The first is made if there is none.
const ANCHORS: [&str; 4] = [
    "usr/local/share/ca-certificates",
    "etc/pki/ca-trust/source/anchors",
    "usr/share/pki/trust/anchors",
    "etc/ca-certificates/trust-source/anchors",
];
/// Programs with a list of their own that can be told.
const VARIABLES: [&str; 4] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"];

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The text of each certificate in PEM form, without its frame and line ends.
fn certificates(pem: &str) -> Vec<String> {
    let bodies = pem.split(BEGIN).skip(1).filter_map(|rest| rest.split_once(END));
    bodies.map(|(body, _)| body.split_whitespace().collect()).collect()
}

/// A certificate as it is written.
fn framed(body: &str) -> String {
    let mut text = format!("{BEGIN}\n");
    for (index, symbol) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(symbol);
    }
    text + "\n" + END + "\n"
}

/// Adds those certificates of `extra` to each of the image's bundles that it does not have.
pub(super) fn trust(root: &Root, extra: &str) -> io::Result<()> {
    let extra = certificates(extra);
    if extra.is_empty() {
        return Ok(());
    }
    let mut bundles = Vec::new();
    for path in BUNDLES {
        if let Some(text) = root.read(path)? {
            bundles.push((path, text));
        }
    }
    if bundles.is_empty() {
        root.directory("etc/ssl/certs", 0o755)?;
        bundles.push((BUNDLES[0], String::new()));
    }
    let mut added = false;
    for (path, text) in &bundles {
        let known: HashSet<String> = certificates(text).into_iter().collect();
        let new = extra.iter().filter(|body| !known.contains(*body));
        let new: String = new.map(|body| framed(body)).collect();
        if !new.is_empty() {
            added = true;
            root.write(path, &(line_end(text.clone()) + &new), 0o644)?;
        }
    }
    if added { keep(root, &extra, bundles[0].0) } else { Ok(()) }
}

/// Makes it last: for the tools that make bundles anew, and for programs that know no bundle.
fn keep(root: &Root, extra: &[String], bundle: &str) -> io::Result<()> {
    let anchors = ANCHORS.iter().find(|path| root.path(path).is_dir()).unwrap_or(&ANCHORS[0]);
    root.directory(anchors, 0o755)?;
    for (index, body) in extra.iter().enumerate() {
        root.write(&format!("{anchors}/atoll-{}.crt", index + 1), &framed(body), 0o644)?;
    }
    let mut exports = String::new();
    let mut environment = line_end(root.read("etc/environment")?.unwrap_or_default());
    for variable in VARIABLES {
        let _ = writeln!(exports, "export {variable}=/{bundle}");
        let line = format!("{variable}=/{bundle}\n");
        if !environment.contains(&line) {
            environment.push_str(&line);
        }
    }
    root.directory("etc/profile.d", 0o755)?;
    root.write("etc/profile.d/ca.sh", &exports, 0o644)?;
    root.write("etc/environment", &environment, 0o644)?;
    if root.read("etc/pip.conf")?.is_none() {
        root.write("etc/pip.conf", &format!("[global]\ncert = /{bundle}\n"), 0o644)?;
    }
    let npm = line_end(root.read("usr/local/etc/npmrc")?.unwrap_or_default());
    if !npm.contains("cafile=") {
        root.directory("usr/local/etc", 0o755)?;
        root.write("usr/local/etc/npmrc", &format!("{npm}cafile=/{bundle}\n"), 0o644)?;
    }
    Ok(())
}
