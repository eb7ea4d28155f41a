//! What a deployment is called: a domain, and the port that its URLs carry.

use std::{fmt, str::FromStr};

/// Where HTTPS is when a URL names no port.
const HTTPS: u16 = 443;

/// Longest name of a domain, bytes: DNS allows 253 in all, and a sandbox's label comes before it.
const LONGEST: usize = 189;

/// Longest label of a name, bytes (RFC 1035).
const LONGEST_LABEL: usize = 63;

/// A domain with others below it, in lower case, and the port of its URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    name: String,
    port: Option<u16>,
}

impl Domain {
    /// The same domain, whose URLs have this port unless another was given.
    #[must_use]
    pub fn or_port(self, port: u16) -> Self {
        Self { port: self.port.or(Some(port)), ..self }
    }

    /// Without the port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// `DOMAIN[:PORT]`.
impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|port| digits && *port != 0);
                (name, Some(number.ok_or_else(|| format!("{port:?} is no port"))?))
            }
            None => (text, None),
        };
        if !is_domain(name) {
            // A certificate for all names of a top-level domain is refused by clients.
            return Err(
                "expected a domain of two parts or more, such as sandboxes.example.com".into()
            );
        }
        Ok(Self { name: name.to_ascii_lowercase(), port })
    }
}

/// Whether `name` is of two labels or more, of letters, digits and dashes, and no IPv4 address.
fn is_domain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let Some((_, top)) = name.rsplit_once('.') else { return false };
    name.len() <= LONGEST
        && name.split('.').all(label)
        && !top.bytes().all(|byte| byte.is_ascii_digit())
}

/// As clients are to be told: with the port, unless it is HTTPS's own.
impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.port {
            Some(port) if port != HTTPS => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, port: u16) -> String {
        text.parse::<Domain>().unwrap().or_port(port).to_string()
    }

    #[test]
    fn clients_are_told_a_port_unless_it_is_that_of_https() {
        assert_eq!(told("sbx.localhost", 443), "sbx.localhost");
        assert_eq!(told("SBX.localhost", 8443), "sbx.localhost:8443");
        assert_eq!(told("example.com:443", 8443), "example.com", "something in front has 443");
        assert_eq!(told("example.com:9443", 443), "example.com:9443");
    }

    #[test]
    fn what_names_nothing_below_it_is_refused() {
        for text in [
            "",
            "localhost",
            ".",
            "a.",
            ".a",
            "a..b",
            "10.0.0.1",
            "a b.c",
            "-a.b",
            "a-.b",
            "a_b.c",
            "x.y:",
            "x.y:0",
            "x.y:+1",
            "x.y:65536",
            "x.y:1:2",
            "ü.de",
            "x.y/z",
            "$(id).b",
        ] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        assert!(format!("{}.b", "a".repeat(64)).parse::<Domain>().is_err());
    }
}
