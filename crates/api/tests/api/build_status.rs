//! How builds go: their status, their logs, and what can be done about them.

use atoll_wire::log::LogLevel;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stack::{ACCESS_TOKEN, Stack, eventually, id_of, send};

fn messages(lines: &Value) -> Vec<String> {
    let text = |line: &Value| line["message"].as_str().unwrap().to_owned();
    lines.as_array().unwrap().iter().map(text).collect()
}

async fn under_way(stack: &Stack) -> (String, String) {
    stack.started("mine", json!({"fromImage": "a"})).await
}

#[tokio::test]
async fn a_log_is_followed_by_its_offset_until_it_is_drained() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    for number in 0..130 {
        let level = if number % 10 == 0 { LogLevel::Warn } else { LogLevel::Info };
        stack.builder.say(&build, level, "1", &number.to_string());
    }
    stack.builder.finish(&build);
    stack.reaches(&template, &build, "ready").await;
    let page = async |query: &str| {
        let path = format!("/templates/{template}/builds/{build}/status?{query}");
        let status = stack.get(&path).await.success(200);
        assert_eq!(status["logs"], json!([]));
        assert!(status.get("reason").is_none());
        messages(&status["logEntries"])
    };
    let mut seen = Vec::new();
    loop {
        let lines = page(&format!("logsOffset={}", seen.len())).await;
        assert!(lines.len() <= 100);
        if lines.is_empty() {
            break;
        }
        seen.extend(lines);
    }
    let all: Vec<String> = (0..130).map(|number| number.to_string()).collect();
    assert_eq!(seen, all);
    assert_eq!(page("logsOffset=2&limit=3").await, ["2", "3", "4"]);
    assert_eq!(page("level=warn&logsOffset=1&limit=2").await, ["10", "20"]);
    assert!(page("limit=0").await.is_empty());
    for bad in ["logsOffset=-1", "limit=101", "limit=-1", "level=loud", "limit=x"] {
        let path = format!("/templates/{template}/builds/{build}/status?{bad}");
        stack.get(&path).await.failure(400);
    }
}

#[tokio::test]
async fn a_failure_names_its_step_and_what_tells_of_it() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    stack.builder.say(&build, LogLevel::Error, "1", "of another step");
    stack.builder.say(&build, LogLevel::Info, "2", "harmless");
    stack.builder.say(&build, LogLevel::Warn, "2", "the reason");
    stack.builder.fail(&build, "2", "RUN make ended with 2", None);
    let status = stack.reaches(&template, &build, "error").await;
    let reason = &status["reason"];
    assert_eq!((&reason["step"], &reason["code"]), (&json!("2"), &json!("ATL-5005")));
    assert_eq!(reason["message"], "RUN make ended with 2");
    assert_eq!(messages(&reason["logEntries"]), ["the reason"]);
    let line = &status["logEntries"][2];
    assert_eq!((&line["level"], &line["step"]), (&json!("warn"), &json!("2")));
    assert!(line["timestamp"].is_string());
}

#[tokio::test]
async fn a_log_is_read_by_time() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    for number in 0..4 {
        stack.builder.say(&build, LogLevel::Info, "1", &number.to_string());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    stack.builder.finish(&build);
    let status = stack.reaches(&template, &build, "ready").await;
    let time = status["logEntries"][2]["timestamp"].as_str().unwrap();
    let time: jiff::Timestamp = time.parse().unwrap();
    let time = time.as_millisecond();
    let path = format!("/templates/{template}/builds/{build}/logs");
    for (query, expected) in [
        (String::new(), "0123"),
        ("direction=backward".to_owned(), "3210"),
        (format!("cursor={time}"), "23"),
        (format!("cursor={time}&direction=backward&limit=1&source=temporary"), "1"),
        ("level=warn".to_owned(), ""),
    ] {
        let logs = stack.get(&format!("{path}?{query}")).await.success(200);
        assert_eq!(messages(&logs["logs"]).concat(), expected, "{query}");
    }
    for bad in ["cursor=-1", "limit=101", "direction=up", "level=x", "source=x"] {
        stack.get(&format!("{path}?{bad}")).await.failure(400);
    }
}

#[tokio::test]
async fn builds_of_others_are_not_shown() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    let (_, key) = stack.other_team().await;
    let unknown = Uuid::new_v4();
    for tail in ["status", "logs"] {
        let path = format!("/templates/{template}/builds/{build}/{tail}");
        let foreign = stack.anonymous(Method::GET, &path).header("X-API-Key", &key);
        send(foreign).await.failure(403);
        let user = stack.anonymous(Method::GET, &path).bearer_auth(ACCESS_TOKEN);
        send(user).await.success(200);
        let path = format!("/templates/{template}/builds/{unknown}/{tail}");
        assert_eq!(stack.get(&path).await.failure(400), format!("Build '{unknown}' not found"));
        let path = format!("/templates/nothing/builds/{build}/{tail}");
        assert_eq!(stack.get(&path).await.failure(400), format!("Build '{build}' not found"));
        let path = format!("/templates/{template}/builds/x/{tail}");
        assert_eq!(stack.get(&path).await.failure(400), "Invalid build id");
    }
    for (method, tail) in [(Method::POST, "/shell"), (Method::DELETE, "")] {
        let path = format!("/atoll/templates/builds/{build}{tail}");
        send(stack.anonymous(method.clone(), &path).header("X-API-Key", &key)).await.failure(404);
        let path = format!("/atoll/templates/builds/x{tail}");
        send(stack.request(method, &path)).await.failure(400);
    }
}

#[tokio::test]
async fn a_shell_is_a_sandbox_where_the_build_failed() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    let path = format!("/atoll/templates/builds/{build}/shell");
    let message = stack.post(&path, json!({})).await.failure(409);
    assert_eq!(message, format!("Build '{build}' is not over yet"));
    stack.builder.fail(&build, "2", "no", Some("what-step-1-made"));
    stack.reaches(&template, &build, "error").await;
    let body = json!({"timeout": 60, "metadata": {"a": "1"}, "envVars": {"X": "y"}});
    let sandbox = stack.post(&path, body).await.success(201);
    assert_eq!((&sandbox["templateID"], &sandbox["alias"]), (&json!(template), &json!("mine")));
    let record = stack.node.record(&id_of(&sandbox)).unwrap();
    assert_eq!((record.build.as_str(), record.timeout), ("what-step-1-made", 60));
    assert_eq!((&record.metadata["a"], &record.env_vars["X"]), (&"1".to_owned(), &"y".to_owned()));
    assert_eq!(record.envd_access_token.as_deref(), sandbox["envdAccessToken"].as_str());
    let plain = send(stack.request(Method::POST, &path)).await.success(201);
    assert_eq!(stack.node.record(&id_of(&plain)).unwrap().timeout, 300);
    let message = stack.post(&path, json!({"timeout": 86_401})).await.failure(400);
    assert_eq!(message, "Timeout cannot be greater than 24 hours");

    let (_, ready) = stack.template("ready").await;
    let path = format!("/atoll/templates/builds/{ready}/shell");
    let sandbox = stack.post(&path, json!({})).await.success(201);
    assert_eq!(stack.node.record(&id_of(&sandbox)).unwrap().build, ready);

    let (template, early) = stack.started("early", json!({"fromImage": "a"})).await;
    stack.builder.fail(&early, "base", "no such image", None);
    stack.reaches(&template, &early, "error").await;
    let path = format!("/atoll/templates/builds/{early}/shell");
    let message = stack.post(&path, json!({})).await.failure(409);
    assert!(message.ends_with("ended before there was anything to look at"), "{message}");
}

#[tokio::test]
async fn a_build_is_cancelled() {
    let stack = Stack::start().await;
    let (template, build) = under_way(&stack).await;
    let path = format!("/atoll/templates/builds/{build}");
    stack.delete(&path).await.success(204);
    let status = stack.reaches(&template, &build, "error").await;
    assert_eq!(status["reason"]["message"], "The build was cancelled.");
    assert_eq!(status["reason"]["code"], "ATL-5012");
    // What it had done by then can be looked at.
    let sandbox = stack.post(&format!("{path}/shell"), json!({})).await.success(201);
    assert_eq!(stack.node.record(&id_of(&sandbox)).unwrap().build, "what-it-had");
    assert_eq!(stack.delete(&path).await.failure(409), format!("Build '{build}' is over"));

    let (template, waiting) = stack.registered(json!({"name": "waiting"})).await;
    stack.delete(&format!("/atoll/templates/builds/{waiting}")).await.success(204);
    assert_eq!(stack.status(&template, &waiting).await["status"], "error");
    let (template, ready) = stack.template("ready").await;
    stack.delete(&format!("/atoll/templates/builds/{ready}")).await.failure(409);
    eventually(|| async { stack.status(&template, &ready).await["status"] == "ready" }).await;
}
