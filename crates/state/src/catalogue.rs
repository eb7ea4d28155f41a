//! What runs, and what is about to.

use std::time::Duration;

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_wire::node::SandboxRecord;
use jiff::Timestamp;

/// Where a sandbox in the catalogue stands. The lifecycle issue adds pausing and snapshotting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Usable.
    Running,
    /// Being ended: invisible to listings, 404 on GET.
    Killing,
}

/// A sandbox in the catalogue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What defines it, with the present deadline.
    pub record: SandboxRecord,
    /// What envd reported.
    pub envd_version: String,
    /// Where it stands.
    pub phase: Phase,
    /// The node that runs it.
    pub node: String,
}

/// How a deadline is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// To this moment, even if sooner.
    Set(Timestamp),
    /// To this moment unless it is sooner than the present deadline.
    Extend(Timestamp),
}

/// A place under the team's concurrency limit, held while a sandbox starts. Dropping it gives the
/// place back, so that a cancelled request leaves nothing.
pub trait Reservation: Send + Sync {
    /// Turns the place into a running sandbox. `entry` is of the id and team that were reserved. If
    /// the sandbox was [removed](Catalogue::remove) meanwhile, because it died before its creator
    /// heard of it, the place is given back instead.
    fn commit(self: Box<Self>, entry: Entry);
}

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

/// How long after a failed kill an expired sandbox is reported again.
pub const KILL_RETRY: Duration = Duration::from_secs(1);

/// Running state, shared by the API and the client proxy.
#[async_trait]
pub trait Catalogue: Send + Sync + 'static {
    /// Holds a place for `id`, counting starting and running sandboxes of the team, and those being
    /// ended until they are removed. Answers `codes::CONCURRENCY_LIMIT` when `limit` is reached.
    async fn reserve(&self, team: &str, id: &SandboxId, limit: u32)
    -> Result<Box<dyn Reservation>>;

    /// Claims the idempotency key `key` of `team` for a sandbox that is to have the id `id`. The
    /// first caller gets [`IdempotentClaim::First`]; those who come while it works wait for its
    /// outcome, and get its sandbox or, when it failed, the next turn.
    async fn idempotent(&self, team: &str, key: &str, id: &SandboxId) -> Result<IdempotentClaim>;

    /// A sandbox by id, in whichever phase.
    async fn get(&self, id: &SandboxId) -> Result<Option<Entry>>;

    /// All running sandboxes of a team, in no particular order.
    async fn list(&self, team: &str) -> Result<Vec<Entry>>;

    /// Ids of every running sandbox of every team.
    async fn ids(&self) -> Result<Vec<SandboxId>>;

    /// Moves a deadline and returns the entry as it now is, or none. The deadline of a sandbox that
    /// is being ended stays as it is: look at the entry's phase.
    async fn set_deadline(&self, id: &SandboxId, deadline: Deadline) -> Result<Option<Entry>>;

    /// Marks a sandbox as being ended; true for the one caller that is to end it.
    async fn begin_kill(&self, id: &SandboxId) -> Result<bool>;

    /// Undoes [`begin_kill`](Self::begin_kill) after a failure. If the deadline has passed,
    /// [`expired`](Self::expired) reports the sandbox again after [`KILL_RETRY`].
    async fn abort_kill(&self, id: &SandboxId) -> Result<()>;

    /// Forgets a sandbox, and gives its place back. One that is starting keeps its place until the
    /// reservation is dropped or committed, and will not come to be. Unknown ids are no error.
    async fn remove(&self, id: &SandboxId) -> Result<()>;

    /// Takes in a sandbox that a node reports and the catalogue does not know (after a restart),
    /// whatever the limit. One that is known, or starting, stays as it is.
    async fn adopt(&self, entry: Entry) -> Result<()>;

    /// Waits until some sandbox's deadline has passed and returns all such ids, at once if there
    /// are some already. Wakes early when a deadline moves. Sandboxes that are being ended are not
    /// reported, so [`begin_kill`](Self::begin_kill) takes an id off.
    async fn expired(&self) -> Result<Vec<SandboxId>>;
}
