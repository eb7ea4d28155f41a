//! `/init` and what it sets, on an envd in a process of its own.

#![allow(clippy::unwrap_used)]

mod support;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Envd, current_user};

const CONFIG: &str =
    r#"{ "control_secret": "secret", "sandbox_id": "isbx", "template_id": "base" }"#;
const SECRET: [(&str, &str); 1] = [("x-atoll-control", "secret")];

async fn init(envd: &Envd, body: Value) {
    let (status, answer) = envd.post_with("/init", &SECRET, &body).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
}

/// Where an empty path leads to, and whom new directories belong to.
async fn defaults(envd: &Envd) -> (Value, Value) {
    let stat = "/filesystem.Filesystem/Stat";
    let (status, body) = envd.post(stat, &json!({ "path": "" })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    (body["entry"]["path"].clone(), body["entry"]["owner"].clone())
}

// Rules: INIT-11, PATH-1, USER-1
#[tokio::test]
async fn defaults_stay_until_others_are_named() {
    let envd = Envd::with_config(CONFIG);
    assert_eq!(defaults(&envd).await.0, "/root", "the built-in user's home");
    let user = current_user();
    init(&envd, json!({ "defaultUser": user, "defaultWorkdir": "/usr" })).await;
    assert_eq!(defaults(&envd).await.0, "/usr");
    for body in [json!({}), json!({ "defaultUser": "", "defaultWorkdir": "" })] {
        init(&envd, body).await;
        assert_eq!(defaults(&envd).await.0, "/usr");
    }
    init(&envd, json!({ "defaultUser": "daemon", "defaultWorkdir": "" })).await;
    let (_, error) = envd.get("/files?path=no/such", &[]).await;
    assert_eq!(error["message"], "path '/usr/sbin/no/such' does not exist");
}

// Rules: INIT-16
#[tokio::test]
async fn the_last_of_many_counts() {
    let envd = Envd::with_config(CONFIG);
    let body = json!({ "accessToken": "tok", "envVars": { "A": "1" }, "timestamp": "2026-01-01T00:00:00Z" });
    for _ in 0..3 {
        init(&envd, body.clone()).await;
        let (status, envs) = envd.get("/envs", &[("x-access-token", "tok")]).await;
        assert_eq!((status, &envs["A"]), (StatusCode::OK, &json!("1")));
    }
    // All at once: each is applied wholly or not at all, and the newest wins.
    let requests = (0..20).map(|second| {
        let stamp = format!("2026-01-02T00:00:{second:02}Z");
        let token = format!("tok-{second}");
        let body = json!({ "accessToken": token, "envVars": { "A": token }, "timestamp": stamp });
        init(&envd, body)
    });
    futures::future::join_all(requests).await;
    let (status, envs) = envd.get("/envs", &[("x-access-token", "tok-19")]).await;
    assert_eq!((status, &envs["A"]), (StatusCode::OK, &json!("tok-19")));
}

// Rules: INIT-14
#[tokio::test]
async fn fields_of_other_nodes_are_borne_with() {
    let envd = Envd::with_config(CONFIG);
    let body = json!({
        "hyperloopIP": "169.254.1.1", "lifecycleID": "x", "cpuCount": 2, "thaw": "skip",
        "volumeMounts": [], "neverHeardOf": { "a": [1] }, "envVars": { "A": "1" },
    });
    init(&envd, body).await;
    assert_eq!(envd.get("/envs", &[]).await.1["A"], "1");
}

// Rules: ENVS-1, ENVS-2, INIT-9
#[tokio::test]
async fn variables_are_the_users_and_the_sandboxs() {
    let envd = Envd::with_config(CONFIG);
    let vars = json!({ "A": "grüße", "EMPTY": "", "E2B_SANDBOX": "forged" });
    init(&envd, json!({ "envVars": vars })).await;
    let (status, headers, body) = envd.call(Method::GET, "/envs", &[], "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["cache-control"], "no-store");
    let expected = json!({
        "A": "grüße", "EMPTY": "", "E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "isbx",
        "E2B_TEMPLATE_ID": "base",
    });
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
}

// Rules: INIT-3
#[tokio::test]
async fn half_of_a_bad_request_is_not_applied() {
    let envd = Envd::with_config(CONFIG);
    for field in [
        json!({ "envVars": { "A": 1 } }),
        json!({ "envVars": ["A"] }),
        json!({ "accessToken": 7 }),
        json!({ "timestamp": "2026-13-01T00:00:00Z" }),
    ] {
        let mut body = json!({ "defaultUser": "daemon", "envVars": { "A": "1" } });
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let (status, answer) = envd.post_with("/init", &SECRET, &body).await;
        assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!(400)), "{body}");
        assert_eq!(envd.get("/envs", &[]).await.1.get("A"), None);
        assert_eq!(defaults(&envd).await.0, "/root");
    }
}

#[tokio::test]
async fn what_comes_from_a_checkpoint_is_given_another_identity_secret_and_token() {
    let envd = Envd::with_config(CONFIG);
    init(&envd, json!({ "accessToken": "old" })).await;
    let body = json!({
        "sandboxId": "ifork", "templateId": "snapshot", "controlSecret": "rotated",
        "limits": { "vcpu": 3, "memory": 100 << 20 }, "accessToken": "new",
        // Before the last one: the clock of the node was set back.
        "timestamp": "2001-01-01T00:00:00Z",
    });
    init(&envd, body.clone()).await;

    let refused = envd.post_with("/init", &SECRET, &json!({})).await;
    assert_eq!(refused.0, StatusCode::UNAUTHORIZED, "the old secret still opens");
    assert_eq!(envd.get("/envs", &[("x-access-token", "old")]).await.0, StatusCode::UNAUTHORIZED);
    let token = [("x-access-token", "new")];
    let (status, envs) = envd.get("/envs", &token).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(envs["E2B_SANDBOX_ID"], "ifork");
    assert_eq!(envs["E2B_TEMPLATE_ID"], "snapshot");
    let (_, metrics) = envd.get("/metrics", &token).await;
    assert_eq!((&metrics["cpu_count"], &metrics["mem_total"]), (&json!(3), &json!(100 << 20)));
    let repeated = envd.post_with("/init", &[("x-atoll-control", "rotated")], &body).await;
    assert_eq!(repeated.0, StatusCode::NO_CONTENT);
}

// Rules: COMPOSE-5
#[tokio::test]
async fn a_signature_does_not_open_compose() {
    let envd = Envd::with_config(CONFIG);
    init(&envd, json!({ "accessToken": "tok" })).await;
    let body = json!({ "source_paths": ["a"], "destination": "b" });
    let signed = "/files/compose?path=b&signature=v1_x";
    assert_eq!(envd.post(signed, &body).await.0, StatusCode::UNAUTHORIZED);
    let token = [("x-access-token", "tok")];
    assert_eq!(envd.post_with(signed, &token, &body).await.0, StatusCode::NOT_FOUND);
}

// Rules: METRICS-1, METRICS-2, METRICS-3
#[tokio::test]
async fn measurements_agree_with_the_system() {
    let envd = Envd::start().await;
    let (_, metrics) = envd.get("/metrics", &[]).await;
    let number = |name: &str| metrics[name].as_u64().unwrap();
    let disk = rustix::fs::statvfs("/").unwrap();
    assert_eq!(number("disk_total"), disk.f_blocks * disk.f_frsize);
    let used = (disk.f_blocks - disk.f_bavail) * disk.f_frsize;
    // Others write to it, too.
    assert!(number("disk_used").abs_diff(used) < number("disk_total") / 10);
    assert!(number("mem_cache") <= number("mem_total"));
    assert_eq!(number("mem_used_mib"), number("mem_used") >> 20);
    let percent = metrics["cpu_used_pct"].as_f64().unwrap();
    assert!((percent * 100.0 - (percent * 100.0).round()).abs() < 1e-6, "{percent}");
}
