//! `atoll sandbox lineage`: what a sandbox came from, what came from it, and what each costs.

use std::process::ExitCode;

use atoll_core::Result;
use atoll_wire::rest::{LineageEntry, LineageKind, SandboxLineage};

use super::{Output, kept, print_json, state};
use crate::{client::Client, terminal};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sandbox.
    id: String,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let lineage = client.lineage(&arguments.id).await?;
    if arguments.output.json {
        return print_json(&lineage);
    }
    terminal::say(&table(&lineage));
    Ok(ExitCode::SUCCESS)
}

fn table(lineage: &SandboxLineage) -> String {
    let mut lines = vec![
        format!("{:<28} {:<9} {:>10}  {:<20} {}", "", "", "OWN BYTES", "SINCE", "HOLDS"),
        row(&lineage.sandbox),
    ];
    for (title, entries) in [
        ("came from", &lineage.ancestors),
        ("its snapshots", &lineage.snapshots),
        ("its forks", &lineage.forks),
    ] {
        if !entries.is_empty() {
            lines.push(format!("{title}:"));
            lines.extend(entries.iter().map(row));
        }
    }
    lines.push(String::new());
    lines.push("Own bytes are those on disk that deleting this alone would free.".to_owned());
    lines.join("\n")
}

fn row(entry: &LineageEntry) -> String {
    let kind = match entry.kind {
        LineageKind::Sandbox => "sandbox",
        LineageKind::Snapshot => "snapshot",
        LineageKind::Template => "template",
    };
    let since = entry.created_at.map(|at| format!("{at:.0}")).unwrap_or_default();
    let holds = match (entry.gone, entry.state, entry.kept) {
        (true, ..) => "gone".to_owned(),
        (_, Some(now), Some(what)) => format!("{}: {}", state(now), kept(what)),
        (_, Some(now), None) => state(now).to_owned(),
        (_, None, Some(what)) => kept(what).to_owned(),
        (_, None, None) => String::new(),
    };
    let own = entry.unique_bytes.map(bytes).unwrap_or_default();
    let name = entry.name.as_deref().unwrap_or(&entry.id);
    format!("{name:<28} {kind:<9} {own:>10}  {since:<20} {holds}").trim_end().to_owned()
}

/// An amount in the unit that suits it.
fn bytes(amount: u64) -> String {
    let (mut amount, mut unit) = (amount as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    if unit == "B" { format!("{amount} B") } else { format!("{amount:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use atoll_wire::rest::{Kept, SandboxState};

    use super::*;

    #[test]
    fn amounts() {
        for (amount, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (100 << 20, "100.0 MiB")]
        {
            assert_eq!(bytes(amount), expected);
        }
    }

    #[test]
    fn what_is_gone_is_said_to_be() {
        let entry = |kind, id: &str, gone| LineageEntry {
            kind,
            id: id.to_owned(),
            name: None,
            created_at: None,
            state: None,
            kept: None,
            unique_bytes: None,
            gone,
        };
        let sandbox = LineageEntry {
            state: Some(SandboxState::Paused),
            kept: Some(Kept::Checkpoint),
            unique_bytes: Some(2048),
            ..entry(LineageKind::Sandbox, "i1", false)
        };
        let ancestors = vec![entry(LineageKind::Sandbox, "i0", true)];
        let lineage = SandboxLineage { sandbox, ancestors, snapshots: vec![], forks: vec![] };
        let table = table(&lineage);
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(line("i1").ends_with("paused: files and processes"), "{table}");
        assert!(line("i1").contains("2.0 KiB"), "{table}");
        assert!(line("i0").ends_with("gone"), "{table}");
        assert!(!table.contains("its forks"), "{table}");
    }
}
