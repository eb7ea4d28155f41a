//! `atoll sandbox logs`: what envd and the node say of a sandbox.

use std::{process::ExitCode, time::Duration};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::SandboxLogEntry;

use crate::{client::Client, terminal};

/// How often a log that is followed is asked for.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sandbox.
    id: String,
    #[command(flatten)]
    view: View,
}

/// How a log is shown.
#[derive(clap::Args)]
pub(crate) struct View {
    /// Go on until what writes it ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// The least level of what is shown.
    #[arg(
        long,
        default_value = "info",
        value_parser = ["debug", "info", "warn", "error"],
        ignore_case = true
    )]
    pub(crate) level: String,
    /// Print a JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let id = &arguments.id;
    let mut is_running = match client.info(id).await {
        Ok(_) => true,
        // One that has ended is known by its log.
        Err(error) if error.code == codes::NOT_FOUND => {
            if client.logs(id, 0, "debug").await?.is_empty() {
                return Err(error);
            }
            false
        }
        Err(error) => return Err(error),
    };
    let mut place = Place::default();
    loop {
        show_new(client, arguments, &mut place).await?;
        if !is_running || !arguments.view.follow {
            return Ok(ExitCode::SUCCESS);
        }
        is_running = match client.info(id).await {
            Ok(_) => true,
            Err(error) if error.code == codes::NOT_FOUND => false,
            Err(error) => return Err(error),
        };
        // Also after its end, whose line takes a moment to be stored.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn show_new(client: &Client, arguments: &Arguments, place: &mut Place) -> Result<()> {
    let level = arguments.view.level.to_lowercase();
    loop {
        let page = client.logs(&arguments.id, place.start, &level).await?;
        let new = place.advance(&page);
        if new.is_empty() {
            return Ok(());
        }
        for entry in new {
            terminal::say(&if arguments.view.json { json(entry)? } else { text(entry) });
        }
    }
}

/// How much of a log was shown. Pages begin at a millisecond, and lines of one may come in two.
#[derive(Default)]
struct Place {
    start: i64,
    /// Lines of that millisecond that were shown.
    shown: usize,
}

impl Place {
    /// The part of the page from here on that is new; moves behind it.
    fn advance<'a>(&mut self, page: &'a [SandboxLogEntry]) -> &'a [SandboxLogEntry] {
        let at = |entry: &SandboxLogEntry| entry.timestamp.as_millisecond();
        let old = page.iter().take_while(|entry| at(entry) == self.start).count().min(self.shown);
        if let Some(last) = page.last().filter(|_| page.len() > old) {
            self.start = at(last);
            self.shown = page.iter().rev().take_while(|entry| at(entry) == self.start).count();
        }
        &page[old..]
    }
}

fn json(entry: &SandboxLogEntry) -> Result<String> {
    serde_json::to_string(entry)
        .map_err(|error| Error::new(codes::INTERNAL, format!("cannot print: {error}.")))
}

fn text(entry: &SandboxLogEntry) -> String {
    let SandboxLogEntry { timestamp, level, message, fields } = entry;
    let logger = fields.get("logger").map_or("", String::as_str);
    let mut text = format!("{timestamp:.3} {:<5} {logger:<8} {message}", level.as_str());
    for (name, value) in fields.iter().filter(|(name, _)| *name != "logger") {
        text.push_str(&format!("  {name}={value}"));
    }
    terminal::harmless(&text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_wire::log::LogLevel;
    use jiff::Timestamp;

    use super::*;

    fn entry(microsecond: i64, message: &str) -> SandboxLogEntry {
        SandboxLogEntry {
            timestamp: Timestamp::from_microsecond(microsecond).unwrap(),
            level: LogLevel::Info,
            message: message.to_owned(),
            fields: BTreeMap::from(["logger", "cmd"].map(|name| (name.into(), "ls -l".into()))),
        }
    }

    #[test]
    fn every_line_is_shown_once_wherever_pages_end() {
        let all: Vec<SandboxLogEntry> =
            (0..60).map(|number| entry(1_000_000 + number * 300, &number.to_string())).collect();
        // Lines come in while they are read, five at a time.
        let (mut place, mut shown) = (Place::default(), Vec::new());
        for present in 0..=all.len() {
            loop {
                let page: Vec<_> = all[..present]
                    .iter()
                    .filter(|entry| entry.timestamp.as_millisecond() >= place.start)
                    .take(5)
                    .cloned()
                    .collect();
                let new = place.advance(&page).to_vec();
                if new.is_empty() {
                    break;
                }
                shown.extend(new);
            }
        }
        assert_eq!(shown, all);
    }

    #[test]
    fn a_line_cannot_reach_the_terminal() {
        let text = text(&entry(0, "a\u{1b}[2J\n\u{9b}é"));
        assert!(text.ends_with("ls -l    a\\u{1b}[2J\\n\\u{9b}é  cmd=ls -l"), "{text}");
    }
}
