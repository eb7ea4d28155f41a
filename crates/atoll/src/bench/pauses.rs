//! Pausing, resuming and forking, of a sandbox in which nothing was run and of one that holds memory.

use std::time::{Duration, Instant};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::{self, Kept};

use super::{
    Bench, SANDBOX_SECONDS,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::client::{Exec, ExecEvent};

/// Cold caches are not what is measured.
const WARM_UP: usize = 1;
/// A round writes all of a sandbox's memory: so many are enough.
const MAX_ROUNDS: usize = 100;
/// Holds memory of which no page is like another.
const HOLDER: &str = "import os, time\nheld = os.urandom(100 << 20)\nprint('ready', flush=True)\n\
                      while True: time.sleep(3600)";

/// Times of each kind.
#[derive(Default)]
struct Times {
    pause: Vec<Duration>,
    resume: Vec<Duration>,
    wake: Vec<Duration>,
    fork: Vec<Duration>,
    /// What the last pause kept.
    kept: Option<Kept>,
}

impl Bench {
    /// Times `count` of each kind, at most [`MAX_ROUNDS`].
    pub(super) async fn measure_pauses(&self, count: usize, report: &mut Report) -> Result<()> {
        let rounds = count.min(MAX_ROUNDS);
        let idle = self.with_sleeper(async |sandbox| self.rounds(sandbox, rounds).await).await?;
        idle.report("idle", report);
        let full = self
            .with_sleeper(async |sandbox| {
                self.hold(sandbox).await?;
                let times = self.rounds(sandbox, rounds).await?;
                // Or something else was measured.
                if self.client.count_commands(sandbox).await? == 0 && times.kept != Some(Kept::Disk)
                {
                    let message = "what held memory in a sandbox is gone.";
                    return Err(Error::new(codes::INTERNAL, message));
                }
                Ok(times)
            })
            .await?;
        full.report("100 MiB", report);
        Ok(())
    }

    /// Runs a program that holds 100 MiB, and goes on by itself.
    async fn hold(&self, sandbox: &rest::Sandbox) -> Result<()> {
        let exec = Exec {
            program: "/usr/bin/python3".to_owned(),
            arguments: vec!["-c".to_owned(), HOLDER.to_owned()],
            ..Exec::default()
        };
        match self.client.exec(sandbox, exec).await?.next().await? {
            ExecEvent::Stdout(_) => Ok(()),
            other => Err(Error::new(codes::INTERNAL, format!("python3 in a sandbox: {other:?}."))),
        }
    }

    async fn rounds(&self, sandbox: &rest::Sandbox, rounds: usize) -> Result<Times> {
        let mut times = Times::default();
        for round in 0..WARM_UP + rounds {
            if round == WARM_UP {
                times = Times::default();
            }
            self.round(sandbox, &mut times).await?;
        }
        Ok(times)
    }

    /// Pauses and resumes, pauses and wakes, and forks a sandbox.
    async fn round(&self, sandbox: &rest::Sandbox, times: &mut Times) -> Result<()> {
        let id = &sandbox.sandbox_id;
        times.pause.push(timed(self.client.pause(id, true)).await?.1);
        times.kept = self.client.info(id).await?.kept;
        times.resume.push(timed(self.client.connect(id, SANDBOX_SECONDS)).await?.1);
        times.pause.push(timed(self.client.pause(id, true)).await?.1);
        if times.kept == Some(Kept::Disk) {
            // That is not woken by requests.
            self.client.connect(id, SANDBOX_SECONDS).await?;
        } else {
            times.wake.push(timed(self.client.count_commands(sandbox)).await?.1);
        }
        let (fork, elapsed) = timed(self.fork(id)).await?;
        times.fork.push(elapsed);
        self.client.kill(&fork.sandbox_id).await
    }

    /// Makes one copy of a sandbox.
    pub(super) async fn fork(&self, id: &str) -> Result<rest::Sandbox> {
        let results = self.client.fork(id, 1, SANDBOX_SECONDS).await?;
        match results.into_iter().next() {
            Some(rest::ForkResult { sandbox: Some(sandbox), .. }) => Ok(sandbox),
            other => Err(Error::new(codes::INTERNAL, format!("a fork was not made: {other:?}."))),
        }
    }
}

impl Times {
    fn report(&self, what: &str, report: &mut Report) {
        // Frozen processes cannot be copied.
        let copied = self.kept.map(|kept| match kept {
            Kept::Frozen => Kept::Disk,
            Kept::Disk | Kept::Checkpoint => kept,
        });
        for (name, times, kept) in [
            ("pause", &self.pause, self.kept),
            ("resume", &self.resume, self.kept),
            ("resume by a request", &self.wake, self.kept),
            ("fork", &self.fork, copied),
        ] {
            if times.is_empty() {
                report.note("No resume by a request: pauses keep files only here.");
                continue;
            }
            let row = Row::time(&format!("{name}, {what}"), 1, Statistics::of_durations(times));
            report.push(row.kept(kept));
        }
    }
}

/// What something comes to, and how long it takes.
pub(super) async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let started = Instant::now();
    let outcome = work.await?;
    Ok((outcome, started.elapsed()))
}
