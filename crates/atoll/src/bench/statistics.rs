//! Medians and tails.

use std::time::Duration;

use serde::Serialize;

/// What is said of a series of figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Statistics {
    /// How many there were.
    pub(crate) count: usize,
    /// Half are at most this.
    pub(crate) p50: f64,
    /// All but one in a hundred are at most this.
    pub(crate) p99: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Statistics {
    /// Of plain figures.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        Self {
            count: sorted.len(),
            p50: percentile(&sorted, 50),
            p99: percentile(&sorted, 99),
            min: *min,
            max: *max,
        }
    }

    /// Of durations, in milliseconds.
    pub(crate) fn of_durations(times: &[Duration]) -> Self {
        Self::of(&times.iter().map(|time| time.as_secs_f64() * 1000.0).collect::<Vec<_>>())
    }
}

/// The smallest figure that `percent` of all are at most; `sorted` is not empty.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_figures_that_occurred() {
        let figures: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let statistics = Statistics::of(&figures);
        assert_eq!((statistics.p50, statistics.p99), (50.0, 99.0));
        assert_eq!((statistics.min, statistics.max, statistics.count), (1.0, 100.0, 100));
        let one = Statistics::of(&[7.0]);
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Statistics::of(&[]), Statistics::default());
    }
}
