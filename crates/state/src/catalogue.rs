//! The sandboxes that there are, as their nodes said last.
//!
//! A node owns its sandboxes; this follows what it says of them, in answers and in the stream of its
//! changes, which may cross: of two descriptions of a sandbox the one of higher revision counts, and
//! one that has ended never comes back.

use std::time::Duration;

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_wire::node::NodeSandbox;

/// A sandbox in the catalogue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What its node said last.
    pub sandbox: NodeSandbox,
    /// The node that owns it.
    pub node: String,
}

/// A place under the team's concurrency limit, held while a sandbox starts or is resumed. Dropping it
/// gives the place back; a sandbox that runs by then, and is in the catalogue, keeps it.
pub trait Reservation: Send + Sync {}

/// What an idempotency key leads to.
pub enum IdempotentClaim {
    /// Nobody holds the key: the caller is to create the sandbox under the id it named.
    First(Box<dyn Claim>),
    /// The key has led to this sandbox before (which may have ended since).
    Repeat(SandboxId),
}

/// The right to answer for an idempotency key. Dropping it frees the key, so that a failed or
/// cancelled first attempt does not stand in the way of the next one.
pub trait Claim: Send + Sync {
    /// From now on the key leads to the sandbox that was named when it was claimed, for
    /// [`IDEMPOTENCY_LIFETIME`]. To be called when the sandbox is in the catalogue.
    fn settle(self: Box<Self>);
}

/// How long a settled idempotency key is remembered, at most: a backend may forget the oldest
/// sooner to bound its memory.
pub const IDEMPOTENCY_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What the control plane knows of sandboxes.
#[async_trait]
pub trait Catalogue: Send + Sync + 'static {
    /// Holds a place for the sandbox `id` of `team`. Those of a team that are reserved or in the
    /// catalogue count, each once, paused ones not unless their memory is held; who has a place
    /// already gets it again whatever the limit. Answers `codes::CONCURRENCY_LIMIT` when `limit` is reached.
    async fn reserve(&self, team: &str, id: &SandboxId, limit: u32)
    -> Result<Box<dyn Reservation>>;

    /// Claims the idempotency key `key` of `team` for a sandbox that is to have the id `id`. The
    /// first caller gets [`IdempotentClaim::First`]; those who come while it works wait for its
    /// outcome, and get its sandbox or, when it failed, the next turn.
    async fn idempotent(&self, team: &str, key: &str, id: &SandboxId) -> Result<IdempotentClaim>;

    /// Takes in what a node says of a sandbox, new or known, whatever the limit. Nothing changes if
    /// a description of this revision or a higher one is known, or if it was
    /// [removed](Self::remove).
    async fn update(&self, entry: Entry) -> Result<()>;

    /// Forgets a sandbox that has ended, for good: a backend remembers that it did for long enough
    /// that no description of before is still on its way.
    async fn remove(&self, id: &SandboxId) -> Result<()>;

    /// A sandbox by id, in whichever state.
    async fn get(&self, id: &SandboxId) -> Result<Option<Entry>>;

    /// All sandboxes of a team that a client may see, paused ones included, in no particular order.
    /// Those that are being made or ended are left out.
    async fn list(&self, team: &str) -> Result<Vec<Entry>>;

    /// Ids of every sandbox of every team, in whichever state.
    async fn ids(&self) -> Result<Vec<SandboxId>>;
}
