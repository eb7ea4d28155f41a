//! `GET /sandboxes/{sandboxID}/metrics` and `GET /sandboxes/metrics` (control-plane contract,
//! section 9.1).

use std::{collections::BTreeSet, sync::Arc};

use atoll_core::{
    error::codes,
    limits::{METRICS_BATCH, METRICS_INTERVAL},
};
use atoll_state::model::MetricRow;
use atoll_wire::rest::{self, SandboxMetric, SandboxesMetrics};
use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    auth::Caller,
    control::Control,
    error::{ApiError, ApiResult},
    extract::{Query, SandboxPath},
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// How far back the newest sample of a running sandbox is looked for, seconds.
const NEWEST_WITHIN: i64 = 12 * SHORTEST_STEP;

/// The query of one sandbox's metrics: Unix seconds, both inclusive.
#[derive(Debug, Deserialize)]
pub(crate) struct RangeQuery {
    start: Option<i64>,
    end: Option<i64>,
}

/// The query of several sandboxes' newest metrics.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchQuery {
    sandbox_ids: Option<String>,
}

/// A sandbox's resource use over time; empty for one that is not known.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/metrics", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, description = "Unix seconds; the first sample by default"),
        ("end" = Option<i64>, Query, description = "Unix seconds; the last sample by default"),
    ),
    responses(
        (status = 200, body = Vec<SandboxMetric>), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn sandbox_metrics(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Query(RangeQuery { start, end }): Query<RangeQuery>,
) -> ApiResult<Json<Vec<SandboxMetric>>> {
    if start.zip(end).is_some_and(|(start, end)| start > end) {
        return Err(ApiError::fixed(codes::INVALID_REQUEST, "Invalid time range for metrics"));
    }
    let rows = control.database.metrics(&team.id.to_string(), id.as_str(), start, end).await?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Ok(Json(Vec::new()));
    };
    let range = end.unwrap_or(last.timestamp).saturating_sub(start.unwrap_or(first.timestamp));
    let step = step(range);
    // Samples are as far apart as the shortest step, more or less: none is joined with another then.
    let same_step = |a: &MetricRow, b: &MetricRow| {
        step > SHORTEST_STEP && a.timestamp / step == b.timestamp / step
    };
    Ok(Json(rows.chunk_by(same_step).map(average).collect()))
}

/// The newest sample of each sandbox named.
#[utoipa::path(get, path = "/sandboxes/metrics", tag = "sandboxes",
    params(("sandbox_ids" = String, Query, description = "Up to 100 ids, comma-separated")),
    responses(
        (status = 200, body = SandboxesMetrics), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 500, body = rest::Error),
    ))]
pub(crate) async fn sandboxes_metrics(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    Query(query): Query<BatchQuery>,
) -> ApiResult<Json<SandboxesMetrics>> {
    let since = Timestamp::now().as_second() - NEWEST_WITHIN;
    let mut answer = SandboxesMetrics::default();
    for id in batch(query.sandbox_ids.as_deref())? {
        let rows = control.database.metrics(&team.id.to_string(), id, Some(since), None).await?;
        if let Some(newest) = rows.last() {
            answer.sandboxes.insert(id.to_owned(), average(std::slice::from_ref(newest)));
        }
    }
    Ok(Json(answer))
}

fn batch(csv: Option<&str>) -> ApiResult<BTreeSet<&str>> {
    let csv = csv
        .filter(|csv| !csv.is_empty())
        .ok_or_else(|| ApiError::validation("sandbox_ids is required"))?;
    let listed: Vec<&str> = csv.split(',').collect();
    let ids: BTreeSet<&str> = listed.iter().copied().collect();
    if ids.len() < listed.len() {
        return Err(ApiError::validation("sandbox_ids must not repeat an id"));
    }
    if ids.len() > METRICS_BATCH {
        return Err(ApiError::validation(format!(
            "sandbox_ids may have {METRICS_BATCH} ids at most, got {}",
            ids.len()
        )));
    }
    Ok(ids)
}

/// The step at which samples are taken, seconds.
const SHORTEST_STEP: i64 = METRICS_INTERVAL.as_secs().cast_signed();
/// Ranges and the step below each, seconds.
const STEPS: [(i64, i64); 5] =
    [(HOUR, SHORTEST_STEP), (6 * HOUR, 30), (12 * HOUR, 60), (DAY, 120), (7 * DAY, 300)];
const LONGEST_STEP: i64 = 900;

/// Seconds that one point stands for in an answer over `range` seconds.
fn step(range: i64) -> i64 {
    STEPS.iter().find(|(below, _)| range < *below).map_or(LONGEST_STEP, |(_, step)| *step)
}

/// One point for the samples of one step, at the time of its last: averages of what is used, the
/// last of what there is.
fn average(rows: &[MetricRow]) -> SandboxMetric {
    let count = rows.len().max(1);
    let mean = |of: fn(&MetricRow) -> u64| {
        let sum: u128 = rows.iter().map(|row| u128::from(of(row))).sum();
        u64::try_from(sum / count as u128).unwrap_or(u64::MAX)
    };
    let cpu = rows.iter().map(|row| row.cpu_used_pct).sum::<f64>() / count as f64;
    let timestamp = rows.last().map_or(0, |row| row.timestamp);
    let total = |of: fn(&MetricRow) -> u64| rows.last().map_or(0, of);
    SandboxMetric {
        timestamp: Timestamp::from_second(timestamp).unwrap_or_default(),
        timestamp_unix: timestamp,
        cpu_count: rows.last().map_or(0, |row| row.cpu_count),
        cpu_used_pct: (cpu * 100.0).round() / 100.0,
        mem_used: mean(|row| row.mem_used),
        mem_total: total(|row| row.mem_total),
        mem_cache: mean(|row| row.mem_cache),
        disk_used: mean(|row| row.disk_used),
        disk_total: total(|row| row.disk_total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_contracts() {
        for (range, expected) in [
            (0, 5),
            (3599, 5),
            (3600, 30),
            (21_599, 30),
            (21_600, 60),
            (43_199, 60),
            (43_200, 120),
            (86_399, 120),
            (86_400, 300),
            (604_799, 300),
            (604_800, 900),
            (i64::MAX, 900),
        ] {
            assert_eq!(step(range), expected, "{range}");
        }
    }

    #[test]
    fn a_point_averages_its_samples() {
        let row = |timestamp, cpu_used_pct, used| MetricRow {
            team: "t".to_owned(),
            sandbox: "iabc".to_owned(),
            timestamp,
            cpu_count: 2,
            cpu_used_pct,
            mem_used: used,
            mem_total: 100,
            mem_cache: used,
            disk_used: used,
            disk_total: 200,
        };
        let point = average(&[row(5, 10.0, 10), row(10, 33.333, 30)]);
        assert_eq!((point.timestamp_unix, point.cpu_used_pct), (10, 21.67));
        assert_eq!((point.mem_used, point.disk_used, point.mem_total), (20, 20, 100));
        assert_eq!(point.timestamp.to_string(), "1970-01-01T00:00:10Z");
    }
}
