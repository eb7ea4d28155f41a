//! What a launcher, or CRIU after it, writes: guests may have a say in how much that is, so only the
//! end of it is kept, where the word on a failure is.

use std::io;

use tokio::{io::AsyncReadExt, process::ChildStdout};

/// Bytes that are kept.
const LONGEST: usize = 4096;

/// The end of what was written so far.
#[derive(Debug)]
pub(crate) struct Report {
    from: ChildStdout,
    last: Vec<u8>,
}

impl Report {
    pub(crate) fn new(from: ChildStdout) -> Self {
        Self { from, last: Vec::new() }
    }

    /// Waits for more; false at the end of it.
    pub(crate) async fn more(&mut self) -> io::Result<bool> {
        let mut more = [0; LONGEST / 4];
        let count = self.from.read(&mut more).await?;
        keep(&mut self.last, &more[..count]);
        Ok(count > 0)
    }

    /// Waits for all of it.
    pub(crate) async fn all(&mut self) -> io::Result<()> {
        while self.more().await? {}
        Ok(())
    }

    /// Whether this is one of its last lines.
    pub(crate) fn has_line(&self, line: &str) -> bool {
        self.last
            .split_inclusive(|byte| *byte == b'\n')
            .any(|it| it.strip_suffix(b"\n").is_some_and(|it| it == line.as_bytes()))
    }

    /// The last lines.
    pub(crate) fn lines(&self) -> String {
        String::from_utf8_lossy(&self.last).into_owned()
    }

    /// The last lines as one.
    pub(crate) fn in_one_line(&self) -> String {
        let lines = self.lines();
        let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ")
    }
}

fn keep(last: &mut Vec<u8>, more: &[u8]) {
    last.extend_from_slice(more);
    last.drain(..last.len().saturating_sub(LONGEST));
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;

    #[tokio::test]
    async fn only_the_end_is_kept_and_lines_are_whole() {
        let script = "head -c 1000000 /dev/zero; echo; echo an error; echo; echo held; printf last";
        let mut child =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut report = Report::new(child.stdout.take().unwrap());
        report.all().await.unwrap();
        child.wait().await.unwrap();
        assert_eq!(report.last.len(), LONGEST);
        assert!(report.in_one_line().ends_with("; an error; held; last"));
        assert!(report.has_line("held"));
        for not in ["eld", "last", "an error; held"] {
            assert!(!report.has_line(not), "{not:?}");
        }
    }
}
