//! `atoll doctor`: what this host offers, what is missing, and what to do about it.
//!
//! What can be tried is tried: [`probe`] starts a real, empty sandbox. [`checks`] look at what the
//! probe cannot tell, such as ports and space.

mod checks;
pub(crate) mod names;
mod probe;

use std::{path::PathBuf, process::ExitCode};

use atoll_core::{Error, Result, error::codes};
use atoll_front::Domain;
use serde::Serialize;

use crate::{
    terminal,
    up::{self, ports::Ports},
};

/// Options of `atoll doctor`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The data directory that Atoll is to use.
    #[arg(long, default_value = "/var/lib/atoll", env = "ATOLL_DATA_DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    ports: Ports,
    /// The domain that Atoll is to use.
    #[arg(long, default_value = up::DOMAIN, value_name = "DOMAIN")]
    domain: Domain,
    /// A directory that CRIU was unpacked to; without it, the one in PATH is used.
    #[arg(long, env = "ATOLL_CRIU", value_name = "DIR")]
    criu: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Atoll runs, but something will be less than it could be.
    Warning,
    /// Atoll does not run like this.
    Failure,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    name: &'static str,
    verdict: Verdict,
    /// What was found and what it means.
    fact: String,
    /// What to do; none when nothing has to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &'static str, fact: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, fact: fact.into(), fix: None }
    }

    pub(crate) fn warning(
        name: &'static str,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, verdict: Verdict::Warning, fact: fact.into(), fix: Some(fix.into()) }
    }

    pub(crate) fn failure(
        name: &'static str,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, verdict: Verdict::Failure, fact: fact.into(), fix: Some(fix.into()) }
    }

    pub(crate) fn error(name: &'static str, error: &Error) -> Self {
        Self::failure(name, format!("{}: {}", error.code, error.message), &error.fix)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ready: bool,
    findings: &'a [Finding],
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut findings = checks::all(&arguments).await;
    findings.extend(probe::container(arguments.criu.clone()).await);
    let ready = findings.iter().all(|finding| finding.verdict != Verdict::Failure);
    if arguments.json {
        let report = serde_json::to_string_pretty(&Report { ready, findings: &findings })
            .map_err(|error| Error::new(codes::INTERNAL, format!("cannot print: {error}.")))?;
        terminal::say(&report);
    } else {
        findings.iter().for_each(print);
        terminal::say(if ready {
            "\nThis host is ready for `atoll up`."
        } else {
            "\nThis host is not ready: see the lines marked FAIL."
        });
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(finding: &Finding) {
    let mark = match finding.verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warning => "warn",
        Verdict::Failure => "FAIL",
    };
    terminal::say(&format!("{mark}  {:<16} {}", finding.name, finding.fact));
    if let Some(fix) = &finding.fix {
        terminal::say(&format!("      {:<16} -> {fix}", ""));
    }
}
