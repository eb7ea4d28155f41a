//! What builds have left for later ones, and nothing needs any more.
//!
//! The result of a step is kept as long as a build stands on it, so that the next build of a template
//! begins where this one differs. Other results go: of templates that were deleted, and of steps that
//! were since changed.

use std::collections::BTreeMap;

use atoll_core::{Error, Result, error::codes};
use atoll_storage::BuildManifest;
use atoll_wire::build::Pruned;

use super::Shared;

pub(super) async fn prune(shared: &Shared, team: &str) -> Result<Pruned> {
    let storage = &shared.site.storage;
    // One that builds may be about to stand on any of them.
    if !shared.running().is_empty() {
        return Err(Error::new(codes::CONFLICT, "builds are under way.")
            .with_fix("Prune when they have ended."));
    }
    let builds = storage.builds().await;
    let (mut results, templates): (Vec<_>, Vec<_>) =
        builds.into_iter().partition(|build| build.step.is_some());
    let stands_on =
        |build: &BuildManifest, result: &BuildManifest| build.layers.starts_with(&result.layers);
    // The last steps first: each then frees what it has added.
    results.sort_by_key(|result| std::cmp::Reverse(result.layers.len()));
    let mut steps = BTreeMap::new();
    for result in results {
        let Some(step) = result.step.as_ref().filter(|step| step.team == team) else { continue };
        if templates.iter().any(|build| stands_on(build, &result)) {
            continue;
        }
        let text = format!("{} [{}]", step.text, &result.id[..8]);
        let before = layer_bytes(storage).await;
        storage.delete_build(&result.id).await?;
        let after = layer_bytes(storage).await;
        steps.insert(text, before.saturating_sub(after));
    }
    let files = shared.files.clone();
    let team = team.to_owned();
    let (archives, archive_bytes) =
        tokio::task::spawn_blocking(move || files.prune(&team, |_| false))
            .await
            .unwrap_or(Ok((0, 0)))?;
    Ok(Pruned { steps, archives, archive_bytes })
}

async fn layer_bytes(storage: &atoll_storage::Handle) -> u64 {
    storage.layers().await.iter().map(|layer| layer.bytes).sum()
}
