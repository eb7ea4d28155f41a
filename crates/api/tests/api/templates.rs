//! Looking at templates, publishing and deleting them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    node::FakeNode,
    stack::{ACCESS_TOKEN, Stack, eventually, id_of, send},
};

fn ids(list: &Value) -> Vec<String> {
    let id = |item: &Value| item["templateID"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn a_template_is_listed_from_its_registration_on() {
    let stack = Stack::start().await;
    let (template, build) = stack.registered(json!({"name": "mine"})).await;
    let listed = async || {
        let list = stack.get("/templates").await.success(200);
        let found = list.as_array().unwrap().iter().find(|item| item["templateID"] == template);
        found.unwrap().clone()
    };
    let first = listed().await;
    assert_eq!((&first["buildStatus"], &first["buildID"]), (&json!("waiting"), &json!(build)));
    assert_eq!((&first["envdVersion"], &first["isDefault"]), (&json!(""), &json!(false)));
    assert_eq!((&first["createdBy"], &first["lastSpawnedAt"]), (&Value::Null, &Value::Null));
    let path = format!("/v2/templates/{template}/builds/{build}");
    stack.post(&path, json!({"fromImage": "a"})).await.success(202);
    assert_eq!(listed().await["buildStatus"], "building");
    stack.builder.finish(&build);
    eventually(|| async { listed().await["buildStatus"] == "ready" }).await;
    let (_, failed) = stack.started("mine", json!({"fromTemplate": "nothing"})).await;
    let now = listed().await;
    assert_eq!((&now["buildStatus"], &now["buildID"]), (&json!("error"), &json!(build)));
    assert_eq!((&now["buildCount"], &now["envdVersion"]), (&json!(2), &json!("0.6.4")));
    let shown = stack.get(&format!("/templates/{template}?limit=1")).await;
    let page = shown.success(200);
    assert_eq!(page["builds"][0]["buildID"], failed);
    let next = shown.headers["x-next-token"].to_str().unwrap();
    let shown = stack.get(&format!("/templates/{template}?limit=1&nextToken={next}")).await;
    assert_eq!(shown.success(200)["builds"][0]["buildID"], build);
    assert!(shown.headers.get("x-next-token").is_none());
    assert!(page["builds"][0]["finishedAt"].is_string());
    assert_eq!((&page["names"], &page["spawnCount"]), (&json!(["dev/mine"]), &json!(0)));
}

#[tokio::test]
async fn the_paged_listing_is_newest_first() {
    let stack = Stack::start().await;
    let mut expected = vec![ids(&stack.get("/templates").await.success(200)).remove(0)];
    for name in ["one", "two", "three"] {
        expected.push(stack.template(name).await.0);
    }
    assert_eq!(ids(&stack.get("/templates").await.success(200)), expected);
    expected.reverse();
    let mut seen = Vec::new();
    let mut query = "limit=3".to_owned();
    loop {
        let page = stack.get(&format!("/v2/templates?{query}")).await;
        seen.extend(ids(&page.success(200)));
        match page.headers.get("x-next-token") {
            Some(next) => query = format!("limit=3&nextToken={}", next.to_str().unwrap()),
            None => break,
        }
    }
    assert_eq!(seen, expected);
    for bad in ["limit=0", "limit=101", "nextToken=x", "teamID=x"] {
        stack.get(&format!("/v2/templates?{bad}")).await.failure(400);
    }
}

#[tokio::test]
async fn the_templates_of_the_deployment_are_the_default_ones() {
    let stack = Stack::start().await;
    stack.template("mine").await;
    stack.sandbox_id().await;
    let list = stack.get("/default-templates").await.success(200);
    let [base] = list.as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&base["names"], &base["isDefault"]), (&json!(["base"]), &json!(true)));
    eventually(|| async {
        stack.get("/default-templates").await.success(200)[0]["spawnCount"] == json!(1)
    })
    .await;
    let (_, key) = stack.other_team().await;
    let request = stack.anonymous(Method::GET, "/default-templates").header("X-API-Key", key);
    let list = send(request).await.success(200);
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!((&list[0]["spawnCount"], &list[0]["lastSpawnedAt"]), (&json!(0), &Value::Null));
}

#[tokio::test]
async fn a_name_exists_when_it_is_registered() {
    let stack = Stack::start().await;
    let (template, _) = stack.registered(json!({"name": "mine"})).await;
    let found = stack.get("/templates/aliases/dev%2Fmine").await.success(200);
    assert_eq!(found, json!({"templateID": template, "public": false}));
    stack.get("/templates/aliases/mine%3Av1").await.failure(404);
    stack.get("/templates/aliases/base").await.success(200);
}

#[tokio::test]
async fn others_see_what_is_published_and_nothing_else() {
    let stack = Stack::start().await;
    let (template, _) = stack.template("mine").await;
    let (_, key) = stack.other_team().await;
    let foreign =
        |method: Method, path: &str| stack.anonymous(method, path).header("X-API-Key", &key);
    let create = async |name: &str| {
        send(foreign(Method::POST, "/v2/sandboxes").json(&json!({"templateID": name}))).await
    };
    for name in ["dev/mine", template.as_str()] {
        create(name).await.failure(404);
        let path = format!("/templates/aliases/{}", name.replace('/', "%2F"));
        send(foreign(Method::GET, &path)).await.failure(404);
    }
    let path = format!("/templates/{template}");
    for method in [Method::GET, Method::DELETE, Method::PATCH] {
        send(foreign(method, &path)).await.failure(404);
    }
    let publish = async |public: bool| {
        let request = stack.anonymous(Method::PATCH, &format!("/v2{path}"));
        let request = request.bearer_auth(ACCESS_TOKEN).json(&json!({"public": public}));
        send(request).await.success(200)
    };
    assert_eq!(publish(true).await, json!({"names": ["dev/mine"]}));
    let sandbox = id_of(&create("dev/mine").await.success(201));
    create("mine").await.failure(404);
    for method in [Method::GET, Method::DELETE, Method::PATCH] {
        let message = send(foreign(method, &path)).await.failure(403);
        assert_eq!(message, format!("you don't have access to template '{template}'"));
    }
    // Somebody else's sandbox stands in the way, too.
    let message = stack.delete(&path).await.failure(400);
    assert!(message.ends_with("because there are running sandboxes using it"), "{message}");
    let global = send(stack.request(Method::PATCH, &path).json(&json!({"public": true}))).await;
    assert_eq!((global.status, global.text.as_str()), (StatusCode::OK, ""));
    let found = create("mine").await.success(201);
    assert_eq!(found["templateID"], template);
    publish(false).await;
    create("dev/mine").await.failure(404);
    let kill = foreign(Method::DELETE, &format!("/sandboxes/{sandbox}"));
    send(kill).await.success(204);
    stack.get("/templates/mine").await.success(200);
    let base = stack.request(Method::PATCH, "/v2/templates/base").json(&json!({"public": false}));
    send(base).await.failure(403);
}

/// A control plane whose operator can have the template `tools`.
async fn with_tools() -> Stack {
    let command = ("tools".to_owned(), "make tools".to_owned());
    Stack::with(FakeNode::default(), |options| options.available = [command].into()).await
}

#[tokio::test]
async fn a_name_that_the_operator_gives_is_published_by_nobody_else() {
    let stack = with_tools().await;
    let (_, key) = stack.other_team().await;
    let foreign = |method: Method, path: &str| {
        stack.anonymous(method, path).header("X-API-Key", &key).json(&json!({"public": true}))
    };
    for name in ["tools", "theirs"] {
        let request = stack.anonymous(Method::POST, "/v3/templates").header("X-API-Key", &key);
        send(request.json(&json!({"name": name}))).await.success(202);
    }
    let refused = send(foreign(Method::PATCH, "/templates/tools")).await.failure(403);
    assert!(refused.starts_with("the name 'tools' is reserved"), "{refused}");
    stack.get("/templates/aliases/tools").await.failure(404);
    // In its own namespace it can be public, and other names are free.
    send(foreign(Method::PATCH, "/v2/templates/tools")).await.success(200);
    stack.get("/templates/aliases/tools").await.failure(404);
    stack.get("/templates/aliases/other%2Ftools").await.success(200);
    assert_eq!(send(foreign(Method::PATCH, "/templates/theirs")).await.status, StatusCode::OK);
    stack.get("/templates/aliases/theirs").await.success(200);

    let (own, _) = stack.template("tools").await;
    let published = stack.request(Method::PATCH, "/templates/tools").json(&json!({"public": true}));
    assert_eq!(send(published).await.status, StatusCode::OK);
    let base = stack.anonymous(Method::GET, &format!("/templates/aliases/{own}"));
    assert_eq!(send(base.header("X-API-Key", &key)).await.success(200)["public"], true);
}

#[tokio::test]
async fn who_asks_for_a_template_that_can_be_had_is_told_how() {
    let stack = with_tools().await;
    let create = async |name: &str| {
        stack.post("/v2/sandboxes", json!({"templateID": name})).await.failure(404)
    };
    let advised = "template 'tools' not found; its operator builds it with: make tools";
    assert_eq!(create("tools").await, advised);
    assert_eq!(create("dev/tools").await, "template 'dev/tools' not found");
    stack.template("tools").await;
    assert_eq!(create("tools:v9").await, "tag 'v9' does not exist for template 'tools'");
}

#[tokio::test]
async fn a_template_is_deleted_with_its_builds() {
    let stack = Stack::start().await;
    let (template, first) = stack.template("mine").await;
    let (_, running) = stack.started("mine", json!({"fromImage": "a"})).await;
    for build in [&first, &running] {
        stack.node.builds().insert(build.clone(), "ia".parse().unwrap());
    }
    let body = json!({"templateID": "mine", "autoPause": true});
    let sandbox = id_of(&stack.post("/v2/sandboxes", body).await.success(201));
    for word in ["running", "paused"] {
        let message = stack.delete("/templates/mine").await.failure(400);
        assert_eq!(
            message,
            format!(
                "cannot delete template '{template}' because there are {word} sandboxes using it"
            )
        );
        if word == "running" {
            stack.post(&format!("/sandboxes/{sandbox}/pause"), json!({})).await.success(204);
        }
    }
    stack.delete(&format!("/sandboxes/{sandbox}")).await.success(204);
    stack.delete("/templates/dev%2Fmine%3Aany").await.success(204);
    assert!(stack.node.builds().is_empty());
    let cancelled = stack.builder.cancelled();
    assert!(cancelled.contains(&(running.clone(), "The template was deleted.".to_owned())));
    for path in ["/templates/mine".to_owned(), format!("/templates/{template}")] {
        stack.delete(&path).await.failure(404);
    }
    let path = format!("/templates/{template}/builds/{running}/status");
    assert_eq!(stack.get(&path).await.failure(400), format!("Build '{running}' not found"));
    stack.post("/v2/sandboxes", json!({"templateID": "mine"})).await.failure(404);
    // The name is free.
    let (again, _) = stack.template("mine").await;
    assert_ne!(again, template);
}

#[tokio::test]
async fn builds_of_templates_outlive_a_restart() {
    let stack = Stack::with(FakeNode::default(), |_| {}).await;
    let (_, kept) = stack.template("mine").await;
    let (_, deleted) = stack.template("gone").await;
    stack.delete("/templates/gone").await.success(204);
    for build in [&kept, &deleted] {
        stack.node.builds().insert(build.clone(), "ia".parse().unwrap());
    }
    let stack = stack.again().await;
    let left: Vec<_> = stack.node.builds().keys().cloned().collect();
    assert_eq!(left, [kept]);
}
