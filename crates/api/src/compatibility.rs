//! `docs/compatibility.md`, made from the table of endpoints. A test adds the rules inside a
//! sandbox, with the tests that cover them (`tests/rules.toml`).

use std::fmt::Write;

use crate::endpoints::{ENDPOINTS, Endpoint, Support};

const HEAD: &str = "\
# Compatibility

Which part of the E2B wire protocol this release serves. Generated from the code
(`crates/api/src/endpoints.rs`, `tests/rules.toml` and the tests); do not edit.

An endpoint that is not built answers 501 with `ATL-2007`, after authentication. A field that is
not built is accepted with its default value, and answers 400 with `ATL-2008` with any other.
Unknown fields are ignored.
";

const FIELDS: &str = "
## Fields of `POST /sandboxes` and `POST /v2/sandboxes`

| field | support |
|---|---|
| `templateID`, `timeout`, `metadata`, `envVars`, `allow_internet_access` | built |
| `secure` | built; the v2 route is always secure |
| `mcp` | accepted: the client runs the gateway |
| `autoPause`, `autoPauseMemory`, `autoResume` | default values only |
| `network` | default values only |
| `iam` | without tokens only |
| `volumeMounts` | empty only |

`metadata` and `envVars` may have 256 KiB each.

## Fields of `POST /sandboxes/{sandboxID}/connect` and its v2

| field | support |
|---|---|
| `timeout` | built |
| `memory` | refused: 400, `sandbox_memory_override_disabled` |
";

/// The document, up to the rules.
#[must_use]
pub fn compatibility_markdown() -> String {
    let built = built_endpoints().count();
    let mut text = format!("{HEAD}\n## Endpoints\n\n{built} of {} are built.\n\n", ENDPOINTS.len());
    text.push_str("| endpoint | support | note |\n|---|---|---|\n");
    for endpoint in ENDPOINTS {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{} {}` | {} | {} |",
            endpoint.method,
            endpoint.path,
            word(endpoint),
            endpoint.note
        );
    }
    text.push_str(FIELDS);
    text
}

/// Method and path of every endpoint of the contract that is built.
pub fn built_endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    ENDPOINTS
        .iter()
        .filter(|endpoint| endpoint.support == Support::Built)
        .map(|endpoint| (endpoint.method, endpoint.path))
}

fn word(endpoint: &Endpoint) -> &'static str {
    match endpoint.support {
        Support::Built => "built",
        Support::Planned => "not yet",
        Support::Refused => "not available",
    }
}
