//! Lists, their pages and their filters.

use reqwest::Method;
use serde_json::{Value, json};

use crate::stack::{Answer, Stack, id_of, send};

fn ids(page: &Value) -> Vec<String> {
    page.as_array().unwrap().iter().map(id_of).collect()
}

async fn list(stack: &Stack, query: &[(&str, &str)]) -> Answer {
    send(stack.request(Method::GET, "/v2/sandboxes").query(query)).await
}

async fn listed(stack: &Stack, query: &[(&str, &str)]) -> Vec<String> {
    ids(&list(stack, query).await.success(200))
}

/// As the published SDKs write a metadata filter before it becomes a query value.
fn sdk_filter(pairs: &[(&str, &str)]) -> String {
    let quote = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let pair =
        |(key, value): &(&str, &str)| format!("{}={}", quote(&quote(key)), quote(&quote(value)));
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}

#[tokio::test]
async fn pages_cover_everything_once_in_both_orders() {
    let stack = Stack::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(stack.sandbox_id().await);
    }
    let newest_first: Vec<_> = made.iter().rev().cloned().collect();
    for (order, expected) in [("desc", &newest_first), ("asc", &made)] {
        for limit in [1, 2, 4, 5, 6, 100] {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let limit = limit.to_string();
                let mut query = vec![("limit", limit.as_str()), ("order", order)];
                if !token.is_empty() {
                    query.push(("nextToken", &token));
                }
                let answer = list(&stack, &query).await;
                assert_eq!(answer.headers["x-total-running"], "5");
                seen.extend(ids(&answer.success(200)));
                match answer.headers.get("x-next-token") {
                    Some(next) => token = next.to_str().unwrap().to_owned(),
                    None => break,
                }
                assert!(seen.len() < 5, "a page behind the last was promised");
            }
            assert_eq!(&seen, expected, "{order} by {limit}");
        }
    }
    assert_eq!(ids(&stack.get("/sandboxes").await.success(200)), newest_first);
}

#[tokio::test]
async fn pages_stay_right_when_sandboxes_come_and_go() {
    let stack = Stack::start().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(stack.sandbox_id().await);
    }
    let first = list(&stack, &[("limit", "1")]).await;
    let token = first.headers["x-next-token"].to_str().unwrap().to_owned();
    stack.delete(&format!("/sandboxes/{}", made[2])).await.success(204);
    stack.sandbox_id().await;
    let rest = listed(&stack, &[("nextToken", &token)]).await;
    assert_eq!(rest, [made[1].clone(), made[0].clone()]);
}

#[tokio::test]
async fn bad_queries_are_refused() {
    let stack = Stack::start().await;
    for _ in 0..2 {
        stack.sandbox_id().await;
    }
    let descending = list(&stack, &[("limit", "1")]).await;
    let descending = descending.headers["x-next-token"].to_str().unwrap().to_owned();
    let ascending = list(&stack, &[("limit", "1"), ("order", "asc")]).await;
    let ascending = ascending.headers["x-next-token"].to_str().unwrap().to_owned();
    for query in [
        [("nextToken", "nonsense"), ("order", "desc")],
        [("nextToken", ascending.as_str()), ("order", "desc")],
        [("nextToken", descending.as_str()), ("order", "asc")],
    ] {
        assert_eq!(list(&stack, &query).await.failure(400), "Invalid next token", "{query:?}");
    }
    for query in [
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "101"),
        ("limit", "x"),
        ("state", "killing"),
        ("state", ""),
        ("order", "up"),
        ("startedAfter", "yesterday"),
    ] {
        let message = list(&stack, &[query]).await.failure(400);
        assert!(message.starts_with("validation error: "), "{query:?}: {message}");
    }
    list(&stack, &[("metadata", "novalue")]).await.failure(400);
    let message = list(&stack, &[("template", "base:v1")]).await.failure(400);
    assert!(message.starts_with("Invalid template: "), "{message}");
    list(&stack, &[("unknown", "parameter")]).await.success(200);
}

#[tokio::test]
async fn metadata_filters_match_every_pair_whatever_it_holds() {
    let stack = Stack::start().await;
    let odd = [("a&b", "1=2 + ü%"), ("plain", "x")];
    let labels = json!({"a&b": "1=2 + ü%", "plain": "x"});
    let with_both = id_of(&stack.sandbox(json!({"metadata": labels})).await);
    let with_one = id_of(&stack.sandbox(json!({"metadata": {"plain": "x"}})).await);
    stack.sandbox(json!({"metadata": {"plain": "y"}})).await;

    let both = sdk_filter(&odd);
    assert_eq!(listed(&stack, &[("metadata", &both)]).await, std::slice::from_ref(&with_both));
    let one = [with_one, with_both];
    assert_eq!(listed(&stack, &[("metadata", "plain=x")]).await, one);
    let answer = list(&stack, &[("metadata", "plain=x"), ("limit", "1")]).await;
    assert_eq!(answer.headers["x-total-running"], "2");
    assert!(listed(&stack, &[("metadata", "plain=")]).await.is_empty());
    let old =
        send(stack.request(Method::GET, "/sandboxes").query(&[("metadata", "plain=x")])).await;
    assert_eq!(ids(&old.success(200)), one);
}

#[tokio::test]
async fn other_filters() {
    let stack = Stack::start().await;
    let first = stack.sandbox(json!({})).await;
    let second = stack.sandbox_id().await;
    let all = [second.clone(), id_of(&first)];
    let template = first["templateID"].as_str().unwrap();

    for state in ["running", "running,paused", "paused,running"] {
        assert_eq!(listed(&stack, &[("state", state)]).await, all, "{state}");
    }
    let paused = list(&stack, &[("state", "paused")]).await;
    assert_eq!(paused.success(200), json!([]));
    assert!(!paused.headers.contains_key("x-total-running"));

    for name in ["base", template, "BASE"] {
        assert_eq!(listed(&stack, &[("template", name)]).await, all, "{name}");
    }
    let unknown = list(&stack, &[("template", "nothing")]).await;
    assert_eq!(unknown.success(200), json!([]));
    assert_eq!(unknown.headers["x-total-running"], "0");

    // Inclusive, and to the microsecond.
    let page = list(&stack, &[]).await.success(200);
    let started = page[0]["startedAt"].as_str().unwrap();
    assert_eq!(listed(&stack, &[("startedAfter", started)]).await, [second]);
    let started = page[1]["startedAt"].as_str().unwrap();
    let spelled_out = started.replace('Z', "+00:00");
    for started in [started, &spelled_out] {
        assert_eq!(listed(&stack, &[("startedAfter", started)]).await, all);
    }
    assert!(listed(&stack, &[("startedAfter", "2999-01-01T00:00:00.000Z")]).await.is_empty());
}

#[tokio::test]
async fn entries_have_what_clients_require() {
    let stack = Stack::start().await;
    stack.sandbox(json!({})).await;
    for path in ["/sandboxes", "/v2/sandboxes"] {
        let page = stack.get(path).await.success(200);
        let entry = page[0].as_object().unwrap();
        for key in [
            "templateID",
            "sandboxID",
            "clientID",
            "envdVersion",
            "startedAt",
            "endAt",
            "cpuCount",
            "memoryMB",
            "diskSizeMB",
            "state",
        ] {
            assert!(entry.get(key).is_some_and(|value| !value.is_null()), "{key} in {path}");
        }
        assert_eq!((&entry["volumeMounts"], &entry["metadata"]), (&json!([]), &json!({})));
        assert!(entry.get("envdAccessToken").is_none());
    }
}
