//! The file routes on a server, with a directory to use them on.

#![allow(unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_envd::files;
use atoll_envd::guest::Guest;
use atoll_envd::users::{self, User};
use atoll_wire::guest::{BootConfig, InitRequest};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tempfile::TempDir;

use crate::http::{Answer, Server};

pub const RAW: (&str, &str) = ("content-type", "application/octet-stream");
pub const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=xyz");

/// The routes, and a directory to use them on. Files belong to `daemon` unless told otherwise.
pub struct Fixture {
    pub server: Server,
    pub guest: Arc<Guest>,
    pub dir: TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let guest = Guest::new(BootConfig::default());
        let init = InitRequest { default_user: Some("daemon".into()), ..InitRequest::default() };
        guest.apply(init, None);
        let server = Server::start(files::router(Arc::clone(&guest))).await;
        Self { server, guest, dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The target for a file of the directory.
    pub fn target(&self, name: &str) -> String {
        format!("/files?path={}", encode(&self.text(name)))
    }

    pub async fn upload(&self, name: &str, content: &str) -> Answer {
        self.server.post(&self.target(name), &[RAW], content.to_owned()).await
    }

    pub async fn upload_form(&self, target: &str, parts: &[(&str, &str)]) -> Answer {
        self.server.post(target, &[FORM], form(parts)).await
    }
}

pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A form of parts: the parameters of the disposition, and the content.
pub fn form(parts: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (parameters, content) in parts {
        body.push_str("--xyz\r\nContent-Disposition: form-data; ");
        body.push_str(parameters);
        body.push_str("\r\nContent-Type: application/octet-stream\r\n\r\n");
        body.push_str(content);
        body.push_str("\r\n");
    }
    body + "--xyz--\r\n"
}

pub fn daemon() -> User {
    users::lookup("daemon").unwrap().unwrap()
}

/// Permission bits and owner.
pub fn rights(path: &Path) -> (u32, u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid())
}

/// Whether the server, which runs in this process, has the file open.
pub fn is_open(path: &Path) -> bool {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target == path)
}

/// A file system of its own that goes when it is dropped.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    pub fn new(kind: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), dir.path(), Some(kind), flags, Some(options)).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn target(&self, name: &str) -> String {
        format!("/files?path={}", encode(self.path(name).to_str().unwrap()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
