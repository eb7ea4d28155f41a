//! Makes a slot's namespaces through the launcher.
//!
//! A process cannot give a thread of a multi-threaded daemon a user namespace, and each must be
//! created under a host uid of its own (kernel limits such as inotify's count against the creator).
//! So `atoll-launcher slot UID` becomes the uid, unshares, prints a newline and waits for the end of
//! its input, while we map ids and open what it holds.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

use crate::IDS_PER_SLOT;

/// Longest we wait for the launcher: it needs about two milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest message we take from a launcher that failed, bytes.
const LONGEST_MESSAGE: u64 = 4096;

/// A user namespace and a network namespace that it owns.
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    pub(crate) net: OwnedFd,
}

/// Makes both, with ids 0 to 65535 mapped to `first_uid` and up.
pub(crate) async fn make(launcher: &Path, first_uid: u32) -> io::Result<Namespaces> {
    let mut child = Command::new(launcher)
        .args(["slot", &first_uid.to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| annotate(&format!("run {}", launcher.display()), &error))?;
    let namespaces = timeout(DEADLINE, open(&mut child, first_uid))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the launcher does not answer"))??;
    // The end of its input tells it to exit; waiting leaves no zombie.
    drop(child.stdin.take());
    timeout(DEADLINE, child.wait())
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the launcher does not exit"))??;
    Ok(namespaces)
}

async fn open(child: &mut Child, first_uid: u32) -> io::Result<Namespaces> {
    let gone = || io::Error::other("the launcher ended early");
    let mut output = child.stdout.take().ok_or_else(gone)?;
    let mut ready = [0];
    if output.read(&mut ready).await? == 0 {
        return Err(gone());
    }
    if ready != *b"\n" {
        let mut message = vec![ready[0]];
        output.take(LONGEST_MESSAGE).read_to_end(&mut message).await?;
        let message = String::from_utf8_lossy(&message);
        return Err(io::Error::other(format!("the launcher failed: {}", message.trim())));
    }
    // The child is not reaped yet, so its pid is still its own.
    let pid = child.id().ok_or_else(gone)?;
    let map = format!("0 {first_uid} {IDS_PER_SLOT}");
    for file in ["gid_map", "uid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map).map_err(|error| annotate(file, &error))?;
    }
    let namespace = |kind: &str| {
        File::open(format!("/proc/{pid}/ns/{kind}"))
            .map(OwnedFd::from)
            .map_err(|error| annotate(kind, &error))
    };
    Ok(Namespaces { user: namespace("user")?, net: namespace("net")? })
}

fn annotate(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
