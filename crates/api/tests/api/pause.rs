//! Pause, connect, resume and waking: from one state to the other and back.

use std::sync::atomic::Ordering;

use atoll_core::{
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_wire::node::OnTimeout;
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    node::FakeNode,
    stack::{Answer, Stack, eventually, id_of},
};

async fn pause(stack: &Stack, id: &str) -> Answer {
    stack.post(&format!("/sandboxes/{id}/pause"), json!({})).await
}

async fn connect(stack: &Stack, id: &str) -> Answer {
    stack.post(&format!("/v2/sandboxes/{id}/connect"), json!({})).await
}

async fn detail(stack: &Stack, id: &str) -> Value {
    stack.get(&format!("/sandboxes/{id}")).await.success(200)
}

async fn state(stack: &Stack, id: &str) -> Value {
    detail(stack, id).await["state"].clone()
}

async fn paused(stack: &Stack, body: Value) -> Value {
    let created = stack.sandbox(body).await;
    pause(stack, &id_of(&created)).await.success(204);
    created
}

#[tokio::test]
async fn a_paused_sandbox_shows_as_such_and_goes_on() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({"metadata": {"a": "1"}, "timeout": 600})).await;
    let id = id_of(&created);
    let before = detail(&stack, &id).await;
    assert!(before.get("kept").is_none());
    pause(&stack, &id).await.success(204);

    let shown = detail(&stack, &id).await;
    assert_eq!((&shown["state"], &shown["kept"]), (&json!("paused"), &json!("checkpoint")));
    for same in ["startedAt", "metadata", "envdAccessToken", "templateID", "lifecycle"] {
        assert_eq!(shown[same], before[same], "{same}");
    }
    let ended = shown["endAt"].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(ended <= Timestamp::now(), "the time of the pause");

    assert_eq!(connect(&stack, &id).await.success(201), created);
    let after = detail(&stack, &id).await;
    assert_eq!((&after["state"], &after["metadata"]), (&json!("running"), &json!({"a": "1"})));
    assert_ne!(after["startedAt"], before["startedAt"], "a run of its own");
    assert_eq!(connect(&stack, &id).await.success(200), created);
}

#[tokio::test]
async fn memory_is_kept_unless_it_is_not_wanted() {
    let stack = Stack::start().await;
    for (body, kept) in [
        (json!({"memory": false}), "disk"),
        (json!({"memory": true}), "checkpoint"),
        (json!(null), "checkpoint"),
    ] {
        let id = stack.sandbox_id().await;
        stack.post(&format!("/sandboxes/{id}/pause"), body).await.success(204);
        assert_eq!(detail(&stack, &id).await["kept"], kept);
    }
    let id = stack.sandbox_id().await;
    let path = format!("/sandboxes/{id}/pause");
    let bad = stack.post(&path, json!({"memory": "x"})).await;
    assert!(bad.failure(400).starts_with("validation error: "));
    let unsupported = stack.post(&path, json!({"requireHealthyGuest": true})).await;
    assert!(unsupported.failure(400).contains("'requireHealthyGuest'"));
    assert_eq!(state(&stack, &id).await, "running");
    stack.post(&path, json!({"requireHealthyGuest": false})).await.success(204);
}

#[tokio::test]
async fn a_second_pause_conflicts_and_one_of_nothing_is_not_found() {
    let stack = Stack::start().await;
    let id = id_of(&paused(&stack, json!({})).await);
    let message = format!("Error pausing sandbox - sandbox '{id}' is already paused");
    assert_eq!(pause(&stack, &id).await.failure(409), message);
    pause(&stack, "iunknown").await.failure(404);
    stack.node.put(&id, State::Resuming(Kept::Disk));
    let message = format!("Sandbox '{id}' cannot be paused while in 'resuming' state");
    assert_eq!(pause(&stack, &id).await.failure(409), message);
}

#[tokio::test]
async fn a_pause_that_fails_leaves_the_sandbox_running() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    stack.node.changes_fail.store(true, Ordering::SeqCst);
    let answer = pause(&stack, &id).await;
    assert!(answer.failure(500).starts_with("no memory to dump."));
    assert_eq!(answer.json()["error_code"], "ATL-3010");
    assert_eq!(state(&stack, &id).await, "running");
    stack.node.changes_fail.store(false, Ordering::SeqCst);
    pause(&stack, &id).await.success(204);
    stack.node.changes_fail.store(true, Ordering::SeqCst);
    connect(&stack, &id).await.failure(500);
    assert_eq!(state(&stack, &id).await, "paused");
    assert!(stack.has_place(1).await, "the place of the failed resume is given back");
}

#[tokio::test]
async fn what_was_begun_goes_on_when_the_client_hangs_up() {
    let stack = Stack::with(FakeNode::holding_changes(), |_| {}).await;
    let id = stack.sandbox_id().await;
    for expected in ["paused", "running"] {
        let (pausing, connecting) = (pause(&stack, &id), connect(&stack, &id));
        let mut request =
            Box::pin(async { if expected == "paused" { pausing.await } else { connecting.await } });
        let asked = || async { stack.node.waiting.load(Ordering::SeqCst) > 0 };
        tokio::select! {
            _ = &mut request => panic!("it did not wait"),
            () = eventually(asked) => {}
        }
        drop(request);
        stack.node.change_gate.add_permits(1);
        eventually(|| async { state(&stack, &id).await == expected }).await;
    }
    eventually(|| stack.has_place(2)).await;
    assert!(!stack.has_place(1).await);
}

#[tokio::test]
async fn a_paused_sandbox_has_no_deadline_to_move() {
    let stack = Stack::start().await;
    let id = id_of(&paused(&stack, json!({})).await);
    let not_found = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    for (tail, body) in [("timeout", json!({"timeout": 5})), ("refreshes", json!({}))] {
        let path = format!("/sandboxes/{id}/{tail}");
        assert_eq!(stack.post(&path, body).await.failure(404), not_found);
    }
    for (state, message) in [
        (State::Pausing(Kept::Disk), format!("Sandbox \"{id}\" is being paused")),
        (State::Resuming(Kept::Disk), format!("Sandbox \"{id}\" is being resumed")),
    ] {
        stack.node.put(&id, state);
        let path = format!("/sandboxes/{id}/timeout");
        assert_eq!(stack.post(&path, json!({"timeout": 5})).await.failure(409), message);
    }
}

#[tokio::test]
async fn a_run_beyond_the_longest_is_not_lengthened() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let hours = jiff::SignedDuration::from_hours(25);
    stack.node.sandboxes().get_mut(&id.parse().unwrap()).unwrap().record.started_at =
        Timestamp::now() - hours;
    stack.node.put(&id, State::Running);
    let path = format!("/sandboxes/{id}/timeout");
    let refused = || async { stack.post(&path, json!({"timeout": 60})).await.status == 400 };
    eventually(refused).await;
    let message = stack.post(&path, json!({"timeout": 60})).await.failure(400);
    assert_eq!(message, "Max instance length exceeded");
}

#[tokio::test]
async fn a_sandbox_whose_time_is_up_is_paused_where_that_was_asked_for() {
    let stack = Stack::start().await;
    for (memory, kept) in [(true, "checkpoint"), (false, "disk")] {
        let body = json!({"autoPause": true, "autoPauseMemory": memory});
        let id = id_of(&stack.sandbox(body).await);
        stack.post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 0})).await.success(204);
        eventually(|| async { state(&stack, &id).await == "paused" }).await;
        assert_eq!(detail(&stack, &id).await["kept"], kept);
        assert!(stack.has_place(1).await);
        connect(&stack, &id).await.success(201);
        stack.delete(&format!("/sandboxes/{id}")).await.success(204);
    }
}

#[tokio::test]
async fn a_paused_sandbox_is_killed_for_good() {
    let stack = Stack::start().await;
    let id = id_of(&paused(&stack, json!({})).await);
    let path = format!("/sandboxes/{id}");
    stack.delete(&path).await.success(204);
    stack.get(&path).await.failure(404);
    connect(&stack, &id).await.failure(404);
    stack.delete(&path).await.failure(404);
    assert_eq!(stack.get("/v2/sandboxes").await.success(200), json!([]));
}

#[tokio::test]
async fn many_connects_resume_once_and_take_one_place() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET concurrent_instances = 1").await;
    let created = paused(&stack, json!({})).await;
    let id = id_of(&created);
    let answers = join_all((0..10).map(|_| connect(&stack, &id))).await;
    for answer in &answers {
        assert!([200, 201].contains(&answer.status.as_u16()), "{answer:?}");
        assert_eq!(answer.json(), created);
    }
    assert_eq!(stack.node.resumes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_resume_needs_a_place() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET concurrent_instances = 1").await;
    let id = id_of(&paused(&stack, json!({})).await);
    let other = stack.sandbox_id().await;
    for path in [format!("/v2/sandboxes/{id}/connect"), format!("/sandboxes/{id}/resume")] {
        let answer = stack.post(&path, json!({})).await;
        assert!(answer.failure(429).contains("'development'"));
        assert_eq!(answer.headers["should-retry"], "false");
    }
    let woken = stack.service.handle().wake(&id.parse().unwrap()).await.unwrap_err();
    assert_eq!(woken.code, codes::CONCURRENCY_LIMIT);
    assert_eq!(state(&stack, &id).await, "paused");
    // Who runs already needs no other.
    connect(&stack, &other).await.success(200);
    stack.delete(&format!("/sandboxes/{other}")).await.success(204);
    connect(&stack, &id).await.success(201);
}

#[tokio::test]
async fn the_older_resume() {
    let stack = Stack::start().await;
    let created = paused(&stack, json!({"autoPause": true, "autoPauseMemory": false})).await;
    let id = id_of(&created);
    let path = format!("/sandboxes/{id}/resume");
    for (timeout, message) in
        [(0, "Timeout must be greater than 0"), (86_401, "Timeout cannot be greater than 24 hours")]
    {
        assert_eq!(stack.post(&path, json!({"timeout": timeout})).await.failure(400), message);
    }
    let refused = stack.post(&path, json!({"memory": true})).await;
    refused.failure(400);
    assert_eq!(refused.json()["error_code"], "sandbox_memory_override_disabled");

    let on_timeout = || stack.node.record(&id).unwrap().on_timeout;
    for (body, expected) in [
        (json!(null), OnTimeout::Pause { memory: false }),
        (json!({"autoPause": true}), OnTimeout::Pause { memory: false }),
        (json!({"autoPause": false}), OnTimeout::Kill),
        (json!({"autoPause": true, "timeout": 100}), OnTimeout::Pause { memory: true }),
    ] {
        assert_eq!(stack.post(&path, body).await.success(201), created);
        assert_eq!(on_timeout(), expected);
        let message = format!("Sandbox {id} is already running");
        assert_eq!(stack.post(&path, json!({})).await.failure(409), message);
        pause(&stack, &id).await.success(204);
    }
    stack.node.put(&id, State::Snapshotting);
    let message = format!("Sandbox snapshot is currently being created for sandbox '{id}'");
    let refused = || async { stack.post(&path, json!({})).await.status == 409 };
    eventually(refused).await;
    assert_eq!(stack.post(&path, json!({})).await.failure(409), message);
    stack.post("/sandboxes/iunknown/resume", json!({})).await.failure(404);
}

#[tokio::test]
async fn lists_have_running_and_paused_sandboxes() {
    let stack = Stack::start().await;
    let (first, second) = (stack.sandbox_id().await, stack.sandbox_id().await);
    let third = stack.sandbox_id().await;
    pause(&stack, &second).await.success(204);
    let ids = |list: &Value| list.as_array().unwrap().iter().map(id_of).collect::<Vec<_>>();
    for (query, expected, total) in [
        ("", vec![&third, &second, &first], Some("2")),
        ("?state=running", vec![&third, &first], Some("2")),
        ("?state=paused", vec![&second], None),
        ("?state=paused,running&order=asc", vec![&first, &second, &third], Some("2")),
        ("?state=running&limit=1", vec![&third], Some("2")),
    ] {
        let answer = stack.get(&format!("/v2/sandboxes{query}")).await;
        let listed = answer.success(200);
        assert_eq!(ids(&listed).iter().collect::<Vec<_>>(), expected, "{query}");
        let header = answer.headers.get("x-total-running");
        assert_eq!(header.map(|value| value.to_str().unwrap()), total, "{query}");
    }
    let listed = stack.get("/v2/sandboxes?state=paused").await.success(200);
    assert_eq!(listed[0]["state"], "paused");
    assert_eq!(ids(&stack.get("/sandboxes").await.success(200)), [third, first.clone()]);

    // What is between two states shows as one of the two.
    for (state, shown) in [
        (State::Snapshotting, "running"),
        (State::Pausing(Kept::Disk), "paused"),
        (State::Resuming(Kept::Disk), "paused"),
    ] {
        stack.node.put(&first, state);
        eventually(|| async { self::state(&stack, &first).await == shown }).await;
    }
}

#[tokio::test]
async fn traffic_wakes_a_sandbox_once() {
    let stack = Stack::start().await;
    let (handle, woken) = (stack.service.handle(), paused(&stack, json!({"timeout": 60})).await);
    let id = id_of(&woken).parse().unwrap();
    let all = join_all((0..10).map(|_| handle.wake(&id))).await;
    for sandbox in all {
        let sandbox = sandbox.unwrap();
        assert_eq!((sandbox.state, &sandbox.record.id), (State::Running, &id));
        // At least 300 seconds, whatever was asked for at create.
        let run = sandbox.record.end_at.duration_since(sandbox.record.started_at);
        assert!((300..310).contains(&run.as_secs()), "{run:?}");
    }
    assert_eq!(stack.node.resumes.load(Ordering::SeqCst), 1);
    assert_eq!(state(&stack, id.as_str()).await, "running");

    // Traffic to what runs does not lengthen its life.
    let path = format!("/sandboxes/{id}/timeout");
    stack.post(&path, json!({"timeout": 5})).await.success(204);
    let sandbox = handle.wake(&id).await.unwrap();
    assert!(sandbox.record.end_at.duration_since(Timestamp::now()).as_secs() <= 5);

    let unknown = handle.wake(&"iunknown".parse().unwrap()).await.unwrap_err();
    assert_eq!(unknown.code, codes::NOT_FOUND);
    pause(&stack, id.as_str()).await.success(204);
    stack.sql("UPDATE teams SET is_blocked = 1").await;
    assert_eq!(handle.wake(&id).await.unwrap_err().code, codes::FORBIDDEN);
    stack.sql("UPDATE teams SET is_blocked = 0").await;
    stack.node.put(id.as_str(), State::Pausing(Kept::Disk));
    assert_eq!(handle.wake(&id).await.unwrap_err().code, codes::SANDBOX_BUSY);
}
