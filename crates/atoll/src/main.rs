//! `atoll`: the command line, and the wiring of all other crates into running services.
//!
//! - [`up`]: everything in one process, on one machine.
//! - [`doctor`]: what this host offers and what is missing.
//! - [`explain`]: the page of an error code.
//! - [`sandbox`]: sandboxes from the shell, through the public API only.
//! - [`template`]: what sandboxes are made of, likewise.
//! - [`run`]: a file of code in a sandbox of its own, likewise.
//! - [`bench`]: how fast it is here.
//! - [`helpers`]: the programs that this binary carries.

mod bench;
mod client;
mod doctor;
mod explain;
mod helpers;
mod run;
mod sandbox;
mod scratch;
mod template;
mod terminal;
mod throwaway;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A self-hosted sandbox cloud for AI agents, compatible with E2B's SDKs.
#[derive(Parser)]
#[command(name = "atoll", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole cloud on this machine.
    ///
    /// Sandboxes do not die with Atoll: when it was killed, or crashed, the next start on the same data
    /// directory takes them up again, which is also how to upgrade. Ctrl-C ends those that run, and
    /// leaves paused ones as they are; memory that was kept frozen, not on disk, is lost then.
    Up(up::Arguments),
    /// Check what this host offers and what Atoll needs.
    Doctor(doctor::Arguments),
    /// Print the page of an error code, such as ATL-1001.
    Explain(explain::Arguments),
    /// Create, list and use sandboxes; pause, copy and resume them.
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// Build, list and delete what sandboxes are made of.
    #[command(subcommand)]
    Template(template::Command),
    /// Run a file of code in a sandbox of its own, which is ended then; save the pictures it draws.
    ///
    /// What it prints comes as it is printed, and the value of its last line at the end, as in a notebook.
    /// Pictures are saved beside the file: `plot.py` draws `plot-1.png`, `plot-2.png` and so on, over those
    /// of an earlier run. The exit code is 1 if the code failed.
    Run(run::Arguments),
    /// Measure this deployment.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    terminal::start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::fail(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Up(arguments) => up::run(arguments).await,
            Command::Doctor(arguments) => doctor::run(arguments).await,
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Sandbox(command) => sandbox::run(command).await,
            Command::Template(command) => template::run(command).await,
            Command::Run(arguments) => run::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
        }
    });
    // A blocking read, of standard input say, cannot be cancelled: dropping the runtime would wait.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            terminal::fail(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
