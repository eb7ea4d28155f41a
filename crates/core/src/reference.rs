//! The template reference grammar (control-plane contract, section 3.1):
//! `[namespace "/"] alias-or-id [":" tag]`, trimmed and lower-cased.

use std::fmt;

/// The tag that a reference without one means.
pub const DEFAULT_TAG: &str = "default";
/// Longest template name, with namespace and tag.
pub const MAX_NAME: usize = 128;

/// A reference that does not follow the grammar; the text says which part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReference(String);

/// A parsed template reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Team slug before the slash, if one was given.
    pub namespace: Option<String>,
    /// Alias or raw template id.
    pub name: String,
    /// Tag behind the colon; `default` is normalised to none.
    pub tag: Option<String>,
}

impl Reference {
    /// Parses `text`.
    ///
    /// # Errors
    /// [`InvalidReference`] on empty parts, foreign characters or more than [`MAX_NAME`] bytes.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let text = text.trim().to_lowercase();
        if text.len() > MAX_NAME {
            return Err(InvalidReference(format!("longer than {MAX_NAME} characters")));
        }
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(namespace), rest),
            None => (None, text.as_str()),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if let Some(namespace) = namespace.filter(|part| !is_name(part)) {
            return Err(InvalidReference(format!("invalid namespace '{namespace}'")));
        }
        if !is_name(name) {
            return Err(InvalidReference(format!("invalid template name '{name}'")));
        }
        if let Some(tag) = tag.filter(|part| !is_tag(part)) {
            return Err(InvalidReference(format!("invalid tag '{tag}'")));
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.filter(|tag| *tag != DEFAULT_TAG).map(str::to_owned),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts() {
        let all = Reference::parse(" Team-1/Base_2:v1.0 ").unwrap();
        assert_eq!(all.namespace.as_deref(), Some("team-1"));
        assert_eq!(all.name, "base_2");
        assert_eq!(all.tag.as_deref(), Some("v1.0"));
        assert_eq!(Reference::parse("base:DEFAULT").unwrap().tag, None);
    }

    #[test]
    fn malformed() {
        for bad in ["", "/", "a/", "/a", "a:", ":a", "a/b/c", "a:b:c", "a b", "é", "a.b"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(text in "([a-z0-9_-]{1,9}/)?[a-z0-9_-]{1,9}(:[a-z0-9._-]{1,9})?") {
            let parsed = Reference::parse(&text).unwrap();
            prop_assert_eq!(Reference::parse(&parsed.to_string()).unwrap(), parsed);
        }

        #[test]
        fn anything_else_is_refused_without_panic(text in ".{0,200}") {
            let _ = Reference::parse(&text);
        }
    }
}
