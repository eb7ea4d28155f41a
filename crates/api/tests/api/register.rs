//! Registering builds: names, tags, resources and limits.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stack::{Answer, Stack, TEAM, send};

async fn register(stack: &Stack, body: Value) -> Answer {
    stack.post("/v3/templates", body).await
}

#[tokio::test]
async fn a_build_is_registered() {
    let stack = Stack::start().await;
    let body = json!({"name": " Mine:V1 ", "tags": ["stable", "v1", "STABLE"], "cpuCount": 4,
        "memoryMB": 2048, "unknown": 1});
    let answer = register(&stack, body).await.success(202);
    assert_eq!(answer["names"], json!(["dev/mine"]));
    assert_eq!(answer["aliases"], json!(["mine"]));
    assert_eq!(answer["tags"], json!(["stable", "v1"]));
    assert_eq!(answer["public"], json!(false));
    let build: Uuid = answer["buildID"].as_str().unwrap().parse().unwrap();
    let template = answer["templateID"].as_str().unwrap();
    assert_eq!(template.len(), 20);
    let shown = stack.get(&format!("/templates/{template}")).await.success(200);
    let [row] = shown["builds"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    assert_eq!(row["buildID"], json!(build.to_string()));
    assert_eq!((&row["status"], &row["cpuCount"]), (&json!("waiting"), &json!(4)));
    assert_eq!((&row["memoryMB"], &row["diskSizeMB"]), (&json!(2048), &json!(10 * 1024)));
    assert!(row.get("finishedAt").is_none() && row.get("envdVersion").is_none());

    let again = register(&stack, json!({"name": "dev/mine:v2"})).await.success(202);
    assert_eq!(again["templateID"], template);
    assert_eq!(again["tags"], json!(["v2"]));
    let old = register(&stack, json!({"alias": "mine"})).await.success(202);
    assert_eq!((&old["templateID"], &old["tags"]), (&json!(template), &json!(["default"])));
    let row = &stack.get(&format!("/templates/{template}")).await.success(200)["builds"][0];
    assert_eq!((&row["cpuCount"], &row["memoryMB"]), (&json!(2), &json!(1024)));
}

#[tokio::test]
async fn older_clients_get_the_template_they_expect() {
    let stack = Stack::start().await;
    let old = stack.post("/v2/templates", json!({"alias": "mine"})).await.success(202);
    for key in [
        "aliases",
        "buildCount",
        "buildID",
        "cpuCount",
        "createdAt",
        "createdBy",
        "diskSizeMB",
        "envdVersion",
        "lastSpawnedAt",
        "memoryMB",
        "public",
        "spawnCount",
        "templateID",
        "updatedAt",
    ] {
        assert!(old.get(key).is_some(), "{key}");
    }
    assert_eq!((&old["aliases"], &old["buildStatus"]), (&json!(["mine"]), &json!("waiting")));
    let path = format!(
        "/v2/templates/{}/builds/{}",
        old["templateID"].as_str().unwrap(),
        old["buildID"].as_str().unwrap()
    );
    stack.post(&path, json!({"fromImage": "debian"})).await.success(202);
    let message = stack.post("/v2/templates", json!({"name": "mine"})).await.failure(400);
    assert_eq!(message, "validation error: alias is required");
}

#[tokio::test]
async fn bad_requests_are_told_why() {
    let stack = Stack::start().await;
    let long = "x".repeat(129);
    for (body, message) in [
        (json!({}), "Name is required"),
        (json!({"name": " "}), "Name is required"),
        (json!({"name": "a b"}), "Invalid name: invalid template name 'a b'"),
        (json!({"name": "a:b:c"}), "Invalid name: invalid tag 'b:c'"),
        (json!({"name": long}), "Invalid name: longer than 128 characters"),
        (json!({"name": "x/mine"}), "namespace 'x' must match your team 'dev'"),
        (json!({"name": "a", "cpuCount": 0}), "CPU count must be at least 1"),
        (json!({"name": "a", "cpuCount": 33}), "CPU count must be at most 32"),
        (json!({"name": "a", "cpuCount": 3}), "CPU count must be 1 or an even number"),
        (
            json!({"name": "a", "cpuCount": 10}),
            "CPU count can't be higher than 8 (if you need to increase this limit, please contact support)",
        ),
        (json!({"name": "a", "memoryMB": 127}), "Memory must be at least 128 MiB"),
        (json!({"name": "a", "memoryMB": 129}), "Memory must be divisible by 2"),
        (
            json!({"name": "a", "memoryMB": 8194}),
            "Memory can't be higher than 8192 MiB (if you need to increase this limit, please contact support)",
        ),
        (json!({"name": "a", "teamID": "x"}), "Team ID param mismatch with the API key"),
    ] {
        assert_eq!(register(&stack, body.clone()).await.failure(400), message, "{body}");
    }
    let id = Uuid::new_v4().to_string();
    for tag in ["", ":x", "x:", "a b", "a/b", "é", &id] {
        let message = register(&stack, json!({"name": "a", "tags": [tag]})).await.failure(400);
        assert!(message.starts_with("Invalid tag: "), "{tag}: {message}");
    }
    let message = register(&stack, json!({"name": format!("a:{id}")})).await.failure(400);
    assert!(message.starts_with("Invalid tag: "), "{message}");
    let legal = json!({"name": format!("a:v1-{id}"), "teamID": TEAM.to_string()});
    register(&stack, legal).await.success(202);
    assert_eq!(stack.get("/v2/templates").await.success(200).as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn names_of_others_are_taken() {
    let stack = Stack::start().await;
    let (template, _) = stack.template("mine").await;
    let message = register(&stack, json!({"name": template})).await.failure(409);
    assert_eq!(message, format!("Alias '{template}' is already used"));
    // What everybody knows is nobody's own.
    let (_, key) = stack.other_team().await;
    for key in [crate::stack::KEY, &key] {
        let request = stack.anonymous(Method::POST, "/v3/templates").header("X-API-Key", key);
        let refused = send(request.json(&json!({"name": "base"}))).await;
        assert_eq!(refused.failure(403), "Alias 'base' already used");
    }
    let request = stack.anonymous(Method::POST, "/v3/templates").header("X-API-Key", key);
    let theirs = send(request.json(&json!({"name": "mine"}))).await.success(202);
    assert_ne!(theirs["templateID"], template);
}

#[tokio::test]
async fn a_team_has_so_many_builds_at_once() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET concurrent_template_builds = 2").await;
    let register = async |name: &str| register(&stack, json!({"name": name})).await;
    let first = register("one").await.success(202);
    register("two").await.success(202);
    let refused = register("three").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let message = refused.failure(429);
    assert!(message.starts_with("Team 'dev' already has 2 builds"), "{message}");
    assert_eq!(refused.json()["error_code"], "ATL-2020");
    // In its own place it may be registered again.
    register("two").await.success(202);
    let build = first["buildID"].as_str().unwrap();
    stack.delete(&format!("/atoll/templates/builds/{build}")).await.success(204);
    register("three").await.success(202);
}
