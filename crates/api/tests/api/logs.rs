//! Logs of sandboxes.

use std::collections::BTreeMap;

use atoll_wire::{log::LogLevel, node::LogLine};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::stack::{Answer, Stack, TEAM, eventually, send};

const LEVELS: [LogLevel; 4] = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];

fn line(id: &str, timestamp: Timestamp, level: LogLevel, message: &str) -> LogLine {
    LogLine {
        sandbox: id.parse().unwrap(),
        team: TEAM.to_string(),
        timestamp,
        sequence: 0,
        level,
        logger: "process".to_owned(),
        message: message.to_owned(),
        fields: BTreeMap::from([("pid".to_owned(), "7".to_owned())]),
    }
}

/// Four lines a second apart, one of each level, that are stored; with the time of the first.
async fn four_lines(stack: &Stack) -> (String, i64) {
    let id = stack.sandbox_id().await;
    let first = Timestamp::now().as_millisecond() - 10_000;
    for (number, level) in LEVELS.into_iter().enumerate() {
        let at = Timestamp::from_millisecond(first + 1000 * number as i64).unwrap();
        stack.node.log(line(&id, at, level, &format!("Line {number}")));
    }
    eventually(async || messages(&v2(stack, &id, &[]).await).len() == 4).await;
    (id, first)
}

async fn v2(stack: &Stack, id: &str, query: &[(&str, &str)]) -> Answer {
    send(stack.request(Method::GET, &format!("/v2/sandboxes/{id}/logs")).query(query)).await
}

async fn v1(stack: &Stack, id: &str, query: &[(&str, &str)]) -> Answer {
    send(stack.request(Method::GET, &format!("/sandboxes/{id}/logs")).query(query)).await
}

/// The messages of an answer of either route.
fn messages(answer: &Answer) -> Vec<String> {
    let body = answer.success(200);
    let entries = body.get("logEntries").unwrap_or(&body["logs"]).as_array().unwrap();
    entries.iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
}

// Rules: LOG-1
#[tokio::test]
async fn the_first_route_has_lines_that_the_cli_can_read() {
    let stack = Stack::start().await;
    let (id, first) = four_lines(&stack).await;
    let body = v1(&stack, &id, &[]).await.success(200);
    let (logs, entries) =
        (body["logs"].as_array().unwrap(), body["logEntries"].as_array().unwrap());
    assert_eq!((logs.len(), entries.len()), (4, 4));
    for (number, log) in logs.iter().enumerate() {
        let line: Value = serde_json::from_str(log["line"].as_str().unwrap()).unwrap();
        assert_eq!(line["level"], json!(LEVELS[number]));
        assert_eq!(line["logger"], "process");
        assert_eq!(line["message"], format!("Line {number}"));
        assert_eq!((&line["pid"], &line["timestamp"]), (&json!("7"), &log["timestamp"]));
        let at: Timestamp = log["timestamp"].as_str().unwrap().parse().unwrap();
        assert_eq!(at.as_millisecond(), first + 1000 * number as i64);
        assert_eq!(entries[number]["timestamp"], log["timestamp"]);
        assert_eq!(entries[number]["fields"], json!({ "pid": "7", "logger": "process" }));
    }
    // As the CLI follows: from a millisecond after the last line that it has.
    let start = (first + 1001).to_string();
    assert_eq!(messages(&v1(&stack, &id, &[("start", &start)]).await), ["Line 2", "Line 3"]);
    let start = (first + 1000).to_string();
    let query = [("start", start.as_str()), ("limit", "2")];
    assert_eq!(messages(&v1(&stack, &id, &query).await), ["Line 1", "Line 2"]);
    assert_eq!(messages(&v1(&stack, &id, &[("limit", "100000")]).await).len(), 4);
    let empty = v1(&stack, &id, &[("start", &i64::MAX.to_string())]).await.success(200);
    assert_eq!(empty, json!({ "logs": [], "logEntries": [] }));
}

#[tokio::test]
async fn no_field_takes_the_place_of_what_every_line_has() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let names = ["level", "logger", "message", "timestamp"];
    let fields = names.map(|name| (name.to_owned(), "forged".to_owned()));
    let honest = line(&id, Timestamp::now(), LogLevel::Warn, "Honest");
    stack.node.log(LogLine { fields: BTreeMap::from(fields), ..honest });
    eventually(async || !messages(&v1(&stack, &id, &[]).await).is_empty()).await;
    let body = v1(&stack, &id, &[]).await.success(200);
    assert!(!body["logs"][0]["line"].as_str().unwrap().contains("forged"), "{body}");
}

#[tokio::test]
async fn the_second_route_reads_in_both_directions() {
    let stack = Stack::start().await;
    let (id, first) = four_lines(&stack).await;
    let cursor = (first + 2000).to_string();
    let page = async |query: &[(&str, &str)]| messages(&v2(&stack, &id, query).await);
    assert_eq!(page(&[]).await, ["Line 3", "Line 2", "Line 1", "Line 0"]);
    assert_eq!(page(&[("limit", "1")]).await, ["Line 3"]);
    assert_eq!(page(&[("cursor", &cursor), ("limit", "1")]).await, ["Line 1"]);
    assert_eq!(page(&[("cursor", &cursor), ("direction", "backward")]).await, ["Line 1", "Line 0"]);
    assert_eq!(page(&[("cursor", &cursor), ("direction", "forward")]).await, ["Line 2", "Line 3"]);
    assert_eq!(page(&[("direction", "forward"), ("limit", "2")]).await, ["Line 0", "Line 1"]);
    assert_eq!(page(&[("level", "warn")]).await, ["Line 3", "Line 2"]);
    assert_eq!(page(&[("search", "ine 1")]).await, ["Line 1"]);
    assert!(page(&[("search", "line 1")]).await.is_empty());
    assert!(page(&[("limit", "0")]).await.is_empty());
    let entry = &v2(&stack, &id, &[("level", "error")]).await.success(200)["logs"][0];
    assert_eq!(entry["level"], "error");
    assert_eq!(entry["fields"], json!({ "pid": "7", "logger": "process" }));
}

#[tokio::test]
async fn queries_that_mean_nothing_are_refused() {
    let stack = Stack::start().await;
    let id = stack.sandbox_id().await;
    let long = "x".repeat(257);
    for bad in [
        ("cursor", "-1"),
        ("cursor", "soon"),
        ("limit", "-1"),
        ("limit", "1001"),
        ("direction", "sideways"),
        ("level", "fatal"),
        ("search", &long),
    ] {
        assert!(v2(&stack, &id, &[bad]).await.failure(400).starts_with("validation"), "{bad:?}");
    }
    assert!(messages(&v2(&stack, &id, &[("search", &"é".repeat(256))]).await).is_empty());
    for bad in [("start", "-1"), ("start", "x"), ("limit", "-1")] {
        v1(&stack, &id, &[bad]).await.failure(400);
    }
    assert_eq!(v2(&stack, "no!", &[]).await.failure(400), "Invalid sandbox ID");
}

#[tokio::test]
async fn a_log_is_its_teams_and_outlives_the_sandbox() {
    let stack = Stack::start().await;
    let (id, _) = four_lines(&stack).await;
    stack.delete(&format!("/sandboxes/{id}")).await.success(204);
    assert_eq!(messages(&v1(&stack, &id, &[]).await).len(), 4);
    let (_, other) = stack.other_team().await;
    for path in [format!("/sandboxes/{id}/logs"), format!("/v2/sandboxes/{id}/logs")] {
        let request = stack.anonymous(Method::GET, &path).header("X-API-KEY", &other);
        assert!(messages(&send(request).await).is_empty(), "{path}");
        send(stack.anonymous(Method::GET, &path)).await.failure(401);
    }
    // Clients find out by asking for the sandbox itself.
    assert!(messages(&v1(&stack, "iunknown", &[]).await).is_empty());
    assert_eq!(v2(&stack, "iunknown", &[]).await.success(200), json!({ "logs": [] }));
}

#[tokio::test]
async fn nothing_older_than_a_week_is_shown() {
    let stack = Stack::start().await;
    let (id, _) = four_lines(&stack).await;
    let old = Timestamp::now() - SignedDuration::from_hours(7 * 24 + 1);
    stack.node.log(line(&id, old, LogLevel::Info, "Old"));
    let marker = line(&id, Timestamp::now(), LogLevel::Info, "New");
    stack.node.log(marker);
    eventually(async || messages(&v2(&stack, &id, &[]).await).len() == 5).await;
    assert_eq!(messages(&v1(&stack, &id, &[("start", "0")]).await).len(), 5);
}
