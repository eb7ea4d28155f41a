//! The catalogue in process memory: for one API and one client proxy in the same process.
//!
//! One lock guards three views of the same sandboxes: by id, by team (whose size is what the
//! concurrency limit counts) and by deadline. Every operation touches each view at most once, and
//! nothing awaits under the lock. What runs is not lost with the process: the nodes know it, and
//! [`Catalogue::adopt`] takes it in again at start.

mod idempotency;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Error, Result, SandboxId, error::codes};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use self::idempotency::Keys;
use crate::catalogue::{
    Catalogue, Deadline, Entry, IdempotentClaim, KILL_RETRY, Phase, Reservation,
};

/// Longest sleep of [`Catalogue::expired`] before it reads the clock again: the wall clock may be
/// set, and timers stand still while a machine is suspended.
const RECHECK: Duration = Duration::from_secs(5);

/// The catalogue of one process. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryCatalogue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the earliest deadline has become an earlier one.
    sooner: Notify,
    keys: Arc<Keys>,
}

#[derive(Default)]
struct State {
    sandboxes: HashMap<SandboxId, Slot>,
    /// Every sandbox of a team, in whichever state; teams without any are left out.
    teams: HashMap<String, HashSet<SandboxId>>,
    /// Every running sandbox, by when it is to be reported as expired.
    deadlines: BTreeSet<(Timestamp, SandboxId)>,
}

enum Slot {
    /// Reserved for a sandbox that starts; `ended` once it was removed before it was committed.
    Starting { team: String, ended: bool },
    /// Running or being ended. `due` is its place in `deadlines`, none while it is being ended.
    Live { entry: Arc<Entry>, due: Option<Timestamp> },
}

impl MemoryCatalogue {
    /// An empty catalogue.
    pub fn new() -> Self {
        Self::default()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.shared.change(change)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics under the lock; if some did, the views would still be worth serving.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under the lock and wakes the waiters if the earliest deadline became earlier.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = state.earliest();
        let result = change(&mut state);
        let after = state.earliest();
        drop(state);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.sooner.notify_waiters();
        }
        result
    }
}

impl State {
    fn earliest(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn live(&self, id: &SandboxId) -> Option<&Arc<Entry>> {
        match self.sandboxes.get(id)? {
            Slot::Live { entry, .. } => Some(entry),
            Slot::Starting { .. } => None,
        }
    }

    fn put_live(&mut self, id: &SandboxId, entry: Entry) {
        let due = (entry.phase == Phase::Running).then_some(entry.record.end_at);
        if let Some(due) = due {
            self.deadlines.insert((due, id.clone()));
        }
        self.sandboxes.insert(id.clone(), Slot::Live { entry: Arc::new(entry), due });
    }

    /// Takes `id` out of every view.
    fn forget(&mut self, id: &SandboxId) {
        let Some(slot) = self.sandboxes.remove(id) else { return };
        let team = match slot {
            Slot::Starting { team, .. } => team,
            Slot::Live { entry, due } => {
                if let Some(due) = due {
                    self.deadlines.remove(&(due, id.clone()));
                }
                entry.record.team.clone()
            }
        };
        if let Some(members) = self.teams.get_mut(&team) {
            members.remove(id);
            if members.is_empty() {
                self.teams.remove(&team);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &SandboxId> {
        self.deadlines.iter().map(|(_, id)| id)
    }
}

/// A place that is given back when this is dropped before it was committed.
struct Place {
    shared: Arc<Shared>,
    id: SandboxId,
    committed: bool,
}

impl Reservation for Place {
    fn commit(mut self: Box<Self>, entry: Entry) {
        self.committed = self.shared.change(|state| match state.sandboxes.get(&self.id) {
            Some(Slot::Starting { team, ended: false }) if *team == entry.record.team => {
                state.put_live(&self.id, entry);
                true
            }
            _ => false,
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.committed {
            self.shared.change(|state| state.forget(&self.id));
        }
    }
}

fn limit_reached(limit: u32) -> Error {
    Error::new(
        codes::CONCURRENCY_LIMIT,
        format!(
            "the team has reached its limit of {limit} sandboxes at once, running and starting; \
             an operator raises it with concurrent_instances of the team's tier, in the table \
             tiers of Atoll's database."
        ),
    )
    .with_fix("Kill some, or have the limit raised.")
}

#[async_trait]
impl Catalogue for MemoryCatalogue {
    async fn reserve(
        &self,
        team: &str,
        id: &SandboxId,
        limit: u32,
    ) -> Result<Box<dyn Reservation>> {
        self.change(|state| {
            if state.sandboxes.contains_key(id) {
                return Err(Error::new(
                    codes::CONFLICT,
                    format!("sandbox {id} is running or starting already."),
                ));
            }
            let taken = state.teams.get(team).map_or(0, HashSet::len);
            if taken >= usize::try_from(limit).unwrap_or(usize::MAX) {
                return Err(limit_reached(limit));
            }
            state.teams.entry(team.to_owned()).or_default().insert(id.clone());
            state
                .sandboxes
                .insert(id.clone(), Slot::Starting { team: team.to_owned(), ended: false });
            Ok(())
        })?;
        Ok(Box::new(Place { shared: self.shared.clone(), id: id.clone(), committed: false }))
    }

    async fn idempotent(&self, team: &str, key: &str, id: &SandboxId) -> Result<IdempotentClaim> {
        Ok(self.shared.keys.claim(team, key, id).await)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<Entry>> {
        let entry = self.shared.lock().live(id).cloned();
        Ok(entry.map(Arc::unwrap_or_clone))
    }

    async fn list(&self, team: &str) -> Result<Vec<Entry>> {
        let entries: Vec<Arc<Entry>> = {
            let state = self.shared.lock();
            let members = state.teams.get(team).into_iter().flatten();
            members
                .filter_map(|id| state.live(id))
                .filter(|entry| entry.phase == Phase::Running)
                .cloned()
                .collect()
        };
        Ok(entries.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn ids(&self) -> Result<Vec<SandboxId>> {
        Ok(self.shared.lock().running().cloned().collect())
    }

    async fn set_deadline(&self, id: &SandboxId, deadline: Deadline) -> Result<Option<Entry>> {
        let entry = self.change(|state| {
            let State { sandboxes, deadlines, .. } = state;
            let Some(Slot::Live { entry, due }) = sandboxes.get_mut(id) else { return None };
            let Some(old) = *due else { return Some(entry.clone()) };
            let end_at = match deadline {
                Deadline::Set(at) => at,
                Deadline::Extend(at) => at.max(entry.record.end_at),
            };
            if end_at != entry.record.end_at {
                deadlines.remove(&(old, id.clone()));
                deadlines.insert((end_at, id.clone()));
                *due = Some(end_at);
                Arc::make_mut(entry).record.end_at = end_at;
            }
            Some(entry.clone())
        });
        Ok(entry.map(Arc::unwrap_or_clone))
    }

    async fn begin_kill(&self, id: &SandboxId) -> Result<bool> {
        Ok(self.change(|state| {
            let State { sandboxes, deadlines, .. } = state;
            let Some(Slot::Live { entry, due }) = sandboxes.get_mut(id) else { return false };
            let Some(at) = due.take() else { return false };
            deadlines.remove(&(at, id.clone()));
            Arc::make_mut(entry).phase = Phase::Killing;
            true
        }))
    }

    async fn abort_kill(&self, id: &SandboxId) -> Result<()> {
        let retry = Timestamp::now() + KILL_RETRY;
        self.change(|state| {
            let State { sandboxes, deadlines, .. } = state;
            let Some(Slot::Live { entry, due: due @ None }) = sandboxes.get_mut(id) else { return };
            let at = entry.record.end_at.max(retry);
            deadlines.insert((at, id.clone()));
            *due = Some(at);
            Arc::make_mut(entry).phase = Phase::Running;
        });
        Ok(())
    }

    async fn remove(&self, id: &SandboxId) -> Result<()> {
        self.change(|state| match state.sandboxes.get_mut(id) {
            // Its place stays taken until the creator, who still works on it, lets go.
            Some(Slot::Starting { ended, .. }) => *ended = true,
            _ => state.forget(id),
        });
        Ok(())
    }

    async fn adopt(&self, entry: Entry) -> Result<()> {
        self.change(|state| {
            let id = entry.record.id.clone();
            if !state.sandboxes.contains_key(&id) {
                state.teams.entry(entry.record.team.clone()).or_default().insert(id.clone());
                state.put_live(&id, entry);
            }
        });
        Ok(())
    }

    async fn expired(&self) -> Result<Vec<SandboxId>> {
        loop {
            // Made before the look, so that a deadline that moves after it is not missed.
            let sooner = self.shared.sooner.notified();
            let sleep = {
                let state = self.shared.lock();
                let now = Timestamp::now();
                let due: Vec<SandboxId> = state
                    .deadlines
                    .iter()
                    .take_while(|(at, _)| *at <= now)
                    .map(|(_, id)| id.clone())
                    .collect();
                if !due.is_empty() {
                    return Ok(due);
                }
                state.earliest().map_or(SignedDuration::MAX, |at| at.duration_since(now))
            };
            let sleep = Duration::try_from(sleep).unwrap_or_default().min(RECHECK);
            // Either way the deadlines are looked at again.
            let _ = tokio::time::timeout(sleep, sooner).await;
        }
    }
}
