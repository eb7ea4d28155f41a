//! Runs the `nft` program. It works on the calling thread's network namespace, which a child
//! inherits.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

/// Applies `script` as one transaction.
pub(crate) fn apply(script: &str) -> io::Result<()> {
    run(&["-f", "-"], script).map(drop)
}

/// Every set of every `inet` table, as nft's JSON.
pub(crate) fn list_sets() -> io::Result<serde_json::Value> {
    let text = run(&["-j", "list", "sets", "inet"], "")?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Whether there is an `inet` table of this name.
pub(crate) fn has_table(name: &str) -> io::Result<bool> {
    let text = run(&["list", "tables", "inet"], "")?;
    let line = format!("table inet {name}");
    Ok(String::from_utf8_lossy(&text).lines().any(|table| table == line))
}

fn run(arguments: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("run nft: {error}")))?;
    // A child that dies early closes the pipe: its exit status says more than EPIPE.
    let written = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let cause = String::from_utf8_lossy(&output.stderr);
        let first = cause.lines().next().unwrap_or("no message");
        return Err(io::Error::other(format!("nft ({}): {first}", output.status)));
    }
    written?;
    Ok(output.stdout)
}
