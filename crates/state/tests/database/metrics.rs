//! Samples of resource use.

use atoll_state::{Database, model::MetricRow};
use futures::future::join_all;

use crate::fixture::{Fixture, new_build};

const TEAM: &str = "team";

fn sample(sandbox: &str, timestamp: i64) -> MetricRow {
    MetricRow {
        team: TEAM.to_owned(),
        sandbox: sandbox.to_owned(),
        timestamp,
        cpu_count: 2,
        cpu_used_pct: 12.25,
        mem_used: 1,
        mem_total: 512 << 20,
        mem_cache: 3,
        disk_used: 4,
        disk_total: 10 << 30,
    }
}

async fn times(
    fixture: &impl Fixture,
    sandbox: &str,
    start: Option<i64>,
    end: Option<i64>,
) -> Vec<i64> {
    let rows = fixture.db().metrics(TEAM, sandbox, start, end).await.unwrap();
    rows.into_iter().map(|row| row.timestamp).collect()
}

pub(crate) async fn samples_come_back_in_order_within_bounds(fixture: &impl Fixture) {
    let rows = [sample("i1", 20), sample("i1", 10), sample("i2", 15), sample("i1", 30)];
    fixture.db().put_metrics(&rows).await.unwrap();
    fixture.db().put_metrics(&[]).await.unwrap();
    let all = fixture.db().metrics(TEAM, "i1", None, None).await.unwrap();
    assert_eq!(all, [rows[1].clone(), rows[0].clone(), rows[3].clone()]);
    assert_eq!(times(fixture, "i1", Some(10), Some(20)).await, [10, 20]);
    assert_eq!(times(fixture, "i1", Some(11), None).await, [20, 30]);
    assert_eq!(times(fixture, "i1", None, Some(29)).await, [10, 20]);
    assert!(times(fixture, "i1", Some(0), Some(9)).await.is_empty());
    assert!(times(fixture, "unknown", None, None).await.is_empty());
}

pub(crate) async fn another_team_sees_no_samples(fixture: &impl Fixture) {
    fixture.db().put_metrics(&[sample("i1", 10)]).await.unwrap();
    assert!(fixture.db().metrics("other", "i1", None, None).await.unwrap().is_empty());
}

pub(crate) async fn a_sample_is_kept_once(fixture: &impl Fixture) {
    let again = MetricRow { mem_used: 99, ..sample("i1", 10) };
    fixture.db().put_metrics(&[sample("i1", 10), again.clone()]).await.unwrap();
    fixture.db().put_metrics(&[again]).await.unwrap();
    let rows = fixture.db().metrics(TEAM, "i1", None, None).await.unwrap();
    assert_eq!(rows, [sample("i1", 10)]);
}

pub(crate) async fn large_batches_and_odd_numbers(fixture: &impl Fixture) {
    let mut rows: Vec<MetricRow> = (0..1234).map(|at| sample("i1", at)).collect();
    rows[7].cpu_used_pct = f64::NAN;
    rows[8].mem_used = u64::MAX;
    fixture.db().put_metrics(&rows).await.unwrap();
    let stored = fixture.db().metrics(TEAM, "i1", None, None).await.unwrap();
    assert_eq!(stored.len(), rows.len());
    assert!(stored[7].cpu_used_pct == 0.0);
    assert!(stored[8].mem_used > u64::MAX / 3);
}

pub(crate) async fn old_samples_are_pruned(fixture: &impl Fixture) {
    let rows: Vec<MetricRow> = (0..25_000).map(|at| sample("i1", at)).collect();
    fixture.db().put_metrics(&rows).await.unwrap();
    fixture.db().put_metrics(&[sample("i2", 24_998), sample("i2", 24_999)]).await.unwrap();
    fixture.db().prune_metrics(24_999).await.unwrap();
    assert_eq!(times(fixture, "i1", None, None).await, [24_999]);
    assert_eq!(times(fixture, "i2", None, None).await, [24_999]);
}

pub(crate) async fn concurrent_writers_wait_their_turn(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let template = fixture.db().publish_global_template(&new_build("base"), team.id).await.unwrap();
    let writers = (0..100).map(|number| {
        let (db, template) = (fixture.db().clone(), template.clone());
        tokio::spawn(async move {
            let rows: Vec<MetricRow> = (0..50).map(|at| sample("i1", number * 50 + at)).collect();
            db.put_metrics(&rows).await.unwrap();
            db.count_spawn(&template).await.unwrap();
            db.publish_global_template(&new_build("base"), team.id).await.unwrap();
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(times(fixture, "i1", None, None).await.len(), 5000);
}
