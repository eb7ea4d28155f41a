//! Where sandboxes are when there is one node: here.

use async_trait::async_trait;
use atoll_core::{
    Result, SandboxId,
    lifecycle::{Kept, State},
};
use atoll_proxy::{Asleep, Directory, Location, Sandboxes};
use atoll_wire::node::{Node, NodeSandbox};

/// The node of this process, and the API, which knows who may run.
pub(super) struct OneNode {
    pub(super) node: atoll_orchestrator::Handle,
    pub(super) api: atoll_api::Handle,
}

#[async_trait]
impl Directory for OneNode {
    async fn locate(&self, id: &SandboxId) -> Result<Option<Location>> {
        if let Some(target) = self.node.find(id).await {
            return Ok(Some(Location::Here(target)));
        }
        match Node::get(&self.node, id).await? {
            // Since it was looked for.
            Some(sandbox) if sandbox.state == State::Running => {
                Ok(self.node.find(id).await.map(Location::Here))
            }
            Some(sandbox) => Ok(closed(sandbox)),
            None => Ok(None),
        }
    }

    async fn wake(&self, id: &SandboxId) -> Result<()> {
        self.api.wake(id).await.map(drop)
    }
}

/// Where a sandbox is that cannot be reached.
fn closed(sandbox: NodeSandbox) -> Option<Location> {
    let kept = match sandbox.state {
        State::Pausing(kept) | State::Paused(kept) | State::Resuming(kept) => kept,
        State::Snapshotting => return Some(Location::Soon),
        State::Starting | State::Running | State::Ending => return None,
    };
    // A server does not come back from files alone: traffic wakes what goes on.
    (sandbox.record.auto_resume && kept != Kept::Disk).then(|| {
        let envd_token = sandbox.record.envd_access_token;
        Location::Asleep(Asleep { envd_token, traffic_token: None })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_wire::node::{OnTimeout, Resources, SandboxRecord};
    use jiff::Timestamp;

    use super::*;

    fn sandbox(state: State, auto_resume: bool) -> NodeSandbox {
        let record = SandboxRecord {
            id: "i1".parse().unwrap(),
            team: "team".to_owned(),
            template: "base".parse().unwrap(),
            alias: None,
            build: "build".to_owned(),
            resources: Resources { vcpu: 2, memory_mb: 512, disk_mb: 1024 },
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
            envd_access_token: Some("token".to_owned()),
            allow_internet_access: None,
            timeout: 300,
            longest: 3600,
            on_timeout: OnTimeout::Kill,
            auto_resume,
            forked_from: None,
            is_for_build: false,
            started_at: Timestamp::UNIX_EPOCH,
            end_at: Timestamp::UNIX_EPOCH,
        };
        NodeSandbox { record, envd_version: "0.1.0".to_owned(), state, revision: 1 }
    }

    #[test]
    fn traffic_wakes_what_goes_on_where_it_was_and_wants_to_be_woken() {
        for kept in [Kept::Frozen, Kept::Checkpoint] {
            for state in [State::Pausing(kept), State::Paused(kept), State::Resuming(kept)] {
                let Some(Location::Asleep(asleep)) = closed(sandbox(state, true)) else {
                    panic!("{state:?}")
                };
                assert_eq!(asleep.envd_token.as_deref(), Some("token"));
                assert!(closed(sandbox(state, false)).is_none(), "{state:?}");
            }
        }
        assert!(closed(sandbox(State::Paused(Kept::Disk), true)).is_none());
        assert!(closed(sandbox(State::Ending, true)).is_none());
    }

    #[test]
    fn one_that_is_copied_is_not_gone() {
        assert!(matches!(closed(sandbox(State::Snapshotting, false)), Some(Location::Soon)));
    }
}
