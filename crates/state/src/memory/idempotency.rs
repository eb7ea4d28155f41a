//! Idempotency keys: which sandbox a key has led to, and who works on one now.
//!
//! Whoever waits for a key holds the receiving end of a channel on which nothing is ever sent: it
//! closes when the claim is settled or dropped, and then the waiter looks again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_core::SandboxId;
use tokio::{sync::watch, time::Instant};

use crate::catalogue::{Claim, IDEMPOTENCY_LIFETIME, IdempotentClaim};

/// Most settled keys remembered: at some 400 bytes each, about 25 MB. At a hundred creates a second
/// the oldest is ten minutes old, far longer than a client retries.
const MAX_SETTLED: usize = 65_536;

/// Team and key.
type Name = Arc<(String, String)>;

#[derive(Default)]
pub(super) struct Keys(Mutex<State>);

#[derive(Default)]
struct State {
    keys: HashMap<Name, Key>,
    /// Settled keys and when they expire, oldest first.
    settled: VecDeque<(Instant, Name)>,
}

enum Key {
    /// Somebody creates the sandbox now; the channel closes when they are done.
    Claimed(watch::Receiver<()>),
    Settled(SandboxId),
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn claim(
        self: &Arc<Self>,
        team: &str,
        key: &str,
        id: &SandboxId,
    ) -> IdempotentClaim {
        let name: Name = Arc::new((team.to_owned(), key.to_owned()));
        loop {
            let mut done = {
                let mut state = self.lock();
                state.forget_old(Instant::now());
                match state.keys.get(&name) {
                    Some(Key::Settled(id)) => return IdempotentClaim::Repeat(id.clone()),
                    Some(Key::Claimed(done)) => done.clone(),
                    None => {
                        let (guard, done) = watch::channel(());
                        state.keys.insert(name.clone(), Key::Claimed(done));
                        return IdempotentClaim::First(Box::new(Held {
                            keys: self.clone(),
                            name,
                            id: id.clone(),
                            settled: false,
                            _done: guard,
                        }));
                    }
                }
            };
            // It only ever answers that the channel has closed.
            let _ = done.changed().await;
        }
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        while let Some((expires, name)) = self.settled.front() {
            if *expires > now && self.settled.len() <= MAX_SETTLED {
                break;
            }
            self.keys.remove(name);
            self.settled.pop_front();
        }
    }
}

/// The right to settle a key. Its fields are dropped after [`Drop::drop`] has run, so waiters wake
/// when the outcome can be seen.
struct Held {
    keys: Arc<Keys>,
    name: Name,
    id: SandboxId,
    settled: bool,
    _done: watch::Sender<()>,
}

impl Claim for Held {
    fn settle(mut self: Box<Self>) {
        let mut state = self.keys.lock();
        let expires = Instant::now() + IDEMPOTENCY_LIFETIME;
        state.keys.insert(self.name.clone(), Key::Settled(self.id.clone()));
        state.settled.push_back((expires, self.name.clone()));
        drop(state);
        self.settled = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            self.keys.lock().keys.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> SandboxId {
        format!("i{number}").parse().unwrap()
    }

    async fn settle(keys: &Arc<Keys>, key: &str, id: &SandboxId) {
        match keys.claim("team", key, id).await {
            IdempotentClaim::First(claim) => claim.settle(),
            IdempotentClaim::Repeat(other) => panic!("{key} already led to {other}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_free_again_when_its_time_is_over() {
        let keys = Arc::default();
        settle(&keys, "key", &id(1)).await;
        tokio::time::advance(IDEMPOTENCY_LIFETIME / 2).await;
        assert!(
            matches!(keys.claim("team", "key", &id(2)).await, IdempotentClaim::Repeat(first) if first == id(1))
        );
        tokio::time::advance(IDEMPOTENCY_LIFETIME / 2).await;
        settle(&keys, "key", &id(2)).await;
    }

    #[tokio::test]
    async fn only_so_many_keys_are_remembered_and_the_oldest_go_first() {
        let keys = Arc::default();
        for number in 0..=MAX_SETTLED {
            settle(&keys, &number.to_string(), &id(number)).await;
        }
        let claim = keys.claim("team", "1", &id(0)).await;
        assert!(matches!(claim, IdempotentClaim::Repeat(first) if first == id(1)));
        settle(&keys, "0", &id(7)).await;
        let state = keys.lock();
        assert!(state.keys.len() <= MAX_SETTLED + 1);
        assert_eq!(state.keys.len(), state.settled.len());
    }
}
