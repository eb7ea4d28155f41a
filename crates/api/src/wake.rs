//! Waking a paused sandbox because of traffic to it (control-plane contract, section 15.5).

use std::sync::Arc;

use atoll_core::{Error, Result, SandboxId, error::codes, lifecycle::State, limits::MIN_WAKE};
use atoll_state::model::Team;
use atoll_wire::node::{NodeSandbox, Resume};
use uuid::Uuid;

use crate::{auth::check_standing, control::Control, sandboxes::resume::run_again};

/// As [`Handle::wake`](crate::Handle::wake) says.
pub(crate) async fn wake(control: &Arc<Control>, id: &SandboxId) -> Result<NodeSandbox> {
    let gone = || Error::new(codes::NOT_FOUND, format!("there is no sandbox {id}."));
    // The node is asked, and not the catalogue: who sends traffic may have heard of a pause sooner.
    let Some(sandbox) = control.node.get(id).await? else { return Err(gone()) };
    if matches!(sandbox.state, State::Running | State::Snapshotting) {
        return Ok(sandbox);
    }
    let record = sandbox.record;
    let team = team(control, &record.team).await?;
    const LEAST: u32 = MIN_WAKE.as_secs() as u32;
    let longest = team.tier.max_length_hours.saturating_mul(3600);
    let timeout = record.timeout.min(longest).max(LEAST);
    let resume = Resume { timeout, on_timeout: None };
    let (entry, _) =
        run_again(control, &team, id, resume).await.map_err(|refusal| refusal.into_error(id))?;
    Ok(entry.sandbox)
}

/// The sandbox's team, if it may have sandboxes run.
async fn team(control: &Control, id: &str) -> Result<Team> {
    let not_known = || Error::new(codes::FORBIDDEN, "the sandbox's team is not known.");
    let id: Uuid = id.parse().map_err(|_| not_known())?;
    let team = control.database.team(id).await?.ok_or_else(not_known)?;
    check_standing(&team, false).map_err(|error| error.into_error())?;
    Ok(team)
}
