//! Ends the process right after a certain step, for tests of what a crash leaves.

use atoll_core::lifecycle::Step;

/// In debug builds, aborts if `ATOLL_ABORT_AFTER` names this step: `NAME`, or `NAME:N` for the Nth
/// time it is performed.
#[cfg(debug_assertions)]
pub(crate) fn after(step: Step) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };

    static POINT: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let point = std::env::var("ATOLL_ABORT_AFTER").ok()?;
        let (name, number) = point.split_once(':').unwrap_or((&point, "1"));
        Some((name.to_owned(), number.parse().ok()?))
    });
    static PERFORMED: AtomicU32 = AtomicU32::new(0);

    if let Some((name, number)) = &*POINT
        && step.name() == name
        && PERFORMED.fetch_add(1, Ordering::SeqCst) + 1 == *number
    {
        std::process::abort();
    }
}

/// In release builds there are no abort points.
#[cfg(not(debug_assertions))]
pub(crate) fn after(_: Step) {}
