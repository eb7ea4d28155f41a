//! Tokens, users, `/init` and the other plain routes.

#![allow(clippy::unwrap_used)]

mod support;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::Envd;

const CONFIG: &str = r#"{ "control_secret": "secret", "sandbox_id": "", "template_id": "base" }"#;
const SECRET: [(&str, &str); 1] = [("x-atoll-control", "secret")];

fn unauthorized() -> (StatusCode, Value) {
    let message = "unauthorized access, please provide a valid access token or method signing if \
                   supported";
    (StatusCode::UNAUTHORIZED, json!({ "code": 401, "message": message }))
}

async fn envs(envd: &Envd, token: &str) -> Value {
    let (status, body) = envd.get("/envs", &[("x-access-token", token)]).await;
    assert_eq!(status, StatusCode::OK);
    body
}

// Rules: HEALTH-1, AUTH-1
#[tokio::test]
async fn health_has_no_body_and_needs_no_token() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "accessToken": "tok" })).await;
    let (status, headers, body) = envd.call(Method::GET, "/health", &[], "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(headers["cache-control"], "no-store");
    assert!(body.is_empty());
}

// Rules: COMPOSE-5, AUTH-2, AUTH-3, AUTH-4, TRAP-4
#[tokio::test]
async fn everything_else_needs_the_token_once_there_is_one() {
    let envd = Envd::with_config(CONFIG);
    assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::OK);
    envd.post_with("/init", &SECRET, &json!({ "accessToken": "tok" })).await;
    for headers in [&[][..], &[("x-access-token", "wrong")]] {
        assert_eq!(envd.get("/envs", headers).await, unauthorized());
        assert_eq!(envd.get("/metrics", headers).await, unauthorized());
        let compose = json!({ "source_paths": [], "destination": "x" });
        assert_eq!(envd.post_with("/files/compose", headers, &compose).await, unauthorized());
        let list = envd.post_with("/process.Process/List", headers, &json!({})).await;
        assert_eq!(list, unauthorized());
    }
    let (_, headers, _) = envd.call(Method::GET, "/envs", &[], "").await;
    assert_eq!(headers["content-type"], "application/json; charset=utf-8");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let token = [("x-access-token", "tok")];
    let list = envd.post_with("/process.Process/List", &token, &json!({})).await;
    assert_eq!(list, (StatusCode::OK, json!({})));
}

// Rules: USER-3, TRAP-40
#[tokio::test]
async fn an_unknown_user_is_refused_everywhere() {
    let envd = Envd::start().await;
    // "ghost:"
    let ghost = [("authorization", "Basic Z2hvc3Q6")];
    let body = json!({ "code": "unauthenticated", "message": "invalid username: 'ghost'" });
    let refused = (StatusCode::UNAUTHORIZED, body);
    assert_eq!(envd.get("/health", &ghost).await, refused);
    assert_eq!(envd.post_with("/process.Process/List", &ghost, &json!({})).await, refused);
}

// Rules: USER-4
#[tokio::test]
async fn an_unknown_default_user_is_refused_where_a_user_is_needed() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "defaultUser": "ghost" })).await;
    assert_eq!(envd.rpc("List", json!({})).await.0, StatusCode::OK);
    let trailer = envd.sh("true", json!({})).await.outcome().await.trailer;
    let message = "invalid default user: 'ghost'";
    assert_eq!(trailer["error"], json!({ "code": "unauthenticated", "message": message }));
}

// Rules: CTRL-1, PROXY-5
#[tokio::test]
async fn control_routes_need_the_control_secret() {
    let envd = Envd::with_config(CONFIG);
    for path in ["/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"] {
        assert_eq!(envd.post(path, &json!({})).await.0, StatusCode::UNAUTHORIZED, "{path}");
        let wrong = [("x-atoll-control", "secre")];
        let (status, _) = envd.post_with(path, &wrong, &json!({})).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, body) = envd.post_with("/collapse", &SECRET, &json!({})).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_IMPLEMENTED, &json!(501)));
}

// Rules: INIT-1, INIT-2, INIT-5, INIT-10, AUTH-5
#[tokio::test]
async fn the_node_may_change_the_token_without_knowing_it() {
    let envd = Envd::with_config(CONFIG);
    for token in ["one", "two"] {
        let headers = [("content-type", "application/json"), SECRET[0]];
        let body = json!({ "accessToken": token }).to_string();
        let (status, headers, _) = envd.call(Method::POST, "/init", &headers, body).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        assert_eq!(headers["x-envd-version"], "0.6.13");
        envs(&envd, token).await;
    }
    // An empty body is allowed, and clears the token.
    let (status, _, _) = envd.call(Method::POST, "/init", &SECRET, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::OK);
}

// Rules: INIT-4
#[tokio::test]
async fn without_a_node_the_token_protects_itself() {
    let envd = Envd::with_config("");
    let token = |token| json!({ "accessToken": token });
    assert_eq!(envd.post("/init", &token("one")).await.0, StatusCode::NO_CONTENT);
    assert_eq!(envd.post("/init", &token("one")).await.0, StatusCode::NO_CONTENT);
    let refused = |message| (StatusCode::UNAUTHORIZED, json!({ "code": 401, "message": message }));
    let wrong = envd.post("/init", &token("two")).await;
    assert_eq!(wrong, refused("access token validation failed"));
    let reset = envd.post("/init", &json!({})).await;
    assert_eq!(reset, refused("access token reset not authorized"));
}

// Rules: INIT-8, INIT-9, ENVS-1, TRAP-18
#[tokio::test]
async fn variables_are_replaced_and_the_sandboxs_own_are_not() {
    let envd = Envd::with_config(CONFIG);
    let init = async |body: Value| {
        assert_eq!(envd.post_with("/init", &SECRET, &body).await.0, StatusCode::NO_CONTENT);
    };
    init(json!({ "envVars": { "A": "1", "E2B_TEMPLATE_ID": "forged" }, "lifecycleID": "x" })).await;
    let own = json!({ "E2B_SANDBOX": "true", "E2B_TEMPLATE_ID": "base" });
    let mut with_a = own.clone();
    with_a["A"] = json!("1");
    assert_eq!(envs(&envd, "").await, with_a);
    init(json!({})).await;
    assert_eq!(envs(&envd, "").await, with_a);
    init(json!({ "envVars": {} })).await;
    assert_eq!(envs(&envd, "").await, own);
}

// Rules: INIT-6, TRAP-42
#[tokio::test]
async fn an_older_init_changes_nothing() {
    let envd = Envd::with_config(CONFIG);
    let init = async |timestamp: &str, value: &str| {
        let body = json!({ "timestamp": timestamp, "envVars": { "A": value } });
        envd.post_with("/init", &SECRET, &body).await.0
    };
    assert_eq!(init("2026-01-02T00:00:00Z", "new").await, StatusCode::NO_CONTENT);
    for stale in ["2026-01-01T00:00:00.5Z", "2026-01-02T01:00:00+01:00"] {
        assert_eq!(init(stale, "old").await, StatusCode::NO_CONTENT);
        assert_eq!(envs(&envd, "").await["A"], "new");
    }
    assert_eq!(init("2026-01-02T00:00:00.000000001Z", "newer").await, StatusCode::NO_CONTENT);
    assert_eq!(envs(&envd, "").await["A"], "newer");
}

// Rules: INIT-3
#[tokio::test]
async fn a_malformed_init_is_refused_and_changes_nothing() {
    let envd = Envd::with_config(CONFIG);
    let (status, _, _) = envd.call(Method::POST, "/init", &SECRET, "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    for body in [
        json!({ "accessToken": "tok", "timestamp": "yesterday" }),
        json!({ "accessToken": "tok", "caBundle": "no certificate" }),
    ] {
        let (status, body) = envd.post_with("/init", &SECRET, &body).await;
        assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!(400)));
    }
    assert_eq!(envd.get("/envs", &[]).await.0, StatusCode::OK);
}

// Rules: METRICS-1
#[tokio::test]
async fn metrics_measure_something() {
    let envd = Envd::start().await;
    let (status, metrics) = envd.get("/metrics", &[]).await;
    assert_eq!(status, StatusCode::OK);
    let number = |name: &str| metrics[name].as_f64().unwrap();
    assert!(number("ts") > 1.7e9);
    assert!(number("cpu_count") >= 1.0);
    assert!((0.0..=100.0).contains(&number("cpu_used_pct")));
    for (used, total) in [("mem_used", "mem_total"), ("disk_used", "disk_total")] {
        assert!(number(used) > 0.0 && number(used) <= number(total), "{used}: {metrics}");
    }
    assert_eq!(number("mem_total_mib"), (number("mem_total") / 1_048_576.0).floor());
}

// Rules: BOOT-9, BOOT-10, TRAP-27
#[tokio::test]
async fn browsers_may_ask_before_they_have_a_token() {
    let envd = Envd::with_config(CONFIG);
    envd.post_with("/init", &SECRET, &json!({ "accessToken": "tok" })).await;
    let preflight = [
        ("origin", "https://example.test"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-access-token,content-type"),
    ];
    let path = "/process.Process/Start";
    let (status, headers, _) = envd.call(Method::OPTIONS, path, &preflight, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(headers["access-control-allow-headers"], "x-access-token,content-type");
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("DELETE"));
    let (status, headers, _) = envd.call(Method::GET, "/envs", &preflight[..1], "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(headers["access-control-allow-origin"], "*");
}

// Rules: BOOT-11, BOOT-12, RPC-8, RPC-9
#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let envd = Envd::start().await;
    assert_eq!(envd.get("/nothing", &[]).await.0, StatusCode::NOT_FOUND);
    assert_eq!(envd.rpc("NoSuchMethod", json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(envd.post("/health", &json!({})).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(envd.get("/init", &[]).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let (status, _) = envd.get("/process.Process/Start", &[]).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

// Rules: RPC-2, RPC-12, RPC-14, TRAP-35
#[tokio::test]
async fn a_bad_message_is_an_invalid_argument() {
    let envd = Envd::start().await;
    let json =
        [("content-type", "application/json; charset=utf-8"), ("content-encoding", "identity")];
    let list = "/process.Process/List";
    let (status, _, body) = envd.call(Method::POST, list, &json, "{ nonsense").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "invalid_argument");
    let (status, _, _) = envd.call(Method::POST, list, &json, r#"{"unknown":1}"#).await;
    assert_eq!(status, StatusCode::OK);
    let xml = [("content-type", "text/xml")];
    let (status, _, _) = envd.call(Method::POST, list, &xml, "<list/>").await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
