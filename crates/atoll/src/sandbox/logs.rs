//! `atoll sandbox logs`: what envd and the node say of a sandbox.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::SandboxLogEntry;

use crate::{client::Client, terminal};

/// How often a log that is followed is asked for.
const PAUSE: Duration = Duration::from_millis(400);

/// How long the last line of a sandbox that has ended is waited for. It is written when all of it is
/// gone, and stored a moment later.
const LAST_LINE: Duration = Duration::from_secs(15);

/// The `event_type` of that line.
const END: &str = "sandbox_end";

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
    let (mut place, mut gone) = (Place::default(), None);
    if let Some(unknown) = absence(client, id).await? {
        // One that has ended is known by its log.
        if client.logs(id, 0, "debug").await?.is_empty() {
            return Err(unknown);
        }
        gone = Some(Instant::now());
    }
    loop {
        show_new(client, arguments, &mut place).await?;
        if !arguments.view.follow {
            return Ok(ExitCode::SUCCESS);
        }
        match gone {
            Some(since)
                if has_last_line(client, id, &place).await? || since.elapsed() > LAST_LINE =>
            {
                show_new(client, arguments, &mut place).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(_) => {}
            None => gone = absence(client, id).await?.map(|_| Instant::now()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The error for a sandbox that is not there; none for one that is.
async fn absence(client: &Client, id: &str) -> Result<Option<Error>> {
    match client.info(id).await {
        Ok(_) => Ok(None),
        Err(error) if error.code == codes::NOT_FOUND => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// Whether the line that says how a sandbox has ended is in its log, behind what was shown.
async fn has_last_line(client: &Client, id: &str, shown: &Place) -> Result<bool> {
    let mut place = Place { start: shown.start, shown: 0 };
    loop {
        let page = client.logs(id, place.start, "info").await?;
        let is_end =
            |entry: &SandboxLogEntry| entry.fields.get("event_type").is_some_and(|it| it == END);
        if page.iter().any(is_end) {
            return Ok(true);
        }
        if place.advance(&page).is_empty() {
            return Ok(false);
        }
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
