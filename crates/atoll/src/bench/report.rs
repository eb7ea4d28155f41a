//! The table and the JSON of a run.

use std::collections::BTreeMap;

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::Kept;
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
    /// This median as a multiple of those of others that do the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ratios: BTreeMap<&'static str, f64>,
    /// This median less those of others that do the same, in this row's unit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    differences: BTreeMap<&'static str, f64>,
    /// What it depends on: what pauses kept, or forks copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
}

impl Row {
    fn new(name: &str, at_once: usize, unit: &'static str, statistics: Statistics) -> Self {
        Self {
            name: name.to_owned(),
            at_once,
            unit,
            statistics,
            create_ratio: None,
            ratios: BTreeMap::new(),
            differences: BTreeMap::new(),
            kept: None,
        }
    }

    /// A time, in milliseconds.
    pub(crate) fn time(name: &str, at_once: usize, statistics: Statistics) -> Self {
        Self::new(name, at_once, "ms", statistics)
    }

    /// An amount of memory or of a disk, in MiB.
    pub(crate) fn amount(name: &str, statistics: Statistics) -> Self {
        Self::new(name, 1, "MiB", statistics)
    }

    /// A throughput, in MiB a second.
    pub(crate) fn rate(name: &str, statistics: Statistics) -> Self {
        Self::new(name, 1, "MiB/s", statistics)
    }

    /// Compares it with others, by name.
    pub(crate) fn beside(
        mut self,
        others: impl IntoIterator<Item = (&'static str, Statistics)>,
    ) -> Self {
        let own = self.statistics.p50;
        let others = others.into_iter().filter(|(_, other)| other.p50 > 0.0);
        self.ratios = others.map(|(name, other)| (name, own / other.p50)).collect();
        self
    }

    /// Says by how much it is above others, by name.
    pub(crate) fn above(
        mut self,
        others: impl IntoIterator<Item = (&'static str, Statistics)>,
    ) -> Self {
        let own = self.statistics.p50;
        self.differences =
            others.into_iter().map(|(name, other)| (name, own - other.p50)).collect();
        self
    }

    /// Says what pauses kept, or forks copied.
    pub(crate) fn kept(self, kept: Option<Kept>) -> Self {
        Self { kept, ..self }
    }

    /// What follows the figures.
    fn remark(&self) -> String {
        let mut remarks = Vec::new();
        if let Some(ratio) = self.create_ratio {
            remarks.push(format!("create is {ratio:.2} times this"));
        }
        remarks.extend(self.ratios.iter().map(|(name, ratio)| format!("{ratio:.2} times {name}")));
        let unit = self.unit;
        let differences = self.differences.iter();
        remarks.extend(differences.map(|(name, more)| format!("{more:+.2} {unit} on {name}")));
        remarks.extend(self.kept.map(|kept| match kept {
            Kept::Disk => "files only".to_owned(),
            Kept::Frozen => "memory frozen".to_owned(),
            Kept::Checkpoint => "memory in a checkpoint".to_owned(),
        }));
        remarks.join(", ")
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
    /// What was left out, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
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
            notes: Vec::new(),
        }
    }

    /// Says what is not measured here.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
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
                "{:<31} {:>6} {:>6} {:>9} {:>9} {:>9}",
                "", "at once", "n", "p50", "p99", "max"
            ),
        ];
        for row in &self.rows {
            let Statistics { count, p50, p99, max, .. } = row.statistics;
            let line = format!(
                "{:<31} {:>6} {count:>6} {p50:>9.2} {p99:>9.2} {max:>9.2} {:<5}  {}",
                row.name,
                row.at_once,
                row.unit,
                row.remark()
            );
            lines.push(line.trim_end().to_owned());
        }
        lines.extend(self.notes.iter().map(|note| format!("\n{note}")));
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

    #[test]
    fn what_a_pause_kept_is_said() {
        let mut report = Report::new();
        let row = Row::time("pause, idle", 1, Statistics::of(&[10.0]));
        report.push(row.kept(Some(Kept::Checkpoint)));
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["rows"][0]["kept"], "checkpoint");
        assert!(report.table().contains("memory in a checkpoint"));
    }

    #[test]
    fn a_time_is_given_as_a_difference_to_others() {
        let mut report = Report::new();
        let others = [("jupyter_client", Statistics::of(&[4.0]))];
        report.push(Row::time("cell", 1, Statistics::of(&[3.0])).beside(others).above(others));
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["rows"][0]["differences"], serde_json::json!({ "jupyter_client": -1.0 }));
        assert!(report.table().contains("0.75 times jupyter_client, -1.00 ms on jupyter_client"));
    }

    #[test]
    fn a_rate_is_compared_with_what_was_measured() {
        let mut report = Report::new();
        let others = [("cat", Statistics::of(&[400.0])), ("nginx", Statistics::default())];
        report.push(Row::rate("upload", Statistics::of(&[100.0])).beside(others));
        report.note("No nginx.");
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["rows"][0]["ratios"], serde_json::json!({ "cat": 0.25 }));
        assert_eq!(value["notes"], serde_json::json!(["No nginx."]));
        assert!(report.table().contains("MiB/s  0.25 times cat"));
        assert!(report.table().ends_with("No nginx."));
    }
}
