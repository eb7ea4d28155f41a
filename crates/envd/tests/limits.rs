//! What clients can make envd hold: messages, input that nobody reads, watchers.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, io::Write, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, stream::FuturesUnordered};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Envd, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const MIB: usize = 1 << 20;

/// The most memory that a process has had since `forget_peak`, in bytes.
fn peak(envd: &Envd) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", envd.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn forget_peak(envd: &Envd) {
    fs::write(format!("/proc/{}/clear_refs", envd.pid()), "5").unwrap();
}

/// A `SendInput` with this much input, as JSON.
fn input(pid: u64, bytes: usize) -> String {
    let data = STANDARD.encode(vec![b'x'; bytes]);
    json!({ "process": { "pid": pid }, "input": { "stdin": data } }).to_string()
}

async fn send_input(envd: &Envd, body: String) -> (StatusCode, Value) {
    let json = [("content-type", "application/json")];
    let path = "/process.Process/SendInput";
    let (status, _, body) = envd.call(Method::POST, path, &json, body).await;
    (status, serde_json::from_slice(&body).unwrap())
}

// Rules: RPC-24
#[tokio::test]
async fn a_message_beyond_the_limit_is_refused() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({})).await;
    let pid = events.pid().await;
    let (status, body) = send_input(&envd, input(pid, 19 * MIB)).await;
    let refused = (StatusCode::TOO_MANY_REQUESTS, &json!("resource_exhausted"));
    assert_eq!((status, &body["code"]), refused);

    let body = json!({ "process": { "cmd": "/bin/true", "args": ["x".repeat(5 * MIB)] } });
    let mut start = envd.stream("Start", &[], &[body]).await;
    assert_eq!(start.next().await.unwrap_err()["error"]["code"], "resource_exhausted");

    // A length that is never sent takes no memory, and no time beyond the client's.
    let mut stream = open(&envd, "StreamInput").await;
    stream.write_all(b"5\r\n\0\xff\xff\xff\xff\r\n0\r\n\r\n").await.unwrap();
    assert!(answer(&mut stream).await.contains("resource_exhausted"));

    assert_eq!(envd.type_in(pid, "still there").await.0, StatusCode::OK);
    events.until_output("still there").await;
    envd.kill(pid).await;
}

// Rules: RPC-24
#[tokio::test]
async fn input_that_nobody_reads_is_bounded() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    forget_peak(&envd);
    let before = peak(&envd);
    let body = input(pid, 8 * MIB);
    let calls = (0..8).map(|_| send_input(&envd, body.clone()));
    let calls = futures::future::join_all(calls);
    let meanwhile = async {
        // However much waits, small calls pass: the process can be fed, and killed.
        let mut other = envd.sh("echo up; exec cat", json!({})).await;
        let outcome = other.until_output("up").await;
        assert_eq!(envd.type_in(outcome.pid, "x").await.0, StatusCode::OK);
        assert_eq!(envd.kill(outcome.pid).await.0, StatusCode::OK);
    };
    let killed = async {
        meanwhile.await;
        envd.kill(pid).await
    };
    let (answers, _) = tokio::join!(calls, killed);
    for (status, body) in &answers {
        let code = body["code"].as_str().unwrap();
        // Refused, or without a reader when the process was killed.
        assert!(
            ["resource_exhausted", "not_found", "internal"].contains(&code),
            "{status}: {body}"
        );
    }
    let grown = peak(&envd) - before;
    assert!(grown < 72 * MIB, "envd grew by {} MiB", grown / MIB);
}

// Rules: RPC-24
#[tokio::test]
async fn input_counts_as_what_it_is_uncompressed() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(input(pid, 2 * MIB).as_bytes()).unwrap();
    let body = encoder.finish().unwrap();
    assert!(body.len() < MIB / 8);
    let call = async || {
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let path = "/process.Process/SendInput";
        let (_, _, body) = envd.call(Method::POST, path, &headers, body.clone()).await;
        serde_json::from_slice::<Value>(&body).unwrap()["code"].take()
    };
    let mut calls: FuturesUnordered<_> = (0..16).map(|_| call()).collect();
    // The first answer is a refusal: the budget is used up, and others wait.
    assert_eq!(soon(calls.next()).await.unwrap(), "resource_exhausted");
    envd.kill(pid).await;
    let codes: Vec<Value> = soon(calls.collect()).await;
    assert!(codes.iter().any(|code| code != "resource_exhausted"), "{codes:?}");
}

/// Begins a streaming call of the Process service.
async fn open(envd: &Envd, method: &str) -> TcpStream {
    let mut stream = TcpStream::connect(envd.address()).await.unwrap();
    let head = format!(
        "POST /process.Process/{method} HTTP/1.1\r\nhost: envd\r\nconnection: close\r\n\
         content-type: application/connect+json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A message in its envelope, as one chunk.
fn chunk(message: &Value) -> Vec<u8> {
    let message = message.to_string();
    let length = u32::try_from(message.len()).unwrap();
    let mut chunk = format!("{:x}\r\n", message.len() + 5).into_bytes();
    chunk.push(0);
    chunk.extend_from_slice(&length.to_be_bytes());
    chunk.extend_from_slice(message.as_bytes());
    chunk.extend_from_slice(b"\r\n");
    chunk
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn start_message(pid: u64) -> Value {
    json!({ "start": { "process": { "pid": pid } } })
}

fn data_message(bytes: usize) -> Value {
    json!({ "data": { "input": { "stdin": STANDARD.encode(vec![b'x'; bytes]) } } })
}

// Rules: TRAP-26
#[tokio::test]
async fn streamed_input_takes_constant_memory() {
    const MESSAGES: usize = 128;
    let envd = Envd::start().await;
    let mut events = envd.sh("wc -c", json!({})).await;
    let pid = events.pid().await;
    forget_peak(&envd);
    let before = peak(&envd);
    let mut stream = open(&envd, "StreamInput").await;
    stream.write_all(&chunk(&start_message(pid))).await.unwrap();
    let data = chunk(&data_message(MIB));
    for _ in 0..MESSAGES {
        soon(stream.write_all(&data)).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(answer(&mut stream).await.contains("{}"));
    envd.rpc("CloseStdin", json!({ "process": { "pid": pid } })).await;
    assert_eq!(events.outcome().await.stdout().trim(), (MESSAGES * MIB).to_string());
    let grown = peak(&envd) - before;
    assert!(grown < 24 * MIB, "envd grew by {} MiB", grown / MIB);
}

#[tokio::test]
async fn streamed_input_is_held_back_when_nobody_reads() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    let mut stream = open(&envd, "StreamInput").await;
    stream.write_all(&chunk(&start_message(pid))).await.unwrap();
    let data = chunk(&data_message(MIB));
    let mut sent = 0;
    // Until the sockets' and envd's buffers are full and nothing moves.
    while timeout(Duration::from_secs(1), stream.write_all(&data)).await.is_ok() {
        sent += 1;
        assert!(sent < 32, "nothing holds the client back");
    }
    assert_eq!(envd.kill(pid).await.0, StatusCode::OK);
    assert!(answer(&mut stream).await.contains("error"));
}

// Rules: WATCH-20, TRAP-37
#[tokio::test]
async fn watchers_that_nobody_removes_are_limited() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let request = json!({ "path": directory.path() });
    let mut made = Vec::new();
    for _ in 0..1000 {
        let (status, body) = envd.post("/filesystem.Filesystem/CreateWatcher", &request).await;
        if status == StatusCode::OK {
            made.push(body["watcherId"].clone());
        } else {
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
            assert_eq!(body["code"], "resource_exhausted");
        }
    }
    assert!((1..=64).contains(&made.len()), "{} watchers", made.len());
    let id = json!({ "watcherId": made[0] });
    let (status, _) = envd.post("/filesystem.Filesystem/RemoveWatcher", &id).await;
    assert_eq!(status, StatusCode::OK);
    let (status, body) = envd.post("/filesystem.Filesystem/CreateWatcher", &request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

// Rules: AUTH-1
#[tokio::test]
async fn of_headers_that_come_twice_the_first_counts() {
    let envd = Envd::with_config("");
    envd.post("/init", &json!({ "accessToken": "tok" })).await;
    for (values, expected) in
        [(["wrong", "tok"], StatusCode::UNAUTHORIZED), (["tok", "wrong"], StatusCode::OK)]
    {
        let headers = values.map(|value| ("x-access-token", value));
        assert_eq!(envd.get("/envs", &headers).await.0, expected, "{values:?}");
    }
}

// Found by fuzzing: an answer used to be lost in the reset of a connection with unread data.
#[tokio::test]
async fn a_client_that_is_still_sending_hears_why_it_is_refused() {
    let envd = Envd::with_config("");
    envd.post("/init", &json!({ "accessToken": "tok" })).await;
    for (path, headers, expected) in [
        ("/process.Process/SendInput", "x-access-token: wrong\r\n", "401"),
        (
            "/process.Process/SendInput",
            "x-access-token: tok\r\nconnect-timeout-ms: soon\r\n",
            "400",
        ),
        ("/nothing", "x-access-token: tok\r\n", "404"),
        ("/metrics", "x-access-token: tok\r\n", "405"),
        ("/files?path=a", "x-access-token: wrong\r\n", "401"),
    ] {
        let mut stream = TcpStream::connect(envd.address()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: envd\r\ncontent-type: application/json\r\n{headers}\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            8 * MIB
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        soon(stream.write_all(&vec![b' '; 8 * MIB])).await.unwrap();
        let answer = answer(&mut stream).await;
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{path}: {answer}");
    }
}

#[tokio::test]
async fn heads_of_requests_that_never_end_are_bounded() {
    const CONNECTIONS: usize = 300;
    let envd = Envd::start().await;
    forget_peak(&envd);
    let before = peak(&envd);
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(envd.address()).await.unwrap();
        let head = format!("GET /health HTTP/1.1\r\nhost: envd\r\nx: {}", "x".repeat(380_000));
        // Refused in the middle, or not read to its end.
        let _ = timeout(Duration::from_millis(20), stream.write_all(head.as_bytes())).await;
        open.push(stream);
    }
    assert_eq!(envd.get("/health", &[]).await.0, StatusCode::NO_CONTENT);
    assert!(peak(&envd) - before < 32 * MIB, "{} MiB", (peak(&envd) - before) / MIB);
}
