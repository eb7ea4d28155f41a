//! Clients of the first generation, told by their user agent, whose JSON parser stumbles over
//! fields that it does not know: they get messages with the fields of their time.

use atoll_wire::rpc::filesystem::EntryInfo;
use axum::{extract::Request, middleware::Next, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};

const USER_AGENT: &[u8] = b"connect-python";

/// Tells a legacy client that it was recognised.
const MARK: HeaderName = HeaderName::from_static("x-e2b-legacy-sdk");

/// Whether a request with these headers comes from such a client.
pub fn is_legacy(headers: &HeaderMap) -> bool {
    headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes() == USER_AGENT)
}

/// Marks the answers to such clients.
pub async fn mark(request: Request, next: Next) -> Response {
    let legacy = is_legacy(request.headers());
    let mut response = next.run(request).await;
    if legacy {
        response.headers_mut().insert(MARK, HeaderValue::from_static("true"));
    }
    response
}

/// An entry as such a client, or any other, is to see it.
pub fn entry(headers: &HeaderMap, entry: EntryInfo) -> EntryInfo {
    if !is_legacy(headers) {
        return entry;
    }
    let EntryInfo { name, r#type, path, .. } = entry;
    EntryInfo { name, r#type, path, ..EntryInfo::default() }
}
