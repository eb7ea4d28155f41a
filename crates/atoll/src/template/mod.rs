//! `atoll template`: what sandboxes are made of, through the public API only.
//!
//! - here: listing, deleting, pruning.
//! - [`build`]: from a Dockerfile, which [`dockerfile`] reads and whose files [`context`] packs.
//!   [`import`]: from an archive of an image. [`shipped`]: those that Atoll ships. [`submit`]: what
//!   all do then.
//! - [`logs`]: what a build said. [`shell`]: a terminal where it failed.

mod build;
mod context;
mod dockerfile;
mod import;
mod logs;
mod shell;
mod shipped;
mod submit;

use std::{process::ExitCode, time::Duration};

use atoll_core::Result;
use atoll_wire::rest::{BuildStatus, Template};

pub(crate) use {
    import::hash as hash_file,
    shipped::{Shipped, ensure as ensure_shipped},
    submit::follow as follow_build,
};

use crate::{
    client::Client,
    sandbox::{Output, print_json},
    terminal,
};

/// Commands on templates.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Build a template from a Dockerfile and show how that goes. Ctrl-C cancels it.
    ///
    /// Steps that were built before are not run again, for whichever template of the team that was.
    Build(Box<build::Arguments>),
    /// Make a template of an image in an archive: an OCI layout, or what `docker save` writes.
    Import(import::Arguments),
    /// Build a template that Atoll ships, for every team, unless it is there and its recipe has not
    /// changed. `atoll up --with` does the same at the start.
    Add(shipped::Arguments),
    /// List templates, newest first.
    List(Output),
    /// Show what a build said.
    Logs(logs::Arguments),
    /// Open a terminal in a sandbox as the failed step of a build found things, or of a finished build.
    ///
    /// The sandbox is ended with the terminal. Without a terminal, commands are read from standard input.
    Shell(shell::Arguments),
    /// Delete templates. Not those of which sandboxes run or are paused.
    Delete(DeleteArguments),
    /// Delete what builds left for later ones and nothing needs: results of steps that lead to no
    /// template any more, and uploaded files.
    Prune(Output),
}

#[derive(clap::Args)]
pub(crate) struct DeleteArguments {
    /// The templates, by name or id.
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    let client = Client::from_variables()?;
    match command {
        Command::Build(arguments) => build::run(&client, *arguments).await,
        Command::Import(arguments) => import::run(&client, arguments).await,
        Command::Add(arguments) => shipped::run(&client, &arguments).await,
        Command::List(output) => list(&client, &output).await,
        Command::Logs(arguments) => logs::run(&client, &arguments).await,
        Command::Shell(arguments) => shell::run(&client, &arguments).await,
        Command::Delete(arguments) => delete(&client, &arguments).await,
        Command::Prune(output) => prune(&client, &output).await,
    }
}

async fn list(client: &Client, output: &Output) -> Result<ExitCode> {
    let templates = client.templates().await?;
    if output.json {
        return print_json(&templates);
    }
    if templates.is_empty() {
        terminal::note("There is no template.");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!(
        "{:<24} {:<22} {:<9} {:>4} {:>8} {:>9}  {:<20} {}",
        "NAME", "ID", "STATUS", "CPUS", "MEMORY", "DISK", "CREATED", "TAGS"
    ));
    for template in &templates {
        let mut tags: Vec<String> = client
            .tags(&template.template_id)
            .await?
            .into_iter()
            .map(|tag| tag.tag)
            .filter(|tag| tag != "default")
            .collect();
        tags.sort();
        terminal::say(row(template, &tags).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

fn row(template: &Template, tags: &[String]) -> String {
    format!(
        "{:<24} {:<22} {:<9} {:>4} {:>5}MiB {:>6}MiB  {:<20} {}",
        template.aliases.first().map_or("-", String::as_str),
        template.template_id,
        status(template.build_status),
        template.cpu_count,
        template.memory_mb,
        template.disk_size_mb,
        format!("{:.0}", template.created_at),
        tags.join(",")
    )
}

fn status(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Waiting => "waiting",
        BuildStatus::Building => "building",
        BuildStatus::Ready => "ready",
        BuildStatus::Error => "error",
    }
}

async fn delete(client: &Client, arguments: &DeleteArguments) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in &arguments.names {
        match client.delete_template(name).await {
            Ok(()) => terminal::say(name),
            Err(error) => {
                terminal::fail(&error.to_string());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn prune(client: &Client, output: &Output) -> Result<ExitCode> {
    let pruned = client.prune().await?;
    if output.json {
        return print_json(&pruned);
    }
    for (step, freed) in &pruned.steps {
        terminal::say(&format!("{:>10}  {}", bytes(*freed), terminal::harmless(step)));
    }
    let steps: u64 = pruned.steps.values().sum();
    if pruned.steps.is_empty() && pruned.archives == 0 {
        terminal::say("There is nothing to free: all that builds left is needed by a template.");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!(
        "Freed {}: {} in results of {}, {} in {}.",
        bytes(steps + pruned.archive_bytes),
        bytes(steps),
        counted(pruned.steps.len() as u64, "step"),
        bytes(pruned.archive_bytes),
        counted(pruned.archives, "uploaded archive"),
    ));
    Ok(ExitCode::SUCCESS)
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes for people.
fn bytes(count: u64) -> String {
    let mut amount = count as f64;
    let mut units = ["bytes", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { counted(count, "byte") } else { format!("{amount:.1} {unit}") }
}

/// A duration as people read it in a log.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_people() {
        for (count, expected) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (3 << 19, "1.5 MiB"),
            (5 << 40, "5120.0 GiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
