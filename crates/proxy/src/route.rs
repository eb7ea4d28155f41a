//! Which sandbox and which port a request is for. Pure: text in, destination out.
//!
//! Two forms exist. The host form, `<port>-<id>.<domain>`, needs nothing but a name. The header
//! form serves clients that cannot use names: on `localhost`, on an address, or on the shared host
//! `sandbox.<domain>`, the headers [`ID_HEADER`] and [`PORT_HEADER`] say where to go. On a
//! per-sandbox host the headers are ignored, because the SDKs always send them.

use std::net::IpAddr;

use atoll_core::SandboxId;
use http::{Request, header};

/// Header form: the sandbox's id.
pub const ID_HEADER: &str = "e2b-sandbox-id";

/// Header form: the port inside the sandbox.
pub const PORT_HEADER: &str = "e2b-sandbox-port";

/// Where a request is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The port inside it, never 0.
    pub port: u16,
}

/// Why a request names no destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// One of the two routing headers is there, the other is not.
    MissingHeader,
    /// The host is of neither form.
    InvalidHost,
    /// The id is not `[a-z0-9]+`.
    InvalidId,
    /// The port is not a number from 1 to 65535.
    InvalidPort,
}

impl Refusal {
    /// The contract's sentence for it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing header",
            Self::InvalidHost => "Invalid host",
            Self::InvalidId => "Invalid sandbox ID",
            Self::InvalidPort => "Invalid sandbox port",
        }
    }
}

/// The host a request names, with its port if it has one: the target's authority (HTTP/2, and
/// absolute targets of HTTP/1.1) before the Host header; empty when there is neither.
pub fn host_of<B>(request: &Request<B>) -> &str {
    if let Some(authority) = request.uri().authority() {
        let text = authority.as_str();
        return text.rsplit_once('@').map_or(text, |(_, host)| host);
    }
    request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

/// The destination of a request to `host` (as [`host_of`] gives it) with these routing headers.
///
/// # Errors
/// When neither form names a destination.
pub fn select(host: &str, id: Option<&[u8]>, port: Option<&[u8]>) -> Result<Destination, Refusal> {
    let host = without_port(host);
    let id = id.filter(|value| !value.is_empty());
    let port = port.filter(|value| !value.is_empty());
    if is_shared(host) {
        match (id, port) {
            (Some(id), Some(port)) => return destination(id, port),
            (None, None) => {}
            _ => return Err(Refusal::MissingHeader),
        }
    }
    let (label, _) = host.split_once('.').ok_or(Refusal::InvalidHost)?;
    let mut parts = label.split('-');
    // What follows the id is the client id of the older form.
    match (parts.next(), parts.next()) {
        (Some(port), Some(id)) => destination(id.as_bytes(), port.as_bytes()),
        _ => Err(Refusal::InvalidHost),
    }
}

fn destination(id: &[u8], port: &[u8]) -> Result<Destination, Refusal> {
    let id = std::str::from_utf8(id).map_err(|_| Refusal::InvalidId)?;
    let sandbox = id.parse().map_err(|_| Refusal::InvalidId)?;
    // `u16::from_str` alone would take a leading plus.
    let digits = port.iter().all(u8::is_ascii_digit);
    let port = std::str::from_utf8(port).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    match port {
        Some(port) if port != 0 => Ok(Destination { sandbox, port }),
        _ => Err(Refusal::InvalidPort),
    }
}

/// Whether `host` belongs to no one sandbox, so that headers may choose.
fn is_shared(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let domain =
        host.get(..8).filter(|head| head.eq_ignore_ascii_case("sandbox.")).map(|_| &host[8..]);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok()
        || domain.is_some_and(|domain| !domain.is_empty())
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    match host.split_once(':') {
        // More than one colon is an IPv6 address without brackets.
        Some((name, rest)) if !rest.contains(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by(host: &str, id: Option<&str>, port: Option<&str>) -> Result<(String, u16), Refusal> {
        select(host, id.map(str::as_bytes), port.map(str::as_bytes))
            .map(|found| (found.sandbox.to_string(), found.port))
    }

    // Rules: PROXY-10, PROXY-11, PROXY-13
    #[test]
    fn a_per_sandbox_host_decides_whatever_the_headers_say() {
        for host in [
            "49983-iabc.sbx.localhost",
            "49983-iabc.localhost:3002",
            "49983-iabc-6532622b.example.com",
            "49983-iabc-a-b-c.example.com:8443",
            "49983-iabc.",
        ] {
            assert_eq!(by(host, None, None), Ok(("iabc".into(), 49983)), "{host}");
            assert_eq!(by(host, Some("other"), Some("1")), Ok(("iabc".into(), 49983)), "{host}");
            assert_eq!(by(host, Some("other"), None), Ok(("iabc".into(), 49983)), "{host}");
        }
    }

    // Rules: PROXY-12, PROXY-14
    #[test]
    fn headers_decide_on_shared_hosts() {
        for host in [
            "localhost",
            "LocalHost:3002",
            "127.0.0.1",
            "127.0.0.1:3002",
            "[::1]",
            "[::1]:3002",
            "::1",
            "10.0.0.1:80",
            "sandbox.example.com",
            "sandbox.localhost:8443",
        ] {
            assert_eq!(by(host, Some("iabc"), Some("80")), Ok(("iabc".into(), 80)), "{host}");
            assert_eq!(by(host, Some("iabc"), None), Err(Refusal::MissingHeader), "{host}");
            assert_eq!(by(host, Some("iabc"), Some("")), Err(Refusal::MissingHeader), "{host}");
            assert_eq!(by(host, None, Some("80")), Err(Refusal::MissingHeader), "{host}");
            assert_eq!(by(host, None, None), Err(Refusal::InvalidHost), "{host}");
        }
    }

    // Rules: PROXY-15
    #[test]
    fn hosts_of_neither_form_are_refused() {
        for host in [
            "",
            ":",
            ".",
            "-",
            "nodot",
            "80-iabc",
            "foo.bar",
            "sandbox.",
            "sandbox.:80",
            "[",
            "[]",
            "[::1",
        ] {
            assert_eq!(by(host, Some("iabc"), Some("80")), Err(Refusal::InvalidHost), "{host}");
        }
    }

    // Rules: PROXY-15
    #[test]
    fn ids_and_ports_are_strict() {
        for id in ["A", "a_b", "é", "a-b", "../x", "a b"] {
            assert_eq!(by("localhost", Some(id), Some("80")), Err(Refusal::InvalidId), "{id}");
        }
        assert_eq!(by("80-.x", None, None), Err(Refusal::InvalidId));
        assert_eq!(by("80-IABC.x", None, None), Err(Refusal::InvalidId));
        for port in ["0", "65536", "+80", "-1", "http", "8o", "99999999999999999999", " 80"] {
            assert_eq!(
                by("localhost", Some("iabc"), Some(port)),
                Err(Refusal::InvalidPort),
                "{port}"
            );
        }
        assert_eq!(by("x-iabc.y", None, None), Err(Refusal::InvalidPort));
        assert_eq!(by("-iabc.y", None, None), Err(Refusal::InvalidPort));
        assert_eq!(select("localhost", Some(b"\xff"), Some(b"80")), Err(Refusal::InvalidId));
        assert_eq!(select("localhost", Some(b"a"), Some(b"\xff")), Err(Refusal::InvalidPort));
    }

    #[test]
    fn an_authority_in_the_target_goes_before_the_host_header() {
        let request = |uri: &str| Request::builder().uri(uri).header("host", "b").body(()).unwrap();
        assert_eq!(host_of(&request("http://u:p@a:1/x")), "a:1");
        assert_eq!(host_of(&request("/x")), "b");
    }

    proptest! {
        #[test]
        fn no_host_panics(host in "\\PC{0,80}", id in proptest::option::of(any::<Vec<u8>>()), port in proptest::option::of(any::<Vec<u8>>())) {
            let _ = select(&host, id.as_deref(), port.as_deref());
        }

        #[test]
        fn what_is_selected_is_what_the_host_says(
            port in 1u16.., id in "[a-z0-9]{1,40}", tail in "(-[a-z0-9]{1,8}){0,3}", domain in "[a-z.:0-9]{0,20}"
        ) {
            let host = format!("{port}-{id}{tail}.{domain}");
            if host.matches(':').count() < 2 {
                prop_assert_eq!(by(&host, Some("x"), Some("1")), Ok((id, port)));
            }
        }
    }
}
