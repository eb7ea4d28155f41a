//! `atoll sandbox`: sandboxes from the shell, through the public API only.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

use crate::{
    client::{Client, CommandInput, Create, Exec, ExecEvent},
    logs, terminal,
};

/// What a shell reports for a program that a signal ended, less the signal's number.
const SIGNALLED: u8 = 128;
/// Piped input travels in pieces of this size.
const INPUT_CHUNK: usize = 64 * 1024;
/// `exec` keeps a sandbox alive at least this long.
const EXEC_TIMEOUT: u32 = 60;

/// Commands on sandboxes.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and print its id.
    Create(CreateArguments),
    /// List running sandboxes.
    List(Output),
    /// Show one sandbox.
    Info(InfoArguments),
    /// Run a command; its input, output and exit code are this command's.
    Exec(ExecArguments),
    /// Show what a sandbox logged, also after its end.
    Logs(logs::Arguments),
    /// End sandboxes.
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
    #[command(flatten)]
    output: Output,
}

/// How answers are printed.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct InfoArguments {
    /// The sandbox.
    id: String,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct ExecArguments {
    /// The sandbox.
    id: String,
    /// Run as this user.
    #[arg(long, short)]
    user: Option<String>,
    /// Run in this directory.
    #[arg(long, short = 'w')]
    workdir: Option<String>,
    /// A variable for the command; may be repeated.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// The command and its arguments; one word is read by a shell.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct KillArguments {
    /// The sandboxes.
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All of the team's.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
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
        Command::Exec(arguments) => exec(&client, arguments).await,
        Command::Logs(arguments) => logs::run(&client, &arguments).await,
        Command::Kill(arguments) => kill(&client, arguments).await,
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<ExitCode> {
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
        terminal::say("No sandbox is running.");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!(
        "{:<22} {:<16} {:>5} {:>8}  {:<20} {}",
        "ID", "TEMPLATE", "CPUS", "MEMORY", "ENDS", "METADATA"
    ));
    for sandbox in &sandboxes {
        let labels: Vec<String> =
            sandbox.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        terminal::say(&format!(
            "{:<22} {:<16} {:>5} {:>5}MiB  {:<20.0} {}",
            sandbox.sandbox_id,
            sandbox.alias.as_deref().unwrap_or(&sandbox.template_id),
            sandbox.cpu_count,
            sandbox.memory_mb,
            sandbox.end_at,
            labels.join(",")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn info(client: &Client, arguments: &InfoArguments) -> Result<ExitCode> {
    let sandbox = client.info(&arguments.id).await?;
    if arguments.output.json {
        return print_json(&sandbox);
    }
    terminal::say(&describe(&sandbox));
    Ok(ExitCode::SUCCESS)
}

fn describe(sandbox: &rest::SandboxDetail) -> String {
    let sandbox = &sandbox.listed;
    let rows = [
        ("id", sandbox.sandbox_id.clone()),
        ("template", sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone())),
        ("started", format!("{:.0}", sandbox.started_at)),
        ("ends", format!("{:.0}", sandbox.end_at)),
        ("cpus", sandbox.cpu_count.to_string()),
        ("memory", format!("{} MiB", sandbox.memory_mb)),
        ("disk", format!("{} MiB", sandbox.disk_size_mb)),
        ("envd", sandbox.envd_version.clone()),
    ];
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

async fn exec(client: &Client, arguments: ExecArguments) -> Result<ExitCode> {
    let sandbox = client.connect(&arguments.id, EXEC_TIMEOUT).await?;
    let mut command = arguments.command;
    let mut exec = if command.len() == 1 {
        Exec::shell(&command.remove(0))
    } else {
        Exec { program: command.remove(0), arguments: command, ..Exec::default() }
    };
    exec.user = arguments.user;
    exec.directory = arguments.workdir;
    exec.variables = arguments.env.into_iter().collect::<BTreeMap<_, _>>();
    // A terminal is not sent on: without a pseudo-terminal there, a shell would wait for ever.
    exec.stdin = !io::stdin().is_terminal();
    let has_input = exec.stdin;

    let mut running = client.exec(&sandbox, exec).await?;
    let forward = has_input.then(|| tokio::spawn(forward_input(running.input())));
    let signals = tokio::spawn(forward_signals(running.input()));
    let outcome = loop {
        match running.next().await {
            Ok(ExecEvent::Stdout(bytes)) => write_all(&mut io::stdout(), &bytes)?,
            Ok(ExecEvent::Stderr(bytes)) => write_all(&mut io::stderr(), &bytes)?,
            Ok(ExecEvent::Ended { code, error }) => break Ok(exit_code(code, error.as_deref())),
            Err(error) => break Err(error),
        }
    };
    signals.abort();
    if let Some(forward) = forward {
        forward.abort();
    }
    outcome
}

/// The command's exit code as a shell reports it.
fn exit_code(code: i32, error: Option<&str>) -> ExitCode {
    match u8::try_from(code) {
        Ok(code) => ExitCode::from(code),
        Err(_) => {
            let signal = match error {
                Some(text) if text.starts_with("signal: killed") => 9,
                Some(text) if text.starts_with("signal: terminated") => 15,
                Some(text) if text.starts_with("signal: interrupt") => 2,
                Some(text) if text.starts_with("signal: segmentation fault") => 11,
                Some(text) if text.starts_with("signal: aborted") => 6,
                _ => 0,
            };
            ExitCode::from(SIGNALLED + signal)
        }
    }
}

fn write_all(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    // A reader that has left, such as `head`, ends us too.
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| {
        Error::new(codes::INTERNAL, format!("cannot write the command's output: {error}."))
            .with_fix("")
    })
}

async fn forward_input(input: CommandInput) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_CHUNK];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            // The command has ended or closed its input: so is ours.
            Ok(count) if input.write(buffer[..count].to_vec()).await.is_err() => return,
            Ok(_) => {}
        }
    }
    // It may have ended before its input did.
    let _ = input.close().await;
}

/// Ctrl-C asks the command to end; the second one ends it.
async fn forward_signals(input: CommandInput) {
    let Ok(mut interrupts) = signal(SignalKind::interrupt()) else { return };
    let mut force = false;
    while interrupts.recv().await.is_some() {
        if input.signal(force).await.is_err() {
            return;
        }
        force = true;
    }
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

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(exit_code(3, Some("exit status 3")), ExitCode::from(3));
        assert_eq!(exit_code(-1, Some("signal: killed")), ExitCode::from(137));
        assert_eq!(
            exit_code(-1, Some("signal: segmentation fault (core dumped)")),
            ExitCode::from(139)
        );
    }
}
