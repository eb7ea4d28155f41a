//! Keeps envd's control routes out of reach of sandbox URLs.
//!
//! envd asks for its control secret there, which no client has; refusing the routes here as well
//! means that one mistake is not enough. Since a server may decode or tidy a path before it routes,
//! every spelling is refused that any amount of decoding and tidying turns into a control route.

use std::borrow::Cow;

use atoll_wire::guest::{CONTROL_ROUTES, ENVD_PORT};
use percent_encoding::percent_decode_str;

/// The control route that a request for `path` on `port` could reach, if any.
pub(crate) fn refused(port: u16, path: &str) -> Option<&'static str> {
    if port != ENVD_PORT {
        return None;
    }
    // Decoding can turn one segment into several, so each stage has to be looked at by itself.
    let once: Cow<'_, [u8]> = percent_decode_str(path).into();
    control_route(path.as_bytes())
        .or_else(|| control_route(&once))
        .or_else(|| control_route(&decoded_fully(path.as_bytes())))
}

/// The control route that `path` is once `//`, `.`, `..` and a trailing slash are tidied away. The
/// case of letters is ignored: envd heeds it, but nothing else of envd's has such a name.
fn control_route(path: &[u8]) -> Option<&'static str> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let [only] = segments[..] else { return None };
    CONTROL_ROUTES.into_iter().find(|route| route.as_bytes()[1..].eq_ignore_ascii_case(only))
}

/// `path` percent-decoded until nothing is left to decode, in one pass: an escape that a decoded
/// byte completes is decoded in its turn.
fn decoded_fully(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for byte in path {
        out.push(*byte);
        while let [.., b'%', high, low] = out[..] {
            let (Some(high), Some(low)) = (digit(high), digit(low)) else { break };
            out.truncate(out.len() - 3);
            out.push(high << 4 | low);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::Request, routing::any};
    use proptest::prelude::*;
    use tower::ServiceExt;

    use super::*;

    // Rules: PROXY-2, TRAP-18
    #[test]
    fn every_spelling_is_refused() {
        for path in [
            "/init",
            "//init",
            "/./init",
            "/x/../init",
            "/init/",
            "/init//",
            "/init/.",
            "/%69nit",
            "/%2569nit",
            "/%252569nit",
            "/%25%36%39nit",
            "/x/%2e%2e/init",
            "/x%2f..%2finit",
            "/%2finit",
            "/a%2fb/../init",
            "/../../init",
            "/init/x/..",
            "/INIT",
            "init",
            "/%5cinit",
            "/%2525252525252525252569nit",
        ] {
            assert_eq!(refused(ENVD_PORT, path), Some("/init"), "{path}");
        }
        for route in CONTROL_ROUTES {
            assert_eq!(refused(ENVD_PORT, route), Some(route));
        }
    }

    // Rules: PROXY-4
    #[test]
    fn other_paths_and_ports_pass() {
        for path in [
            "/",
            "",
            "*",
            "/health",
            "/files",
            "/initial",
            "/x/init",
            "/process.Process/Start",
            "/%",
            "/%zz",
        ] {
            assert_eq!(refused(ENVD_PORT, path), None, "{path}");
        }
        assert_eq!(refused(8080, "/init"), None);
    }

    /// Paths near a control route: its letters, escapes of them, and what tidying removes.
    fn near_control() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("i"),
            Just("n"),
            Just("t"),
            Just("init"),
            Just("/"),
            Just("//"),
            Just("."),
            Just(".."),
            Just("%69"),
            Just("%6e"),
            Just("%74"),
            Just("%25"),
            Just("69"),
            Just("%2f"),
            Just("%2e"),
            Just("x"),
            Just("/init"),
            Just("?q"),
            Just("%"),
            Just("\\"),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        // Rules: PROXY-2
        #[test]
        fn what_a_router_takes_for_a_control_route_is_refused(target in near_control()) {
            let Ok(request) = Request::builder().uri(target).body(Body::empty()) else { return Ok(()) };
            let path = request.uri().path().to_owned();
            let router = Router::new().route("/init", any(async || "reached"));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let reached = runtime.block_on(router.oneshot(request)).unwrap().status() == 200;
            prop_assert!(!reached || refused(ENVD_PORT, &path).is_some(), "{} reached /init", path);
        }

        #[test]
        fn full_decoding_is_repeated_decoding(path in "[%2569nit/.]{0,40}") {
            let mut text = path.clone().into_bytes();
            loop {
                let next: Vec<u8> = percent_encoding::percent_decode(&text).collect();
                if next == text { break }
                text = next;
            }
            prop_assert_eq!(decoded_fully(path.as_bytes()), text);
        }

        #[test]
        fn no_path_panics(path in "\\PC{0,80}") {
            let _ = refused(ENVD_PORT, &path);
        }
    }
}
