//! New sandboxes.

use std::time::Duration;

use atoll_core::{Error, error::codes};
use atoll_wire::node::OnTimeout;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    node::{ENVD_VERSION, FakeNode},
    stack::{SEED, Stack, eventually, id_of, send},
};

/// Seconds between now and the sandbox's deadline.
async fn seconds_left(stack: &Stack, id: &str) -> i64 {
    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    let end: Timestamp = detail["endAt"].as_str().unwrap().parse().unwrap();
    end.duration_since(Timestamp::now()).as_secs()
}

#[tokio::test]
async fn the_answer_has_what_clients_require() {
    let stack = Stack::with(FakeNode::default(), |options| {
        options.domain = Some("sbx.test:8443".to_owned());
    })
    .await;
    let body = json!({
        "templateID": " BASE ", "metadata": {"a": "1"}, "envVars": {"X": "y"}, "secure": true,
        "timeout": 300, "autoPause": false, "allow_internet_access": false,
    });
    let created = stack.post("/sandboxes", body).await.success(201);
    let id = id_of(&created);
    assert!(id.len() == 21 && id.starts_with('i'));
    assert_eq!(created["templateID"].as_str().unwrap().len(), 20);
    assert_eq!(created["clientID"], "6532622b");
    assert_eq!(created["envdVersion"], ENVD_VERSION);
    assert_eq!(created["alias"], "base");
    assert_eq!(created["domain"], "sbx.test:8443");
    assert_eq!(created.get("trafficAccessToken"), Some(&Value::Null));
    assert_eq!(created["envdAccessToken"].as_str().unwrap().len(), 64);

    let record = stack.node.record(&id).unwrap();
    assert_eq!(record.env_vars["X"], "y");
    assert_eq!(record.envd_access_token.as_deref(), created["envdAccessToken"].as_str());
    assert_eq!(record.allow_internet_access, Some(false));
    assert_eq!((record.resources.vcpu, record.resources.memory_mb), (2, 512));

    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    for key in ["templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken", "alias"] {
        assert_eq!(detail[key], created[key], "{key}");
    }
    assert_eq!(detail["state"], "running");
    assert_eq!(detail["metadata"], json!({"a": "1"}));
    assert_eq!(detail["volumeMounts"], json!([]));
    assert_eq!(detail["allowInternetAccess"], json!(false));
    assert_eq!(detail["lifecycle"], json!({"autoResume": false, "onTimeout": "kill"}));
    assert_eq!((&detail["cpuCount"], &detail["memoryMB"]), (&json!(2), &json!(512)));
    assert_eq!(detail["diskSizeMB"], json!(1024));
    assert!(detail.get("network").is_none(), "an optional object is left out");
}

#[tokio::test]
async fn the_two_routes_differ_in_their_defaults() {
    let stack = Stack::start().await;
    let old = stack.post("/sandboxes", json!({"templateID": "base"})).await.success(201);
    assert!(old.get("envdAccessToken").is_none());
    assert!((1..=15).contains(&seconds_left(&stack, &id_of(&old)).await));
    assert_eq!(stack.node.record(&id_of(&old)).unwrap().envd_access_token, None);

    let new = stack.post("/v2/sandboxes", json!({"templateID": "base"})).await.success(201);
    assert!(new["envdAccessToken"].is_string());
    assert!((280..=300).contains(&seconds_left(&stack, &id_of(&new)).await));
    let detail = stack.get(&format!("/sandboxes/{}", id_of(&new))).await.success(200);
    assert_eq!(detail.get("allowInternetAccess"), Some(&Value::Null));
}

#[tokio::test]
async fn a_template_goes_by_id_name_and_tag() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({})).await;
    let id = created["templateID"].as_str().unwrap();
    for reference in [id, "base:default", "BASE"] {
        let again = stack.post("/v2/sandboxes", json!({"templateID": reference})).await;
        assert_eq!(again.success(201)["templateID"], created["templateID"]);
    }
    for (reference, status, message) in [
        ("nothing", 404, "template 'nothing' not found"),
        ("base:v9", 404, "tag 'v9' does not exist for template 'base'"),
        ("a/b/c", 400, "Invalid template reference: invalid template name 'b/c'"),
        ("", 400, "Invalid template reference: invalid template name ''"),
        ("ü", 400, "Invalid template reference: invalid template name 'ü'"),
    ] {
        let answer = stack.post("/v2/sandboxes", json!({"templateID": reference})).await;
        assert_eq!(answer.failure(status), message, "{reference:?}");
    }
}

#[tokio::test]
async fn lifetimes_have_bounds() {
    let stack = Stack::start().await;
    for (timeout, message) in [
        (json!(0), "Timeout must be greater than 0"),
        (json!(86_401), "Timeout cannot be greater than 24 hours"),
        (json!(i32::MAX), "Timeout cannot be greater than 24 hours"),
        (json!(-1), "validation error: "),
        (json!(i64::MAX), "validation error: "),
        (json!(1e300), "validation error: "),
        (json!(1.5), "validation error: "),
        (json!("300"), "validation error: "),
    ] {
        for path in ["/sandboxes", "/v2/sandboxes"] {
            let body = json!({"templateID": "base", "timeout": timeout});
            let got = stack.post(path, body).await.failure(400);
            assert!(got.starts_with(message), "{timeout}: {got}");
        }
    }
    assert!(stack.node.sandboxes().is_empty());
    let longest = stack.sandbox(json!({"timeout": 86_400})).await;
    assert!(seconds_left(&stack, &id_of(&longest)).await > 86_000);
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name_and_its_default_is_not() {
    let stack = Stack::start().await;
    for (field, value, says) in [
        (
            "autoPauseMemory",
            json!(false),
            "autoPauseMemory=false only applies when autoPause is true.",
        ),
        ("network", json!({"allowPublicTraffic": false}), "'network.allowPublicTraffic'"),
        ("network", json!({"allowOut": ["1.1.1.1"]}), "'network.allowOut'"),
        ("network", json!({"denyOut": ["0.0.0.0/0"]}), "'network.denyOut'"),
        ("network", json!({"dnsServers": ["1.1.1.1"]}), "'network.dnsServers'"),
        ("network", json!({"httpsPorts": [8443]}), "'network.httpsPorts'"),
        ("network", json!({"egressProxy": {"address": "a:1"}}), "'network.egressProxy'"),
        ("network", json!({"maskRequestHost": "h"}), "'network.maskRequestHost'"),
        (
            "network",
            json!({"rules": {"a.b": []}}),
            "Network transform rules are not available for your team.",
        ),
        (
            "iam",
            json!({"tokens": {"t": {}}}),
            "Sandbox IAM workload tokens are not available for your team.",
        ),
        ("volumeMounts", json!([{"name": "v", "path": "/v"}]), "Volume mounts are not enabled."),
    ] {
        let mut body = json!({"templateID": "base"});
        body[field] = value.clone();
        let answer = stack.post("/v2/sandboxes", body).await;
        let message = answer.failure(400);
        assert!(message.contains(says), "{field} {value}: {message}");
        let code = if field == "autoPauseMemory" { "ATL-2001" } else { "ATL-2008" };
        assert_eq!(answer.json()["error_code"], code, "{field}");
    }
    for defaults in [
        json!({"autoPause": null, "autoPauseMemory": true, "autoResume": {"enabled": false}}),
        json!({"autoPause": false, "autoPauseMemory": null, "autoResume": null, "network": null}),
        json!({"network": {"allowPublicTraffic": true, "allowOut": [], "denyOut": null,
            "egressProxy": null, "maskRequestHost": "", "rules": {}}}),
        json!({"network": {}, "iam": {"tokens": {}}, "volumeMounts": [], "mcp": {"github": {}}}),
        json!({"iam": null, "volumeMounts": null, "mcp": null, "metadata": null, "envVars": null}),
        json!({"timeout": null, "secure": null, "allow_internet_access": true, "brandNew": [1]}),
    ] {
        stack.sandbox(defaults).await;
    }
}

#[tokio::test]
async fn what_happens_at_the_deadline_is_chosen() {
    let stack = Stack::start().await;
    let shown = |auto_resume: bool, on_timeout: &str| json!({"autoResume": auto_resume, "onTimeout": on_timeout});
    let pause = |memory| OnTimeout::Pause { memory };
    for (body, lifecycle, on_timeout) in [
        (json!({}), shown(false, "kill"), OnTimeout::Kill),
        (json!({"autoPause": true}), shown(false, "pause"), pause(true)),
        (json!({"autoPause": true, "autoPauseMemory": true}), shown(false, "pause"), pause(true)),
        (json!({"autoPause": true, "autoPauseMemory": false}), shown(false, "pause"), pause(false)),
        (
            json!({"autoPause": true, "autoResume": {"enabled": true}}),
            shown(true, "pause"),
            pause(true),
        ),
        (json!({"autoResume": {"enabled": true}}), shown(true, "kill"), OnTimeout::Kill),
        (json!({"autoPauseMemory": true, "autoResume": {}}), shown(false, "kill"), OnTimeout::Kill),
    ] {
        let id = id_of(&stack.sandbox(body).await);
        let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
        assert_eq!(detail["lifecycle"], lifecycle);
        let record = stack.node.record(&id).unwrap();
        assert_eq!((record.on_timeout, record.timeout), (on_timeout, 300));
        assert_eq!((record.auto_resume, record.longest), (lifecycle["autoResume"] == true, 86_400));
    }
    for (auto_pause, auto_resume, says) in [
        (json!(false), json!(null), "autoPauseMemory=false only applies when autoPause is true."),
        (json!(true), json!({"enabled": true}), "autoPauseMemory=false cannot be combined"),
    ] {
        let body = json!({"templateID": "base", "autoPause": auto_pause,
            "autoPauseMemory": false, "autoResume": auto_resume});
        let message = stack.post("/v2/sandboxes", body).await.failure(400);
        assert!(message.starts_with(says), "{message}");
    }
}

#[tokio::test]
async fn variables_that_no_process_could_have_are_refused() {
    let stack = Stack::start().await;
    for vars in [json!({"": "x"}), json!({"A=B": "x"}), json!({"A": "x\u{0}"}), json!({"A": 1})] {
        let body = json!({"templateID": "base", "envVars": vars});
        let message = stack.post("/v2/sandboxes", body).await.failure(400);
        assert!(message.starts_with("validation error: "), "{message}");
    }
}

#[tokio::test]
async fn of_two_hundred_at_once_as_many_run_as_the_limit_allows() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET concurrent_instances = 100").await;
    let body = json!({"templateID": "base"});
    let create = || send(stack.request(Method::POST, "/v2/sandboxes").json(&body));
    let answers = futures::future::join_all((0..200).map(|_| create())).await;

    let (made, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status.as_u16() == 201);
    assert_eq!((made.len(), refused.len()), (100, 100));
    for answer in &refused {
        let message = answer.failure(429);
        assert!(message.contains("100") && message.contains("'development'"), "{message}");
        assert_eq!(answer.headers["should-retry"], "false");
    }
    assert_eq!(stack.node.sandboxes().len(), 100);

    // A place that is given back is there for the next.
    let first = id_of(&made[0].json());
    stack.delete(&format!("/sandboxes/{first}")).await.success(204);
    create().await.success(201);
    create().await.failure(429);
}

#[tokio::test]
async fn an_idempotency_key_leads_to_one_sandbox() {
    let stack = Stack::start().await;
    let body = json!({"templateID": "base"});
    let create = |key: &str| {
        let request = stack.request(Method::POST, "/v2/sandboxes").json(&body);
        send(request.header("Idempotency-Key", key))
    };
    let answers = futures::future::join_all((0..20).map(|_| create("key-1"))).await;
    let first = answers[0].success(201);
    assert!(answers.iter().all(|answer| answer.success(201) == first));
    assert_eq!(stack.node.sandboxes().len(), 1);
    assert_ne!(create("key-2").await.success(201), first);

    let (_, other) = stack.other_team().await;
    let request = stack.anonymous(Method::POST, "/v2/sandboxes").json(&body);
    let theirs = send(request.header("X-API-Key", other).header("Idempotency-Key", "key-1")).await;
    assert_ne!(theirs.success(201), first, "keys are a team's own");

    for bad in ["", "UPPER", "a_b", &"a".repeat(256)] {
        let message = create(bad).await.failure(400);
        assert!(message.starts_with("validation error: Idempotency-Key"), "{bad:?}: {message}");
    }
    create(&"a".repeat(255)).await.success(201);

    stack.delete(&format!("/sandboxes/{}", id_of(&first))).await.success(204);
    let gone = create("key-1").await;
    gone.failure(404);
    assert_eq!(gone.json()["error_code"], "ATL-3004");
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing() {
    let stack = Stack::with(FakeNode::holding(), |_| {}).await;
    let create = || {
        let request = stack.request(Method::POST, "/v2/sandboxes");
        send(request.json(&json!({"templateID": "base"})).header("Idempotency-Key", "key"))
    };
    let mut first = Box::pin(create());
    tokio::select! {
        _ = &mut first => panic!("it did not wait"),
        () = eventually(|| async { stack.node.sandboxes().len() == 1 }) => {}
    }
    assert!(!stack.has_place(1).await);
    drop(first);
    eventually(|| async { stack.node.sandboxes().is_empty() }).await;
    eventually(|| stack.has_place(1)).await;

    // Its idempotency key is free again.
    stack.node.gate.add_permits(1);
    create().await.success(201);
    assert_eq!(stack.node.sandboxes().len(), 1);
}

#[tokio::test]
async fn a_node_that_refuses_takes_no_place() {
    let stack = Stack::start().await;
    for (error, status, error_code, message) in [
        (
            Error::new(codes::CAPACITY, "no slot."),
            503,
            "sandbox_capacity_unavailable",
            "Failed to place sandbox: not enough capacity for the requested resources right now, please retry shortly",
        ),
        (
            Error::new(codes::SANDBOX_START_FAILED, "envd did not start."),
            500,
            "sandbox_create_failed",
            "Failed to place sandbox: envd did not start. ",
        ),
        (
            Error::new(codes::TEMPLATE_MISSING, "The node lacks it."),
            404,
            "ATL-5004",
            "The node lacks it. ",
        ),
    ] {
        *stack.node.refusal.lock().unwrap() = Some(error);
        let answer = stack.post("/v2/sandboxes", json!({"templateID": "base"})).await;
        let got = answer.failure(status);
        assert!(got.starts_with(message), "{got}");
        assert_eq!(answer.json()["error_code"], error_code);
        assert!(!answer.headers.contains_key("should-retry"), "a retry may succeed");
        assert!(stack.has_place(1).await);
        assert!(stack.node.sandboxes().is_empty());
    }
}

#[tokio::test]
async fn a_create_that_takes_too_long_is_undone() {
    let stack = Stack::with(FakeNode::holding(), |options| {
        options.handler_deadline = Duration::from_millis(50);
    })
    .await;
    let answer = stack.post("/v2/sandboxes", json!({"templateID": "base"})).await;
    let message = answer.failure(504);
    assert_eq!(message, "Failed to place sandbox: placement timed out, please retry");
    assert_eq!(answer.json()["error_code"], "sandbox_placement_timeout");
    assert!(stack.node.sandboxes().is_empty());
    assert!(stack.has_place(1).await);
}

#[tokio::test]
async fn the_lifetime_counts_from_when_the_sandbox_is_up() {
    let stack = Stack::with(FakeNode::holding(), |_| {}).await;
    let create = stack.post("/v2/sandboxes", json!({"templateID": "base", "timeout": 60}));
    let mut create = Box::pin(create);
    tokio::select! {
        _ = &mut create => panic!("it did not wait"),
        () = eventually(|| async { stack.node.sandboxes().len() == 1 }) => {}
    }
    let before = Timestamp::now();
    stack.node.gate.add_permits(1);
    let id = id_of(&create.await.success(201));
    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    let time = |key: &str| detail[key].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(time("startedAt") >= before);
    assert_eq!(time("endAt").duration_since(time("startedAt")).as_secs(), 60);
    assert_eq!(stack.node.record(&id).unwrap().end_at, time("endAt"));
}

#[tokio::test]
async fn spawns_are_counted() {
    let stack = Stack::start().await;
    stack.sandbox_id().await;
    eventually(|| async {
        let templates = stack.get("/templates").await.success(200);
        templates[0]["spawnCount"] == json!(1) && templates[0]["lastSpawnedAt"].is_string()
    })
    .await;
}

#[tokio::test]
async fn access_tokens_of_sandboxes_follow_the_seed() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({})).await;
    let mut mac: hmac::Hmac<sha2::Sha256> = hmac::KeyInit::new_from_slice(SEED.as_bytes()).unwrap();
    hmac::Mac::update(&mut mac, id_of(&created).as_bytes());
    let expected = hex::encode(hmac::Mac::finalize(mac).into_bytes());
    assert_eq!(created["envdAccessToken"], json!(expected));
}
