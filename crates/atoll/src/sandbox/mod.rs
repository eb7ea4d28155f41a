//! `atoll sandbox`: sandboxes from the shell, through the public API only.
//!
//! - here: making, showing and ending them.
//! - [`exec`]: running something in one. [`logs`]: what one has logged.
//! - [`lifecycle`]: pause, resume, fork, rewind. [`snapshot`]: copies. [`lineage`]: what came of what.

pub(crate) mod exec;
mod lifecycle;
mod lineage;
pub(crate) mod logs;
mod snapshot;

use std::process::ExitCode;

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::{self, Kept, OnTimeout, SandboxState};

use crate::{
    client::{Client, Create},
    terminal,
};

/// Commands on sandboxes.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and print its id.
    Create(CreateArguments),
    /// List sandboxes, paused ones too.
    List(Output),
    /// Show one sandbox.
    Info(InfoArguments),
    /// Run a command; its input, output and exit code are this command's. Resumes a paused sandbox.
    Exec(exec::Arguments),
    /// Show what a sandbox logged, also after its end.
    Logs(logs::Arguments),
    /// Stop a sandbox and keep its files and processes until it is resumed.
    ///
    /// It stays paused until it is resumed or killed. Connections to it end. With CRIU its memory goes to
    /// disk, and it takes no place under the limit of running sandboxes; without, it stays in memory,
    /// frozen, keeps its place, and only the files outlive a stop of Atoll. `atoll sandbox info` says
    /// which.
    Pause(lifecycle::PauseArguments),
    /// Let a paused sandbox go on; one that runs lives at least that long.
    Resume(lifecycle::ResumeArguments),
    /// Make copies of a sandbox, which runs on or stays paused.
    ///
    /// With CRIU the copies go on with the processes that it has at that moment; without, they boot anew
    /// with its files.
    Fork(lifecycle::ForkArguments),
    /// Keep copies of sandboxes to create others from.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Take a running sandbox back to one of its snapshots; what it did since is lost.
    Rewind(lifecycle::RewindArguments),
    /// Show what a sandbox came from and what came from it, and the bytes that each has to itself.
    Lineage(lineage::Arguments),
    /// End sandboxes, paused ones too.
    Kill(KillArguments),
}

#[derive(clap::Args)]
pub(crate) struct CreateArguments {
    /// Template name or id.
    #[arg(default_value = "base")]
    template: String,
    /// Seconds it may live.
    #[arg(long, default_value_t = 300)]
    timeout: u32,
    /// A label; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// A variable for every process in it; may be repeated.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Cut it off from the internet.
    #[arg(long)]
    no_internet: bool,
    /// What becomes of it when its time is up.
    #[arg(long, value_enum, default_value = "kill")]
    on_timeout: AtTimeout,
    /// Let requests wake it when it is paused.
    #[arg(long)]
    auto_resume: bool,
    #[command(flatten)]
    output: Output,
}

/// What becomes of a sandbox when its time is up.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AtTimeout {
    /// It is ended.
    Kill,
    /// It is paused.
    Pause,
}

/// How answers are printed.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args)]
pub(crate) struct InfoArguments {
    /// The sandbox.
    id: String,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct KillArguments {
    /// The sandboxes.
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All of the team's, paused ones too.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub(crate) fn pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    let client = Client::from_variables()?;
    match command {
        Command::Create(arguments) => create(&client, arguments).await,
        Command::List(output) => list(&client, &output).await,
        Command::Info(arguments) => info(&client, &arguments).await,
        Command::Exec(arguments) => exec::run(&client, arguments).await,
        Command::Logs(arguments) => logs::run(&client, &arguments).await,
        Command::Pause(arguments) => lifecycle::pause(&client, &arguments).await,
        Command::Resume(arguments) => lifecycle::resume(&client, &arguments).await,
        Command::Fork(arguments) => lifecycle::fork(&client, &arguments).await,
        Command::Snapshot(command) => snapshot::run(&client, command).await,
        Command::Rewind(arguments) => lifecycle::rewind(&client, &arguments).await,
        Command::Lineage(arguments) => lineage::run(&client, &arguments).await,
        Command::Kill(arguments) => kill(&client, arguments).await,
    }
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(codes::INTERNAL, format!("cannot print: {error}.")))?;
    terminal::say(&text);
    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, arguments: CreateArguments) -> Result<ExitCode> {
    let create = Create {
        template: arguments.template,
        timeout: Some(arguments.timeout),
        metadata: arguments.metadata.into_iter().collect(),
        env_vars: arguments.env.into_iter().collect(),
        allow_internet_access: arguments.no_internet.then_some(false),
        auto_pause: arguments.on_timeout == AtTimeout::Pause,
        auto_resume: arguments.auto_resume,
    };
    let sandbox = client.create(&create).await?;
    if arguments.output.json {
        return print_json(&sandbox);
    }
    terminal::say(&sandbox.sandbox_id);
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, output: &Output) -> Result<ExitCode> {
    let sandboxes = client.list().await?;
    if output.json {
        return print_json(&sandboxes);
    }
    if sandboxes.is_empty() {
        terminal::say("There is no sandbox.");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!(
        "{:<22} {:<16} {:<8} {:>5} {:>8}  {:<20} {}",
        "ID", "TEMPLATE", "STATE", "CPUS", "MEMORY", "UNTIL", "METADATA"
    ));
    for sandbox in &sandboxes {
        let labels: Vec<String> =
            sandbox.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let line = format!(
            "{:<22} {:<16} {:<8} {:>5} {:>5}MiB  {:<20} {}",
            sandbox.sandbox_id,
            sandbox.alias.as_deref().unwrap_or(&sandbox.template_id),
            state(sandbox.state),
            sandbox.cpu_count,
            sandbox.memory_mb,
            // A paused one stays until it is killed.
            match sandbox.state {
                SandboxState::Running => format!("{:.0}", sandbox.end_at),
                SandboxState::Paused => "killed".to_owned(),
            },
            labels.join(",")
        );
        terminal::say(line.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

fn state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Running => "running",
        SandboxState::Paused => "paused",
    }
}

/// What a paused sandbox or a snapshot holds, in plain words.
fn kept(kept: Kept) -> &'static str {
    match kept {
        Kept::Disk => "files",
        Kept::Frozen => "files, and processes frozen in memory until Atoll is stopped",
        Kept::Checkpoint => "files and processes",
    }
}

async fn info(client: &Client, arguments: &InfoArguments) -> Result<ExitCode> {
    let sandbox = client.info(&arguments.id).await?;
    if arguments.output.json {
        return print_json(&sandbox);
    }
    terminal::say(&describe(&sandbox));
    Ok(ExitCode::SUCCESS)
}

fn describe(detail: &rest::SandboxDetail) -> String {
    let sandbox = &detail.listed;
    let end = match sandbox.state {
        SandboxState::Running => "ends",
        SandboxState::Paused => "paused",
    };
    let mut rows = vec![
        ("id", sandbox.sandbox_id.clone()),
        ("template", sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone())),
        ("state", state(sandbox.state).to_owned()),
        ("started", format!("{:.0}", sandbox.started_at)),
        (end, format!("{:.0}", sandbox.end_at)),
        ("cpus", sandbox.cpu_count.to_string()),
        ("memory", format!("{} MiB", sandbox.memory_mb)),
        ("disk", format!("{} MiB", sandbox.disk_size_mb)),
        ("envd", sandbox.envd_version.clone()),
    ];
    if let Some(what) = detail.kept {
        rows.push(("kept", kept(what).to_owned()));
    }
    if detail.lifecycle.on_timeout == OnTimeout::Pause {
        rows.push(("at end", "it is paused".to_owned()));
    }
    if detail.lifecycle.auto_resume {
        rows.push(("wakes", "by a request to it".to_owned()));
    }
    let lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("{name:<10} {value}")).collect();
    lines.join("\n")
}

async fn kill(client: &Client, arguments: KillArguments) -> Result<ExitCode> {
    let ids = if arguments.all {
        client.list().await?.into_iter().map(|sandbox| sandbox.sandbox_id).collect()
    } else {
        arguments.ids
    };
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match client.kill(&id).await {
            Ok(()) => terminal::say(&id),
            Err(error) => {
                terminal::fail(&error.to_string());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("A="), Ok(("A".to_owned(), String::new())));
        assert!(pair("=b").is_err());
        assert!(pair("A").is_err());
    }
}
