//! Which sandboxes have ended. Ids are never used again, so what is here never comes back.

use std::collections::{HashSet, VecDeque};

use atoll_core::SandboxId;

/// Most that are remembered, the last ones: at some 100 bytes each, about 7 MB. At a hundred ends a
/// second the oldest is ten minutes old; descriptions are on their way for seconds.
const MOST: usize = 65_536;

#[derive(Default)]
pub(super) struct Ended {
    ids: HashSet<SandboxId>,
    /// The same, oldest first.
    order: VecDeque<SandboxId>,
}

impl Ended {
    pub(super) fn has(&self, id: &SandboxId) -> bool {
        self.ids.contains(id)
    }

    pub(super) fn add(&mut self, id: &SandboxId) {
        if self.ids.insert(id.clone()) {
            self.order.push_back(id.clone());
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let id = |number: usize| format!("i{number}").parse().unwrap();
        let mut ended = Ended::default();
        for number in 0..=MOST {
            ended.add(&id(number));
            ended.add(&id(number));
        }
        assert!(!ended.has(&id(0)));
        assert!(ended.has(&id(1)) && ended.has(&id(MOST)));
        assert_eq!((ended.ids.len(), ended.order.len()), (MOST, MOST));
    }
}
