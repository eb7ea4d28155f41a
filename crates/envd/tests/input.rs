//! What clients type: standard input and terminals.

#![allow(clippy::unwrap_used)]

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::{Value, json};
use support::Envd;

fn pty(cols: u32, rows: u32) -> Value {
    json!({ "pty": { "size": { "cols": cols, "rows": rows } } })
}

async fn close_stdin(envd: &Envd, pid: u64) -> (StatusCode, Value) {
    envd.rpc("CloseStdin", json!({ "process": { "pid": pid } })).await
}

async fn type_in_terminal(envd: &Envd, pid: u64, text: &str) -> (StatusCode, Value) {
    let input = json!({ "pty": STANDARD.encode(text) });
    envd.rpc("SendInput", json!({ "process": { "pid": pid }, "input": input })).await
}

#[tokio::test]
async fn stdin_is_open_until_it_is_closed() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({})).await;
    let pid = events.pid().await;
    assert_eq!(envd.type_in(pid, "one ").await, (StatusCode::OK, json!({})));
    assert_eq!(envd.type_in(pid, "two").await.0, StatusCode::OK);
    assert_eq!(close_stdin(&envd, pid).await, (StatusCode::OK, json!({})));
    let outcome = events.outcome().await;
    assert_eq!(outcome.stdout(), "one two");
    assert_eq!(outcome.end["status"], "exit status 0");
    let (status, body) = envd.type_in(pid, "three").await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
}

#[tokio::test]
async fn without_stdin_there_is_nothing_to_read() {
    let envd = Envd::start().await;
    let script = "cat; readlink /proc/self/fd/0";
    let outcome = envd.sh(script, json!({ "stdin": false })).await.outcome().await;
    assert_eq!(outcome.stdout(), "/dev/null\n");
}

#[tokio::test]
async fn closing_twice_is_closing_once_and_writing_then_fails() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat; sleep 1000", json!({})).await;
    let pid = events.pid().await;
    for _ in 0..2 {
        assert_eq!(close_stdin(&envd, pid).await.0, StatusCode::OK);
    }
    let (status, body) = envd.type_in(pid, "late").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = "error writing to stdin: stdin not enabled or closed";
    assert_eq!(body, json!({ "code": "internal", "message": message }));
}

#[tokio::test]
async fn large_input_arrives_whole() {
    const BYTES: usize = 16 << 20;
    let envd = Envd::start().await;
    let mut events = envd.sh("wc -c", json!({})).await;
    let pid = events.pid().await;
    assert_eq!(envd.type_in(pid, &"x".repeat(BYTES)).await.0, StatusCode::OK);
    close_stdin(&envd, pid).await;
    assert_eq!(events.outcome().await.stdout().trim(), BYTES.to_string());
}

#[tokio::test]
async fn a_writer_is_told_when_nobody_will_read() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    let data = "x".repeat(1 << 20);
    let (written, killed) = tokio::join!(envd.type_in(pid, &data), envd.kill(pid));
    assert_eq!(killed.0, StatusCode::OK);
    assert!(written.1["code"] == "not_found" || written.1["code"] == "internal", "{written:?}");
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

#[tokio::test]
async fn streamed_input_keeps_its_order() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({})).await;
    let pid = events.pid().await;
    let mut messages = vec![json!({ "start": { "process": { "pid": pid } } })];
    let mut expected = String::new();
    for number in 0..500 {
        let line = format!("{number}\n");
        messages.push(json!({ "data": { "input": { "stdin": STANDARD.encode(&line) } } }));
        messages.push(json!({ "keepalive": {} }));
        expected.push_str(&line);
    }
    let mut answer = envd.stream("StreamInput", &[], &messages).await;
    assert_eq!(answer.next().await, Ok(json!({})));
    assert_eq!(answer.next().await, Err(json!({})));
    // The end of the request does not close stdin.
    assert_eq!(close_stdin(&envd, pid).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.stdout(), expected);
}

#[tokio::test]
async fn streamed_input_needs_a_process_first() {
    let envd = Envd::start().await;
    let data = json!({ "data": { "input": { "stdin": "eA==" } } });
    let trailer = envd.stream("StreamInput", &[], &[data]).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
    let trailer = envd.stream("StreamInput", &[], &[json!({})]).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "unimplemented");
    let nobody = json!({ "start": { "process": { "tag": "nobody" } } });
    let trailer = envd.stream("StreamInput", &[], &[nobody]).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["message"], "process with tag nobody not found");
}

#[tokio::test]
async fn a_terminal_has_the_size_that_was_asked_for() {
    let envd = Envd::start().await;
    let script = "test -t 0 && test -t 2 && stty size; read line; stty size";
    let mut events = envd.sh(script, pty(100, 30)).await;
    let pid = events.pid().await;
    events.until_output("30 100").await;
    let mut resize = pty(132, 43);
    resize["process"] = json!({ "pid": pid });
    assert_eq!(envd.rpc("Update", resize).await, (StatusCode::OK, json!({})));
    assert_eq!(type_in_terminal(&envd, pid, "\n").await.0, StatusCode::OK);
    let outcome = events.outcome().await;
    assert!(String::from_utf8_lossy(&outcome.pty).contains("43 132"));
    assert_eq!(outcome.end["status"], "exit status 0");
}

#[tokio::test]
async fn a_terminal_is_the_controlling_one() {
    let envd = Envd::start().await;
    let script = "trap 'exit 5' INT; echo session >/dev/tty; while :; do sleep 0.02; done";
    let mut events = envd.sh(script, pty(80, 24)).await;
    let pid = events.pid().await;
    events.until_output("session").await;
    // Ctrl-C reaches the foreground group.
    assert_eq!(type_in_terminal(&envd, pid, "\u{3}").await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.end["exitCode"], 5);
}

#[tokio::test]
async fn killing_a_terminal_ends_it() {
    let envd = Envd::start().await;
    let mut events = envd.sh("echo up; sleep 1000", pty(80, 24)).await;
    let pid = events.pid().await;
    events.until_output("up").await;
    envd.kill(pid).await;
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

#[tokio::test]
async fn terminals_and_pipes_are_not_mixed_up() {
    let envd = Envd::start().await;
    let mut terminal = envd.sh("sleep 1000", pty(80, 24)).await;
    let mut pipe = envd.sh("sleep 1000", json!({})).await;
    let (terminal, pipe) = (terminal.pid().await, pipe.pid().await);
    let code = |answer: (StatusCode, Value)| answer.1["code"].as_str().unwrap().to_owned();
    assert_eq!(code(envd.type_in(terminal, "x").await), "internal");
    assert_eq!(code(type_in_terminal(&envd, pipe, "x").await), "internal");
    assert_eq!(code(close_stdin(&envd, terminal).await), "unknown");
    let mut resize = pty(80, 24);
    resize["process"] = json!({ "pid": pipe });
    assert_eq!(code(envd.rpc("Update", resize).await), "internal");
    envd.kill(terminal).await;
}
