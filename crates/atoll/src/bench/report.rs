//! The table and the JSON of a run.

use atoll_core::{Error, Result, error::codes};
use serde::Serialize;

use super::statistics::Statistics;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    /// Requests under way at once.
    at_once: usize,
    unit: &'static str,
    #[serde(flatten)]
    statistics: Statistics,
    /// Median of `create`, one at a time, as a multiple of this median; for other programs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    create_ratio: Option<f64>,
}

impl Row {
    /// A time, in milliseconds.
    pub(crate) fn time(name: &str, at_once: usize, statistics: Statistics) -> Self {
        Self { name: name.to_owned(), at_once, unit: "ms", statistics, create_ratio: None }
    }

    /// An amount of memory, in MiB.
    pub(crate) fn memory(name: &str, statistics: Statistics) -> Self {
        Self { name: name.to_owned(), at_once: 1, unit: "MiB", statistics, create_ratio: None }
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    kernel: String,
    processors: usize,
    /// How sandboxes were isolated.
    driver: &'static str,
    /// Whether they came ready from a pool, or were made on request.
    pool_of_ready_sandboxes: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            driver: "container",
            pool_of_ready_sandboxes: false,
            rows: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Another program's time to run a program in a fresh sandbox.
    pub(crate) fn push_peer(&mut self, name: &str, statistics: Statistics) {
        let create = self.rows.iter().find(|row| row.name == "create" && row.at_once == 1);
        let create_ratio =
            create.filter(|_| statistics.p50 > 0.0).map(|row| row.statistics.p50 / statistics.p50);
        self.rows.push(Row { create_ratio, ..Row::time(name, 1, statistics) });
    }

    pub(crate) fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::new(codes::INTERNAL, format!("cannot print: {error}.")))
    }

    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "Atoll {}, driver {}, sandboxes made on request, Linux {}, {} processors",
                self.version, self.driver, self.kernel, self.processors
            ),
            String::new(),
            format!(
                "{:<30} {:>7} {:>6} {:>9} {:>9} {:>9}",
                "", "at once", "n", "p50", "p99", "max"
            ),
        ];
        for row in &self.rows {
            let ratio = row
                .create_ratio
                .map(|ratio| format!("   create is {ratio:.2} times this"))
                .unwrap_or_default();
            let Statistics { count, p50, p99, max, .. } = row.statistics;
            lines.push(format!(
                "{:<30} {:>7} {count:>6} {p50:>9.2} {p99:>9.2} {max:>9.2} {}{ratio}",
                row.name, row.at_once, row.unit
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_given_as_a_ratio_to_one_create() {
        let mut report = Report::new();
        report.push(Row::time("create", 1, Statistics::of(&[10.0])));
        report.push(Row::time("create", 50, Statistics::of(&[99.0])));
        report.push_peer("crun run", Statistics::of(&[5.0]));
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["rows"][2]["create_ratio"], 2.0);
        assert!(report.table().contains("create is 2.00 times this"));
    }
}
