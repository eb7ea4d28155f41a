//! What is said when Atoll is asked to stop.

use atoll_core::lifecycle::{Kept, State};

/// What becomes of sandboxes in these states when Atoll stops.
pub(super) fn text(states: &[State]) -> String {
    let count = |wanted: fn(&State) -> bool| states.iter().filter(|state| wanted(state)).count();
    let paused = count(|state| matches!(state, State::Paused(_) | State::Resuming(_)));
    let frozen =
        count(|state| matches!(state, State::Paused(Kept::Frozen) | State::Resuming(Kept::Frozen)));
    let running = states.len() - paused;
    let mut parts = Vec::new();
    if running > 0 {
        parts.push(format!("{} {}", sandboxes(running), ends(running)));
    }
    if paused > 0 {
        let stay = if paused == 1 { "stays" } else { "stay" };
        parts.push(format!("{} {stay} paused", sandboxes(paused)));
    }
    if frozen > 0 {
        parts.push(format!("of {frozen} only the files, because memory was kept frozen"));
    }
    if parts.is_empty() {
        "Stopping.".to_owned()
    } else {
        format!("Stopping: {}.", parts.join(", "))
    }
}

fn sandboxes(count: usize) -> String {
    if count == 1 { "1 sandbox".to_owned() } else { format!("{count} sandboxes") }
}

fn ends(count: usize) -> &'static str {
    if count == 1 { "ends" } else { "end" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farewell_counts_what_ends_and_what_stays() {
        let paused = State::Paused;
        for (states, expected) in [
            (vec![], "Stopping."),
            (vec![State::Running], "Stopping: 1 sandbox ends."),
            (
                vec![State::Running, State::Snapshotting, paused(Kept::Disk)],
                "Stopping: 2 sandboxes end, 1 sandbox stays paused.",
            ),
            (
                vec![paused(Kept::Frozen), paused(Kept::Checkpoint)],
                "Stopping: 2 sandboxes stay paused, of 1 only the files, because memory was kept \
                 frozen.",
            ),
        ] {
            assert_eq!(text(&states), expected);
        }
    }
}
