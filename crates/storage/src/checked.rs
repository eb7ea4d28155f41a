//! Files that show whether they are what was written: a line with what they describe, a version and
//! the SHA-256 of the rest, then JSON.
//!
//! [`write_atomic`] alone gives the old content or the new one on a file system that keeps its
//! promises. The checksum is for those that do not, for disks that forget, and for hands.

use std::{fs, io, path::Path};

use atoll_core::{Error, Result, error::codes};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::file::{unusable, write_atomic};

/// The version that is written, and the only one that is read.
const VERSION: &str = "1";

/// What is found in the place of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// What was written.
    Whole(T),
    /// Bare JSON, as the first versions of Atoll wrote it: nothing vouches for it.
    Bare(T),
    /// Something else, and why.
    Damaged(String),
    /// Nothing.
    Nothing,
}

/// Writes a file that describes a `kind` of thing, in one go.
pub(crate) fn write(path: &Path, kind: &str, value: &impl Serialize) -> Result<()> {
    write_atomic(path, text(kind, value)?.as_bytes())
}

/// The content of such a file.
pub(crate) fn text(kind: &str, value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        Error::new(codes::INTERNAL, format!("cannot describe a {kind}: {error}."))
    })?;
    Ok(format!("{}{text}\n", head(kind, &format!("{text}\n"))))
}

/// Reads a file that describes a `kind` of thing.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<Found<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(unusable("read", path, &error)),
        Ok(text) => Ok(parse(&text, kind)),
    }
}

fn head(kind: &str, rest: &str) -> String {
    format!("atoll-{kind} {VERSION} {}\n", hex::encode(Sha256::digest(rest)))
}

fn parse<T: DeserializeOwned>(text: &[u8], kind: &str) -> Found<T> {
    let damaged = |why: &str| Found::Damaged(why.to_owned());
    let Ok(text) = std::str::from_utf8(text) else { return damaged("it is no text") };
    if text.starts_with('{') {
        return match serde_json::from_str(text) {
            Ok(value) => Found::Bare(value),
            Err(error) => Found::Damaged(error.to_string()),
        };
    }
    let Some((first, rest)) = text.split_once('\n') else { return damaged("its end is missing") };
    if head(kind, rest) != format!("{first}\n") {
        return damaged("its checksum is wrong");
    }
    match serde_json::from_str(rest) {
        Ok(value) => Found::Whole(value),
        Err(error) => Found::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_torn_or_altered_anywhere_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read::<Vec<u32>>(&path, "thing").unwrap(), Found::Nothing);
        write(&path, "thing", &[("disk", 300)]).unwrap();
        type Content = Vec<(String, u32)>;
        let text = fs::read(&path).unwrap();
        assert_eq!(parse::<Content>(&text, "thing"), Found::Whole(vec![("disk".into(), 300)]));
        let is_damaged = |text: &[u8]| matches!(parse::<Content>(text, "thing"), Found::Damaged(_));
        for place in 0..text.len() {
            assert!(is_damaged(&text[..place]), "cut at {place}");
            let mut altered = text.clone();
            altered[place] ^= 1;
            assert!(is_damaged(&altered), "altered at {place}");
            altered[place..].fill(0);
            assert!(is_damaged(&altered), "empty from {place}");
        }
        assert!(is_damaged(&[&text[..], b" "].concat()));
        assert!(matches!(parse::<Content>(&text, "other"), Found::Damaged(_)));
    }

    #[test]
    fn bare_json_is_told_apart() {
        type Content = std::collections::BTreeMap<String, u32>;
        assert!(matches!(parse::<Content>(b"{\"a\": 1}", "thing"), Found::Bare(_)));
        assert!(matches!(parse::<Content>(b"{\"a\": 1", "thing"), Found::Damaged(_)));
    }
}
