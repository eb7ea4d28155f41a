//! `atoll template logs`: what a build said.

use std::{process::ExitCode, time::Duration};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{
    log::LogLevel,
    rest::{BuildLogEntry, BuildStatus},
};

use super::submit;
use crate::{client::Client, sandbox::logs::View, terminal};

const PAUSE: Duration = Duration::from_millis(400);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The build, or the template for its latest one.
    #[arg(value_name = "BUILD|TEMPLATE")]
    build: String,
    #[command(flatten)]
    view: View,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let (template, build) = find(client, &arguments.build).await?;
    let least = level(&arguments.view.level);
    let mut first = None;
    let show = |line: &BuildLogEntry| {
        let first = *first.get_or_insert(line.timestamp);
        match (line.level >= least, arguments.view.json) {
            (false, _) => {}
            (true, true) => terminal::say(&serde_json::to_string(line).unwrap_or_default()),
            (true, false) => submit::print_line(line, first),
        }
    };
    if arguments.view.follow {
        let ended = submit::follow(client, &template, &build, PAUSE, show).await?;
        let is_ready = ended.status == BuildStatus::Ready;
        return Ok(if is_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    all(client, &template, &build, show).await?;
    Ok(ExitCode::SUCCESS)
}

fn level(name: &str) -> LogLevel {
    match name.to_lowercase().as_str() {
        "debug" => LogLevel::Debug,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        _ => LogLevel::Info,
    }
}

/// Shows what a build has said so far.
async fn all(
    client: &Client,
    template: &str,
    build: &str,
    mut show: impl FnMut(&BuildLogEntry),
) -> Result<()> {
    let mut offset = 0;
    loop {
        let lines = client.build(template, build, offset).await?.log_entries;
        if lines.is_empty() {
            return Ok(());
        }
        offset += lines.len();
        lines.iter().for_each(&mut show);
    }
}

/// The build that somebody names, by its id or by the template whose latest it is; with its template.
async fn find(client: &Client, name: &str) -> Result<(String, String)> {
    let templates = client.templates().await?;
    if let Some(found) = templates.iter().find(|template| template.build_id == name) {
        return Ok((found.template_id.clone(), name.to_owned()));
    }
    for template in templates {
        let is_named = template.template_id == name
            || template.aliases.iter().chain(&template.names).any(|own| own == name);
        let builds = client.builds(&template.template_id).await?;
        let found = builds.iter().find(|build| is_named || build.build_id == name);
        if let Some(build) = found {
            return Ok((template.template_id, build.build_id.clone()));
        }
    }
    Err(Error::new(codes::NOT_FOUND, format!("there is no build and no template {name:?}."))
        .with_fix(
            "`atoll template build` prints a build's id, `atoll template list` the templates.",
        ))
}
