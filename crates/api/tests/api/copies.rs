//! Forks, snapshots, and what is told of where a sandbox came from.

use std::{sync::atomic::Ordering, time::Duration};

use atoll_core::{
    Error,
    error::codes,
    lifecycle::{Kept, State},
};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    node::{FakeNode, SANDBOX_BYTES, SNAPSHOT_BYTES},
    stack::{Answer, Stack, eventually, id_of, send},
};

async fn fork(stack: &Stack, id: &str, body: Value) -> Answer {
    stack.post(&format!("/sandboxes/{id}/fork"), body).await
}

async fn snapshot(stack: &Stack, id: &str, body: Value) -> Answer {
    stack.post(&format!("/sandboxes/{id}/snapshots"), body).await
}

async fn pause(stack: &Stack, id: &str) {
    stack.post(&format!("/sandboxes/{id}/pause"), json!({})).await.success(204);
}

async fn snapshot_id(stack: &Stack, id: &str, body: Value) -> String {
    snapshot(stack, id, body).await.success(201)["snapshotID"].as_str().unwrap().to_owned()
}

async fn delete(stack: &Stack, snapshot: &str) -> Answer {
    let encoded = snapshot.replace('/', "%2F").replace(':', "%3A");
    stack.delete(&format!("/templates/{encoded}")).await
}

/// Ids of the snapshots that a query lists.
async fn listed(stack: &Stack, query: &str) -> Vec<String> {
    let list = stack.get(&format!("/snapshots{query}")).await.success(200);
    let id = |item: &Value| item["snapshotID"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn forks_are_as_their_source_under_ids_of_their_own() {
    let stack = Stack::start().await;
    let body = json!({"metadata": {"a": "1"}, "envVars": {"X": "y"}, "autoPause": true,
        "autoResume": {"enabled": true}});
    let created = stack.sandbox(body).await;
    let id = id_of(&created);
    let before = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    let forks = fork(&stack, &id, json!({"timeout": 60, "count": 3})).await.success(201);
    let forks = forks.as_array().unwrap();
    assert_eq!(forks.len(), 3);
    let source = stack.node.record(&id).unwrap();
    let mut ids = vec![id.clone()];
    for fork in forks {
        assert!(fork.get("error").is_none());
        let made = &fork["sandbox"];
        assert_eq!(made["templateID"], created["templateID"]);
        assert_ne!(made["envdAccessToken"], created["envdAccessToken"]);
        let record = stack.node.record(&id_of(made)).unwrap();
        assert_eq!(record.envd_access_token.as_deref(), made["envdAccessToken"].as_str());
        assert_eq!((&record.metadata, &record.env_vars), (&source.metadata, &source.env_vars));
        assert_eq!((record.on_timeout, record.auto_resume), (source.on_timeout, true));
        assert_eq!((record.timeout, record.forked_from), (60, Some(source.id.clone())));
        assert_ne!(record.build, source.build);
        ids.push(id_of(made));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert!(stack.node.builds().is_empty(), "what the forks were made from is deleted");
    assert_eq!(listed(&stack, "").await, [] as [&str; 0]);
    assert_eq!(stack.get(&format!("/sandboxes/{id}")).await.success(200), before);
    assert_eq!(fork(&stack, &id, json!(null)).await.success(201).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_fork_without_a_token_has_none() {
    let stack = Stack::start().await;
    let plain = stack.post("/sandboxes", json!({"templateID": "base"})).await.success(201);
    let forks = fork(&stack, &id_of(&plain), json!({})).await.success(201);
    assert!(forks[0]["sandbox"].get("envdAccessToken").is_none());
}

#[tokio::test]
async fn the_number_of_forks_has_bounds() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    for count in [-1, 0, 101] {
        let message = fork(&stack, &id, json!({"count": count})).await.failure(400);
        assert_eq!(message, format!("validation error: count must be 1 to 100, got {count}"));
    }
    for (timeout, message) in [
        (0, "Timeout must be greater than 0"),
        (86_401, "Timeout cannot be greater than 24 hours"),
        (-1, "validation error: timeout must be 0 or more, got -1"),
    ] {
        assert_eq!(fork(&stack, &id, json!({"timeout": timeout})).await.failure(400), message);
    }
}

#[tokio::test]
async fn forks_take_places() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET concurrent_instances = 3").await;
    let id = stack.sandbox_id().await;
    let message = fork(&stack, &id, json!({"count": 3})).await.failure(400);
    assert!(message.starts_with("count must be less than the team's limit of 3"), "{message}");
    assert!(stack.node.builds().is_empty());
    assert_eq!(
        fork(&stack, &id, json!({"count": 2})).await.success(201).as_array().unwrap().len(),
        2
    );
    // There is no place left: each fails for itself.
    let forks = fork(&stack, &id, json!({"count": 2})).await.success(201);
    for fork in forks.as_array().unwrap() {
        assert_eq!(fork["error"]["code"], 429);
        assert!(fork["error"]["message"].as_str().unwrap().contains("'development'"));
        assert!(fork.get("sandbox").is_none());
    }
    assert!(stack.node.builds().is_empty());
}

#[tokio::test]
async fn some_forks_may_fail() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    *stack.node.refusal.lock().unwrap() = Some(Error::new(codes::CAPACITY, "no slot."));
    stack.node.refuse_after.store(2, Ordering::SeqCst);
    let forks = fork(&stack, &id, json!({"count": 5})).await.success(201);
    let forks = forks.as_array().unwrap();
    assert_eq!(forks.iter().filter(|fork| fork.get("sandbox").is_some()).count(), 2);
    let failed: Vec<_> = forks.iter().filter_map(|fork| fork.get("error")).collect();
    assert_eq!(failed.len(), 3);
    for error in failed {
        assert_eq!(error["code"], 503);
        assert_eq!(error["error_code"], "sandbox_capacity_unavailable");
    }
    assert!(stack.has_place(4).await && !stack.has_place(3).await);
}

#[tokio::test]
async fn what_cannot_be_copied_says_why() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    pause(&stack, &id).await;
    let message = format!("Sandbox '{id}' is paused and cannot be forked; resume it first");
    assert_eq!(fork(&stack, &id, json!({})).await.failure(409), message);
    let not_found = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    assert_eq!(snapshot(&stack, &id, json!({})).await.failure(404), not_found);
    for (state, word) in [
        (State::Pausing(Kept::Disk), "pausing"),
        (State::Snapshotting, "snapshotting"),
        (State::Resuming(Kept::Disk), "resuming"),
    ] {
        stack.node.put(&id, state);
        let message = |done| format!("Sandbox '{id}' cannot be {done} while in '{word}' state");
        assert_eq!(fork(&stack, &id, json!({})).await.failure(409), message("forked"));
        assert_eq!(snapshot(&stack, &id, json!({})).await.failure(409), message("snapshotted"));
    }
    fork(&stack, "iunknown", json!({})).await.failure(404);
    snapshot(&stack, "iunknown", json!({})).await.failure(404);
}

#[tokio::test]
async fn a_paused_sandbox_is_forked_by_our_own_route() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let path = format!("/atoll/sandboxes/{id}/fork");
    assert_eq!(stack.post(&path, json!({})).await.success(201).as_array().unwrap().len(), 1);
    pause(&stack, &id).await;
    let forks = stack.post(&path, json!({"count": 2})).await.success(201);
    let fork = id_of(&forks[1]["sandbox"]);
    assert_eq!(stack.node.record(&fork).unwrap().forked_from.unwrap().as_str(), id);
    let source = stack.get(&format!("/sandboxes/{id}")).await.success(200);
    assert_eq!(source["state"], "paused");
}

#[tokio::test]
async fn forks_that_nobody_was_told_of_are_ended() {
    let stack = Stack::with(FakeNode::holding(), |options| {
        options.handler_deadline = Duration::from_secs(3);
    })
    .await;
    stack.node.gate.add_permits(1);
    let id = stack.sandbox_id().await;
    fork(&stack, &id, json!({"count": 3})).await.failure(504);
    assert_eq!(stack.node.sandboxes().len(), 4);
    stack.node.gate.add_permits(3);
    eventually(|| async { stack.node.sandboxes().len() == 1 }).await;
    eventually(|| async { stack.node.builds().is_empty() }).await;
    eventually(|| stack.has_place(2)).await;
}

#[tokio::test]
async fn a_snapshot_is_a_template_of_its_own() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({"metadata": {"a": "1"}, "envVars": {"X": "y"}})).await;
    let id = id_of(&created);
    let made = snapshot(&stack, &id, json!({})).await.success(201);
    let reference = made["snapshotID"].as_str().unwrap();
    assert_eq!(made["names"], json!([]));
    let (template, tag) = reference.split_once(':').unwrap();
    assert_eq!((template.len(), tag), (20, "default"));
    assert_eq!(listed(&stack, "").await, [reference]);
    assert_eq!(stack.get("/templates").await.success(200).as_array().unwrap().len(), 1);

    for text in [reference, template] {
        let copy = stack.post("/v2/sandboxes", json!({"templateID": text})).await.success(201);
        assert_eq!(copy["templateID"], template);
        let record = stack.node.record(&id_of(&copy)).unwrap();
        assert!(stack.node.builds().contains_key(&record.build));
        assert!(record.metadata.is_empty() && record.env_vars.is_empty(), "as create says");
        assert_eq!(record.resources, stack.node.record(&id).unwrap().resources);
    }
    let named = snapshot_id(&stack, &id, json!({"name": "foo:v1"})).await;
    let alias = stack.get("/templates/aliases/foo%3Av1").await.success(200);
    assert_eq!(alias["public"], false);
    let copy = stack.post("/v2/sandboxes", json!({"templateID": named})).await.success(201);
    assert_eq!((&copy["templateID"], &copy["alias"]), (&alias["templateID"], &json!("foo")));
    let filtered = stack.get("/v2/sandboxes?template=foo").await.success(200);
    assert_eq!(id_of(&filtered[0]), id_of(&copy));

    let other = stack.other_team().await.1;
    let request = |method, path: &str| stack.anonymous(method, path).header("X-API-Key", &other);
    let theirs = send(request(Method::GET, "/snapshots")).await.success(200);
    assert_eq!(theirs, json!([]));
    let body = json!({"templateID": reference});
    send(request(Method::POST, "/v2/sandboxes").json(&body)).await.failure(404);
    send(request(Method::DELETE, &format!("/templates/{template}"))).await.failure(404);
}

#[tokio::test]
async fn snapshots_have_names_and_tags() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let slug = "dev";
    for (name, expected) in [
        ("foo", "foo:default"),
        ("FOO:default", "foo:default"),
        ("foo:v1", "foo:v1"),
        (&format!("{slug}/bar"), "bar:default"),
        (&format!("{slug}/bar:v2.0"), "bar:v2.0"),
    ] {
        let made = snapshot(&stack, &id, json!({"name": name})).await.success(201);
        let alias = expected.split(':').next().unwrap();
        assert_eq!(made["snapshotID"], format!("{slug}/{expected}"), "{name}");
        assert_eq!(made["names"], json!([format!("{slug}/{alias}")]), "{name}");
    }
    // The second "foo" took the place of the first; both are builds of one template.
    let newest = ["bar:v2.0", "bar:default", "foo:v1", "foo:default"];
    assert_eq!(listed(&stack, "").await, newest.map(|name| format!("{slug}/{name}")));
    assert_eq!(stack.node.builds().len(), 5);

    for (name, status, message) in [
        ("", 400, "Invalid snapshot name: "),
        ("a b", 400, "Invalid snapshot name: "),
        ("foo:", 400, "Invalid snapshot name: "),
        (&"a".repeat(129), 400, "Invalid snapshot name: "),
        ("other/foo", 400, "namespace 'other' must match your team"),
        ("foo:6c1f4d52-8f0e-4b7a-9a35-d04be1a7c3f8", 400, "Invalid tag: "),
        ("base", 403, "Alias 'base' already used"),
    ] {
        let refused = snapshot(&stack, &id, json!({"name": name})).await.failure(status);
        assert!(refused.starts_with(message), "{name}: {refused}");
    }
    let disk_alone = snapshot(&stack, &id, json!({"memory": false})).await;
    assert!(disk_alone.failure(400).contains("'memory'"));
    assert_eq!(disk_alone.json()["error_code"], "ATL-2008");
    assert_eq!(stack.node.builds().len(), 5, "nothing was copied in vain");
}

#[tokio::test]
async fn snapshots_are_listed_by_sandbox_and_name_in_pages() {
    let stack = Stack::start().await;
    let (first, second) = (stack.sandbox_id().await, stack.sandbox_id().await);
    let plain = snapshot_id(&stack, &first, json!({})).await;
    let foo = snapshot_id(&stack, &first, json!({"name": "foo"})).await;
    let bar = snapshot_id(&stack, &second, json!({"name": "bar:v1"})).await;
    // Also when the sandbox has ended.
    stack.delete(&format!("/sandboxes/{first}")).await.success(204);
    for (query, expected) in [
        (String::new(), vec![&bar, &foo, &plain]),
        (format!("?sandboxID={first}"), vec![&foo, &plain]),
        (format!("?sandboxID={first}-6532622b"), vec![&foo, &plain]),
        (format!("?sandboxID={second}&name=foo"), vec![]),
        ("?sandboxID=iunknown".to_owned(), vec![]),
        ("?name=foo".to_owned(), vec![&foo]),
        ("?name=dev%2Ffoo".to_owned(), vec![&foo]),
        ("?name=dev%2Fbar%3Av1".to_owned(), vec![&bar]),
        ("?name=bar%3Av2".to_owned(), vec![]),
        ("?name=other%2Ffoo".to_owned(), vec![]),
        ("?name=nothing".to_owned(), vec![]),
        (format!("?name={}", plain.split(':').next().unwrap()), vec![&plain]),
    ] {
        assert_eq!(listed(&stack, &query).await.iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for (bad, message) in [
        ("?sandboxID=a.b", "Invalid sandbox ID"),
        ("?name=a%20b", "Invalid snapshot name: invalid template name 'a b'"),
        ("?limit=0", "validation error: limit must be 1 to 100, got 0"),
        ("?nextToken=x", "Invalid next token"),
    ] {
        assert_eq!(stack.get(&format!("/snapshots{bad}")).await.failure(400), message);
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let answer = stack.get(&format!("/snapshots?limit=1&nextToken={token}")).await;
        seen.push(answer.success(200)[0]["snapshotID"].as_str().unwrap().to_owned());
        match answer.headers.get("x-next-token") {
            Some(next) => token = next.to_str().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, [bar, foo, plain]);
}

#[tokio::test]
async fn a_snapshot_that_is_not_used_is_deleted() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let named = snapshot_id(&stack, &id, json!({"name": "foo:v1"})).await;
    snapshot_id(&stack, &id, json!({"name": "foo"})).await;
    let plain = snapshot_id(&stack, &id, json!({})).await;
    let body = json!({"templateID": named});
    let user = id_of(&stack.post("/v2/sandboxes", body.clone()).await.success(201));
    let template = stack.node.record(&user).unwrap().template;
    for state in ["running", "paused"] {
        let message = delete(&stack, &named).await.failure(400);
        let expected = format!(
            "cannot delete template '{template}' because there are {state} sandboxes using it"
        );
        assert_eq!(message, expected);
        if state == "running" {
            pause(&stack, &user).await;
        }
    }
    stack.delete(&format!("/sandboxes/{user}")).await.success(204);
    delete(&stack, &named).await.success(204);
    // Its other tags went with it; what is not of that name stays.
    assert_eq!(delete(&stack, &named).await.failure(404), "template 'dev/foo' not found");
    assert_eq!(listed(&stack, "").await, std::slice::from_ref(&plain));
    assert_eq!(stack.node.builds().len(), 1);
    stack.post("/v2/sandboxes", body).await.failure(404);
    delete(&stack, &plain).await.success(204);
    assert!(stack.node.builds().is_empty());

    for (bad, status) in [("a%2Fb%2Fc", 400), ("nothing", 404), ("..%2F", 400)] {
        stack.delete(&format!("/templates/{bad}")).await.failure(status);
    }
}

#[tokio::test]
async fn templates_of_the_deployment_stay() {
    let stack = Stack::start().await;
    let message = stack.delete("/templates/base").await.failure(403);
    assert!(message.ends_with("came with this deployment and cannot be deleted"), "{message}");
    let (_, key) = stack.other_team().await;
    let request = stack.anonymous(Method::DELETE, "/templates/base").header("X-API-Key", key);
    let message = send(request).await.failure(403);
    assert_eq!(message, "you don't have access to template 'base'");
    stack.sandbox_id().await;
}

#[tokio::test]
async fn what_the_database_does_not_know_is_deleted_at_start() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let kept = snapshot_id(&stack, &id, json!({})).await;
    // As if killed between the copy and the row.
    stack
        .node
        .builds()
        .insert("6c1f4d52-8f0e-4b7a-9a35-d04be1a7c3f8".to_owned(), id.parse().unwrap());
    let stack = stack.again().await;
    assert_eq!(listed(&stack, "").await, std::slice::from_ref(&kept));
    assert_eq!(stack.node.builds().len(), 1);
    stack.post("/v2/sandboxes", json!({"templateID": kept})).await.success(201);
}

#[tokio::test]
async fn what_another_database_knew_is_left_alone() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    snapshot_id(&stack, &id, json!({})).await;
    // As if the database had been moved away: the new one knows nothing.
    stack.sql("DELETE FROM snapshots").await;
    *stack.node.taken_at.lock().unwrap() = Some("2020-01-01T00:00:00Z".parse().unwrap());
    let stack = stack.again().await;
    assert_eq!(stack.node.builds().len(), 1);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_recorded_is_not_there() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    stack
        .sql("CREATE TRIGGER no BEFORE INSERT ON snapshots BEGIN SELECT RAISE(ABORT, 'no'); END")
        .await;
    snapshot(&stack, &id, json!({"name": "foo"})).await.failure(500);
    assert!(stack.node.builds().is_empty());
    assert_eq!(listed(&stack, "").await, [] as [&str; 0]);
}

#[tokio::test]
async fn many_snapshots_of_one_name_are_one_template() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let body = || json!({"name": "foo"});
    let made = join_all((0..8).map(|_| snapshot(&stack, &id, body()))).await;
    assert!(made.iter().all(|answer| answer.success(201)["names"] == json!(["dev/foo"])));
    assert_eq!(listed(&stack, "").await, ["dev/foo:default"]);
    delete(&stack, "dev/foo").await.success(204);
    assert!(stack.node.builds().is_empty());
}

#[tokio::test]
async fn a_sandbox_is_rewound_to_its_own_snapshots_only() {
    let stack = Stack::start().await;
    let created = stack.sandbox(json!({})).await;
    let id = id_of(&created);
    let (own, other) = (snapshot_id(&stack, &id, json!({})).await, stack.sandbox_id().await);
    let foreign = snapshot_id(&stack, &other, json!({"name": "foreign"})).await;
    let path = format!("/atoll/sandboxes/{id}/rewind");
    let rewind = async |snapshot: &str| stack.post(&path, json!({"snapshotID": snapshot})).await;

    let rewound = rewind(&own).await.success(200);
    assert_eq!((id_of(&rewound), &rewound["state"]), (id.clone(), &json!("running")));
    assert_eq!(rewound["envdAccessToken"], created["envdAccessToken"]);
    let build = stack.node.record(&id).unwrap().build;
    assert_eq!(stack.node.builds()[&build].as_str(), id);

    let message = format!("'{foreign}' is no snapshot of sandbox '{id}'");
    assert_eq!(rewind(&foreign).await.failure(400), message);
    assert!(rewind("base").await.failure(400).contains("is no snapshot"));
    assert_eq!(rewind("nothing").await.failure(404), "template 'nothing' not found");
    rewind("a b").await.failure(400);
    stack.post(&path, json!({})).await.failure(400);
    pause(&stack, &id).await;
    let message = format!("Sandbox '{id}' is paused and cannot be rewound; resume it first");
    assert_eq!(rewind(&own).await.failure(409), message);
    stack.node.put(&id, State::Pausing(Kept::Disk));
    let message = format!("Sandbox '{id}' cannot be rewound while in 'pausing' state");
    assert_eq!(rewind(&own).await.failure(409), message);
}

#[tokio::test]
async fn a_lineage_leads_back_to_a_template() {
    let stack = Stack::start().await;
    let first = stack.sandbox_id().await;
    let shot = snapshot_id(&stack, &first, json!({"name": "shot"})).await;
    let copy = stack.post("/v2/sandboxes", json!({"templateID": shot})).await.success(201);
    let copy = id_of(&copy);
    let forks = fork(&stack, &copy, json!({})).await.success(201);
    let child = id_of(&forks[0]["sandbox"]);
    let own = snapshot_id(&stack, &child, json!({})).await;
    let lineage =
        async |id: &str| stack.get(&format!("/atoll/sandboxes/{id}/lineage")).await.success(200);
    let line = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        (text("kind"), text("id"), entry["gone"] == true, entry["uniqueBytes"].as_u64())
    };
    let lines = |entries: &Value| entries.as_array().unwrap().iter().map(line).collect::<Vec<_>>();
    let sandbox = |id: &str| ("sandbox".to_owned(), id.to_owned(), false, Some(SANDBOX_BYTES));
    let snapshot = |id: &str| ("snapshot".to_owned(), id.to_owned(), false, Some(SNAPSHOT_BYTES));
    let base = stack.node.record(&first).unwrap().template.to_string();
    let template = ("template".to_owned(), base, false, None);

    let shown = lineage(&child).await;
    assert_eq!(line(&shown["sandbox"]), sandbox(&child));
    let chain = [sandbox(&copy), snapshot("dev/shot:default"), sandbox(&first), template.clone()];
    assert_eq!(lines(&shown["ancestors"]), chain);
    assert_eq!(lines(&shown["snapshots"]), [snapshot(&own)]);
    assert_eq!(shown["snapshots"][0]["kept"], "checkpoint");
    assert_eq!(lines(&shown["forks"]), []);
    assert_eq!(lines(&lineage(&copy).await["forks"]), [sandbox(&child)]);
    let of_first = lineage(&first).await;
    assert_eq!(lines(&of_first["snapshots"]), [snapshot("dev/shot:default")]);
    assert_eq!(lines(&of_first["ancestors"]), std::slice::from_ref(&template));
    assert_eq!(of_first["ancestors"][0]["name"], "base");

    // What has gone leaves its id.
    for id in [&copy, &first] {
        stack.delete(&format!("/sandboxes/{id}")).await.success(204);
    }
    let gone = |id: &str| ("sandbox".to_owned(), id.to_owned(), true, None);
    let chain = [gone(&copy), snapshot("dev/shot:default"), gone(&first), template];
    assert_eq!(lines(&lineage(&child).await["ancestors"]), chain);
    stack.get("/atoll/sandboxes/iunknown/lineage").await.failure(404);
}
