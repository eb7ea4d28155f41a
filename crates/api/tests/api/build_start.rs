//! Starting builds: what the builder is asked, and what is refused.

use std::sync::atomic::Ordering;

use atoll_wire::build::{Credentials, From};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    node::FakeNode,
    stack::{Answer, Stack, TEAM, send},
};

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const SUPERSEDED: &str = "The build was canceled because it was superseded by a newer one.";

async fn start(stack: &Stack, template: &str, build: &str, body: Value) -> Answer {
    stack.post(&format!("/v2/templates/{template}/builds/{build}"), body).await
}

/// What the builder is asked for a body.
async fn source(stack: &Stack, body: Value) -> From {
    let (_, build) = stack.started("source", body).await;
    stack.builder.spec(&build).from
}

#[tokio::test]
async fn a_build_is_under_way_when_its_start_is_answered() {
    let stack = Stack::start().await;
    let (template, build) =
        stack.registered(json!({"name": "mine", "cpuCount": 4, "memoryMB": 512})).await;
    assert_eq!(stack.status(&template, &build).await["status"], "waiting");
    let body = json!({
        "fromImage": "debian:12", "force": true, "startCmd": "serve", "readyCmd": "sleep 1",
        "steps": [
            {"type": "RUN", "args": ["make"], "force": true},
            {"type": "COPY", "args": ["a", "b"], "filesHash": HASH, "forceUpload": true},
            {"type": "USER"},
        ],
    });
    let answer = start(&stack, &template, &build, body).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (202, ""));
    assert_eq!(stack.status(&template, &build).await["status"], "building");

    let spec = stack.builder.spec(&build);
    assert_eq!((spec.template.as_str(), spec.alias.as_deref()), (template.as_str(), Some("mine")));
    assert_eq!((spec.team, spec.force, spec.keeps_user), (TEAM.to_string(), true, true));
    assert_eq!((spec.start.as_deref(), spec.ready.as_deref()), (Some("serve"), Some("sleep 1")));
    assert_eq!((spec.resources.vcpu, spec.resources.memory_mb), (4, 512));
    assert!(
        matches!(spec.from, From::Image { reference, credentials: None } if reference == "debian:12")
    );
    let kinds: Vec<_> = spec.steps.iter().map(|step| (step.kind.as_str(), step.force)).collect();
    assert_eq!(kinds, [("RUN", true), ("COPY", false), ("USER", false)]);
    assert_eq!(spec.steps[1].files.as_deref(), Some(HASH));
    assert_eq!((&spec.steps[0].args[..], spec.steps[2].args.len()), (&["make".to_owned()][..], 0));

    let message = start(&stack, &template, &build, json!({"fromImage": "x"})).await.failure(400);
    assert_eq!(message, "build is not in waiting state");
    stack.builder.finish(&build);
    stack.reaches(&template, &build, "ready").await;
    let sandbox = stack.post("/v2/sandboxes", json!({"templateID": "mine"})).await.success(201);
    let record = stack.node.record(sandbox["sandboxID"].as_str().unwrap()).unwrap();
    assert_eq!((record.build, record.resources.vcpu), (build, 4));
}

#[tokio::test]
async fn credentials_reach_the_builder() {
    let stack = Stack::start().await;
    for (registry, expected) in [
        (
            json!({"type": "registry", "username": "u", "password": "p"}),
            json!({"basic": {"username": "u", "password": "p"}}),
        ),
        (
            json!({"type": "gcp", "serviceAccountJson": "{}"}),
            json!({"basic": {"username": "_json_key", "password": "{}"}}),
        ),
        (
            json!({"type": "aws", "awsAccessKeyId": "i", "awsSecretAccessKey": "k", "awsRegion": "r"}),
            json!({"aws": {"access_key_id": "i", "secret_access_key": "k", "region": "r"}}),
        ),
    ] {
        let body = json!({"fromImage": "private", "fromImageRegistry": registry});
        let From::Image { credentials: Some(credentials), .. } = source(&stack, body).await else {
            panic!("no credentials");
        };
        let credentials: Credentials = credentials;
        assert_eq!(serde_json::to_value(&credentials).unwrap(), expected);
    }
}

#[tokio::test]
async fn a_build_starts_from_a_template_a_snapshot_or_an_archive() {
    let stack = Stack::start().await;
    let (_, mine) = stack.template("mine").await;
    let tag = json!({"target": "mine", "tags": ["v1"]});
    stack.post("/templates/tags", tag).await.success(201);
    let sandbox = stack.sandbox_id().await;
    let snapshot = stack.post(&format!("/sandboxes/{sandbox}/snapshots"), json!({})).await;
    let snapshot = snapshot.success(201)["snapshotID"].as_str().unwrap().to_owned();
    let snapshot_build = stack.node.builds().keys().next().unwrap().clone();
    let base = stack.get("/templates").await.success(200)[0]["buildID"].clone();
    let base = base.as_str().unwrap().to_owned();
    for (body, expected) in [
        (json!({"fromTemplate": "mine:v1"}), &mine),
        (json!({"fromTemplate": "dev/mine", "fromImage": ""}), &mine),
        (json!({"fromTemplate": snapshot}), &snapshot_build),
        (json!({"fromTemplate": "base"}), &base),
        (json!({"fromImage": "e2bdev/base:latest"}), &base),
    ] {
        let From::Build { id, .. } = source(&stack, body.clone()).await else { panic!("{body}") };
        assert_eq!(id, *expected, "{body}");
    }
    let archive = source(&stack, json!({"fromArchive": HASH})).await;
    assert!(matches!(archive, From::Archive { files } if files == HASH));
}

#[tokio::test]
async fn a_base_that_is_not_there_fails_the_build() {
    let stack = Stack::start().await;
    let (team, _) = stack.other_team().await;
    stack
        .sql(&format!(
            "INSERT INTO envs (id, team_id, public, created_at, updated_at) \
             VALUES ('theirs', '{team}', FALSE, 1, 1)"
        ))
        .await;
    for (name, message) in [
        ("nothing", "template 'nothing' not found"),
        ("base:v9", "tag 'v9' does not exist for template 'base'"),
        ("theirs", "template 'theirs' not found"),
        ("a b", "Invalid template reference: invalid template name 'a b'"),
    ] {
        let (template, build) = stack.started("mine", json!({"fromTemplate": name})).await;
        let status = stack.status(&template, &build).await;
        assert_eq!(
            (&status["status"], &status["reason"]["step"]),
            (&json!("error"), &json!("base"))
        );
        assert_eq!(status["reason"]["message"], message);
        let line = &status["logEntries"][0];
        assert_eq!(line["message"], format!("Build failed: {message}"));
        assert_eq!((&line["level"], &line["step"]), (&json!("error"), &json!("base")));
        assert_eq!(status["reason"]["logEntries"], status["logEntries"]);
    }
    assert!(stack.builder.specs.lock().unwrap().is_empty());
}

#[tokio::test]
async fn bad_starts_are_refused_and_the_build_waits_on() {
    let stack = Stack::start().await;
    let (template, build) = stack.registered(json!({"name": "mine"})).await;
    let one =
        "validation error: exactly one of fromImage, fromTemplate and fromArchive must be given";
    for (body, message) in [
        (json!({}), one),
        (json!({"fromImage": "a", "fromTemplate": "b"}), one),
        (json!({"fromImage": " "}), one),
        (json!({"fromArchive": "../x"}), "Invalid files hash"),
        (
            json!({"fromImage": "a", "steps": [{"type": "COPY", "filesHash": "../../x"}]}),
            "Invalid files hash",
        ),
    ] {
        assert_eq!(start(&stack, &template, &build, body).await.failure(400), message);
    }
    for body in [
        json!({"fromImage": "a", "steps": [{"args": []}]}),
        json!({"fromImage": "a", "fromImageRegistry": {"type": "x"}}),
    ] {
        let message = start(&stack, &template, &build, body).await.failure(400);
        assert!(message.starts_with("validation error: "), "{message}");
    }
    let image = json!({"fromImage": "a"});
    let message = start(&stack, &template, "x", image.clone()).await.failure(400);
    assert!(message.starts_with("Invalid build ID: "), "{message}");
    start(&stack, &template, &Uuid::new_v4().to_string(), image.clone()).await.failure(404);
    start(&stack, "nothing", &build, image.clone()).await.failure(404);
    let (_, key) = stack.other_team().await;
    let path = format!("/v2/templates/{template}/builds/{build}");
    let request = stack.anonymous(Method::POST, &path).header("X-API-Key", key).json(&image);
    let message = send(request).await.failure(403);
    assert_eq!(message, "User does not have access to the template");
    let request = stack.request(Method::POST, &path).json(&image);
    let message = send(request.header("user-agent", "e2b-js-sdk/x")).await.failure(400);
    assert!(message.starts_with("Error when parsing user agent: "), "{message}");

    assert_eq!(stack.status(&template, &build).await["status"], "waiting");
    let request = stack.request(Method::POST, &path).json(&image);
    let old = send(request.header("user-agent", "e2b-python-sdk/2.2.1")).await;
    old.success(202);
    assert!(!stack.builder.spec(&build).keeps_user);
}

#[tokio::test]
async fn without_a_builder_nothing_is_under_way() {
    let stack = Stack::start().await;
    stack.builder.is_down.store(true, Ordering::SeqCst);
    let (template, build) = stack.registered(json!({"name": "mine"})).await;
    start(&stack, &template, &build, json!({"fromImage": "a"})).await.failure(503);
    assert_eq!(stack.status(&template, &build).await["status"], "error");
}

#[tokio::test]
async fn a_newer_build_takes_the_place_of_one_with_its_tag() {
    let stack = Stack::start().await;
    let register = async |tag: &str| stack.registered(json!({"name": "mine", "tags": [tag]})).await;
    let image = || json!({"fromImage": "a"});
    let (template, waiting) = register("v1").await;
    let (_, apart) = register("v2").await;
    start(&stack, &template, &apart, image()).await.success(202);
    let (_, first) = register("v1").await;
    let status = stack.status(&template, &waiting).await;
    assert_eq!(
        (&status["status"], &status["reason"]["message"]),
        (&json!("error"), &json!(SUPERSEDED))
    );
    start(&stack, &template, &first, image()).await.success(202);
    let (_, second) = register("v1").await;
    assert_eq!(stack.status(&template, &first).await["status"], "building");
    start(&stack, &template, &second, image()).await.success(202);
    let status = stack.status(&template, &first).await;
    assert_eq!(
        (&status["status"], &status["reason"]["message"]),
        (&json!("error"), &json!(SUPERSEDED))
    );
    assert_eq!(stack.builder.cancelled(), [(first, SUPERSEDED.to_owned())]);
    for build in [&apart, &second] {
        stack.builder.finish(build);
        stack.reaches(&template, build, "ready").await;
    }
}

#[tokio::test]
async fn a_build_that_nobody_waits_for_any_more_is_deleted() {
    let stack = Stack::start().await;
    let (template, build) = stack.started("mine", json!({"fromImage": "a"})).await;
    stack.sql(&format!("UPDATE env_builds SET status_group = 'failed' WHERE id = '{build}'")).await;
    let owner = "ia".parse().unwrap();
    stack.node.builds().insert(build.clone(), owner);
    stack.builder.finish(&build);
    crate::stack::eventually(|| async { stack.node.builds().is_empty() }).await;
    assert_eq!(stack.status(&template, &build).await["status"], "error");
}

#[tokio::test]
async fn a_build_that_is_cancelled_before_it_begins_does_not_go_on() {
    let stack = Stack::start().await;
    let (template, build) = stack.registered(json!({"name": "mine"})).await;
    let path = format!("/v2/templates/{template}/builds/{build}");
    let closed = stack.builder.gate.lock().await;
    let request = stack.request(Method::POST, &path).json(&json!({"fromImage": "a"}));
    let started = tokio::spawn(send(request));
    stack.reaches(&template, &build, "building").await;
    stack.delete(&format!("/atoll/templates/builds/{build}")).await.success(204);
    assert_eq!(stack.status(&template, &build).await["status"], "error");
    drop(closed);
    started.await.unwrap().success(202);
    assert!(stack.builder.running.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_was_interrupted_says_so_after_a_restart() {
    let stack = Stack::with(FakeNode::default(), |_| {}).await;
    let (template, lost) = stack.started("lost", json!({"fromImage": "a"})).await;
    let (kept_template, kept) = stack.started("kept", json!({"fromImage": "a"})).await;
    let (waiting_template, waiting) = stack.registered(json!({"name": "waiting"})).await;
    stack.builder.running.lock().unwrap().retain(|build| *build == kept);
    stack.builder.running.lock().unwrap().push("nobody".to_owned());
    for build in [&lost, &kept] {
        stack.node.builds().insert(build.clone(), "ia".parse().unwrap());
    }
    let stack = stack.again().await;
    let status = stack.status(&template, &lost).await;
    assert_eq!(status["status"], "error");
    assert_eq!(status["reason"]["code"], "ATL-5013");
    assert!(status["reason"]["message"].as_str().unwrap().contains("interrupted"), "{status}");
    assert_eq!(stack.status(&kept_template, &kept).await["status"], "building");
    assert_eq!(stack.status(&waiting_template, &waiting).await["status"], "waiting");
    let left: Vec<_> = stack.node.builds().keys().cloned().collect();
    assert_eq!(left, [kept], "what was half done is gone, what is under way is not");
    let cancelled = stack.builder.cancelled();
    assert!(matches!(cancelled.as_slice(), [(build, _)] if build == "nobody"), "{cancelled:?}");
}
