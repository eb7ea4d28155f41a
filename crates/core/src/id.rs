//! Identifiers and how the wire spells them (control-plane contract, section 3).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// The one client id there is: deprecated, yet required in every sandbox object.
pub const CLIENT_ID: &str = "6532622b";

/// A malformed id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind}: {value:?}")]
pub struct InvalidId {
    kind: &'static str,
    value: String,
}

fn random_text(len: usize) -> Result<String, getrandom::Error> {
    // 252 is the largest multiple of 36 in a byte: rejecting above it keeps letters equally likely.
    let mut text = String::with_capacity(len);
    let mut bytes = [0u8; 64];
    while text.len() < len {
        getrandom::fill(&mut bytes)?;
        for byte in bytes.iter().filter(|byte| **byte < 252) {
            if text.len() < len {
                text.push(char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
            }
        }
    }
    Ok(text)
}

fn is_id_text(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                if is_id_text(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { kind: $kind, value })
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

text_id! {
    /// A sandbox: `i` and 20 characters of `[a-z0-9]`. Any `[a-z0-9]+` parses, so that an unknown
    /// id is "not found" rather than "malformed".
    SandboxId, "sandbox id"
}
text_id! {
    /// A template: 20 characters of `[a-z0-9]`.
    TemplateId, "template id"
}
text_id! {
    /// A layer of a template: opaque, made before its content is known.
    LayerId, "layer id"
}
text_id! {
    /// One Atoll data directory: six hexadecimal characters that every host object it makes
    /// (link, cgroup, nft table) carries in its name.
    InstanceId, "instance id"
}

impl SandboxId {
    /// A new random id.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(format!("i{}", random_text(20)?)))
    }

    /// Parses a path or host segment: `<id>` or the older `<id>-<clientID>`, whose tail is dropped.
    ///
    /// # Errors
    /// On more than one dash, or other characters than `[a-z0-9]`.
    pub fn parse_segment(segment: &str) -> Result<Self, InvalidId> {
        let (id, client) = segment.split_once('-').unwrap_or((segment, ""));
        if client.contains('-') {
            return Err(InvalidId { kind: "sandbox id", value: segment.to_owned() });
        }
        id.parse()
    }
}

impl TemplateId {
    /// A new random id.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(random_text(20)?))
    }
}

impl LayerId {
    /// A new random id.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(random_text(24)?))
    }
}

impl InstanceId {
    /// A new random id.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 3];
        getrandom::fill(&mut bytes)?;
        Ok(Self(hex::encode(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_sandbox_id_has_the_published_shape() {
        let id = SandboxId::generate().unwrap();
        assert_eq!(id.as_str().len(), 21);
        assert!(id.as_str().starts_with('i'));
        assert_eq!(SandboxId::parse_segment(id.as_str()).unwrap(), id);
    }

    #[test]
    fn a_client_id_behind_the_dash_is_dropped() {
        assert_eq!(SandboxId::parse_segment("iabc-6532622b").unwrap().as_str(), "iabc");
        assert_eq!(SandboxId::parse_segment("not-found").unwrap().as_str(), "not");
    }

    #[test]
    fn ids_from_outside_are_refused_unless_plain() {
        for bad in ["", "a-b-c", "../x", "a.b", "A1", "é", "a/b", "-", "a b", "a%2e"] {
            assert!(SandboxId::parse_segment(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(SandboxId::parse_segment(&"a".repeat(65)).is_err());
    }
}
