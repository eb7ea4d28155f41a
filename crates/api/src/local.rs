//! Whether a request comes from a program on this machine.
//!
//! The development key rests on the answer, so each way that somebody else's request can look local
//! is closed: a peer beyond loopback; a proxy on this machine that passes on requests of others (it
//! adds a forwarding header); a web page open on this machine (its browser adds `Origin`; to a GET of
//! a page's own origin it does not, so for a page whose name was made to resolve to this machine
//! `Host` has that name, and for one that a server before Atoll on the same port left in a tab there
//! is `Sec-Fetch-Site`). When in doubt the answer is no.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

/// Headers that only browsers and proxies send.
const FOREIGN: [&str; 7] = [
    "origin",
    "sec-fetch-site",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-real-ip",
    "via",
];

/// Whether the request comes from a program on this machine. `domain` is the deployment's, which
/// may carry a port; its names are as good as `localhost`.
pub(crate) fn from_this_machine(
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
    domain: Option<&str>,
) -> bool {
    peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
        && !FOREIGN.iter().any(|name| headers.contains_key(*name))
        && names_this_machine(headers, domain)
}

fn names_this_machine(headers: &HeaderMap, domain: Option<&str>) -> bool {
    // HTTP/2 has no Host header; browsers speak it over TLS only, with names a certificate covers.
    let Some(host) = headers.get(http::header::HOST) else { return true };
    let Some(name) = host.to_str().ok().map(without_port) else { return false };
    let is_within = |suffix: &str| {
        name.eq_ignore_ascii_case(suffix)
            || name
                .len()
                .checked_sub(suffix.len() + 1)
                .and_then(|at| name.get(at..))
                .is_some_and(|tail| tail[1..].eq_ignore_ascii_case(suffix) && tail.starts_with('.'))
    };
    name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || is_within("localhost")
        || domain.is_some_and(|domain| is_within(without_port(domain)))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn local(peer: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        from_this_machine(&headers, Some(peer.parse().unwrap()), Some("sbx.test:8443"))
    }

    #[test]
    fn programs_on_this_machine_are_local() {
        for host in
            ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "api.sbx.test:8443", "a.LOCALHOST"]
        {
            assert!(local("127.0.0.1:5", &[("host", host)]), "{host}");
        }
        assert!(local("[::1]:5", &[]));
        assert!(local("[::ffff:127.0.0.1]:5", &[]));
    }

    #[test]
    fn others_are_not() {
        assert!(!local("192.0.2.1:5", &[("host", "localhost")]));
        assert!(!from_this_machine(&HeaderMap::new(), None, None));
        for name in FOREIGN {
            assert!(!local("127.0.0.1:5", &[(name, "x")]), "{name}");
        }
        for host in ["example.com", "localhost.example.com", "xlocalhost", "xsbx.test", "", "é"] {
            let host = HeaderValue::from_bytes(host.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(http::header::HOST, host)]);
            assert!(!from_this_machine(
                &headers,
                Some(([127, 0, 0, 1], 5).into()),
                Some("sbx.test")
            ));
        }
    }
}
