//! Cells of the code interpreter: the first of a new sandbox, and warm ones beside `jupyter_client`,
//! which drives the same kernel in the same sandbox.

use std::time::{Duration, Instant};

use atoll_core::{Result, error::codes};
use atoll_wire::rest::{self, Kept};
use serde::Deserialize;

use super::{
    Bench, SANDBOX_SECONDS, failed,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::{
    client::{Cell, CellEvent, Create, Exec, ExecEvent},
    template::Shipped,
    terminal,
};

/// Cold caches are not what is measured.
const WARM_UP: usize = 2;
/// A create may take seconds where memory is not kept: so many are enough.
const MAX_CREATES: usize = 50;
/// A cell takes milliseconds; medians are to be compared.
const CELLS: usize = 300;
/// What is run.
const CODE: &str = "print(1)";
/// What that prints.
const OUTPUT: &str = "1\n";
/// Compares, inside of a sandbox.
const DRIVER: &str = include_str!("interpreter.py");

/// What the driver prints.
#[derive(Deserialize)]
struct Compared {
    /// The sandbox in which the kernel was started: not the one it is in, if its memory was kept.
    started_in: String,
    times: Times,
}

/// Times of the same cell, milliseconds.
#[derive(Deserialize)]
struct Times {
    interpreter: Vec<f64>,
    execute_interactive: Vec<f64>,
    fastest: Vec<f64>,
}

/// What the first cells of new sandboxes took.
#[derive(Default)]
struct First {
    /// From the request for a sandbox to the first line that a cell of it prints.
    create_to_print: Vec<Duration>,
    first: Vec<Duration>,
    second: Vec<Duration>,
}

impl Bench {
    /// Creates `count` sandboxes, at most [`MAX_CREATES`], and runs cells in another.
    pub(super) async fn measure_interpreter(
        &self,
        count: usize,
        report: &mut Report,
    ) -> Result<()> {
        let sandbox = match self.client.create(&interpreters()).await {
            Ok(sandbox) => sandbox,
            Err(error) if error.code == codes::TEMPLATE_NOT_FOUND => {
                let command = Shipped::CodeInterpreter.command();
                report.note(format!("No code interpreter: `{command}` builds its template."));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let warm = self.warm(&sandbox).await;
        self.client.kill(&sandbox.sandbox_id).await?;
        let (outside, compared, kept) = warm?;
        let first = self.first_cells(count.min(MAX_CREATES)).await?;
        report.push_cells(&first, &outside, &compared.times, kept);
        Ok(())
    }

    async fn first_cells(&self, count: usize) -> Result<First> {
        let mut all = First::default();
        for round in 0..WARM_UP + count {
            if round == WARM_UP {
                all = First::default();
            }
            let started = Instant::now();
            self.with_one(&interpreters(), async |sandbox| {
                let created = Instant::now();
                let printed = self.cell(sandbox).await?;
                all.first.push(created.elapsed());
                all.create_to_print.push(printed - started);
                let second = Instant::now();
                self.cell(sandbox).await?;
                all.second.push(second.elapsed());
                Ok(())
            })
            .await?;
        }
        Ok(all)
    }

    /// Cells from here, cells from inside, and what the kernel came from.
    async fn warm(&self, sandbox: &rest::Sandbox) -> Result<(Vec<Duration>, Compared, Kept)> {
        let mut times = Vec::with_capacity(CELLS);
        for round in 0..WARM_UP + CELLS {
            let started = Instant::now();
            self.cell(sandbox).await?;
            if round >= WARM_UP {
                times.push(started.elapsed());
            }
        }
        let compared = self.compare(sandbox).await?;
        let own = compared.started_in == sandbox.sandbox_id;
        let kept = if own { Kept::Disk } else { Kept::Checkpoint };
        Ok((times, compared, kept))
    }

    /// Runs the cell to its end, and says when it had printed.
    async fn cell(&self, sandbox: &rest::Sandbox) -> Result<Instant> {
        let cell = Cell { code: CODE.to_owned(), language: "python".to_owned() };
        let mut running = self.client.execute(sandbox, &cell).await?;
        let (mut output, mut printed) = (String::new(), None);
        loop {
            match running.next().await? {
                CellEvent::Stdout { text } => {
                    output.push_str(&text);
                    printed = Some(Instant::now());
                }
                CellEvent::Ended => break,
                CellEvent::Other => {}
                CellEvent::Failed { name, value, .. } => {
                    let why = terminal::harmless(&format!("{name}: {value}"));
                    return Err(failed("a cell that prints", why));
                }
                CellEvent::Stderr { .. } | CellEvent::Shown(_) => {
                    return Err(failed("a cell that prints", "it did something else, too"));
                }
            }
        }
        running.finish().await?;
        let printed = printed.filter(|_| output == OUTPUT);
        printed.ok_or_else(|| failed("a cell that prints", format!("it printed {output:?}")))
    }

    /// Runs the driver in the sandbox.
    async fn compare(&self, sandbox: &rest::Sandbox) -> Result<Compared> {
        let token = sandbox.envd_access_token.clone().unwrap_or_default();
        let exec = Exec {
            program: "/usr/bin/env".to_owned(),
            arguments: ["python3", "-c", DRIVER, &CELLS.to_string()].map(str::to_owned).to_vec(),
            variables: [("ATOLL_BENCH_TOKEN".to_owned(), token)].into(),
            // Whose sockets the kernels' are.
            user: Some("root".to_owned()),
            ..Exec::default()
        };
        let mut running = self.client.exec(sandbox, exec).await?;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match running.next().await? {
                ExecEvent::Stdout(bytes) => output.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => errors.extend_from_slice(&bytes),
                ExecEvent::Ended { code: 0, .. } => break,
                ExecEvent::Ended { .. } => {
                    let errors = terminal::harmless(&String::from_utf8_lossy(&errors));
                    return Err(failed("jupyter_client", errors));
                }
            }
        }
        serde_json::from_slice(&output).map_err(|error| failed("jupyter_client", error))
    }
}

fn interpreters() -> Create {
    Create {
        template: Shipped::CodeInterpreter.alias().to_owned(),
        timeout: Some(SANDBOX_SECONDS),
        ..Create::default()
    }
}

impl Report {
    fn push_cells(&mut self, first: &First, outside: &[Duration], inside: &Times, kept: Kept) {
        for (name, times) in [
            ("interpreter, create to print", &first.create_to_print),
            ("interpreter, first cell", &first.first),
            ("interpreter, second cell", &first.second),
        ] {
            self.push(Row::time(name, 1, Statistics::of_durations(times)).kept(Some(kept)));
        }
        let peers = [
            ("jupyter_client", Statistics::of(&inside.execute_interactive)),
            ("its sockets alone", Statistics::of(&inside.fastest)),
        ];
        self.push(Row::time("cell, from here", 1, Statistics::of_durations(outside)));
        let own = Row::time("cell, from inside", 1, Statistics::of(&inside.interpreter));
        self.push(own.beside(peers).above(peers));
        for (name, statistics) in peers {
            self.push(Row::time(&format!("cell, by {name}"), 1, statistics));
        }
    }
}
