//! What every handler and background task shares.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_state::{Catalogue, Database, catalogue::Entry};
use atoll_wire::{
    build::Builder,
    node::{EndReason, Node, NodeSandbox},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The control plane's state and what it acts on.
pub(crate) struct Control {
    pub(crate) database: Arc<dyn Database>,
    pub(crate) catalogue: Arc<dyn Catalogue>,
    pub(crate) node: Arc<dyn Node>,
    /// Who builds templates.
    pub(crate) builder: Arc<dyn Builder>,
    /// The node's id.
    pub(crate) node_id: String,
    /// Key of the sandboxes' access tokens.
    pub(crate) seed: Vec<u8>,
    /// What `X-Admin-Token` must be; none refuses it.
    pub(crate) admin_token: Option<String>,
    /// What clients are told to use in sandbox URLs.
    pub(crate) domain: Option<String>,
    /// As in [`Options::available`](crate::Options::available).
    pub(crate) available: BTreeMap<String, String>,
    /// Longest a handler may take.
    pub(crate) handler_deadline: Duration,
    /// Longest a request body may take to arrive, and the next piece of an upload.
    pub(crate) read_timeout: Duration,
    /// Work that outlives the request it began in.
    pub(crate) tasks: TaskTracker,
    /// Set when the service shuts down.
    pub(crate) stopping: CancellationToken,
}

impl Control {
    /// Does `work`, to its end even when the caller goes away.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        self.tasks.spawn(work).await.map_err(|error| {
            Error::new(codes::INTERNAL, format!("a request did not finish: {error}."))
        })
    }

    /// Takes in what the node has said of a sandbox.
    pub(crate) async fn learn(&self, sandbox: NodeSandbox) -> Result<Entry> {
        let entry = Entry { sandbox, node: self.node_id.clone() };
        self.catalogue.update(entry.clone()).await?;
        Ok(entry)
    }

    /// Ends a sandbox, whatever its state; false when it was not there. Runs to its end when the
    /// caller goes away.
    pub(crate) async fn kill(self: &Arc<Self>, id: &SandboxId, reason: EndReason) -> Result<bool> {
        let (control, id) = (self.clone(), id.clone());
        self.to_the_end(async move {
            let was_there = control.node.kill(&id, reason).await?;
            control.catalogue.remove(&id).await?;
            Ok(was_there)
        })
        .await?
    }

    /// Deletes builds that nobody is to know of (any more). Those that are left for a failure go at
    /// the next start.
    pub(crate) async fn delete_builds(&self, builds: &[String]) {
        for build in builds {
            if let Err(error) = self.node.delete_build(build).await {
                tracing::warn!(build, %error, "a build was not deleted; the next start will");
            }
        }
    }
}
