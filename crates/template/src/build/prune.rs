//! What builds have left for later ones, and nothing needs any more.
//!
//! The result of a step is kept as long as a build stands on it, so that the next build of a template
//! begins where this one differs. Other results go: of templates that were deleted, and of steps that
//! were since changed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use atoll_core::{Error, Result, error::codes};
use atoll_storage::BuildManifest;
use atoll_wire::build::Pruned;

use super::Shared;

pub(super) async fn prune(shared: &Shared, team: &str) -> Result<Pruned> {
    let storage = &shared.site.storage;
    // Builds may be about to stand on any of them; those that begin meanwhile wait. Other teams'
    // builds never stand on results of this one.
    let gate = shared.gate(team);
    let Ok(_alone) = gate.try_write() else {
        return Err(Error::new(
            codes::CONFLICT,
            "builds of the team are under way, which may use it.",
        )
        .with_fix("Prune when they have ended; `atoll template list` shows them."));
    };
    let builds = storage.builds().await;
    let (mut results, templates): (Vec<_>, Vec<_>) =
        builds.into_iter().partition(|build| build.step.is_some());
    let in_use = ancestors(&templates, &results);
    // The last steps first: each then frees what it has added, also where later ones added nothing.
    results.sort_by_key(|result| Reverse((result.layers.len(), result.created_at)));
    let mut steps = BTreeMap::new();
    let mut before = layer_bytes(storage).await;
    for result in results {
        let Some(step) = result.step.as_ref().filter(|step| step.team == team) else { continue };
        if in_use.contains(&result.id) {
            continue;
        }
        let text = format!("{} [{}]", step.text, &result.id[..8]);
        storage.delete_build(&result.id).await?;
        let after = layer_bytes(storage).await;
        steps.insert(text, before.saturating_sub(after));
        before = after;
    }
    let files = shared.files.clone();
    let team = team.to_owned();
    let (archives, archive_bytes) =
        tokio::task::spawn_blocking(move || files.prune(&team, |_| false))
            .await
            .unwrap_or(Ok((0, 0)))?;
    Ok(Pruned { steps, archives, archive_bytes })
}

/// Ids of the results that templates were made from, and of those that these were made from.
fn ancestors(templates: &[BuildManifest], results: &[BuildManifest]) -> HashSet<String> {
    let parents: HashMap<&str, Option<&str>> =
        results.iter().map(|result| (result.id.as_str(), result.parent.as_deref())).collect();
    let mut found = HashSet::new();
    for template in templates {
        let mut next = template.parent.as_deref();
        // A parent that is not there, or is no result, ends the line.
        while let Some((id, parent)) = next.and_then(|id| Some((id, *parents.get(id)?))) {
            if !found.insert(id.to_owned()) {
                break;
            }
            next = parent;
        }
    }
    found
}

async fn layer_bytes(storage: &atoll_storage::Handle) -> u64 {
    storage.layers().await.iter().map(|layer| layer.bytes).sum()
}
