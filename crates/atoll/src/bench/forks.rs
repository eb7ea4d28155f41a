//! What the hundredth fork of a sandbox costs, beside the first.

use std::path::Path;

use atoll_core::Result;
use atoll_wire::rest;
use futures::{StreamExt, stream};
use rustix::fs::{StatVfs, statvfs, syncfs};

use super::{
    Bench, failed,
    pauses::timed,
    report::{Report, Row},
    statistics::Statistics,
};

const FORKS: usize = 100;
/// How many are ended at once.
const ENDED_AT_ONCE: usize = 16;
const MIB: f64 = 1024.0 * 1024.0;

impl Bench {
    /// Forks one sandbox a hundred times, and looks at what the first and the last fork have for
    /// themselves; at the pool, too, if `data_dir` is that of this deployment.
    pub(super) async fn measure_forks(&self, data_dir: &Path, report: &mut Report) -> Result<()> {
        self.with_sandbox(async |sandbox| {
            let mut forks = Vec::new();
            let measured = self.forks(sandbox, data_dir, &mut forks, report).await;
            let endings = stream::iter(&forks).map(|fork| self.client.kill(&fork.sandbox_id));
            let ended: Vec<_> = endings.buffer_unordered(ENDED_AT_ONCE).collect().await;
            measured.and(ended.into_iter().collect())
        })
        .await
    }

    async fn forks(
        &self,
        sandbox: &rest::Sandbox,
        data_dir: &Path,
        forks: &mut Vec<rest::Sandbox>,
        report: &mut Report,
    ) -> Result<()> {
        let before = used(&data_dir.join("pool"))?;
        let mut times = Vec::with_capacity(FORKS);
        for _ in 0..FORKS {
            let (fork, elapsed) = timed(self.fork(&sandbox.sandbox_id)).await?;
            forks.push(fork);
            times.push(elapsed);
        }
        report.push(Row::time("fork, 1 to 100", 1, Statistics::of_durations(&times)));
        for (number, fork) in [("1st", forks.first()), ("100th", forks.last())] {
            let Some(fork) = fork else { continue };
            let memory = self.charged(&fork.sandbox_id).await?;
            let name = format!("memory of the {number} fork");
            report.push(Row::amount(&name, Statistics::of(&[memory])));
            let lineage = self.client.lineage(&fork.sandbox_id).await?;
            if let Some(own) = lineage.sandbox.unique_bytes {
                let name = format!("disk of the {number} fork");
                report.push(Row::amount(&name, Statistics::of(&[own as f64 / MIB])));
            }
        }
        match (before, used(&data_dir.join("pool"))?) {
            (Some(before), Some(after)) => {
                let each = after.saturating_sub(before) as f64 / MIB / FORKS as f64;
                report.push(Row::amount("pool, each of 100 forks", Statistics::of(&[each])));
            }
            _ => report.note("No use of the pool: that takes root, and --data-dir."),
        }
        Ok(())
    }
}

/// Bytes that are in use on the file system at `path`, with all that was written; none if it is not
/// there for us.
fn used(path: &Path) -> Result<Option<u64>> {
    let Ok(directory) = std::fs::File::open(path) else { return Ok(None) };
    let look = || {
        syncfs(&directory)?;
        statvfs(path)
    };
    let StatVfs { f_blocks, f_bfree, f_frsize, .. } =
        look().map_err(|error| failed("the pool cannot be looked at", error))?;
    Ok(Some(f_blocks.saturating_sub(f_bfree) * f_frsize))
}
