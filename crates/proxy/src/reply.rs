//! What the proxy itself answers: the contract's refusals, in JSON or, for a person who opened a
//! page in a browser, in HTML.

use std::borrow::Cow;

use atoll_core::{Error, SandboxId};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::{body::Body, route::Refusal};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// User agents of browsers contain one of these.
const BROWSERS: [&str; 7] = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];

/// Who reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// A person: HTML.
    Browser,
    /// Anything else, scripts in a browser included: JSON.
    Program,
}

impl Audience {
    /// Who sent a request with these headers. Only a navigation gets a page.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_lowercase()
        };
        let agent = text("user-agent");
        let accept = text("accept");
        let mode = text("sec-fetch-mode");
        let browser = BROWSERS.iter().any(|name| agent.contains(name));
        let wants_json = accept.contains("application/json") && !accept.contains("text/html");
        let script = matches!(mode.as_str(), "cors" | "no-cors" | "same-origin" | "websocket")
            || (mode != "navigate" && headers.contains_key("x-requested-with"));
        if browser && !wants_json && !script { Self::Browser } else { Self::Program }
    }
}

/// Why a request for a sandbox was not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No such sandbox runs.
    NotFound,
    /// Nothing listens on the port.
    PortClosed,
    /// What listens there does not speak HTTP, or hung up.
    NoAnswer,
    /// The node that runs the sandbox cannot be reached.
    NodeUnreachable,
    /// The sandbox wants a traffic token.
    TokenMissing,
    /// The traffic token is not the sandbox's.
    TokenInvalid,
    /// The sandbox has this many connections already, and may have no more.
    TooManyConnections(usize),
    /// The sandbox is paused, and the request may not wake it.
    ResumeDenied,
    /// The sandbox is paused, and so many others run that it may not, as this says.
    NoPlace(String),
    /// The sandbox is between two states, and was for as long as a request waits.
    Transitioning,
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::TokenMissing | Self::TokenInvalid | Self::ResumeDenied => StatusCode::FORBIDDEN,
            Self::TooManyConnections(_) | Self::NoPlace(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Transitioning => StatusCode::CONFLICT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    fn sentence(&self) -> Cow<'_, str> {
        let sentence = match self {
            Self::NotFound => "The sandbox was not found",
            Self::PortClosed => "The sandbox is running but port is not open",
            Self::NoAnswer => "The server on this port of the sandbox gave no valid HTTP answer",
            Self::NodeUnreachable => "The node that runs the sandbox cannot be reached",
            Self::TokenMissing => {
                "Sandbox is secured with traffic access token. \
                 Token header 'e2b-traffic-access-token' is missing"
            }
            Self::TokenInvalid => "Provided token in header 'e2b-traffic-access-token' is invalid",
            Self::TooManyConnections(limit) => {
                return format!(
                    "The sandbox has too many concurrent incoming connections (limit: {limit})"
                )
                .into();
            }
            Self::ResumeDenied => {
                "This sandbox can't be resumed with the credentials provided. \
                 Check your access token and try again."
            }
            Self::NoPlace(message) => message,
            Self::Transitioning => "The sandbox is still transitioning. Try again in a moment.",
        };
        sentence.into()
    }

    fn title(&self) -> &'static str {
        match self {
            Self::NotFound => "Sandbox Not Found",
            Self::PortClosed => "There is no service running on port",
            Self::NoAnswer => "No Answer on port",
            Self::NodeUnreachable => "Node Unreachable",
            Self::TokenMissing => "Missing Traffic Access Token",
            Self::TokenInvalid => "Invalid Traffic Access Token",
            Self::TooManyConnections(_) => "Too Many Connections",
            Self::ResumeDenied => "Sandbox Paused",
            Self::NoPlace(_) => "Too Many Sandboxes",
            Self::Transitioning => "Sandbox Between States",
        }
    }

    fn concerns_port(&self) -> bool {
        matches!(self, Self::PortClosed | Self::NoAnswer)
    }
}

/// The answer to a request for `port` of `sandbox` that was not served.
pub(crate) fn failed(
    failure: &Failure,
    sandbox: &SandboxId,
    port: u16,
    audience: Audience,
) -> Response<Body> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields<'a> {
        sandbox_id: &'a SandboxId,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        code: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        connection_limit: Option<usize>,
    }
    let status = failure.status();
    let port = failure.concerns_port().then_some(port);
    match audience {
        Audience::Program => {
            let message = &failure.sentence();
            let connection_limit = match failure {
                Failure::TooManyConnections(limit) => Some(*limit),
                _ => None,
            };
            let code = status.as_u16();
            json(status, &Fields { sandbox_id: sandbox, message, port, code, connection_limit })
        }
        Audience::Browser => whole(status, HTML, page(failure, sandbox, port)),
    }
}

/// A page that says what [`failed`] says. An id is of `[a-z0-9]`: it needs no escaping.
fn page(failure: &Failure, sandbox: &SandboxId, port: Option<u16>) -> String {
    let port = port.map(|port| format!(" {port}")).unwrap_or_default();
    let title = format!("{}{port}", failure.title());
    let sentence = failure.sentence();
    let sentence = sentence.trim_end_matches('.').replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <style>body{{font-family:system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em;\
         color-scheme:light dark}}code{{font-size:1.1em}}</style></head>\
         <body><h1>{title}</h1><p>{sentence}.</p><p>Sandbox <code>{sandbox}</code></p></body></html>"
    )
}

/// The answer to a request that names no destination.
pub(crate) fn misrouted(refusal: Refusal) -> Response<Body> {
    whole(StatusCode::BAD_REQUEST, TEXT, refusal.sentence())
}

/// The answer to a request for one of envd's control routes.
pub(crate) fn reserved(route: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct Fields<'a> {
        message: &'a str,
        path: &'a str,
        code: u16,
    }
    let message = "This endpoint is reserved for the E2B control plane and is not reachable \
                   through the sandbox URL";
    json(StatusCode::NOT_FOUND, &Fields { message, path: route, code: 404 })
}

/// An answer that concerns no sandbox: `status` and a sentence.
pub(crate) fn plain(status: StatusCode, message: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct Fields<'a> {
        code: u16,
        message: &'a str,
    }
    json(status, &Fields { code: status.as_u16(), message })
}

/// The answer when it could not be found out where a sandbox runs.
pub(crate) fn unlocated(error: &Error) -> Response<Body> {
    #[derive(Serialize)]
    struct Fields<'a> {
        code: u16,
        message: &'a str,
        error_code: String,
    }
    let status =
        StatusCode::from_u16(error.code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let error_code = error.code.to_string();
    json(status, &Fields { code: status.as_u16(), message: &error.message, error_code })
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    whole(status, TEXT, text)
}

fn json(status: StatusCode, fields: &impl Serialize) -> Response<Body> {
    // Structs of strings and numbers always serialize; an empty body would still carry the status.
    whole(status, JSON, serde_json::to_vec(fields).unwrap_or_default())
}

fn whole(status: StatusCode, kind: HeaderValue, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHROME: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11) Chrome/140.0 Safari/537.36");

    fn audience(headers: &[(&'static str, &'static str)]) -> Audience {
        let pairs = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        Audience::of(&pairs.collect())
    }

    #[test]
    fn only_a_navigation_gets_a_page() {
        for (headers, expected) in [
            (vec![CHROME], Audience::Browser),
            (vec![CHROME, ("sec-fetch-mode", "navigate")], Audience::Browser),
            (vec![CHROME, ("accept", "text/html,application/json")], Audience::Browser),
            (
                vec![CHROME, ("sec-fetch-mode", "navigate"), ("x-requested-with", "app")],
                Audience::Browser,
            ),
            (vec![CHROME, ("accept", "application/json")], Audience::Program),
            (vec![CHROME, ("sec-fetch-mode", "cors")], Audience::Program),
            (vec![CHROME, ("sec-fetch-mode", "no-cors")], Audience::Program),
            (vec![CHROME, ("sec-fetch-mode", "same-origin")], Audience::Program),
            (vec![CHROME, ("sec-fetch-mode", "websocket")], Audience::Program),
            (vec![CHROME, ("x-requested-with", "XMLHttpRequest")], Audience::Program),
            (vec![("user-agent", "curl/8.0"), ("accept", "text/html")], Audience::Program),
            (vec![], Audience::Program),
        ] {
            assert_eq!(audience(&headers), expected, "{headers:?}");
        }
    }
}
