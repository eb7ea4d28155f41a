//! Records the resource use of running sandboxes (control-plane contract, section 9.1).

use std::{collections::HashMap, sync::Arc, time::Duration};

use atoll_core::{Result, SandboxId, lifecycle::State, limits::METRICS_INTERVAL};
use atoll_state::model::MetricRow;
use atoll_wire::node::Sample;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::control::Control;

/// How long samples are kept, seconds.
const KEEP: i64 = 7 * 24 * 3600;
/// How often older ones are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Runs until the service stops.
pub(crate) async fn run(control: Arc<Control>) {
    let stopping = control.stopping.clone();
    let work = async {
        let mut ticks = interval(METRICS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pruned: Option<Instant> = None;
        loop {
            ticks.tick().await;
            if let Err(error) = sample(&control).await {
                tracing::warn!(%error, "resource use was not recorded");
            }
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
                pruned = Some(Instant::now());
                let before = Timestamp::now().as_second() - KEEP;
                if let Err(error) = control.database.prune_metrics(before).await {
                    tracing::warn!(%error, "old samples were not deleted");
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

async fn sample(control: &Control) -> Result<()> {
    let mut teams = HashMap::new();
    for id in control.catalogue.ids().await? {
        if let Some(entry) = control.catalogue.get(&id).await?
            && matches!(entry.sandbox.state, State::Running | State::Snapshotting)
        {
            teams.insert(id, entry.sandbox.record.team);
        }
    }
    if teams.is_empty() {
        return Ok(());
    }
    let ids: Vec<SandboxId> = teams.keys().cloned().collect();
    let samples = control.node.sample(&ids).await?;
    let row = |(id, sample): &(SandboxId, Sample)| Some(row(teams.get(id)?.clone(), id, sample));
    let rows: Vec<MetricRow> = samples.iter().filter_map(row).collect();
    control.database.put_metrics(&rows).await
}

fn row(team: String, id: &SandboxId, sample: &Sample) -> MetricRow {
    MetricRow {
        team,
        sandbox: id.to_string(),
        timestamp: sample.timestamp,
        cpu_count: sample.cpu_count,
        cpu_used_pct: sample.cpu_used_pct,
        mem_used: sample.mem_used,
        mem_total: sample.mem_total,
        mem_cache: sample.mem_cache,
        disk_used: sample.disk_used,
        disk_total: sample.disk_total,
    }
}
