//! The memory of sandboxes in which nothing was ever run: what their groups are charged, and what
//! envd, with whatever it starts by itself, has in its address space.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    Bench, failed,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::helpers;

const SANDBOXES: usize = 10;
/// Samples of resource use come every five seconds.
const SAMPLE_LIMIT: Duration = Duration::from_secs(30);
const MIB: f64 = 1024.0 * 1024.0;

/// What processes have in memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    /// Pages that nobody else has; what would be free without them.
    private: f64,
    /// All pages, those of the program's file included, which every sandbox shares.
    resident: f64,
}

impl Bench {
    /// Measures some sandboxes side by side.
    pub(super) async fn measure_idle(&self, report: &mut Report) -> Result<()> {
        let mut sandboxes = Vec::new();
        let mut outcome = Ok(());
        while sandboxes.len() < SANDBOXES && outcome.is_ok() {
            outcome = self.create().await.map(|(sandbox, _)| sandboxes.push(sandbox));
        }
        let measured = match outcome {
            Ok(()) => self.idle(&sandboxes, report).await,
            Err(error) => Err(error),
        };
        for sandbox in &sandboxes {
            self.client.kill(&sandbox.sandbox_id).await?;
        }
        measured
    }

    async fn idle(&self, sandboxes: &[rest::Sandbox], report: &mut Report) -> Result<()> {
        let charged: Vec<f64> = stream::iter(sandboxes)
            .then(|sandbox| self.charged(&sandbox.sandbox_id))
            .try_collect()
            .await?;
        report.push(Row::amount("memory of an idle sandbox", Statistics::of(&charged)));
        // Before anything is run in them.
        let by_namespace = by_namespace(Path::new("/proc"))
            .map_err(|error| failed("processes cannot be listed", error))?;
        let mut memories = Vec::new();
        for sandbox in sandboxes {
            let (_, namespace) = self.client.run(sandbox, "readlink /proc/self/ns/pid").await?;
            memories.extend(by_namespace.get(Path::new(namespace.trim())));
        }
        if memories.len() == sandboxes.len() {
            let figures = |pick: fn(&Memory) -> f64| {
                Statistics::of(&memories.iter().map(|one| pick(one) / MIB).collect::<Vec<_>>())
            };
            report.push(Row::amount("envd, idle: private memory", figures(|one| one.private)));
            report.push(Row::amount("envd, idle: resident memory", figures(|one| one.resident)));
        } else {
            report.note("No memory of envd: that takes root, on the machine of the sandboxes.");
        }
        let size = helpers::ENVD.len() as f64 / MIB;
        report.push(Row::amount("envd, its program", Statistics::of(&[size])));
        Ok(())
    }

    /// What a sandbox's group is charged, MiB.
    pub(super) async fn charged(&self, id: &str) -> Result<f64> {
        let deadline = Instant::now() + SAMPLE_LIMIT;
        loop {
            let samples = self.client.metrics(id).await?;
            if let Some(sample) = samples.last() {
                return Ok(sample.mem_used as f64 / MIB);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    codes::INTERNAL,
                    format!("no sample of sandbox {id} within {} s.", SAMPLE_LIMIT.as_secs()),
                ));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// The memory of all processes that may be looked into, by their namespace of process ids. Every
/// sandbox has one of its own.
fn by_namespace(proc: &Path) -> io::Result<HashMap<PathBuf, Memory>> {
    let mut found: HashMap<PathBuf, Memory> = HashMap::new();
    for entry in fs::read_dir(proc)? {
        let process = entry?.path();
        // Threads of the kernel have no memory; processes come and go.
        let Ok(namespace) = fs::read_link(process.join("ns/pid")) else { continue };
        let Ok(rollup) = fs::read_to_string(process.join("smaps_rollup")) else { continue };
        let one = parse(&rollup);
        let sum = found.entry(namespace).or_default();
        sum.private += one.private;
        sum.resident += one.resident;
    }
    Ok(found)
}

/// Reads `smaps_rollup`, whose figures are in KiB.
fn parse(rollup: &str) -> Memory {
    let field = |name: &str| {
        let mut lines = rollup.lines().filter_map(|line| line.strip_prefix(name));
        let number = lines.next().and_then(|rest| rest.split_whitespace().next());
        number.and_then(|number| number.parse::<f64>().ok()).unwrap_or_default() * 1024.0
    };
    Memory {
        private: field("Private_Clean:") + field("Private_Dirty:") + field("Private_Hugetlb:"),
        resident: field("Rss:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_clean_and_dirty() {
        let rollup = "5580-7ffc [rollup]\nRss:       2332 kB\nPss: 900 kB\nPss_Dirty: 8 kB\n\
                      Shared_Clean: 1000 kB\nPrivate_Clean: 12 kB\nPrivate_Dirty: 500 kB\n";
        let expected = Memory { private: 512.0 * 1024.0, resident: 2332.0 * 1024.0 };
        assert_eq!(parse(rollup), expected);
    }

    #[test]
    fn this_process_is_in_its_namespace() {
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
        let all = by_namespace(Path::new("/proc")).unwrap();
        let ours = all[&namespace];
        assert!(ours.private > 0.0 && ours.resident >= ours.private);
    }
}
