//! Calls and streams of a sandbox that runs, one after the other.

use std::time::{Duration, Instant};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use futures::channel::mpsc;

use super::{
    Bench,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::client::{Exec, ExecEvent, Running};

/// Cold caches are not what is measured.
const WARM_UP: usize = 3;

/// What is echoed: a key press.
const KEY: &[u8] = b"k";

impl Bench {
    /// Times `count` of each kind.
    pub(super) async fn measure_commands(&self, count: usize, report: &mut Report) -> Result<()> {
        let (commands, calls, echoes) = self
            .with_sandbox(async |sandbox| {
                let commands = series(count, async || self.run_true(sandbox).await).await?;
                let calls = series(count, async || self.call(sandbox).await).await?;
                Ok((commands, calls, self.echoes(sandbox, count).await?))
            })
            .await?;
        for (name, times) in [
            ("command round trip", commands),
            ("unary call round trip", calls),
            ("echo over two streams", echoes),
        ] {
            report.push(Row::time(name, 1, Statistics::of_durations(&times)));
        }
        Ok(())
    }

    /// `/bin/true`, without a shell: what is timed is Atoll.
    pub(super) async fn run_true(&self, sandbox: &rest::Sandbox) -> Result<Duration> {
        let started = Instant::now();
        let exec = Exec { program: "/bin/true".to_owned(), ..Exec::default() };
        let mut running = self.client.exec(sandbox, exec).await?;
        loop {
            if let ExecEvent::Ended { code, .. } = running.next().await? {
                return if code == 0 {
                    Ok(started.elapsed())
                } else {
                    Err(Error::new(codes::INTERNAL, format!("/bin/true exited {code}.")))
                };
            }
        }
    }

    async fn call(&self, sandbox: &rest::Sandbox) -> Result<Duration> {
        let started = Instant::now();
        self.client.count_commands(sandbox).await?;
        Ok(started.elapsed())
    }

    /// From a byte on the stream to a program's input to the same byte on the stream of its output.
    async fn echoes(&self, sandbox: &rest::Sandbox, count: usize) -> Result<Vec<Duration>> {
        let exec = Exec { program: "/bin/cat".to_owned(), stdin: true, ..Exec::default() };
        let mut running = self.client.exec(sandbox, exec).await?;
        let input = running.input();
        let (keys, pieces) = mpsc::unbounded();
        let echo = series(count, async || echo(&keys, &mut running).await);
        tokio::select! {
            // It ends when `keys` is dropped.
            sent = input.stream(pieces) => {
                sent.and(Err(Error::new(codes::INTERNAL, "a stream of input ended.")))
            }
            times = echo => times,
        }
    }
}

async fn echo(keys: &mpsc::UnboundedSender<Vec<u8>>, running: &mut Running) -> Result<Duration> {
    let started = Instant::now();
    keys.unbounded_send(KEY.to_vec())
        .map_err(|error| Error::new(codes::INTERNAL, format!("{error}.")))?;
    match running.next().await? {
        ExecEvent::Stdout(bytes) if bytes == KEY => Ok(started.elapsed()),
        other => Err(Error::new(codes::INTERNAL, format!("cat answered {other:?}."))),
    }
}

/// The times of `count` calls of `once`, after some that do not count.
async fn series(
    count: usize,
    mut once: impl AsyncFnMut() -> Result<Duration>,
) -> Result<Vec<Duration>> {
    for _ in 0..WARM_UP {
        once().await?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(once().await?);
    }
    Ok(times)
}
