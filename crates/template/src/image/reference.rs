//! How people name images: `python:3.11`, `ghcr.io/a/b@sha256:…`.

use std::{fmt, str::FromStr};

use atoll_core::{Error, Result, error::codes};

/// Where images without a host come from.
const DOCKER_HUB: &str = "docker.io";
/// The same, under the name by which it is asked.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Longest name and tag, as registries have it.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// A name of an image, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry: a host, maybe with a port.
    pub registry: String,
    /// The image's name there.
    pub repository: String,
    /// Its tag, if there is no digest.
    pub tag: String,
    /// The digest of its manifest; then the tag says nothing.
    pub digest: Option<Digest>,
}

/// A SHA-256 digest as registries write it: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// A digest if the text is one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 64 && digits.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// From the 32 bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex::encode(bytes)))
    }

    /// With its `sha256:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without.
    pub(crate) fn digits(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// The host to ask.
    pub(crate) fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// What names the manifest in a request.
    pub(crate) fn manifest(&self) -> &str {
        self.digest.as_ref().map_or(&self.tag, Digest::as_str)
    }
}

impl fmt::Display for Reference {
    /// In full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.tag),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// `IMAGE_UNAVAILABLE`: there is no such image anywhere.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            let shown = super::told(text);
            Error::new(codes::IMAGE_UNAVAILABLE, format!("{shown:?} names no image: {why}."))
                .with_fix("Write it like python:3.11 or ghcr.io/owner/name:tag.")
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest)
                    .ok_or_else(|| invalid("after the @ there must be a sha256 digest"))?;
                (rest, Some(digest))
            }
        };
        // A port is before a slash, a tag is not.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (rest, "latest"),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host.to_ascii_lowercase(), path.to_owned()),
            _ => (DOCKER_HUB.to_owned(), name.to_owned()),
        };
        let hub = ["index.docker.io", DOCKER_HUB_HOST].contains(&registry.as_str());
        let registry = if hub { DOCKER_HUB.to_owned() } else { registry };
        let official = registry == DOCKER_HUB && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path };
        if repository.len() > LONGEST_NAME || !repository.split('/').all(is_part) {
            return Err(invalid("a name is lower-case letters, digits, and . _ - between them"));
        }
        if !is_tag(tag) {
            return Err(invalid("a tag is letters, digits, and . _ - between them"));
        }
        Ok(Self { registry, repository, tag: tag.to_owned(), digest })
    }
}

/// Whether what is before the first slash is a host, by Docker's rule.
fn is_host(text: &str) -> bool {
    let like_a_host = text.contains(['.', ':']) || text == "localhost";
    let bytes = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    like_a_host && text.bytes().all(bytes)
}

fn is_part(part: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(letter)
        && part.ends_with(letter)
        && part.chars().all(|c| letter(c) || "._-".contains(c))
}

fn is_tag(tag: &str) -> bool {
    let first = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let rest = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    first && tag.len() <= LONGEST_TAG && tag.chars().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, expected) in [
            ("python", "docker.io/library/python:latest".to_owned()),
            ("python:3.11", "docker.io/library/python:3.11".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("docker.io/python", "docker.io/library/python:latest".to_owned()),
            ("index.docker.io/a/b:c", "docker.io/a/b:c".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest".to_owned()),
            ("[::1]:5000/x/y:1", "[::1]:5000/x/y:1".to_owned()),
            ("GHCR.io/a/b:Tag_1", "ghcr.io/a/b:Tag_1".to_owned()),
            (&format!("ghcr.io/a/b:tag@{digest}"), format!("ghcr.io/a/b@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected);
        }
        assert_eq!("python".parse::<Reference>().unwrap().host(), "registry-1.docker.io");
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a/../b",
            "a//b",
            "a/b/",
            "host.example/",
            "a@sha256:12",
            "a@md5:x",
            "a b",
            "a?b",
            "ghcr.io/a:b/c d",
            "user@host.example/a",
            "http://host.example/a",
            &format!("a:{}", "t".repeat(129)),
            &"a".repeat(300),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.code, codes::IMAGE_UNAVAILABLE, "{text}");
        }
    }
}
