//! What tags mean, and have meant.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stack::{Answer, Stack, send};

async fn assign(stack: &Stack, target: &str, tags: Value) -> Answer {
    stack.post("/templates/tags", json!({"target": target, "tags": tags})).await
}

async fn remove(stack: &Stack, name: &str, tags: Value) -> Answer {
    let request = stack.request(Method::DELETE, "/templates/tags");
    send(request.json(&json!({"name": name, "tags": tags}))).await
}

/// Tags of a template with the builds that they mean.
async fn tags(stack: &Stack, template: &str) -> Vec<(String, String)> {
    let list = stack.get(&format!("/templates/{template}/tags")).await.success(200);
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let mut tags: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .inspect(|item| assert!(item["createdAt"].is_string()))
        .map(|item| (text(item, "tag"), text(item, "buildID")))
        .collect();
    tags.sort();
    tags
}

#[tokio::test]
async fn tags_are_given_moved_and_taken() {
    let stack = Stack::start().await;
    let (template, first) = stack.template("mine").await;
    let given = assign(&stack, "mine", json!(["V1", "stable", "v1"])).await.success(201);
    assert_eq!(given, json!({"tags": ["v1", "stable"], "buildID": first}));
    let (_, second) = stack.template("mine").await;
    let moved = assign(&stack, "dev/mine:default", json!(["stable"])).await.success(201);
    assert_eq!(moved["buildID"], second);
    let pair = |tag: &str, build: &str| (tag.to_owned(), build.to_owned());
    let all = [pair("default", &second), pair("stable", &second), pair("v1", &first)];
    for name in ["mine", "dev%2Fmine", &template] {
        assert_eq!(tags(&stack, name).await, all);
    }
    // By a tag, and by a build.
    assert_eq!(assign(&stack, "mine:v1", json!(["a"])).await.success(201)["buildID"], first);
    let by_build = assign(&stack, &format!("mine:{second}"), json!(["b"])).await;
    assert_eq!(by_build.success(201)["buildID"], second);
    assert_eq!(remove(&stack, "mine", json!(["a", "b", "never"])).await.success(204), Value::Null);
    remove(&stack, "dev/mine", json!(["stable"])).await.success(204);
    assert_eq!(tags(&stack, "mine").await, [pair("default", &second), pair("v1", &first)]);
    stack.get("/templates/aliases/mine%3Av1").await.success(200);
    let message = stack.get("/templates/aliases/mine%3Astable").await.failure(404);
    assert_eq!(message, "tag 'stable' does not exist for template 'mine'");
}

#[tokio::test]
async fn bad_tags_are_refused() {
    let stack = Stack::start().await;
    stack.template("mine").await;
    let id = Uuid::new_v4().to_string();
    for tag in ["", ":invalid-tag", "name:", "a/b", &id] {
        let message = assign(&stack, "mine", json!(["ok", tag])).await.failure(400);
        assert!(message.starts_with("Invalid tag: "), "{message}");
        let message = remove(&stack, "mine", json!([tag])).await.failure(400);
        assert!(message.starts_with("Invalid tag: "), "{message}");
    }
    assign(&stack, "mine", json!([format!("v1-{id}")])).await.success(201);
    for answer in [assign(&stack, "mine", json!([])).await, remove(&stack, "mine", json!([])).await]
    {
        assert_eq!(answer.failure(400), "At least one tag is required");
    }
    for target in ["", ":v1", "mine:", "a b"] {
        let message = assign(&stack, target, json!(["x"])).await.failure(400);
        assert!(message.starts_with("Invalid target template format: "), "{message}");
    }
    let message = remove(&stack, "mine", json!(["x", "DEFAULT"])).await.failure(400);
    assert_eq!(message, "Cannot delete the 'default' tag");
    let message = remove(&stack, "mine:default", json!(["x"])).await.failure(400);
    assert_eq!(message, "Template name should not contain a tag, use the 'tags' field instead");
    let message = assign(&stack, "mine:v9", json!(["x"])).await.failure(404);
    assert_eq!(message, "Template 'mine' with tag 'v9' not found");
    let message = assign(&stack, "nothing", json!(["x"])).await.failure(404);
    assert_eq!(message, "Template 'nothing' with tag 'default' not found");
    remove(&stack, "nothing", json!(["x"])).await.failure(404);
    stack.get("/templates/nothing/tags").await.failure(404);
    assert_eq!(tags(&stack, "mine").await.len(), 2);
}

#[tokio::test]
async fn tags_of_others_are_theirs() {
    let stack = Stack::start().await;
    let (template, _) = stack.template("mine").await;
    let (_, key) = stack.other_team().await;
    let foreign =
        |method: Method, path: &str| stack.anonymous(method, path).header("X-API-Key", &key);
    for (target, status) in [("base", 403), (template.as_str(), 404), ("dev/mine", 404)] {
        let body = json!({"target": target, "tags": ["x"]});
        send(foreign(Method::POST, "/templates/tags").json(&body)).await.failure(status);
        let body = json!({"name": target, "tags": ["x"]});
        send(foreign(Method::DELETE, "/templates/tags").json(&body)).await.failure(status);
        let path = format!("/templates/{}/tags", target.replace('/', "%2F"));
        send(foreign(Method::GET, &path)).await.failure(status);
        for tail in ["count", "exists?tag=x", "groups", "default/assignments"] {
            send(foreign(Method::GET, &format!("{path}/{tail}"))).await.failure(404);
        }
    }
}

#[tokio::test]
async fn what_tags_have_meant_is_told_in_pages() {
    let stack = Stack::start().await;
    let (template, first) = stack.template("mine").await;
    for tag in ["a", "b", "c"] {
        assign(&stack, "mine", json!([tag])).await.success(201);
    }
    let (_, second) = stack.template("mine").await;
    assign(&stack, "mine", json!(["b"])).await.success(201);
    stack.registered(json!({"name": "mine:pending"})).await;
    let get = async |tail: &str| stack.get(&format!("/templates/{template}/tags/{tail}")).await;

    assert_eq!(get("count").await.success(200), json!({"total": 4}));
    assert_eq!(
        get("exists?tag=%20B").await.success(200),
        json!({"exists": true, "normalizedTag": "b"})
    );
    assert_eq!(get("exists?tag=pending").await.success(200)["exists"], false);
    get("exists").await.failure(400);
    get("exists?tag=a%3Ab").await.failure(400);

    let page = get("b/assignments?limit=1").await.success(200);
    assert_eq!(page["data"][0]["buildId"], second);
    let id: Uuid = page["data"][0]["assignmentId"].as_str().unwrap().parse().unwrap();
    for key in ["assignedAt", "buildCreatedAt", "buildFinishedAt"] {
        assert!(page["data"][0][key].is_string(), "{key}");
    }
    let cursor = page["nextCursor"].as_str().unwrap();
    let rest = get(&format!("b/assignments?cursor={cursor}")).await.success(200);
    assert_eq!(rest["data"].as_array().unwrap().len(), 1);
    assert_eq!((&rest["data"][0]["buildId"], &rest["nextCursor"]), (&json!(first), &Value::Null));
    assert_ne!(rest["data"][0]["assignmentId"], json!(id.to_string()));
    get("b/assignments?cursor=x").await.failure(400);

    for (query, expected) in [
        ("", "b default c a"),
        ("sort=latest_asc", "a c default b"),
        ("sort=name_asc", "a b c default"),
        ("sort=name_desc", "default c b a"),
        ("search=EF", "default"),
        ("search=z", ""),
    ] {
        let mut names = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = get(&format!("groups?tagsLimit=3&{query}{cursor}")).await.success(200);
            for group in page["tags"].as_array().unwrap() {
                names.push(group["tag"].as_str().unwrap().to_owned());
            }
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&tagsCursor={next}"),
                None => break,
            }
        }
        assert_eq!(names.join(" "), expected, "{query}");
    }
    let groups = get("groups?assignmentLimit=1&search=b").await.success(200);
    let group = &groups["tags"][0];
    assert_eq!(group["assignments"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&group["assignments"][0]["buildId"], &group["hasMore"]),
        (&json!(second), &json!(true))
    );
    for bad in ["tagsLimit=0", "assignmentLimit=101", "sort=x", "tagsCursor=x"] {
        get(&format!("groups?{bad}")).await.failure(400);
    }
}
