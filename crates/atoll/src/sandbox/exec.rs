//! `atoll sandbox exec`: a command whose input, output and exit code are this one's.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, stderr, stdout},
    signal::unix::{SignalKind, signal},
};

use super::pair;
use crate::client::{Client, CommandInput, Exec, ExecEvent};

/// What a shell reports for a program that a signal ended, less the signal's number.
const SIGNALLED: u8 = 128;
/// Piped input travels in pieces of this size.
const INPUT_CHUNK: usize = 64 * 1024;
/// A sandbox is kept alive at least this long.
const EXEC_TIMEOUT: u32 = 60;

#[derive(clap::Args)]
pub(crate) struct Arguments {
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

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<ExitCode> {
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
    attach(client, &sandbox, exec).await
}

/// Runs a command with this one's input, output, signals and exit code.
pub(crate) async fn attach(
    client: &Client,
    sandbox: &rest::Sandbox,
    mut exec: Exec,
) -> Result<ExitCode> {
    // A terminal is not sent on: without a pseudo-terminal there, a shell would wait for ever.
    exec.stdin = !io::stdin().is_terminal();
    let has_input = exec.stdin;

    let mut running = client.exec(sandbox, exec).await?;
    let forward = has_input.then(|| tokio::spawn(forward_input(running.input())));
    let signals = tokio::spawn(forward_signals(running.input()));
    let outcome = loop {
        match running.next().await {
            Ok(ExecEvent::Stdout(bytes)) => write_all(&mut stdout(), &bytes).await?,
            Ok(ExecEvent::Stderr(bytes)) => write_all(&mut stderr(), &bytes).await?,
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
pub(crate) fn exit_code(code: i32, error: Option<&str>) -> ExitCode {
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

/// Writes what a sandbox printed. Nothing else waits for a reader that is slow.
pub(crate) async fn write_all(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    // A reader that has left, such as `head`, ends us too.
    written.await.map_err(|error: io::Error| {
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
    fn exit_codes_are_a_shells() {
        assert_eq!(exit_code(3, Some("exit status 3")), ExitCode::from(3));
        assert_eq!(exit_code(-1, Some("signal: killed")), ExitCode::from(137));
        assert_eq!(
            exit_code(-1, Some("signal: segmentation fault (core dumped)")),
            ExitCode::from(139)
        );
    }
}
