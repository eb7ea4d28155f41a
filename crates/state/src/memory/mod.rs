//! The catalogue in process memory: for one API and one client proxy in the same process.
//!
//! One lock guards the teams with their sandboxes, and what has ended. Nothing awaits under it. What
//! there is is not lost with the process: the nodes know it, and are asked at start.

mod ended;
mod idempotency;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, State as Life},
};

use self::{ended::Ended, idempotency::Keys};
use crate::catalogue::{Catalogue, Entry, IdempotentClaim, Reservation};

/// The catalogue of one process. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryCatalogue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    keys: Arc<Keys>,
}

#[derive(Default)]
struct State {
    /// Teams without any sandbox are left out.
    teams: HashMap<String, Team>,
    /// The team of each sandbox that is known.
    team_of: HashMap<SandboxId, String>,
    ended: Ended,
}

#[derive(Default)]
struct Team {
    members: HashMap<SandboxId, Member>,
    /// How many of them take a place.
    taken: usize,
}

/// A sandbox of a team: known, reserved or both.
#[derive(Default)]
struct Member {
    entry: Option<Arc<Entry>>,
    reservations: usize,
}

impl Member {
    /// A paused sandbox takes none, unless its memory is held: it costs what a running one does.
    fn takes_place(&self) -> bool {
        let stands = |entry: &Arc<Entry>| match entry.sandbox.state {
            Life::Paused(kept) => kept == Kept::Frozen,
            _ => true,
        };
        self.reservations > 0 || self.entry.as_ref().is_some_and(stands)
    }
}

impl MemoryCatalogue {
    /// An empty catalogue.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics under the lock; if some did, the rest would still be worth serving.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn entry(&self, id: &SandboxId) -> Option<&Arc<Entry>> {
        self.teams.get(self.team_of.get(id)?)?.members.get(id)?.entry.as_ref()
    }

    /// Changes a member, which may be new or be nothing afterwards, and keeps the count.
    fn change(&mut self, team: &str, id: &SandboxId, change: impl FnOnce(&mut Member)) {
        let members = self.teams.entry(team.to_owned()).or_default();
        let member = members.members.entry(id.clone()).or_default();
        let before = usize::from(member.takes_place());
        change(member);
        members.taken = members.taken + usize::from(member.takes_place()) - before;
        if member.entry.is_none() && member.reservations == 0 {
            members.members.remove(id);
            if members.members.is_empty() {
                self.teams.remove(team);
            }
        }
    }

    fn reserve(&mut self, team: &str, id: &SandboxId, limit: u32) -> Result<()> {
        if let Some(team) = self.teams.get(team) {
            let has_place = team.members.get(id).is_some_and(Member::takes_place);
            if !has_place && team.taken >= usize::try_from(limit).unwrap_or(usize::MAX) {
                return Err(limit_reached(limit));
            }
        } else if limit == 0 {
            return Err(limit_reached(limit));
        }
        self.change(team, id, |member| member.reservations += 1);
        Ok(())
    }

    fn update(&mut self, entry: Entry) {
        let id = entry.sandbox.record.id.clone();
        let is_old = |known: &Arc<Entry>| known.sandbox.revision >= entry.sandbox.revision;
        if self.ended.has(&id) || self.entry(&id).is_some_and(is_old) {
            return;
        }
        let team = entry.sandbox.record.team.clone();
        self.change(&team, &id, |member| member.entry = Some(Arc::new(entry)));
        self.team_of.insert(id, team);
    }

    fn remove(&mut self, id: &SandboxId) {
        if let Some(team) = self.team_of.remove(id) {
            self.change(&team, id, |member| member.entry = None);
        }
        self.ended.add(id);
    }
}

/// A place that is given back when this is dropped.
struct Place {
    shared: Arc<Shared>,
    team: String,
    id: SandboxId,
}

impl Reservation for Place {}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.change(&self.team, &self.id, |member| member.reservations -= 1);
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
    .with_fix("Kill or pause some, or have the limit raised.")
}

#[async_trait]
impl Catalogue for MemoryCatalogue {
    async fn reserve(
        &self,
        team: &str,
        id: &SandboxId,
        limit: u32,
    ) -> Result<Box<dyn Reservation>> {
        self.shared.lock().reserve(team, id, limit)?;
        let (shared, team, id) = (self.shared.clone(), team.to_owned(), id.clone());
        Ok(Box::new(Place { shared, team, id }))
    }

    async fn idempotent(&self, team: &str, key: &str, id: &SandboxId) -> Result<IdempotentClaim> {
        Ok(self.shared.keys.claim(team, key, id).await)
    }

    async fn update(&self, entry: Entry) -> Result<()> {
        self.shared.lock().update(entry);
        Ok(())
    }

    async fn remove(&self, id: &SandboxId) -> Result<()> {
        self.shared.lock().remove(id);
        Ok(())
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<Entry>> {
        let entry = self.shared.lock().entry(id).cloned();
        Ok(entry.map(Arc::unwrap_or_clone))
    }

    async fn list(&self, team: &str) -> Result<Vec<Entry>> {
        let entries: Vec<Arc<Entry>> = {
            let state = self.shared.lock();
            let members = state.teams.get(team).into_iter().flat_map(|team| team.members.values());
            members
                .filter_map(|member| member.entry.as_ref())
                .filter(|entry| !matches!(entry.sandbox.state, Life::Starting | Life::Ending))
                .cloned()
                .collect()
        };
        Ok(entries.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn ids(&self) -> Result<Vec<SandboxId>> {
        Ok(self.shared.lock().team_of.keys().cloned().collect())
    }
}
