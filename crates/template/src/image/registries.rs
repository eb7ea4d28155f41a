//! Which addresses may be asked for images.
//!
//! Whoever may build templates names an image, and this node fetches it: without rules that is a way
//! into the operator's network. So only public addresses are asked, and only with TLS, unless the
//! operator lists a registry. The rules hold for every connection: for redirects, and for the place a
//! registry names for tokens, since a registry may be anyone's.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use atoll_core::{Error, Result, addresses::is_public, error::codes};
use reqwest::Url;

/// How a registry that the operator lists is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With TLS.
    Tls,
    /// With TLS, whatever its certificate.
    Unverified,
    /// Without TLS.
    Plain,
}

/// The registries that the operator lists. By default there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries(Arc<BTreeMap<(String, u16), Way>>);

impl Registries {
    /// Reads a list of `host[:port]`, `http://host[:port]` and `insecure://host[:port]`: with TLS,
    /// without, and with any certificate. All of them may have private addresses.
    ///
    /// # Errors
    /// `BAD_OPTION` for what is none of these.
    pub fn parse<T: AsRef<str>>(list: &[T]) -> Result<Self> {
        let entries = list.iter().map(|entry| parse(entry.as_ref()));
        Ok(Self(Arc::new(entries.collect::<Result<_>>()?)))
    }

    /// How a registry is spoken to if it is listed.
    pub(crate) fn way(&self, url: &Url) -> Option<Way> {
        let origin = (url.host_str()?.to_owned(), url.port_or_known_default()?);
        let way = self.0.get(&origin).copied()?;
        ((way == Way::Plain) == (url.scheme() == "http")).then_some(way)
    }

    /// The URL of a registry's root.
    pub(crate) fn base(&self, host: &str) -> Result<Url> {
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|_| super::unavailable(format!("{host} is not the name of a registry.")))
        };
        let plain = url("http")?;
        if self.way(&plain).is_some() { Ok(plain) } else { url("https") }
    }

    /// Refuses a URL that is not to be asked. Of names it does not say: they are looked up later.
    pub(crate) fn check(&self, url: &Url) -> Result<()> {
        if self.way(url).is_some() {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(no_way(url, "without TLS"));
        }
        // However it was written: the parser of URLs has made it one spelling.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let Ok(address) = host.parse::<IpAddr>() else { return Ok(()) };
        if is_public(address) {
            Ok(())
        } else {
            Err(no_way(url, "at an address that is not public"))
        }
    }
}

/// This may not be asked.
pub(crate) fn no_way(url: &Url, why: &str) -> Error {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    let message =
        format!("images are not fetched from {host}{port}, {why}: the operator has not listed it.");
    Error::new(codes::REGISTRY_REFUSED, message)
}

fn parse(entry: &str) -> Result<((String, u16), Way)> {
    let bad = || {
        let message = format!("{entry:?} is not a registry.");
        Error::new(codes::BAD_OPTION, message)
            .with_fix("Write HOST[:PORT], http://HOST[:PORT] or insecure://HOST[:PORT].")
    };
    let (way, host) = match entry.split_once("://") {
        None => (Way::Tls, entry),
        Some(("http", host)) => (Way::Plain, host),
        Some(("insecure", host)) => (Way::Unverified, host),
        Some(_) => return Err(bad()),
    };
    if host.is_empty()
        || host.contains(['/', '@', '?', '#', '\\'])
        || host.contains(char::is_whitespace)
    {
        return Err(bad());
    }
    let scheme = if way == Way::Plain { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{host}/")).map_err(|_| bad())?;
    let name = url.host_str().ok_or_else(bad)?;
    Ok(((name.to_owned(), url.port_or_known_default().ok_or_else(bad)?), way))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(registries: &Registries, url: &str) -> bool {
        match registries.check(&Url::parse(url).unwrap()) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code, codes::REGISTRY_REFUSED);
                false
            }
        }
    }

    #[test]
    fn only_tls_and_public_addresses_unless_listed() {
        let none = Registries::default();
        for allowed in ["https://ghcr.io/", "https://1.1.1.1:5000/", "https://[2606:4700::1]/"] {
            assert!(is_allowed(&none, allowed), "{allowed}");
        }
        for refused in [
            "http://ghcr.io/",
            "https://127.0.0.1/",
            "https://0x7f000001/",
            "https://2130706433:5000/",
            "https://169.254.169.254/",
            "https://[::ffff:10.0.0.1]/",
            "ftp://ghcr.io/",
            "file:///etc/passwd",
        ] {
            assert!(!is_allowed(&none, refused), "{refused}");
        }
        let list = ["127.0.0.1:5000", "http://10.0.0.1", "insecure://[::1]:5001"];
        let listed = Registries::parse(&list).unwrap();
        for allowed in ["https://127.0.0.1:5000/", "http://10.0.0.1/", "https://[::1]:5001/"] {
            assert!(is_allowed(&listed, allowed), "{allowed}");
        }
        for refused in [
            "http://127.0.0.1:5000/",
            "https://127.0.0.1:5001/",
            "https://10.0.0.1/",
            "http://10.0.0.1:81/",
        ] {
            assert!(!is_allowed(&listed, refused), "{refused}");
        }
        assert_eq!(listed.base("10.0.0.1").unwrap().scheme(), "http");
        assert_eq!(listed.base("127.0.0.1:5000").unwrap().scheme(), "https");
    }

    #[test]
    fn an_entry_is_a_host_and_maybe_a_port() {
        for bad in ["", "http://", "ftp://x", "x/y", "u@x", "x:port", "x:70000", "a b", "x?y"] {
            assert_eq!(Registries::parse(&[bad]).unwrap_err().code, codes::BAD_OPTION, "{bad}");
        }
    }
}
