//! The runtime layer: the programs of Atoll that run in sandboxes, on top of every template.

use std::{fs, os::unix::fs::PermissionsExt};

use atoll_core::{Error, LayerId, Result, error::codes};
use atoll_storage::Layer;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// Name of the layer, for people.
const NAME: &str = "runtime";

/// Finds the layer for these programs, names and bytes, or makes it.
pub(crate) async fn ensure(
    storage: &atoll_storage::Handle,
    programs: [(&'static str, &'static [u8]); 2],
) -> Result<LayerId> {
    let recipe = recipe(&programs);
    let known = storage
        .layers()
        .await
        .into_iter()
        .find(|known| known.layer.name == NAME && known.layer.recipe == recipe);
    if let Some(known) = known {
        // No manifest names it.
        storage.keep_layer(&known.id);
        return Ok(known.id);
    }
    let draft = storage.new_layer().await?;
    let tree = draft.dir();
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        // The directories' modes become those of the root that the layer is part of.
        for dir in ["usr", "usr/bin"] {
            fs::create_dir(tree.join(dir))?;
            fs::set_permissions(tree.join(dir), fs::Permissions::from_mode(0o755))?;
        }
        for (name, content) in programs {
            let program = tree.join("usr/bin").join(name);
            fs::write(&program, content)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })
    .await;
    let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    written.map_err(|error| {
        Error::new(codes::DATA_DIR_UNUSABLE, format!("cannot write the runtime layer: {error}."))
    })?;
    let layer = Layer { name: NAME.into(), recipe, created_at: Timestamp::now() };
    draft.commit(layer).await
}

/// Digest of all that decides what the layer holds.
fn recipe(programs: &[(&str, &[u8])]) -> String {
    let mut hash = Sha256::new();
    for part in programs.iter().flat_map(|(name, content)| [name.as_bytes(), content]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}
