//! Every endpoint of the protocol, who may call it, and whether this release has it.
//!
//! The table is the one source for three things: the credentials that a route takes (`auth`), the
//! refusal of what is not built (`unbuilt`), and `docs/compatibility.md` (`compatibility`).

use http::Method;

/// Who may call an endpoint (control-plane contract, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone.
    Open,
    /// A team: API key, or a user or the administrator who names a team.
    Team,
    /// As [`Access::Team`], and a user's access token.
    TeamOrUser,
    /// A user by access token, or by a provider's token with a team.
    UserWithTeam,
    /// A user, by access token or provider's token.
    User,
    /// A user by a provider's token, with a team; the administrator too where `admin`.
    Provider {
        /// The administrator may act as the team.
        admin: bool,
    },
    /// A user by a provider's token alone.
    ProviderOnly,
    /// The administrator.
    Admin,
    /// The bearer of a volume's token.
    Volume,
}

/// Whether this release has an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// It works.
    Built,
    /// It works, and is not of the contract.
    Own,
    /// Routed, and answered with 501.
    Planned,
    /// Routed, and refused in the way the contract gives for deployments without it.
    Refused,
    /// Routed, and answered with 501 and what takes its place.
    Replaced,
}

/// An endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    /// `GET` and so on.
    pub(crate) method: &'static str,
    /// The path, parameters in braces.
    pub(crate) path: &'static str,
    /// Who may call it.
    pub(crate) access: Access,
    /// Whether this release has it.
    pub(crate) support: Support,
    /// What a user should know, for `docs/compatibility.md`.
    pub(crate) note: &'static str,
}

impl Endpoint {
    /// Whether a blocked team may still call it: it may look and clean up, not make anything.
    pub(crate) fn allows_blocked(&self) -> bool {
        match self.method {
            "GET" => true,
            "DELETE" => !self.path.starts_with("/secrets"),
            _ => false,
        }
    }

    /// Whether it works.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.support, Support::Built | Support::Own)
    }

    fn is(&self, method: &Method, path: &str) -> bool {
        // A HEAD is answered by the route of the GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.method == method.as_str() && self.path == path
    }
}

/// The endpoint of this method and route.
pub(crate) fn find(method: &Method, path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.is(method, path))
}

macro_rules! endpoints {
    ($($method:ident $path:literal $access:expr, $support:ident $(, $note:literal)?;)*) => {
        /// All of them, in the contract's order.
        pub(crate) const ENDPOINTS: &[Endpoint] = &[$(Endpoint {
            method: stringify!($method),
            path: $path,
            access: $access,
            support: Support::$support,
            note: concat!($($note)?),
        }),*];
    };
}

use Access::{Admin, Open, Provider, ProviderOnly, Team, TeamOrUser, User, UserWithTeam, Volume};

endpoints! {
    GET "/health" Open, Built;

    // Sandboxes.
    POST "/sandboxes" Team, Built, "see the fields below; `Idempotency-Key` is honoured";
    POST "/v2/sandboxes" Team, Built, "as above; always secure, 300 s by default";
    GET "/sandboxes" Team, Built;
    GET "/v2/sandboxes" Team, Built;
    GET "/sandboxes/metrics" Team, Built;
    GET "/sandboxes/{sandboxID}" Team, Built, "a paused one has `kept` besides: `disk`, `frozen` or `checkpoint`";
    DELETE "/sandboxes/{sandboxID}" Team, Built;
    POST "/sandboxes/{sandboxID}/pause" Team, Built, "what is kept of memory depends on the host: `kept` of the sandbox says it";
    POST "/sandboxes/{sandboxID}/connect" Team, Built;
    POST "/v2/sandboxes/{sandboxID}/connect" Team, Built;
    POST "/sandboxes/{sandboxID}/resume" Team, Built;
    POST "/sandboxes/{sandboxID}/fork" Team, Built, "where the host has no CRIU, forks have the files and boot anew";
    POST "/sandboxes/{sandboxID}/timeout" Team, Built;
    POST "/sandboxes/{sandboxID}/refreshes" Team, Built;
    PUT "/sandboxes/{sandboxID}/network" Team, Planned;
    POST "/sandboxes/{sandboxID}/snapshots" Team, Built, "as for forks";
    GET "/snapshots" Team, Built;
    GET "/sandboxes/{sandboxID}/metrics" Team, Built, "kept for 7 days";
    GET "/sandboxes/{sandboxID}/logs" Team, Built, "kept for 7 days; an unknown sandbox has an empty log";
    GET "/v2/sandboxes/{sandboxID}/logs" Team, Built, "as above";

    // Templates.
    POST "/v3/templates" Team, Built;
    GET "/templates/{templateID}/files/{hash}" TeamOrUser, Built, "files have their address at the API, signed";
    POST "/v2/templates/{templateID}/builds/{buildID}" Team, Built, "`fromImage: e2bdev/base` means the template `base`; `fromArchive` is ours";
    GET "/templates/{templateID}/builds/{buildID}/status" TeamOrUser, Built, "`reason` has a `code` besides, with a page in `docs/errors`";
    GET "/templates/{templateID}/builds/{buildID}/logs" TeamOrUser, Built, "kept for 7 days";
    GET "/templates/aliases/{alias}" Team, Built;
    POST "/templates/tags" Team, Built;
    DELETE "/templates/tags" Team, Built;
    GET "/templates/{templateID}/tags" Team, Built;
    // These five are in the published clients' specification only.
    GET "/templates/{templateID}/tags/count" Team, Built;
    GET "/templates/{templateID}/tags/exists" Team, Built;
    GET "/templates/{templateID}/tags/groups" Team, Built;
    GET "/templates/{templateID}/tags/{tag}/assignments" Team, Built;
    GET "/default-templates" TeamOrUser, Built;
    DELETE "/templates/{templateID}" TeamOrUser, Built, "what came with the deployment stays";
    GET "/templates" TeamOrUser, Built;
    PATCH "/v2/templates/{templateID}" TeamOrUser, Built;
    GET "/v2/templates" TeamOrUser, Built;
    GET "/templates/{templateID}" Team, Built;
    PATCH "/templates/{templateID}" TeamOrUser, Built;
    POST "/v2/templates" Team, Built;
    POST "/templates" UserWithTeam, Replaced, "its images are pushed with Docker; use `/v3/templates`";
    POST "/templates/{templateID}" UserWithTeam, Replaced, "as above";
    POST "/templates/{templateID}/builds/{buildID}" UserWithTeam, Replaced, "as above";

    // Beyond the contract.
    POST "/atoll/sandboxes/{sandboxID}/fork" Team, Own, "as `/sandboxes/{sandboxID}/fork`, of a paused sandbox too";
    POST "/atoll/sandboxes/{sandboxID}/rewind" Team, Own, "takes a sandbox back to one of its snapshots, in place";
    GET "/atoll/sandboxes/{sandboxID}/lineage" Team, Own, "what a sandbox came from, its snapshots and forks, each with the bytes that only it uses";
    PUT "/upload/{teamID}/{hash}" Open, Own, "where files of builds go: at a signed address, for 30 minutes";
    POST "/atoll/templates/builds/{buildID}/shell" Team, Own, "a sandbox as the failed step of a build found things; body `timeout`, `metadata`, `envVars`";
    DELETE "/atoll/templates/builds/{buildID}" Team, Own, "cancels a build";
    POST "/atoll/templates/prune" Team, Own, "deletes what builds left for later ones and nothing needs";

    // Teams, keys, tokens.
    GET "/teams" User, Built, "each call makes a key for each team, as keys are not kept in the clear";
    GET "/teams/{teamID}/metrics" Team, Planned;
    GET "/teams/{teamID}/metrics/max" Team, Planned;
    GET "/api-keys" Provider { admin: true }, Planned;
    POST "/api-keys" Provider { admin: false }, Planned;
    PATCH "/api-keys/{apiKeyID}" Provider { admin: true }, Planned;
    DELETE "/api-keys/{apiKeyID}" Provider { admin: true }, Planned;
    POST "/access-tokens" ProviderOnly, Planned;
    DELETE "/access-tokens/{accessTokenID}" ProviderOnly, Planned;

    // Volumes.
    POST "/volumes" Team, Planned;
    GET "/volumes" Team, Planned;
    GET "/volumes/{volumeID}" Team, Planned;
    DELETE "/volumes/{volumeID}" Team, Planned;
    GET "/volumecontent/{volumeID}/path" Volume, Planned;
    PATCH "/volumecontent/{volumeID}/path" Volume, Planned;
    DELETE "/volumecontent/{volumeID}/path" Volume, Planned;
    GET "/volumecontent/{volumeID}/dir" Volume, Planned;
    POST "/volumecontent/{volumeID}/dir" Volume, Planned;
    GET "/volumecontent/{volumeID}/file" Volume, Planned;
    PUT "/volumecontent/{volumeID}/file" Volume, Planned;

    // Secrets.
    GET "/secrets" Team, Refused, "403, as for a team without secrets";
    POST "/secrets" Team, Refused, "403, as for a team without secrets";
    GET "/secrets/{secret}" Team, Refused, "403, as for a team without secrets";
    POST "/secrets/{secret}" Team, Refused, "403, as for a team without secrets";
    DELETE "/secrets/{secret}" Team, Refused, "403, as for a team without secrets";

    // Administration.
    GET "/nodes" Admin, Planned;
    GET "/nodes/{nodeID}" Admin, Planned;
    POST "/nodes/{nodeID}" Admin, Planned;
    POST "/admin/teams/{teamID}/sandboxes/kill" Admin, Planned;
    POST "/admin/teams/{teamID}/builds/cancel" Admin, Planned;
    GET "/admin/sandboxes/running-counts" Admin, Planned;
    POST "/admin/teams/{teamID}/api-keys" Admin, Planned;
    DELETE "/admin/teams/{teamID}/api-keys/{apiKeyID}" Admin, Planned;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_endpoint_is_listed_twice() {
        for (at, endpoint) in ENDPOINTS.iter().enumerate() {
            let method = endpoint.method.parse().unwrap();
            assert!(!ENDPOINTS[..at].iter().any(|other| other.is(&method, endpoint.path)));
        }
    }

    #[test]
    fn a_blocked_team_may_look_and_clean_up() {
        let allows = |method: Method, path| find(&method, path).unwrap().allows_blocked();
        assert!(allows(Method::GET, "/v2/sandboxes"));
        assert!(allows(Method::HEAD, "/sandboxes/{sandboxID}"));
        assert!(allows(Method::DELETE, "/sandboxes/{sandboxID}"));
        assert!(!allows(Method::POST, "/v2/sandboxes"));
        assert!(!allows(Method::DELETE, "/secrets/{secret}"));
        assert!(!allows(Method::POST, "/sandboxes/{sandboxID}/timeout"));
    }
}
