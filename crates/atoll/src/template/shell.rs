//! `atoll template shell`: a terminal where a build failed.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

use crate::{
    client::{Client, CommandInput, Exec, ExecEvent, WindowSize},
    sandbox::exec::{attach, exit_code, write_all},
    terminal, throwaway,
};

/// What is typed between two reads.
const INPUT_CHUNK: usize = 4096;
/// Not every image has bash.
const SHELL: &str = "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The build.
    build: String,
    /// Be this user, instead of the one of the failed step.
    #[arg(long, short)]
    user: Option<String>,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let sandbox = client.build_shell(&arguments.build, throwaway::LIFETIME).await?;
    throwaway::with(client, &sandbox, open(client, &sandbox, arguments)).await
}

async fn open(client: &Client, sandbox: &rest::Sandbox, arguments: &Arguments) -> Result<ExitCode> {
    let mut exec = Exec {
        program: "/bin/sh".to_owned(),
        arguments: vec!["-c".to_owned(), SHELL.to_owned()],
        user: arguments.user.clone(),
        ..Exec::default()
    };
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return attach(client, sandbox, exec).await;
    }
    terminal::note(&format!(
        "Sandbox {}; it is ended with this terminal (exit or Ctrl-D).",
        sandbox.sandbox_id
    ));
    exec.terminal = Some(window_size());
    exec.variables.insert("TERM".to_owned(), terminal_type());
    let raw = RawTerminal::enter()?;
    let outcome = interact(client, sandbox, exec).await;
    drop(raw);
    outcome
}

fn terminal_type() -> String {
    std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned())
}

async fn interact(client: &Client, sandbox: &rest::Sandbox, exec: Exec) -> Result<ExitCode> {
    let mut running = client.exec(sandbox, exec).await?;
    let keys = tokio::spawn(forward_keys(running.input()));
    let sizes = tokio::spawn(forward_sizes(running.input()));
    let outcome = loop {
        match running.next().await {
            Ok(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                if let Err(error) = write_all(&mut tokio::io::stdout(), &bytes).await {
                    break Err(error);
                }
            }
            Ok(ExecEvent::Ended { code, error }) => break Ok(exit_code(code, error.as_deref())),
            Err(error) => break Err(error),
        }
    };
    keys.abort();
    sizes.abort();
    outcome
}

async fn forward_keys(input: CommandInput) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_CHUNK];
    while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
        if input.type_in(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

async fn forward_sizes(input: CommandInput) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if input.resize(window_size()).await.is_err() {
            return;
        }
    }
}

fn window_size() -> WindowSize {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => WindowSize { columns: size.ws_col, rows: size.ws_row },
        _ => WindowSize { columns: 80, rows: 24 },
    }
}

/// The terminal without a line editor of its own, which it has again when this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let unusable =
            |error| Error::new(codes::INTERNAL, format!("the terminal cannot be used: {error}."));
        let former = tcgetattr(io::stdin()).map_err(unusable)?;
        let mut raw = former.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(unusable)?;
        Ok(Self(former))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            tracing::warn!(%error, "the terminal stays raw; `reset` mends it");
        }
    }
}
