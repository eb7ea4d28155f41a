//! What a layer deletes of those below it: empty files whose names say so.

use std::os::fd::AsFd;

use super::tree::{Tree, children, refused};
use crate::tool::{Failure, Outcome, shown};

const PREFIX: &[u8] = b".wh.";
/// Deletes all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Others of these are bookkeeping of a file system of the past.
const RESERVED: &[u8] = b".wh..wh.";

/// Applies an entry that is a whiteout; false for any other.
pub(super) fn apply(tree: &mut Tree, parts: &[&[u8]]) -> Outcome<bool> {
    let reserved = |part: &&[u8]| part.starts_with(RESERVED) && *part != OPAQUE;
    if parts.iter().any(reserved) {
        return Ok(true);
    }
    let Some((last, parents)) = parts.split_last() else { return Ok(false) };
    let Some(name) = last.strip_prefix(PREFIX) else { return Ok(false) };
    // What is not there need not be deleted.
    let Some(directory) = tree.directory(parents, false)? else { return Ok(true) };
    if *last == OPAQUE {
        let children = children(directory.as_fd());
        for name in children.map_err(|error| Failure::disk(shown(&parts.join(&b'/')), error))? {
            tree.remove(directory.as_fd(), &name, true)?;
        }
        return Ok(true);
    }
    if matches!(name, b"" | b"." | b"..") {
        return Err(refused(format!("{} deletes no file", shown(&parts.join(&b'/')))));
    }
    tree.remove(directory.as_fd(), name, true)?;
    Ok(true)
}
