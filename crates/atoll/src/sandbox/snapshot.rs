//! `atoll sandbox snapshot`: copies of sandboxes, of which others are created.

use std::process::ExitCode;

use atoll_core::Result;

use super::{Output, print_json};
use crate::{client::Client, terminal};

/// Commands on snapshots.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Copy a running sandbox, which goes on, and print what the copy is called as a template.
    Create(CreateArguments),
    /// List snapshots, newest first.
    List(ListArguments),
    /// Delete snapshots. Sandboxes that were made of them are not touched.
    Delete(DeleteArguments),
}

#[derive(clap::Args)]
pub(crate) struct CreateArguments {
    /// The sandbox.
    id: String,
    /// What it is to be called.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct ListArguments {
    /// Of this sandbox only.
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct DeleteArguments {
    /// The snapshots.
    #[arg(required = true)]
    ids: Vec<String>,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(arguments) => create(client, &arguments).await,
        Command::List(arguments) => list(client, &arguments).await,
        Command::Delete(arguments) => delete(client, &arguments).await,
    }
}

async fn create(client: &Client, arguments: &CreateArguments) -> Result<ExitCode> {
    let snapshot = client.snapshot(&arguments.id, arguments.name.as_deref()).await?;
    if arguments.output.json {
        return print_json(&snapshot);
    }
    terminal::say(&snapshot.snapshot_id);
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, arguments: &ListArguments) -> Result<ExitCode> {
    let snapshots = client.snapshots(arguments.sandbox.as_deref()).await?;
    if arguments.output.json {
        return print_json(&snapshots);
    }
    if snapshots.is_empty() {
        terminal::note("There is no snapshot.");
    }
    for snapshot in snapshots {
        terminal::say(&snapshot.snapshot_id);
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(client: &Client, arguments: &DeleteArguments) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in &arguments.ids {
        match client.delete_template(id).await {
            Ok(()) => terminal::say(id),
            Err(error) => {
                terminal::fail(&error.to_string());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
