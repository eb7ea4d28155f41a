//! `atoll bench`: how fast a running deployment is, seen from a client, beside what else is
//! installed here.
//!
//! Every figure is measured through the public ports with connections kept alive, as an SDK has
//! them. Other programs are timed in the same run, so that ratios hold on a noisy machine.
//!
//! | module | what it measures |
//! |---|---|
//! | [`lives`] | creating a sandbox, its first command, ending it |
//! | [`commands`] | calls and streams of a sandbox that runs |
//! | [`pauses`] | pausing a sandbox, resuming and forking it, with and without much memory |
//! | [`forks`] | memory and disk of a hundred forks |
//! | [`idle`] | the memory of a sandbox in which nothing runs |
//! | [`start`] | envd, from exec to its first answer |
//! | [`transfer`] | files of a gigabyte, in and out; with [`nginx`] beside it, and through [`edge`] |
//! | [`templates`] | building templates; with tar beside it, of an [`image`] of 500 MB |
//! | [`interpreter`] | cells of the code interpreter; with jupyter_client beside it |
//! | [`peers`] | other programs that run something in a sandbox |

mod commands;
mod edge;
mod forks;
mod idle;
mod image;
mod interpreter;
mod lives;
mod nginx;
mod pauses;
mod peers;
mod report;
mod start;
mod statistics;
mod templates;
mod transfer;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;

use crate::{
    client::{Client, Create},
    terminal,
};
use report::Report;
use statistics::Statistics;

/// Long enough for the slowest figure; an interrupted run leaves nothing for longer.
const SANDBOX_SECONDS: u32 = 300;

/// Options of `atoll bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Sandboxes created one at a time; more at once where a row says so.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(5..=2000))]
    creates: u16,
    /// Template to use.
    #[arg(long, default_value = "base")]
    template: String,
    /// Measure these only.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where the deployment keeps everything, to see what its pool uses.
    #[arg(long, default_value = "/var/lib/atoll", env = "ATOLL_DATA_DIR")]
    data_dir: PathBuf,
    /// Size of the file that is sent and fetched, MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=8192))]
    file_mib: u32,
    /// How often the file is sent and fetched each way.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// A node proxy: files go through it, too, behind a client proxy of their own.
    #[arg(long, requires = "node_token_file", value_name = "ADDRESS")]
    node_proxy: Option<SocketAddr>,
    /// What the node proxy asks for: <data-dir>/node-token.
    #[arg(long, requires = "node_proxy", value_name = "FILE")]
    node_token_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write the JSON to a file, too.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Creating sandboxes, and ending them.
    Lives,
    /// Calls and streams of one sandbox.
    Commands,
    /// Pausing sandboxes, resuming and forking them.
    Pauses,
    /// What the hundredth fork costs.
    Forks,
    /// Memory of idle sandboxes.
    Idle,
    /// The start of envd.
    Start,
    /// Large files.
    Transfer,
    /// Building templates.
    Templates,
    /// Cells of the code interpreter.
    Interpreter,
    /// Other programs that run something in a sandbox.
    Peers,
}

struct Bench {
    client: Client,
    template: String,
}

impl Bench {
    async fn create(&self) -> Result<(rest::Sandbox, Duration)> {
        let started = Instant::now();
        let sandbox = self.client.create(&self.request()).await?;
        Ok((sandbox, started.elapsed()))
    }

    fn request(&self) -> Create {
        Create {
            template: self.template.clone(),
            timeout: Some(SANDBOX_SECONDS),
            ..Create::default()
        }
    }

    /// Does `work` with a sandbox, which is ended whatever comes of it.
    async fn with_sandbox<T>(
        &self,
        work: impl AsyncFnOnce(&rest::Sandbox) -> Result<T>,
    ) -> Result<T> {
        self.with_one(&self.request(), work).await
    }

    /// As [`with_sandbox`](Self::with_sandbox), with one that requests wake.
    async fn with_sleeper<T>(
        &self,
        work: impl AsyncFnOnce(&rest::Sandbox) -> Result<T>,
    ) -> Result<T> {
        self.with_one(&Create { auto_resume: true, ..self.request() }, work).await
    }

    async fn with_one<T>(
        &self,
        request: &Create,
        work: impl AsyncFnOnce(&rest::Sandbox) -> Result<T>,
    ) -> Result<T> {
        let sandbox = self.client.create(request).await?;
        let outcome = work(&sandbox).await;
        self.client.kill(&sandbox.sandbox_id).await?;
        outcome
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let bench = Bench { client: Client::from_variables()?, template: arguments.template.clone() };
    let mut report = Report::new();
    let count = usize::from(arguments.creates);
    if arguments.wants(Part::Lives) {
        bench.measure_lives(count, &mut report).await?;
    }
    if arguments.wants(Part::Commands) {
        bench.measure_commands(count, &mut report).await?;
    }
    if arguments.wants(Part::Pauses) {
        bench.measure_pauses(count, &mut report).await?;
    }
    if arguments.wants(Part::Forks) {
        bench.measure_forks(&arguments.data_dir, &mut report).await?;
    }
    if arguments.wants(Part::Idle) {
        bench.measure_idle(&mut report).await?;
    }
    if arguments.wants(Part::Start) {
        start::measure(&mut report).await?;
    }
    if arguments.wants(Part::Transfer) {
        bench.measure_transfers(&transfer_options(&arguments)?, &mut report).await?;
    }
    if arguments.wants(Part::Templates) {
        bench.measure_templates(&mut report).await?;
    }
    if arguments.wants(Part::Interpreter) {
        bench.measure_interpreter(count, &mut report).await?;
    }
    if arguments.wants(Part::Peers) {
        for (name, times) in peers::measure(count).await {
            report.push_peer(name, Statistics::of_durations(&times));
        }
    }
    if let Some(path) = &arguments.save {
        fs::write(path, report.json()? + "\n").map_err(|error| unusable(path, &error))?;
    }
    terminal::say(&if arguments.json { report.json()? } else { report.table() });
    Ok(ExitCode::SUCCESS)
}

fn transfer_options(arguments: &Arguments) -> Result<transfer::Options> {
    let node = match (arguments.node_proxy, &arguments.node_token_file) {
        (Some(address), Some(path)) => {
            let token = fs::read_to_string(path).map_err(|error| unusable(path, &error))?;
            Some((address, token.trim().to_owned()))
        }
        _ => None,
    };
    Ok(transfer::Options {
        bytes: u64::from(arguments.file_mib) << 20,
        rounds: arguments.rounds.into(),
        node,
    })
}

/// The error for a step on this machine, or in a sandbox, that failed.
fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(codes::INTERNAL, format!("{what}: {error}."))
}

fn unusable(path: &std::path::Path, error: &std::io::Error) -> Error {
    Error::new(codes::BAD_OPTION, format!("{}: {error}.", path.display()))
}
