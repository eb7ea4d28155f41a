//! Idle connections, and how many there may be in all. They are kept for each run of a sandbox by
//! itself, known by its `Arc`, and closed when that run ends: a connection never meets another run.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{Target, connection::Connection};

/// Idle connections kept for one target.
const MAX_IDLE: usize = 8;

/// How long one is kept.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Connections that one sandbox may have at once, idle ones included. Each takes descriptors and
/// buffers of the daemon, which all sandboxes share.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// Connections to all targets.
pub(crate) struct Pools {
    /// By the address of the target's `Arc`. The `Weak` keeps that address from being used again.
    by_target: Mutex<HashMap<usize, Pool>>,
    abort: CancellationToken,
}

struct Pool {
    _target: Weak<dyn Target>,
    idle: Vec<(Connection, Instant)>,
    /// For each connection that may still be made.
    places: Arc<Semaphore>,
}

fn key(target: &Arc<dyn Target>) -> usize {
    Arc::as_ptr(target).cast::<()>().addr()
}

impl Pools {
    /// Empty pools, to be emptied for good when `abort` is cancelled.
    pub(crate) fn new(abort: CancellationToken) -> Arc<Self> {
        Arc::new(Self { by_target: Mutex::default(), abort })
    }

    /// An idle connection to `target`.
    pub(crate) fn take(&self, target: &Arc<dyn Target>) -> Option<Connection> {
        if target.ended().is_cancelled() {
            return None;
        }
        let mut pools = self.lock();
        let idle = &mut pools.get_mut(&key(target))?.idle;
        idle.retain(|(connection, _)| !connection.is_closed());
        let index = idle.iter().rposition(|(connection, _)| connection.is_ready())?;
        Some(idle.swap_remove(index).0)
    }

    /// A place for one more connection to `target`, unless it has [`MAX_CONNECTIONS`].
    pub(crate) fn place(
        self: &Arc<Self>,
        target: &Arc<dyn Target>,
    ) -> Option<OwnedSemaphorePermit> {
        let mut pools = self.lock();
        let places = Arc::clone(&self.pool(&mut pools, target).places);
        places.try_acquire_owned().ok()
    }

    fn put(self: &Arc<Self>, target: &Arc<dyn Target>, connection: Connection) {
        if target.ended().is_cancelled() || self.abort.is_cancelled() || connection.is_closed() {
            return;
        }
        let mut pools = self.lock();
        let pool = self.pool(&mut pools, target);
        if pool.idle.len() < MAX_IDLE {
            pool.idle.push((connection, Instant::now()));
        }
    }

    /// The pool of `target`, which is made, and watched, when there is none.
    fn pool<'a>(
        self: &Arc<Self>,
        pools: &'a mut HashMap<usize, Pool>,
        target: &Arc<dyn Target>,
    ) -> &'a mut Pool {
        let key = key(target);
        pools.entry(key).or_insert_with(|| {
            tokio::spawn(watch(Arc::downgrade(self), key, target.ended(), self.abort.clone()));
            Pool {
                _target: Arc::downgrade(target),
                idle: Vec::new(),
                places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            }
        })
    }

    /// Closes what is idle for too long. Whether any connection is left, idle or in use.
    fn prune(&self, key: usize) -> bool {
        let mut pools = self.lock();
        let Some(pool) = pools.get_mut(&key) else { return false };
        pool.idle
            .retain(|(connection, since)| !connection.is_closed() && since.elapsed() < MAX_AGE);
        // Those to nodes have no places.
        let any = !pool.idle.is_empty() || pool.places.available_permits() < MAX_CONNECTIONS;
        if !any {
            pools.remove(&key);
        }
        any
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Pool>> {
        // A panic between two operations on the map leaves it usable.
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one target's idle connections from outliving their use.
async fn watch(pools: Weak<Pools>, key: usize, ended: CancellationToken, abort: CancellationToken) {
    loop {
        let over = tokio::select! {
            () = ended.cancelled() => true,
            () = abort.cancelled() => true,
            () = tokio::time::sleep(MAX_AGE / 2) => false,
        };
        let Some(pools) = pools.upgrade() else { return };
        if over {
            pools.lock().remove(&key);
            return;
        }
        if !pools.prune(key) {
            return;
        }
    }
}

/// A connection in use, and where it goes when the response has been read to its end. Dropping the
/// lease closes the connection.
pub(crate) struct Lease {
    connection: Connection,
    home: Option<Home>,
}

/// Where a connection may be used again.
pub(crate) struct Home {
    pub(crate) pools: Arc<Pools>,
    pub(crate) target: Arc<dyn Target>,
    /// Whether the request has been read to its end; else something of it is still to be sent.
    pub(crate) request_finished: Arc<AtomicBool>,
}

impl Lease {
    pub(crate) fn new(connection: Connection, home: Option<Home>) -> Self {
        Self { connection, home }
    }

    /// Ends the use of the connection by a response that was read to its end.
    pub(crate) fn give_back(self) {
        if let Some(home) = self.home
            && home.request_finished.load(Ordering::Acquire)
        {
            home.pools.put(&home.target, self.connection);
        }
    }
}
