//! `atoll bench`: how fast a running deployment is, seen from a client, beside what else is
//! installed here.
//!
//! Every figure is measured through the public ports with connections kept alive, as an SDK has
//! them. Other programs are timed in the same run, so that ratios hold on a noisy machine.

mod peers;
mod report;
mod statistics;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    client::{Client, Create, Exec, ExecEvent},
    terminal,
};
use report::{Report, Row};
use statistics::Statistics;

/// Long enough for the slowest figure; an interrupted run leaves nothing for longer.
const SANDBOX_SECONDS: u32 = 120;
/// Cold caches are not what is measured.
const WARM_UP: usize = 3;
const IDLE_SANDBOXES: usize = 10;
/// Samples of resource use come every five seconds.
const SAMPLE_LIMIT: Duration = Duration::from_secs(30);

/// Options of `atoll bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Sandboxes created one at a time; more at once where a row says so.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(5..=2000))]
    creates: u16,
    /// Template to use.
    #[arg(long, default_value = "base")]
    template: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One sandbox's life, timed.
struct Life {
    create: Duration,
    first_command: Duration,
    kill: Duration,
}

struct Bench {
    client: Client,
    template: String,
}

impl Bench {
    fn create_request(&self) -> Create {
        Create {
            template: self.template.clone(),
            timeout: Some(SANDBOX_SECONDS),
            ..Create::default()
        }
    }

    async fn create(&self) -> Result<(rest::Sandbox, Duration)> {
        let started = Instant::now();
        let sandbox = self.client.create(&self.create_request()).await?;
        Ok((sandbox, started.elapsed()))
    }

    /// Creates, runs one command, ends; the sandbox is ended whatever happens.
    async fn life(&self) -> Result<Life> {
        let started = Instant::now();
        let (sandbox, create) = self.create().await?;
        let ran = self.run_true(&sandbox).await;
        let first_command = started.elapsed();
        let killing = Instant::now();
        self.client.kill(&sandbox.sandbox_id).await?;
        ran?;
        Ok(Life { create, first_command, kill: killing.elapsed() })
    }

    /// `/bin/true`, without a shell: what is timed is Atoll.
    async fn run_true(&self, sandbox: &rest::Sandbox) -> Result<Duration> {
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

    async fn lives(&self, count: usize, at_once: usize) -> Result<Vec<Life>> {
        stream::iter(0..count).map(|_| self.life()).buffer_unordered(at_once).try_collect().await
    }

    /// Commands in one sandbox, one after the other.
    async fn round_trips(&self, count: usize) -> Result<Vec<Duration>> {
        let (sandbox, _) = self.create().await?;
        let mut times = Vec::with_capacity(count);
        let mut outcome = Ok(());
        for round in 0..count + WARM_UP {
            match self.run_true(&sandbox).await {
                Ok(time) if round >= WARM_UP => times.push(time),
                Ok(_) => {}
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.client.kill(&sandbox.sandbox_id).await?;
        outcome.map(|()| times)
    }

    /// Memory of sandboxes in which nothing was ever run, MiB.
    async fn idle_memory(&self) -> Result<Vec<f64>> {
        let created: Vec<Result<(rest::Sandbox, Duration)>> =
            stream::iter(0..IDLE_SANDBOXES).then(|_| self.create()).collect().await;
        let sandboxes: Vec<rest::Sandbox> =
            created.into_iter().filter_map(Result::ok).map(|(sandbox, _)| sandbox).collect();
        let measured: Result<Vec<f64>> = stream::iter(&sandboxes)
            .then(|sandbox| self.memory_of(&sandbox.sandbox_id))
            .try_collect()
            .await;
        for sandbox in &sandboxes {
            self.client.kill(&sandbox.sandbox_id).await?;
        }
        measured
    }

    async fn memory_of(&self, id: &str) -> Result<f64> {
        const MIB: f64 = 1024.0 * 1024.0;
        let deadline = Instant::now() + SAMPLE_LIMIT;
        loop {
            let samples = self.client.metrics(id).await?;
            if let Some(sample) = samples.last() {
                return Ok(sample.mem_used as f64 / MIB);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    codes::INTERNAL,
                    format!("no sample of sandbox {id} within {} s.", SAMPLE_LIMIT.as_secs()),
                ));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let bench = Bench { client: Client::from_variables()?, template: arguments.template };
    let count = usize::from(arguments.creates);
    bench.lives(WARM_UP, 1).await?;

    let mut report = Report::new();
    for at_once in [1, 10, 50] {
        let lives = bench.lives(count.max(2 * at_once), at_once).await?;
        report.push_lives(&lives, at_once);
    }
    let trips = Statistics::of_durations(&bench.round_trips(count).await?);
    report.push(Row::time("command round trip", 1, trips));
    report.push(Row::memory(
        "memory of an idle sandbox",
        Statistics::of(&bench.idle_memory().await?),
    ));
    for (name, times) in peers::measure(count).await {
        report.push_peer(name, Statistics::of_durations(&times));
    }
    terminal::say(&if arguments.json { report.json()? } else { report.table() });
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn push_lives(&mut self, lives: &[Life], at_once: usize) {
        let column = |pick: fn(&Life) -> Duration| {
            Statistics::of_durations(&lives.iter().map(pick).collect::<Vec<_>>())
        };
        self.push(Row::time("create", at_once, column(|life| life.create)));
        self.push(Row::time("create to first command", at_once, column(|life| life.first_command)));
        self.push(Row::time("kill", at_once, column(|life| life.kill)));
    }
}
