//! What every handler and background task shares.

use std::{sync::Arc, time::Duration};

use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_state::{Catalogue, Database, catalogue::Entry};
use atoll_wire::node::{EndReason, Node};
use jiff::Timestamp;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The control plane's state and what it acts on.
pub(crate) struct Control {
    pub(crate) database: Arc<dyn Database>,
    pub(crate) catalogue: Arc<dyn Catalogue>,
    pub(crate) node: Arc<dyn Node>,
    /// The node's id.
    pub(crate) node_id: String,
    /// Key of the sandboxes' access tokens.
    pub(crate) seed: Vec<u8>,
    /// What `X-Admin-Token` must be; none refuses it.
    pub(crate) admin_token: Option<String>,
    /// What clients are told to use in sandbox URLs.
    pub(crate) domain: Option<String>,
    /// Longest a handler may take.
    pub(crate) handler_deadline: Duration,
    /// Longest a request body may take to arrive.
    pub(crate) read_timeout: Duration,
    /// Work that outlives the request it began in.
    pub(crate) tasks: TaskTracker,
    /// Set when the service shuts down.
    pub(crate) stopping: CancellationToken,
}

impl Control {
    /// Ends a sandbox, whatever its state; false when it was not there or someone else is ending it.
    ///
    /// Runs to its end when the caller goes away: a sandbox is never left half-ended.
    pub(crate) async fn kill(self: &Arc<Self>, id: &SandboxId, reason: EndReason) -> Result<bool> {
        let (control, id) = (self.clone(), id.clone());
        let task = self.tasks.spawn(async move {
            if !control.catalogue.begin_kill(&id).await? {
                return Ok(false);
            }
            control.finish_kill(&id, reason).await?;
            Ok(true)
        });
        task.await.map_err(|error| {
            Error::new(codes::INTERNAL, format!("a kill did not finish: {error}."))
        })?
    }

    /// Ends a sandbox that this caller has marked with `begin_kill`. A failure takes the mark off.
    pub(crate) async fn finish_kill(&self, id: &SandboxId, reason: EndReason) -> Result<()> {
        match self.node.kill(id, reason).await {
            Ok(_) => self.catalogue.remove(id).await,
            Err(error) => {
                self.catalogue.abort_kill(id).await?;
                Err(error)
            }
        }
    }

    /// Tells the node of a deadline that moved, so that it ends the sandbox even if this control
    /// plane is gone by then. A failure is logged: the deadline here is the one in force.
    pub(crate) fn mirror_deadline(self: &Arc<Self>, entry: &Entry) {
        let (control, id) = (self.clone(), entry.record.id.clone());
        self.tasks.spawn(async move {
            // Read here, and again after telling: the tasks of two requests run in either order.
            let mut told = None;
            while let Ok(Some(entry)) = control.catalogue.get(&id).await {
                let end_at = entry.record.end_at;
                if told == Some(end_at) {
                    return;
                }
                if let Err(error) = control.node.set_end(&id, end_at).await {
                    tracing::warn!(sandbox = %id, %error, "the node was not told of a new deadline");
                    return;
                }
                told = Some(end_at);
            }
        });
    }
}

/// `now` and `seconds`; the end of time if that is past it.
pub(crate) fn after(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}
