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

// Rules: TRAP-11, PROC-24, PROC-50, PROC-53
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

// Rules: TRAP-11, PROC-25
#[tokio::test]
async fn without_stdin_there_is_nothing_to_read() {
    let envd = Envd::start().await;
    let script = "cat; readlink /proc/self/fd/0";
    let outcome = envd.sh(script, json!({ "stdin": false })).await.outcome().await;
    assert_eq!(outcome.stdout(), "/dev/null\n");
}

// Rules: PROC-54, PROC-51
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

// Rules: PROC-50
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

// Rules: PROC-53
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

// Rules: TRAP-26, PROC-56, PROC-58
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

// Rules: PROC-57, PROC-62
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

// Rules: PROC-23, PROC-55
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

// Rules: PROC-23
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

// Rules: PROC-37
#[tokio::test]
async fn killing_a_terminal_ends_it() {
    let envd = Envd::start().await;
    let mut events = envd.sh("echo up; sleep 1000", pty(80, 24)).await;
    let pid = events.pid().await;
    events.until_output("up").await;
    envd.kill(pid).await;
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

// Rules: PROC-52, PROC-54, PROC-55
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

// Rules: PROC-51
#[tokio::test]
async fn there_is_no_writing_to_a_stdin_that_never_was() {
    let envd = Envd::start().await;
    let mut events = envd.sh("sleep 1000", json!({ "stdin": false })).await;
    let pid = events.pid().await;
    let message = "error writing to stdin: stdin not enabled or closed";
    let expected = json!({ "code": "internal", "message": message });
    assert_eq!(envd.type_in(pid, "x").await, (StatusCode::INTERNAL_SERVER_ERROR, expected.clone()));
    let data = json!({ "data": { "input": { "stdin": "eA==" } } });
    let messages = [json!({ "start": { "process": { "pid": pid } } }), data];
    let trailer = envd.stream("StreamInput", &[], &messages).await.outcome().await.trailer;
    assert_eq!(trailer["error"], expected);
    // Closing what is not open is closing it again.
    let (status, _) = envd.rpc("CloseStdin", json!({ "process": { "pid": pid } })).await;
    assert_eq!(status, StatusCode::OK);
}

// Rules: PROC-53
#[tokio::test]
async fn a_pipe_that_nobody_reads_is_broken() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec 0</dev/null; echo closed; exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    events.until_output("closed").await;
    let answer = envd.type_in(pid, "x").await;
    assert_eq!(answer.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.1["code"], "internal");
    assert_eq!(envd.list().await, [pid]);
}

// Rules: PROC-56
#[tokio::test]
async fn a_later_start_changes_the_target() {
    let envd = Envd::start().await;
    let mut one = envd.sh("cat", json!({ "tag": "one" })).await;
    let mut two = envd.sh("cat", pty(80, 24)).await;
    let (_, pid) = (one.pid().await, two.pid().await);
    let start = |selector: Value| json!({ "start": { "process": selector } });
    let input = |input: Value| json!({ "data": { "input": input } });
    let messages = [
        json!({ "keepalive": {} }),
        start(json!({ "tag": "one" })),
        input(json!({ "stdin": STANDARD.encode("for one") })),
        start(json!({ "pid": pid })),
        json!({ "keepalive": {} }),
        input(json!({ "pty": STANDARD.encode("for two\n") })),
        start(json!({ "tag": "one" })),
        input(json!({ "stdin": STANDARD.encode(", again") })),
    ];
    let mut answer = envd.stream("StreamInput", &[], &messages).await;
    assert_eq!(answer.next().await, Ok(json!({})));
    assert_eq!(answer.next().await, Err(json!({})));
    one.until_output("for one, again").await;
    two.until_output("for two\r\nfor two").await;
    // The kinds of input are told apart here too.
    for (selector, kind) in [(json!({ "tag": "one" }), "pty"), (json!({ "pid": pid }), "stdin")] {
        let messages = [start(selector), input(json!({ kind: "eA==" }))];
        let trailer = envd.stream("StreamInput", &[], &messages).await.outcome().await.trailer;
        assert_eq!(trailer["error"]["code"], "internal", "{kind}");
    }
}

// Rules: PROC-59
#[tokio::test]
async fn streamed_input_waits_for_its_reader() {
    const PIECES: usize = 96;
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done; wc -c", flag.display());
    let mut events = envd.sh(&script, json!({})).await;
    let pid = events.pid().await;
    let piece = json!({ "data": { "input": { "stdin": STANDARD.encode(vec![7; 1 << 20]) } } });
    let mut messages = vec![json!({ "start": { "process": { "pid": pid } } })];
    messages.resize(PIECES + 1, piece);
    let sending = async { envd.stream("StreamInput", &[], &messages).await.outcome().await };
    let reading = async {
        // Others are served while it waits.
        for _ in 0..20 {
            assert_eq!(envd.list().await, [pid]);
        }
        std::fs::write(&flag, "").unwrap();
    };
    let (sent, ()) = tokio::join!(sending, reading);
    assert_eq!(sent.trailer, json!({}));
    assert!(envd.peak_kib() < 48 << 10, "peak of {} KiB", envd.peak_kib());
    envd.rpc("CloseStdin", json!({ "process": { "pid": pid } })).await;
    assert_eq!(events.outcome().await.stdout().trim(), (PIECES << 20).to_string());
}
