//! `docs/compatibility.md`, made from the table of endpoints. A test adds the rules inside a
//! sandbox, with the tests that cover them (`tests/rules.toml`).

use std::fmt::Write;

use crate::endpoints::{ENDPOINTS, Endpoint, Support};

const HEAD: &str = "\
# Compatibility

Which part of the E2B wire protocol this release serves. Generated from the code
(`crates/api/src/endpoints.rs`, `tests/rules.toml` and the tests); do not edit.

An endpoint that is not built, or is replaced, answers 501 with `ATL-2007`, after authentication. A field that is
not built is accepted with its default value, and answers 400 with `ATL-2008` with any other.
Unknown fields are ignored.
";

const OWN: &str = "
### Beyond the contract

";

const FIELDS: &str = "
## Fields of `POST /sandboxes` and `POST /v2/sandboxes`

| field | support |
|---|---|
| `templateID`, `timeout`, `metadata`, `envVars`, `allow_internet_access` | built |
| `secure` | built; the v2 route is always secure |
| `mcp` | accepted: the client runs the gateway |
| `autoPause`, `autoPauseMemory`, `autoResume` | built |
| `network` | default values only |
| `iam` | without tokens only |
| `volumeMounts` | empty only |

`metadata` and `envVars` may have 256 KiB each.

## Fields of `POST /sandboxes/{sandboxID}/connect` and its v2

| field | support |
|---|---|
| `timeout` | built |
| `memory` | refused: 400, `sandbox_memory_override_disabled` |

## Fields of other requests

| request | field | support |
|---|---|---|
| pause | `memory` | built |
| pause | `requireHealthyGuest` | default value only |
| resume | `timeout`, `autoPause` | built |
| resume | `memory` | as for connect |
| fork | `timeout`, `count` | built |
| snapshots | `name` | built |
| snapshots | `memory` | default value only |
| v3 templates | `name`, `alias`, `tags`, `cpuCount`, `memoryMB`, `teamID` | built |
| v3 templates | `minFreeDiskMb` | ignored: sandboxes have the disk of the team's tier |
| build start | `fromImage`, `fromTemplate`, `fromImageRegistry`, `force`, `steps`, `startCmd`, `readyCmd` | built |
";

/// The document, up to the rules.
#[must_use]
pub fn compatibility_markdown() -> String {
    let is_own = |endpoint: &&Endpoint| endpoint.support == Support::Own;
    let of_contract: Vec<_> = ENDPOINTS.iter().filter(|endpoint| !is_own(endpoint)).collect();
    let built = of_contract.iter().filter(|endpoint| endpoint.is_served()).count();
    let all = of_contract.len();
    let mut text = format!("{HEAD}\n## Endpoints\n\n{built} of {all} are built.\n\n");
    table(&mut text, of_contract);
    text.push_str(OWN);
    table(&mut text, ENDPOINTS.iter().filter(is_own));
    text.push_str(FIELDS);
    text
}

fn table<'a>(text: &mut String, endpoints: impl IntoIterator<Item = &'a Endpoint>) {
    text.push_str("| endpoint | support | note |\n|---|---|---|\n");
    for Endpoint { method, path, note, support, .. } in endpoints {
        // Writing to a string does not fail.
        let _ = writeln!(text, "| `{method} {path}` | {} | {note} |", word(*support));
    }
}

/// Method and path of every endpoint that works, ours included.
pub fn built_endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    ENDPOINTS
        .iter()
        .filter(|endpoint| endpoint.is_served())
        .map(|endpoint| (endpoint.method, endpoint.path))
}

fn word(support: Support) -> &'static str {
    match support {
        Support::Built => "built",
        Support::Own => "ours",
        Support::Planned => "not yet",
        Support::Refused => "not available",
        Support::Replaced => "replaced",
    }
}
