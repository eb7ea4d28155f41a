//! Which part of a deployment a request is for. Pure: a request's head in, a place out.
//!
//! A request can name its host twice: in its target (HTTP/2, absolute targets) and in `Host`. What
//! reads the one and what reads the other would go apart over a request whose two names differ, so
//! there is one name, or the request is refused.

use http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};

/// A part of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The API.
    Api,
    /// A sandbox, or what comes close: the client proxy says what is wrong with it.
    Sandbox,
    /// The domain itself.
    Home,
    /// No part of it.
    Nowhere,
}

/// The host of a request: its name in lower case and without a last dot, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    port: Option<u16>,
}

impl Host {
    /// The one host that a request names.
    ///
    /// # Errors
    /// With a sentence when it names none, several, or one that is not a host.
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap) -> Result<Self, &'static str> {
        let mut named = headers.get_all(header::HOST).iter();
        let header = named.next().map(Self::of_header).transpose()?;
        if named.next().is_some() {
            return Err("The request has several Host headers.");
        }
        let target = uri.authority().map(Self::of_authority).transpose()?;
        match (target, header) {
            (Some(target), Some(header)) if target.name != header.name => {
                Err("The request's target and its Host header name different hosts.")
            }
            (Some(host), _) | (None, Some(host)) => Ok(host),
            (None, None) => Err("The request names no host."),
        }
    }

    fn of_header(value: &HeaderValue) -> Result<Self, &'static str> {
        let authority = Authority::try_from(value.as_bytes());
        Self::of_authority(&authority.map_err(|_| "The Host header is not a host.")?)
    }

    fn of_authority(authority: &Authority) -> Result<Self, &'static str> {
        if authority.as_str().contains('@') {
            return Err("A host has no user name.");
        }
        let name = authority.host().strip_suffix('.').unwrap_or(authority.host());
        if name.is_empty() {
            return Err("The request names no host.");
        }
        Ok(Self { name: name.to_ascii_lowercase(), port: authority.port_u16() })
    }

    /// As a Host header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        match self.port {
            Some(port) => HeaderValue::try_from(format!("{}:{port}", self.name)),
            None => HeaderValue::try_from(self.name.as_str()),
        }
        .ok()
    }

    /// The part of the deployment called `domain` that this is the host of. The port plays no part:
    /// whatever passes connections on to this one may have another.
    pub(crate) fn place(&self, domain: &str) -> Place {
        if self.name == domain {
            return Place::Home;
        }
        let label = self.name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
        match label {
            Some("api") => Place::Api,
            Some("sandbox") => Place::Sandbox,
            Some(label) if label.contains('-') && !label.contains('.') => Place::Sandbox,
            _ => Place::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn host(target: &str, headers: &[&str]) -> Result<Host, &'static str> {
        let mut request = Request::builder().uri(target);
        for value in headers {
            request = request.header("host", *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Host::of(&parts.uri, &parts.headers)
    }

    fn place(name: &str) -> Place {
        host("/", &[name]).unwrap().place("sbx.localhost")
    }

    #[test]
    fn names_lead_to_places() {
        for name in ["api.sbx.localhost", "API.Sbx.LocalHost:8443", "api.sbx.localhost.:1"] {
            assert_eq!(place(name), Place::Api, "{name}");
        }
        for name in
            ["80-iabc.sbx.localhost", "80-iabc-old.sbx.localhost:9", "Sandbox.sbx.localhost."]
        {
            assert_eq!(place(name), Place::Sandbox, "{name}");
        }
        assert_eq!(place("sbx.localhost:443"), Place::Home);
        for name in [
            "localhost",
            "127.0.0.1:8443",
            "[::1]:8443",
            "example.com",
            "www.sbx.localhost",
            "api.sbx.localhost.example.com",
            "apisbx.localhost",
            "x.api.sbx.localhost",
            "80-iabc.x.sbx.localhost",
            "80-iabc.example.com",
            "api.sbx.localhost..",
            ".sbx.localhost",
        ] {
            assert_eq!(place(name), Place::Nowhere, "{name}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        assert_eq!(host("http://A.b:1/x", &[]).unwrap().header().unwrap(), "a.b:1");
        assert_eq!(host("http://a.b/x", &["A.B.:80"]).unwrap().header().unwrap(), "a.b");
        for (target, headers) in [
            ("http://a.b/", &["c.d"][..]),
            ("/", &["a.b", "a.b"]),
            ("http://a.b/", &["a.b", "c.d"]),
            ("/", &[]),
            ("/", &[""]),
            ("/", &["."]),
            ("/", &["user@a.b"]),
            ("http://u:p@a.b/", &[]),
            ("/", &["a.b/x"]),
            ("/", &["a b"]),
            ("/", &["a.b, c.d"]),
        ] {
            assert!(host(target, headers).is_err(), "{target} {headers:?}");
        }
    }
}
