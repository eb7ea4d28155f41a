//! The life of a sandbox: created, used once, ended.

use std::time::{Duration, Instant};

use atoll_core::Result;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    Bench,
    report::{Report, Row},
    statistics::Statistics,
};

/// Cold caches are not what is measured.
const WARM_UP: usize = 3;

/// One sandbox's life, timed.
struct Life {
    create: Duration,
    first_command: Duration,
    kill: Duration,
}

impl Bench {
    /// Creates `count` sandboxes one at a time, and as many or more several at once.
    pub(super) async fn measure_lives(&self, count: usize, report: &mut Report) -> Result<()> {
        self.lives(WARM_UP, 1).await?;
        for at_once in [1, 10, 50] {
            let lives = self.lives(count.max(2 * at_once), at_once).await?;
            report.push_lives(&lives, at_once);
        }
        Ok(())
    }

    async fn lives(&self, count: usize, at_once: usize) -> Result<Vec<Life>> {
        stream::iter(0..count).map(|_| self.life()).buffer_unordered(at_once).try_collect().await
    }

    /// Creates, runs one command, ends; the sandbox is ended whatever happens.
    async fn life(&self) -> Result<Life> {
        let started = Instant::now();
        let (sandbox, create) = self.create().await?;
        let ran = self.run_true(&sandbox).await;
        let first_command = started.elapsed();
        let killing = Instant::now();
        self.client.kill(&sandbox.sandbox_id).await?;
        ran?;
        Ok(Life { create, first_command, kill: killing.elapsed() })
    }
}

impl Report {
    fn push_lives(&mut self, lives: &[Life], at_once: usize) {
        let column = |pick: fn(&Life) -> Duration| {
            Statistics::of_durations(&lives.iter().map(pick).collect::<Vec<_>>())
        };
        self.push(Row::time("create", at_once, column(|life| life.create)));
        self.push(Row::time("create to first command", at_once, column(|life| life.first_command)));
        self.push(Row::time("kill", at_once, column(|life| life.kill)));
    }
}
