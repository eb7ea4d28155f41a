//! Headers on their way through a proxy.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts};

use atoll_wire::guest::CONTROL_HEADER;

use crate::{NODE_TOKEN_HEADER, server::Peer};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The host that a masked request was for.
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers of one hop, apart from those that `Connection` names. `Trailer` is not among them:
/// trailers pass, and HTTP/1.1 sends only those announced.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Headers that only Atoll's own processes send each other.
const INTERNAL: [HeaderName; 2] =
    [HeaderName::from_static(CONTROL_HEADER), HeaderName::from_static(NODE_TOKEN_HEADER)];

/// Removes what concerns one hop only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What a request wants to switch its connection to, if it may: HTTP/1.1 only, and never to
/// HTTP/2, behind which requests would pass unseen.
pub(crate) fn wanted_upgrade(parts: &Parts) -> Option<HeaderValue> {
    let asked = tokens(&parts.headers, &header::CONNECTION)
        .any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocol = parts.headers.get(header::UPGRADE)?;
    let http2 = tokens(&parts.headers, &header::UPGRADE)
        .any(|token| token.get(..2).is_some_and(|head| head.eq_ignore_ascii_case("h2")));
    (asked && !http2 && parts.version == Version::HTTP_11).then(|| protocol.clone())
}

/// Whether a request is gRPC, which needs HTTP/2 end to end. gRPC-Web does not.
pub(crate) fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    parts.version == Version::HTTP_2
        && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Readies a request's headers for the next hop: hop-by-hop and internal ones go, framing follows
/// `has_body`. With `peer`, where it came from is recorded; without, what an earlier proxy of ours
/// recorded stands.
pub(crate) fn prepare(parts: &mut Parts, has_body: bool, peer: Option<Peer>) {
    let headers = &mut parts.headers;
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers);
    for name in INTERNAL {
        headers.remove(name);
    }
    headers.remove("http2-settings");
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if chunked {
        // A length next to chunks is a lie to whoever believes it.
        headers.remove(header::CONTENT_LENGTH);
    }
    // Else hyper takes a GET or HEAD to have no body.
    let explicit = has_body && matches!(parts.method, Method::GET | Method::HEAD);
    if explicit && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    join_cookies(headers);
    if let Some(peer) = peer {
        record_peer(headers, peer);
    }
}

/// HTTP/2 clients may send one Cookie header for each cookie; HTTP/1.1 knows only one for all.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

fn record_peer(headers: &mut HeaderMap, peer: Peer) {
    let mut chain: Vec<String> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    chain.push(peer.address.ip().to_canonical().to_string());
    if let Ok(value) = HeaderValue::from_str(&chain.join(", ")) {
        headers.insert(FORWARDED_FOR, value);
    }
    // A TLS terminator in front has said how the client came.
    if !headers.contains_key(FORWARDED_PROTO) {
        let proto = if peer.secure { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
}

/// The comma-separated parts of all headers of a name.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn prepared(headers: &[(&str, &str)], has_body: bool) -> HeaderMap {
        prepared_from(headers, has_body, false)
    }

    fn prepared_from(headers: &[(&str, &str)], has_body: bool, secure: bool) -> HeaderMap {
        let mut parts = parts(Version::HTTP_11, headers);
        let address = "192.0.2.7:5".parse().unwrap();
        prepare(&mut parts, has_body, Some(Peer { address, secure }));
        parts.headers
    }

    #[test]
    fn what_concerns_one_hop_stays_there() {
        let headers = prepared(
            &[
                ("connection", "keep-alive, X-Mine"),
                ("connection", "close"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip, Trailers"),
                ("trailer", "x-sum"),
                ("x-atoll-control", "guess"),
                ("x-atoll-node-token", "guess"),
                ("e2b-traffic-access-token", "t"),
                ("x-access-token", "a"),
            ],
            false,
        );
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "e2b-traffic-access-token",
                "te",
                "trailer",
                "x-access-token",
                "x-forwarded-for",
                "x-forwarded-proto",
            ]
        );
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn framing_is_never_ambiguous() {
        let headers = prepared(&[("transfer-encoding", "chunked"), ("content-length", "5")], true);
        assert!(!headers.contains_key("content-length"));
        assert_eq!(headers["transfer-encoding"], "chunked", "a GET with a body keeps it");
        assert!(!prepared(&[("content-length", "5")], true).contains_key("transfer-encoding"));
        assert!(!prepared(&[], false).contains_key("transfer-encoding"));
    }

    #[test]
    fn the_chain_of_addresses_grows_at_its_end() {
        assert_eq!(prepared(&[], false)["x-forwarded-for"], "192.0.2.7");
        assert_eq!(prepared(&[], false)["x-forwarded-proto"], "http");
        assert_eq!(prepared_from(&[], false, true)["x-forwarded-proto"], "https");
        let headers = prepared(
            &[
                ("x-forwarded-for", "a, b"),
                ("x-forwarded-for", "c"),
                ("x-forwarded-proto", "https"),
            ],
            false,
        );
        assert_eq!(headers["x-forwarded-for"], "a, b, c, 192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn cookies_sent_apart_arrive_together() {
        let headers = prepared(&[("cookie", "a=1"), ("cookie", "b=2")], false);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn upgrades_are_for_http_1_and_not_to_http_2() {
        let wants = |version, headers: &[(&str, &str)]| wanted_upgrade(&parts(version, headers));
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(wants(Version::HTTP_11, &websocket).unwrap(), "websocket");
        assert_eq!(wants(Version::HTTP_10, &websocket), None);
        assert_eq!(wants(Version::HTTP_11, &[("upgrade", "websocket")]), None);
        assert_eq!(wants(Version::HTTP_11, &[("connection", "upgrade")]), None);
        for protocol in ["h2c", "H2C", "websocket, h2c"] {
            let headers = [("connection", "upgrade"), ("upgrade", protocol)];
            assert_eq!(wants(Version::HTTP_11, &headers), None, "{protocol}");
        }
    }

    #[test]
    fn grpc_is_told_from_its_relatives() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let is = |version| is_grpc(&parts(version, &[("content-type", kind)]));
            assert_eq!(is(Version::HTTP_2), expected, "{kind}");
            assert!(!is(Version::HTTP_11));
        }
    }
}
