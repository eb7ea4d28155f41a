//! Switches under `/proc/sys/net`. They are those of the calling thread's network namespace.

use std::{fs, io, path::PathBuf};

/// `net.<family>.conf.<link>.<key>`.
pub(crate) fn of_link(family: &str, link: &str, key: &str) -> PathBuf {
    // Built by components: a link's name may contain dots.
    ["/proc/sys/net", family, "conf", link, key].iter().collect()
}

/// Writes a value; the error names the switch.
pub(crate) fn write(path: impl Into<PathBuf>, value: &str) -> io::Result<()> {
    let path = path.into();
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("write {}: {error}", path.display())))
}

/// Reads whether a switch is on.
pub(crate) fn is_on(path: impl Into<PathBuf>) -> io::Result<bool> {
    let path = path.into();
    fs::read_to_string(&path)
        .map(|text| text.trim() != "0")
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", path.display())))
}

/// Turns IPv6 off for `link`. A kernel without IPv6 has it off.
pub(crate) fn disable_ipv6(link: &str) -> io::Result<()> {
    match write(of_link("ipv6", link, "disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
