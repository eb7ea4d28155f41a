//! Deadlines, connect, kill, and what ends by itself.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use atoll_wire::node::EndReason;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    node::FakeNode,
    stack::{Stack, eventually, id_of, send},
};

fn not_found(id: &str) -> String {
    format!("Sandbox \"{id}\" doesn't exist or you don't have access to it")
}

async fn end_at(stack: &Stack, id: &str) -> Timestamp {
    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    detail["endAt"].as_str().unwrap().parse().unwrap()
}

/// Seconds from now to `end`, rounded.
fn from_now(end: Timestamp) -> f64 {
    end.duration_since(Timestamp::now()).as_secs_f64().round()
}

async fn is_gone(stack: &Stack, id: &str) -> bool {
    stack.get(&format!("/sandboxes/{id}")).await.status == 404 && stack.node.record(id).is_none()
}

#[tokio::test]
async fn a_killed_sandbox_is_gone() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}");
    stack.delete(&path).await.success(204);
    assert!(stack.node.record(&id).is_none());
    assert_eq!(stack.node.reasons(&id), [EndReason::Killed]);
    assert_eq!(stack.delete(&path).await.failure(404), not_found(&id));
    assert_eq!(stack.get(&path).await.failure(404), not_found(&id));
    assert_eq!(
        stack.post(&format!("{path}/connect"), json!({"timeout": 5})).await.failure(404),
        not_found(&id)
    );
    assert_eq!(
        stack.post(&format!("{path}/timeout"), json!({"timeout": 5})).await.failure(404),
        not_found(&id)
    );
    assert_eq!(
        stack.post(&format!("{path}/refreshes"), json!({})).await.failure(404),
        not_found(&id)
    );
    assert_eq!(stack.get("/v2/sandboxes").await.success(200), json!([]));
}

#[tokio::test]
async fn of_many_kills_at_once_one_ends_the_sandbox() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}");
    let answers = futures::future::join_all((0..20).map(|_| stack.delete(&path))).await;
    let killed = answers.iter().filter(|answer| answer.status == 204).count();
    assert_eq!(killed, 1);
    assert!(answers.iter().all(|answer| [204, 404].contains(&answer.status.as_u16())));
    assert_eq!(stack.node.reasons(&id), [EndReason::Killed]);
}

#[tokio::test]
async fn a_kill_that_failed_can_be_repeated() {
    let stack = Stack::start().await;
    let path = format!("/sandboxes/{}", stack.sandbox_id().await);
    stack.node.kills_fail.store(true, Ordering::SeqCst);
    let answer = stack.delete(&path).await;
    assert!(answer.failure(500).starts_with("the cgroup is busy."));
    assert_eq!(answer.json()["error_code"], "internal_server_error");
    stack.get(&path).await.success(200);
    stack.node.kills_fail.store(false, Ordering::SeqCst);
    stack.delete(&path).await.success(204);
}

#[tokio::test]
async fn a_kill_goes_on_when_the_client_hangs_up() {
    let stack = Stack::with(FakeNode::holding_kills(), |_| {}).await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}");
    let mut kill = Box::pin(stack.delete(&path));
    tokio::select! {
        _ = &mut kill => panic!("it did not wait"),
        () = eventually(|| async { stack.get(&path).await.status == 404 }) => {}
    }
    drop(kill);
    stack.node.kill_gate.add_permits(1);
    eventually(|| is_gone(&stack, &id)).await;
    eventually(|| stack.has_place(1)).await;
}

#[tokio::test]
async fn ids_are_read_as_published() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    stack.get(&format!("/sandboxes/{id}-6532622b")).await.success(200);
    assert_eq!(stack.delete("/sandboxes/non-existing").await.failure(404), not_found("non"));
    stack.delete("/sandboxes/nonexistingsandbox").await.failure(404);
    for bad in
        ["a.b", "a%2Fb", "..%2Fx", "%C3%A9", "%ff", "A1", "a-b-c", "a%00", "a%20b", "%2e%2e%2e"]
    {
        for (method, tail) in [
            (Method::GET, ""),
            (Method::DELETE, ""),
            (Method::POST, "/timeout"),
            (Method::POST, "/connect"),
            (Method::POST, "/refreshes"),
            (Method::POST, "/pause"),
            (Method::POST, "/resume"),
            (Method::POST, "/fork"),
            (Method::POST, "/snapshots"),
            (Method::GET, "/metrics"),
        ] {
            let request = stack.request(method.clone(), &format!("/sandboxes/{bad}{tail}"));
            let message = send(request.json(&json!({"timeout": 1}))).await.failure(400);
            assert_eq!(message, "Invalid sandbox ID", "{method} {bad}{tail}");
        }
    }
    stack.get(&format!("/sandboxes/{id}")).await.success(200);
}

#[tokio::test]
async fn another_teams_sandbox_does_not_exist() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let (_, key) = stack.other_team().await;
    let request = |method, path: &str| stack.anonymous(method, path).header("X-API-Key", &key);
    let path = format!("/sandboxes/{id}");
    for (method, path, body) in [
        (Method::GET, path.clone(), json!(null)),
        (Method::DELETE, path.clone(), json!(null)),
        (Method::POST, format!("{path}/timeout"), json!({"timeout": 0})),
        (Method::POST, format!("{path}/refreshes"), json!({})),
        (Method::POST, format!("{path}/connect"), json!({"timeout": 1})),
        (Method::POST, format!("/v2{path}/connect"), json!({})),
        (Method::POST, format!("{path}/pause"), json!({})),
        (Method::POST, format!("{path}/resume"), json!({})),
        (Method::POST, format!("{path}/fork"), json!({})),
        (Method::POST, format!("{path}/snapshots"), json!({})),
        (Method::POST, format!("/atoll{path}/fork"), json!({})),
        (Method::POST, format!("/atoll{path}/rewind"), json!({"snapshotID": "x"})),
        (Method::GET, format!("/atoll{path}/lineage"), json!(null)),
    ] {
        let answer = send(request(method, &path).json(&body)).await;
        assert_eq!(answer.failure(404), not_found(&id), "{path}");
    }
    assert_eq!(send(request(Method::GET, "/v2/sandboxes")).await.success(200), json!([]));
    assert_eq!(send(request(Method::GET, "/sandboxes")).await.success(200), json!([]));
    stack.get(&path).await.success(200);
}

#[tokio::test]
async fn a_deadline_is_set_sooner_and_later() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}/timeout");
    for timeout in [10, 1000, 86_400] {
        stack.post(&path, json!({"timeout": timeout})).await.success(204);
        let left = from_now(end_at(&stack, &id).await);
        assert!((f64::from(timeout) - 30.0..=f64::from(timeout)).contains(&left), "{left}");
    }
    // Never beyond the tier's longest run.
    stack.post(&path, json!({"timeout": i32::MAX})).await.success(204);
    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    let time = |key: &str| detail[key].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(time("endAt").duration_since(time("startedAt")).as_secs(), 86_400);
    eventually(|| async { stack.node.record(&id).unwrap().end_at == time("endAt") }).await;

    for bad in [
        json!({"timeout": -1}),
        json!({}),
        json!({"timeout": null}),
        json!({"timeout": i64::MAX}),
        json!([]),
    ] {
        let message = stack.post(&path, bad).await.failure(400);
        assert!(message.starts_with("validation error: "), "{message}");
    }
    let answer = send(stack.request(Method::POST, &path)).await;
    assert_eq!(answer.failure(400), "validation error: a JSON body is required");
}

#[tokio::test]
async fn a_deadline_of_zero_ends_the_sandbox() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    stack.post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 0})).await.success(204);
    eventually(|| is_gone(&stack, &id)).await;
    assert_eq!(stack.node.reasons(&id), [EndReason::Expired]);
}

#[tokio::test]
async fn refreshes_only_lengthen() {
    let stack = Stack::start().await;
    let id = id_of(&stack.sandbox(json!({"timeout": 5})).await);
    let path = format!("/sandboxes/{id}/refreshes");
    send(stack.request(Method::POST, &path)).await.success(204);
    let end = end_at(&stack, &id).await;
    assert!((10.0..=15.0).contains(&from_now(end)));
    stack.post(&path, json!({"duration": 3600})).await.success(204);
    let end = end_at(&stack, &id).await;
    assert!((3500.0..=3600.0).contains(&from_now(end)));
    for shorter in [json!({"duration": 20}), json!({"duration": 0}), json!(null), json!({})] {
        stack.post(&path, shorter).await.success(204);
        assert_eq!(end_at(&stack, &id).await, end);
    }
    for bad in [json!({"duration": -1}), json!({"duration": 3601}), json!({"duration": "x"})] {
        assert!(stack.post(&path, bad).await.failure(400).starts_with("validation error: "));
    }
}

#[tokio::test]
async fn connect_never_shortens() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({"timeout": 600})).await;
    let id = id_of(&created);
    let end = end_at(&stack, &id).await;
    let (old, new) = (format!("/sandboxes/{id}/connect"), format!("/v2/sandboxes/{id}/connect"));
    assert_eq!(stack.post(&old, json!({"timeout": 60})).await.success(200), created);
    assert_eq!(send(stack.request(Method::POST, &new)).await.success(200), created);
    assert_eq!(stack.post(&new, json!({})).await.success(200), created);
    assert_eq!(stack.post(&new, json!({"timeout": 0})).await.success(200), created);
    assert_eq!(end_at(&stack, &id).await, end);
    stack.post(&new, json!({"timeout": 900})).await.success(200);
    assert!((850.0..=900.0).contains(&from_now(end_at(&stack, &id).await)));

    assert_eq!(
        stack.post(&old, json!({})).await.failure(400),
        "validation error: missing field `timeout`"
    );
    for path in [&old, &new] {
        let message = stack.post(path, json!({"timeout": 86_401})).await.failure(400);
        assert_eq!(message, "Timeout cannot be greater than 24 hours");
        stack.post(path, json!({"timeout": -1})).await.failure(400);
        let answer = stack.post(path, json!({"timeout": 1, "memory": true})).await;
        answer.failure(400);
        assert_eq!(answer.json()["error_code"], "sandbox_memory_override_disabled");
    }
}

#[tokio::test]
async fn a_sandbox_on_its_way_out_conflicts() {
    let stack = Stack::with(FakeNode::holding_kills(), |_| {}).await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}");
    let mut kill = Box::pin(stack.delete(&path));
    tokio::select! {
        _ = &mut kill => panic!("it did not wait"),
        () = eventually(|| async { stack.get(&path).await.status == 404 }) => {}
    }
    let message = format!("Sandbox \"{id}\" is being killed");
    for (tail, body) in [
        ("/connect", json!({"timeout": 1})),
        ("/timeout", json!({"timeout": 1})),
        ("/refreshes", json!({})),
    ] {
        assert_eq!(stack.post(&format!("{path}{tail}"), body).await.failure(409), message);
    }
    let cannot = |done| format!("Sandbox '{id}' cannot be {done} while in 'killing' state");
    for (tail, done) in [("/pause", "paused"), ("/fork", "forked"), ("/snapshots", "snapshotted")] {
        let answer = stack.post(&format!("{path}{tail}"), json!({})).await;
        assert_eq!(answer.failure(409), cannot(done));
    }
    let resumed = stack.post(&format!("{path}/resume"), json!({})).await;
    assert_eq!(resumed.failure(404), not_found(&id));
    assert_eq!(stack.get(&path).await.failure(404), not_found(&id));
    assert_eq!(stack.get("/v2/sandboxes").await.success(200), json!([]));
    assert!(!stack.has_place(1).await);
    stack.node.kill_gate.add_permits(1);
    kill.await.success(204);
    assert!(stack.has_place(1).await);
}

#[tokio::test]
async fn many_expire_at_once() {
    let stack = Stack::start().await;
    let mut ids = Vec::new();
    for _ in 0..150 {
        ids.push(id_of(&stack.sandbox(json!({"timeout": 3600})).await));
    }
    let expire = |id: &String| {
        let path = format!("/sandboxes/{id}/timeout");
        let stack = &stack;
        async move { stack.post(&path, json!({"timeout": 0})).await.success(204) }
    };
    futures::future::join_all(ids.iter().map(expire)).await;
    eventually(|| async { stack.node.sandboxes().is_empty() }).await;
    eventually(|| async { stack.get("/v2/sandboxes").await.success(200) == json!([]) }).await;
    for id in &ids {
        assert_eq!(stack.node.reasons(id), [EndReason::Expired]);
    }
}

#[tokio::test]
async fn a_sandbox_that_dies_disappears() {
    let stack = Stack::start().await;
    let (id, other) = (stack.sandbox_id().await, stack.sandbox_id().await);
    stack.node.die(&id);
    eventually(|| is_gone(&stack, &id)).await;
    stack.get(&format!("/sandboxes/{other}")).await.success(200);
}

#[tokio::test]
async fn a_sandbox_that_the_node_lost_disappears() {
    let stack = Stack::with(FakeNode::impatient(), |_| {}).await;
    let (id, other) = (stack.sandbox_id().await, stack.sandbox_id().await);
    stack.node.lose(&id);
    eventually(|| is_gone(&stack, &id)).await;
    stack.get(&format!("/sandboxes/{other}")).await.success(200);
}

#[tokio::test]
async fn what_there_was_is_taken_in_at_start() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({"metadata": {"a": "1"}})).await;
    let (id, paused) = (id_of(&created), stack.sandbox_id().await);
    stack.post(&format!("/sandboxes/{paused}/pause"), json!({})).await.success(204);
    let before = stack.get("/v2/sandboxes").await.success(200);

    let stack = stack.again().await;
    assert_eq!(stack.node.sandboxes().len(), 2, "shutting down leaves sandboxes as they are");
    assert_eq!(stack.get("/v2/sandboxes").await.success(200), before);
    let connected = stack.post(&format!("/v2/sandboxes/{id}/connect"), json!({})).await;
    assert_eq!(connected.success(200), created);
    let detail = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    assert_eq!(detail["metadata"], json!({"a": "1"}));
    // The one that is paused takes no place.
    assert!(stack.has_place(2).await && !stack.has_place(1).await);
    stack.post(&format!("/v2/sandboxes/{paused}/connect"), json!({})).await.success(201);
}

#[tokio::test]
async fn metrics_are_recorded_and_read() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}/metrics");
    let has_samples = || async { stack.get(&path).await.success(200) != json!([]) };
    eventually(has_samples).await;

    let samples = stack.get(&path).await.success(200);
    let keys: BTreeSet<&str> = samples[0].as_object().unwrap().keys().map(String::as_str).collect();
    let required = [
        "timestamp",
        "timestampUnix",
        "cpuCount",
        "cpuUsedPct",
        "memUsed",
        "memTotal",
        "memCache",
        "diskUsed",
        "diskTotal",
    ];
    assert_eq!(keys, BTreeSet::from(required));
    assert_eq!(
        (&samples[0]["cpuUsedPct"], &samples[0]["memTotal"]),
        (&json!(12.35), &json!(512 << 20))
    );
    let at = samples[0]["timestampUnix"].as_i64().unwrap();
    let same = samples[0]["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(same.as_second(), at);

    assert_eq!(stack.get(&format!("{path}?start=1&end=2")).await.success(200), json!([]));
    assert_ne!(stack.get(&format!("{path}?start={at}&end={at}")).await.success(200), json!([]));
    assert_eq!(stack.get("/sandboxes/iunknown/metrics").await.success(200), json!([]));
    let message = stack.get(&format!("{path}?start=2&end=1")).await.failure(400);
    assert_eq!(message, "Invalid time range for metrics");
    stack.get(&format!("{path}?start=x")).await.failure(400);

    let (_, key) = stack.other_team().await;
    let theirs = send(stack.anonymous(Method::GET, &path).header("X-API-Key", key)).await;
    assert_eq!(theirs.success(200), json!([]));

    let batch = stack.get(&format!("/sandboxes/metrics?sandbox_ids={id},iunknown")).await;
    let batch = batch.success(200);
    assert_eq!(batch["sandboxes"].as_object().unwrap().len(), 1);
    assert_eq!(batch["sandboxes"][&id]["cpuCount"], json!(2));
    let many: Vec<String> = (0..101).map(|number| format!("i{number}")).collect();
    for bad in
        ["", "?sandbox_ids=", "?sandbox_ids=a,a", &format!("?sandbox_ids={}", many.join(","))]
    {
        let message = stack.get(&format!("/sandboxes/metrics{bad}")).await.failure(400);
        assert!(message.starts_with("validation error: sandbox_ids"), "{message}");
    }

    // They outlive the sandbox.
    stack.delete(&format!("/sandboxes/{id}")).await.success(204);
    assert_ne!(stack.get(&path).await.success(200), Value::Array(Vec::new()));
}
