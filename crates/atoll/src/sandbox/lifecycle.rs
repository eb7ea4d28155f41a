//! `atoll sandbox pause`, `resume`, `fork` and `rewind`.

use std::process::ExitCode;

use atoll_core::Result;
use atoll_wire::rest::SandboxDetail;

use super::{Output, kept, print_json};
use crate::{client::Client, terminal};

#[derive(clap::Args)]
pub(crate) struct PauseArguments {
    /// The sandbox.
    id: String,
    /// Keep its files only: it boots anew when it is resumed.
    #[arg(long)]
    files_only: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct ResumeArguments {
    /// The sandbox.
    id: String,
    /// Seconds it may live from now.
    #[arg(long, default_value_t = 300)]
    timeout: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct ForkArguments {
    /// The sandbox, running or paused.
    id: String,
    /// How many copies.
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// Seconds each may live.
    #[arg(long, default_value_t = 300)]
    timeout: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct RewindArguments {
    /// The sandbox.
    id: String,
    /// One of its snapshots: `atoll sandbox snapshot list --sandbox ID` shows them.
    snapshot: String,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn pause(client: &Client, arguments: &PauseArguments) -> Result<ExitCode> {
    client.pause(&arguments.id, !arguments.files_only).await?;
    let detail = client.info(&arguments.id).await?;
    let mut text = format!("{} is paused", detail.listed.sandbox_id);
    if let Some(what) = detail.kept {
        text.push_str(&format!("; kept: {}", kept(what)));
    }
    show(&detail, &text, &arguments.output)
}

pub(super) async fn resume(client: &Client, arguments: &ResumeArguments) -> Result<ExitCode> {
    client.connect(&arguments.id, arguments.timeout).await?;
    let detail = client.info(&arguments.id).await?;
    show(&detail, &runs(&detail), &arguments.output)
}

pub(super) async fn rewind(client: &Client, arguments: &RewindArguments) -> Result<ExitCode> {
    let detail = client.rewind(&arguments.id, &arguments.snapshot).await?;
    let text = format!("{}, as it was in {}", runs(&detail), arguments.snapshot);
    show(&detail, &text, &arguments.output)
}

pub(super) async fn fork(client: &Client, arguments: &ForkArguments) -> Result<ExitCode> {
    let ForkArguments { id, count, timeout, output } = arguments;
    let results = client.fork(id, *count, *timeout).await?;
    let mut code = ExitCode::SUCCESS;
    for result in &results {
        if let Some(error) = &result.error {
            terminal::fail(&format!("a fork was not made: {}", error.message));
            code = ExitCode::FAILURE;
        }
    }
    if output.json {
        print_json(&results)?;
        return Ok(code);
    }
    for sandbox in results.iter().filter_map(|result| result.sandbox.as_ref()) {
        terminal::say(&sandbox.sandbox_id);
    }
    Ok(code)
}

fn runs(detail: &SandboxDetail) -> String {
    format!("{} runs until {:.0}", detail.listed.sandbox_id, detail.listed.end_at)
}

fn show(detail: &SandboxDetail, text: &str, output: &Output) -> Result<ExitCode> {
    if output.json {
        return print_json(detail);
    }
    terminal::say(text);
    Ok(ExitCode::SUCCESS)
}
