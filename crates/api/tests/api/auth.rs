//! Who is let in, and what the others are told.

use std::net::SocketAddr;

use axum::{body::Body, extract::ConnectInfo};
use http::Request;
use reqwest::Method;
use serde_json::json;
use tower::ServiceExt;
use uuid::Uuid;

use crate::stack::{ACCESS_TOKEN, ADMIN_TOKEN, KEY, Stack, TEAM, send};

const INVALID_KEY: &str =
    "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n";

/// Headers, and the status and message they are answered with.
type Case<'a> = (&'a [(&'a str, &'a str)], u16, String);

async fn refusal(stack: &Stack, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = stack.anonymous(Method::GET, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = send(request).await;
    let status = answer.status.as_u16();
    (status, answer.failure(status))
}

#[tokio::test]
async fn wrong_credentials_get_the_contracts_sentences() {
    let stack = Stack::start().await;
    let team = TEAM.to_string();
    let unknown = Uuid::new_v4().to_string();
    let cases: &[Case<'_>] = &[
        (&[], 401, "authorization header is missing".into()),
        (&[("x-api-key", "")], 401, "authorization header is malformed".into()),
        (&[("x-api-key", "nonsense")], 401, "authorization header is malformed".into()),
        (&[("x-api-key", ACCESS_TOKEN)], 401, "authorization header is malformed".into()),
        (&[("x-api-key", "e2b_xyz")], 401, format!("{INVALID_KEY}Invalid API key format")),
        (&[("x-api-key", "e2b_")], 401, format!("{INVALID_KEY}Invalid API key format")),
        (
            &[("x-api-key", "e2b_00ff")],
            401,
            format!("{INVALID_KEY}Cannot get the team for the given API key"),
        ),
        (&[("authorization", "Basic dTpw")], 401, "authorization header is malformed".into()),
        (&[("x-team-id", &team)], 401, "authorization header is missing".into()),
        (&[("x-admin-token", ADMIN_TOKEN)], 401, "authorization header is missing".into()),
        (&[("x-admin-token", ADMIN_TOKEN), ("x-team-id", "x")], 400, "Invalid team ID".into()),
        (&[("x-admin-token", ADMIN_TOKEN), ("x-team-id", &unknown)], 404, "Team not found".into()),
        // The first scheme whose header is there speaks.
        (
            &[("x-api-key", "e2b_00ff"), ("x-admin-token", "wrong"), ("x-team-id", &team)],
            401,
            format!("{INVALID_KEY}Cannot get the team for the given API key"),
        ),
    ];
    for (headers, status, message) in cases {
        let got = refusal(&stack, "/v2/sandboxes", headers).await;
        assert_eq!(got, (*status, message.clone()), "{headers:?}");
    }
    for (path, headers, start) in [
        ("/v2/sandboxes", [("authorization", "Bearer a.b.c")], "Invalid auth provider token."),
        ("/v2/sandboxes", [("x-admin-token", "wrong")], "Invalid Access token."),
        ("/teams", [("authorization", "Bearer sk_e2b_00")], "Invalid Access token, try to login"),
        ("/templates", [("authorization", "Bearer sk_e2b_zz")], "Invalid Access token, try to"),
    ] {
        let (status, message) = refusal(&stack, path, &headers).await;
        assert!(status == 401 && message.starts_with(start), "{path} {headers:?}: {message}");
    }
}

#[tokio::test]
async fn a_valid_scheme_counts_whatever_the_others_say() {
    let stack = Stack::start().await;
    let request = stack
        .anonymous(Method::GET, "/v2/sandboxes")
        .header("X-Api-Key", "e2b_00ff")
        .header("X-Admin-Token", ADMIN_TOKEN)
        .header("X-Team-ID", TEAM.to_string());
    send(request).await.success(200);
}

#[tokio::test]
async fn credentials_are_checked_before_the_request_is_read() {
    let stack = Stack::start().await;
    for path in ["/sandboxes", "/v2/sandboxes", "/sandboxes/A.B/timeout", "/sandboxes/i1/pause"] {
        let answer = send(stack.anonymous(Method::POST, path).body("not json")).await;
        assert_eq!(answer.failure(401), "authorization header is missing", "{path}");
    }
}

#[tokio::test]
async fn without_an_admin_token_nobody_is_the_administrator() {
    for token in [None, Some(String::new())] {
        let stack = Stack::with(Default::default(), |options| options.admin_token = token).await;
        let headers = [("x-admin-token", ""), ("x-team-id", &TEAM.to_string())];
        assert_eq!(refusal(&stack, "/v2/sandboxes", &headers).await.0, 401);
    }
}

#[tokio::test]
async fn the_development_key_works_for_programs_on_this_machine_only() {
    let stack = Stack::start().await;
    stack.get("/v2/sandboxes").await.success(200);
    let fresh = stack.key_for(TEAM).await;
    for foreign in [
        ("origin", "http://example.com"),
        ("origin", "null"),
        ("x-forwarded-for", "192.0.2.1"),
        ("host", "rebound.example.com"),
    ] {
        for (name, value, path) in [
            ("x-api-key", KEY.to_owned(), "/v2/sandboxes"),
            ("authorization", format!("Bearer {ACCESS_TOKEN}"), "/teams"),
        ] {
            let request = stack.anonymous(Method::GET, path).header(name, value);
            let answer = send(request.header(foreign.0, foreign.1)).await;
            answer.failure(401);
            assert_eq!(answer.json()["error_code"], "ATL-2011", "{foreign:?}");
        }
        let request = stack.anonymous(Method::GET, "/v2/sandboxes").header("x-api-key", &fresh);
        send(request.header(foreign.0, foreign.1)).await.success(200);
    }

    // A peer beyond loopback, and a front that does not say who the peer is.
    for (peer, expected) in [
        (Some("192.0.2.1:5"), 401),
        (Some("[2001:db8::1]:5"), 401),
        (None, 401),
        (Some("127.0.0.1:5"), 200),
    ] {
        let mut request =
            Request::get("/v2/sandboxes").header("x-api-key", KEY).body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        }
        let response = stack.service.handle().router().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{peer:?}");
    }
}

#[tokio::test]
async fn a_banned_team_may_nothing_and_a_blocked_one_only_look_and_clean_up() {
    let stack = Stack::start().await;
    let (team, key) = stack.other_team().await;
    let base = json!({"templateID": "base"});
    let request = |method, path: &str| stack.anonymous(method, path).header("X-API-Key", &key);
    let created = send(request(Method::POST, "/v2/sandboxes").json(&base)).await.success(201);
    let path = format!("/sandboxes/{}", created["sandboxID"].as_str().unwrap());

    // A second key, as the answer on the first one may be remembered for a moment.
    stack
        .sql(&format!(
            "UPDATE teams SET is_blocked = 1, blocked_reason = 'unpaid' WHERE id = '{team}'"
        ))
        .await;
    let key = stack.key_for(team).await;
    let request = |method, path: &str| stack.anonymous(method, path).header("X-API-Key", &key);
    let refused = send(request(Method::POST, "/v2/sandboxes").json(&base)).await;
    assert_eq!(refused.failure(403), "team is blocked: unpaid");
    let refused = send(request(Method::POST, &format!("{path}/timeout")).json(&base)).await;
    assert_eq!(refused.failure(403), "team is blocked: unpaid");
    send(request(Method::GET, "/v2/sandboxes")).await.success(200);
    send(request(Method::GET, "/templates")).await.success(200);
    send(request(Method::DELETE, &path)).await.success(204);

    stack.sql(&format!("UPDATE teams SET is_banned = 1 WHERE id = '{team}'")).await;
    let key = stack.key_for(team).await;
    for path in ["/v2/sandboxes", "/templates", "/snapshots"] {
        let answer = send(stack.anonymous(Method::GET, path).header("X-API-Key", &key)).await;
        assert_eq!(answer.failure(403), "team is banned");
    }
}

#[tokio::test]
async fn teams_come_with_a_key_that_works() {
    let stack = Stack::start().await;
    let request = stack.anonymous(Method::GET, "/teams").bearer_auth(ACCESS_TOKEN);
    let teams = send(request).await.success(200);
    let [team] = teams.as_array().unwrap().as_slice() else { panic!("{teams}") };
    assert_eq!(team["teamID"], json!(TEAM));
    assert_eq!(team["isDefault"], json!(true));
    let key = team["apiKey"].as_str().unwrap();
    // Being secret, it works from a web page too.
    let request = stack.anonymous(Method::GET, "/v2/sandboxes").header("X-API-Key", key);
    send(request.header("Origin", "http://example.com")).await.success(200);

    let answer = send(stack.request(Method::GET, "/teams")).await;
    assert_eq!(answer.failure(401), "authorization header is missing");
}

#[tokio::test]
async fn templates_are_listed_for_teams_and_users() {
    let stack = Stack::start().await;
    let user = |path: &str| stack.anonymous(Method::GET, path).bearer_auth(ACCESS_TOKEN);
    let own = format!("/templates?teamID={TEAM}");
    for request in [
        stack.request(Method::GET, "/templates"),
        stack.request(Method::GET, &own),
        user("/templates"),
        user(&own),
    ] {
        let templates = send(request).await.success(200);
        let [base] = templates.as_array().unwrap().as_slice() else { panic!("{templates}") };
        assert_eq!((&base["aliases"], &base["names"]), (&json!(["base"]), &json!(["base"])));
        assert_eq!(base["buildStatus"], "ready");
        assert_eq!((&base["cpuCount"], &base["memoryMB"]), (&json!(2), &json!(512)));
        assert_eq!((&base["diskSizeMB"], &base["public"]), (&json!(1024), &json!(true)));
        for nullable in ["createdBy", "lastSpawnedAt"] {
            assert_eq!(base.get(nullable), Some(&json!(null)));
        }
    }
    let foreign = format!("/templates?teamID={}", Uuid::new_v4());
    let message = stack.get(&foreign).await.failure(400);
    assert_eq!(message, "Team ID param mismatch with the API key");
    let message = send(user(&foreign)).await.failure(403);
    assert_eq!(message, "You are not allowed to access this team");
}

#[tokio::test]
async fn an_alias_is_looked_up() {
    let stack = Stack::start().await;
    let found = stack.get("/templates/aliases/base").await.success(200);
    assert_eq!(found["public"], json!(true));
    assert_eq!(found["templateID"].as_str().unwrap().len(), 20);
    let message = stack.get("/templates/aliases/nothing").await.failure(404);
    assert_eq!(message, "template 'nothing' not found");
    let message = stack.get("/templates/aliases/base%3Av9").await.failure(404);
    assert_eq!(message, "tag 'v9' does not exist for template 'base'");
    stack.get("/templates/aliases/a%2Fb%2Fc").await.failure(400);
    stack.get("/templates/aliases/dev%2Fnothing").await.failure(404);
}
