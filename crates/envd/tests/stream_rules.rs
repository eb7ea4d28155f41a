//! What a stream is, byte by byte: envelopes, end frames, deadlines, signs of life.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use support::{Envd, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const JSON: &str = "application/connect+json";

/// The largest message that envd takes.
const MAX_MESSAGE: u32 = 64 << 20;

/// One message in its envelope.
fn envelope(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame
}

fn start(script: &str) -> Value {
    let process = json!({ "cmd": "/bin/sh", "args": ["-c", script], "cwd": "/" });
    json!({ "process": process, "stdin": false })
}

/// A stream read to its end.
struct Answer {
    headers: HeaderMap,
    /// Flags and payload of each frame.
    frames: Vec<(u8, Bytes)>,
}

impl Answer {
    /// The messages before the end frame.
    fn messages(&self) -> Vec<Value> {
        let (_, messages) = self.frames.split_last().unwrap();
        messages
            .iter()
            .map(|(flags, payload)| {
                assert_eq!(*flags, 0);
                serde_json::from_slice(payload).unwrap()
            })
            .collect()
    }

    fn end_frame(&self) -> Value {
        let (flags, payload) = self.frames.last().unwrap();
        assert_eq!(*flags, 2);
        serde_json::from_slice(payload).unwrap()
    }

    fn error_code(&self) -> String {
        self.end_frame()["error"]["code"].as_str().unwrap().to_owned()
    }
}

fn frames(mut body: Bytes) -> Vec<(u8, Bytes)> {
    let mut frames = Vec::new();
    while body.has_remaining() {
        let flags = body.get_u8();
        let length = body.get_u32() as usize;
        frames.push((flags, body.split_to(length)));
    }
    frames
}

/// Sends this body to a method of the Process service.
async fn call(envd: &Envd, method: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut all = vec![("connect-protocol-version", "1")];
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        all.push(("content-type", JSON));
    }
    all.extend(headers);
    let path = format!("/process.Process/{method}");
    let (status, headers, body) = envd.call(Method::POST, &path, &all, body).await;
    assert_eq!(status, StatusCode::OK);
    Answer { headers, frames: frames(body) }
}

// Rules: STREAM-1, STREAM-2, STREAM-5, STREAM-13, RPC-15, RPC-21, PROC-7, PROC-35
#[tokio::test]
async fn a_stream_is_enveloped_messages_and_an_end_frame() {
    let envd = Envd::start().await;
    let body = envelope(0, start("printf 'h\\377'").to_string().as_bytes());
    let answer = call(&envd, "Start", &[], body).await;
    assert_eq!(answer.headers["content-type"], JSON);
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    let messages = answer.messages();
    let pid = messages[0]["event"]["start"]["pid"].as_u64().unwrap();
    let expected = [
        json!({ "event": { "start": { "pid": pid } } }),
        json!({ "event": { "data": { "stdout": "aP8=" } } }),
        json!({ "event": { "end": { "exited": true, "status": "exit status 0" } } }),
    ];
    assert_eq!(messages, expected);
    assert_eq!(answer.frames.last().unwrap(), &(2, Bytes::from_static(b"{}")));
}

// Rules: STREAM-3, STREAM-4, STREAM-5, TRAP-34
#[tokio::test]
async fn an_error_before_the_first_message_is_an_end_frame_too() {
    let envd = Envd::start().await;
    let mut request = start("true");
    request["process"]["cwd"] = json!("/no/such");
    let nobody = json!({ "process": { "pid": 4_000_000_000_u32 } });
    for (method, request, code) in [
        ("Start", request, "invalid_argument"),
        ("Connect", nobody.clone(), "not_found"),
        ("StreamInput", json!({ "start": nobody }), "not_found"),
    ] {
        let answer = call(&envd, method, &[], envelope(0, request.to_string().as_bytes())).await;
        assert_eq!(answer.headers["content-type"], JSON);
        assert_eq!(answer.messages(), [Value::Null; 0]);
        let end = answer.end_frame();
        assert_eq!(end["error"]["code"], code);
        assert!(end["error"]["message"].is_string());
    }
}

// Rules: STREAM-6, STREAM-17, STREAM-18
#[tokio::test]
async fn a_request_is_one_whole_message() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("started");
    let request = start(&format!("touch {}", flag.display())).to_string();
    let whole = envelope(0, request.as_bytes());
    let cut = |length: usize| whole[..length].to_vec();
    let bad = [
        Vec::new(),
        whole.repeat(2),
        cut(3),
        cut(5),
        cut(whole.len() - 1),
        envelope(0, b"{"),
        envelope(0, b"[]"),
        envelope(0, b"\"\xff\""),
        envelope(0, &[b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
    ];
    for body in bad {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let answer = call(&envd, "Start", &[], body).await;
        assert_eq!(answer.messages(), [Value::Null; 0], "{shown}");
        let code = answer.error_code();
        assert!(["invalid_argument", "unimplemented"].contains(&code.as_str()), "{code}: {shown}");
    }
    assert_eq!(envd.list().await, [0; 0]);
    assert!(!flag.exists());
}

// Rules: STREAM-15
#[tokio::test]
async fn a_compressed_message_must_say_how() {
    let envd = Envd::start().await;
    let body = envelope(1, start("true").to_string().as_bytes());
    for headers in [&[][..], &[("connect-content-encoding", "identity")]] {
        let code = call(&envd, "Start", headers, body.clone()).await.error_code();
        assert!(["internal", "invalid_argument"].contains(&code.as_str()), "{code}");
        let code = call(&envd, "StreamInput", headers, body.clone()).await.error_code();
        assert!(["internal", "invalid_argument"].contains(&code.as_str()), "{code}");
    }
    let unknown = [("connect-content-encoding", "snappy")];
    assert_eq!(call(&envd, "Start", &unknown, body.clone()).await.error_code(), "unimplemented");
    // Announced as gzip, it is not.
    let gzip = [("connect-content-encoding", "gzip")];
    let code = call(&envd, "Start", &gzip, body).await.error_code();
    assert!(["internal", "invalid_argument"].contains(&code.as_str()), "{code}");
    assert_eq!(envd.list().await, [0; 0]);
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

// Rules: STREAM-20
#[tokio::test]
async fn gzip_is_read_when_announced() {
    let envd = Envd::start().await;
    let request = start("echo hi").to_string();
    let announced = [("connect-content-encoding", "gzip")];
    for body in [envelope(1, &gzip(request.as_bytes())), envelope(0, request.as_bytes())] {
        let answer = call(&envd, "Start", &announced, body).await;
        let said = json!({ "event": { "data": { "stdout": STANDARD.encode("hi\n") } } });
        assert_eq!(answer.messages()[1], said);
    }
    let identity = [
        ("connect-content-encoding", "identity"),
        ("content-encoding", "identity"),
        ("connect-accept-encoding", "identity"),
    ];
    let answer = call(&envd, "Start", &identity, envelope(0, request.as_bytes())).await;
    assert_eq!(answer.end_frame(), json!({}));
}

// Rules: STREAM-16, STREAM-20
#[tokio::test]
async fn a_message_over_the_limit_costs_nothing() {
    let envd = Envd::start().await;
    let before = envd.peak_kib();
    for length in [MAX_MESSAGE + 1, u32::MAX] {
        let body = [&[0_u8][..], &length.to_be_bytes()].concat();
        for method in ["Start", "Connect", "StreamInput"] {
            let answer = call(&envd, method, &[], body.clone()).await;
            assert_eq!(answer.error_code(), "resource_exhausted", "{method} {length}");
        }
    }
    let growth = envd.peak_kib() - before;
    assert!(growth < 4 << 10, "grew by {growth} KiB");
    // Nor does one that is small only until it is unpacked.
    let bomb = envelope(1, &gzip(&b" ".repeat(MAX_MESSAGE as usize + 1)));
    let announced = [("connect-content-encoding", "gzip")];
    assert_eq!(call(&envd, "Start", &announced, bomb).await.error_code(), "resource_exhausted");
}

// Rules: STREAM-5, STREAM-19, STREAM-21, TRAP-35
#[tokio::test]
async fn a_parameter_of_the_content_type_changes_nothing_and_nothing_is_compressed() {
    let envd = Envd::start().await;
    let body = envelope(0, start("seq 10000").to_string().as_bytes());
    let headers = [
        ("content-type", "application/connect+json; charset=utf-8"),
        ("accept-encoding", "zstd,gzip,br"),
        ("connect-accept-encoding", "identity"),
    ];
    let answer = call(&envd, "Start", &headers, body).await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with(JSON));
    assert_eq!(answer.headers.get("content-encoding"), None);
    // Were one compressed, its flags would say so.
    assert!(answer.messages().len() > 2);
    assert_eq!(answer.end_frame(), json!({}));
}

// Rules: RPC-14, RPC-15, RPC-17, TRAP-17
#[tokio::test]
async fn json_is_read_generously() {
    let envd = Envd::start().await;
    let mut events = envd.sh("head -c 5", json!({ "later": { "field": [1] }, "tag": null })).await;
    let pid = events.pid().await;
    // Unpadded and url-safe, then in the standard alphabet: both are 0xff 0xfe.
    for stdin in ["__4", "//4="] {
        let input = json!({ "stdin": stdin, "later": 1 });
        let body = json!({ "process": { "pid": pid.to_string() }, "input": input });
        assert_eq!(envd.rpc("SendInput", body).await, (StatusCode::OK, json!({})));
    }
    let body = json!({ "process": { "pid": pid }, "input": { "stdin": "IQ" } });
    assert_eq!(envd.rpc("SendInput", body).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.stdout, b"\xff\xfe\xff\xfe!");

    let mut events = envd.sh("sleep 1000", json!({})).await;
    let pid = events.pid().await;
    let body = json!({ "process": { "pid": pid }, "signal": 9 });
    assert_eq!(envd.rpc("SendSignal", body).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

/// A request whose body is sent piece by piece, each an HTTP chunk of its own.
async fn send_in_chunks(envd: &Envd, method: &str, body: &[u8], chunk: usize) -> TcpStream {
    let mut stream = TcpStream::connect(envd.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let head = format!(
        "POST /process.Process/{method} HTTP/1.1\r\nhost: envd\r\ncontent-type: {JSON}\r\n\
         connect-protocol-version: 1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in body.chunks(chunk) {
        let framed = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        stream.write_all(&framed).await.unwrap();
    }
    stream
}

/// Reads an answer until it has this in it.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    soon(async {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let read = stream.read_buf(&mut seen).await.unwrap();
            assert!(read > 0, "no {wanted:?} in {:?}", String::from_utf8_lossy(&seen));
        }
    })
    .await;
    String::from_utf8_lossy(&seen).into_owned()
}

// Rules: STREAM-14, STREAM-22, PROC-7, TRAP-5
#[tokio::test]
async fn a_request_may_come_in_pieces_and_its_start_is_told_at_once() {
    let envd = Envd::start().await;
    let body = envelope(0, start("sleep 1000").to_string().as_bytes());
    for chunk in [1, 3, 5, 6, body.len()] {
        let mut stream = send_in_chunks(&envd, "Start", &body, chunk).await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let seen = read_until(&mut stream, "\"start\"").await;
        assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        assert!(!seen.contains("\r\n0\r\n\r\n"), "{seen}");
    }
}

// Rules: STREAM-22, PROC-58, TRAP-26
#[tokio::test]
async fn streamed_input_arrives_while_the_request_is_open() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({})).await;
    let pid = events.pid().await;
    let hello = json!({ "data": { "input": { "stdin": STANDARD.encode("hello") } } });
    let mut body =
        envelope(0, json!({ "start": { "process": { "pid": pid } } }).to_string().as_bytes());
    body.extend(envelope(0, hello.to_string().as_bytes()));
    let mut stream = send_in_chunks(&envd, "StreamInput", &body, 7).await;
    // Read by the process, with the request still open and nothing answered.
    events.until_output("hello").await;
    let mut early = [0; 1];
    let answered = stream.try_read(&mut early);
    assert!(answered.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));

    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (message, end) = ("\0\0\0\0\u{2}{}", "\u{2}\0\0\0\u{2}{}");
    assert!(answer.contains(message) && answer.contains(end), "{answer}");
    // Standard input is still open.
    assert_eq!(envd.type_in(pid, " again").await.0, StatusCode::OK);
    events.until_output(" again").await;
}

// Rules: STREAM-17, PROC-58
#[tokio::test]
async fn a_client_that_goes_away_amid_its_input_leaves_the_process_as_it_is() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({})).await;
    let pid = events.pid().await;
    let first = json!({ "data": { "input": { "stdin": STANDARD.encode("first") } } });
    let mut body =
        envelope(0, json!({ "start": { "process": { "pid": pid } } }).to_string().as_bytes());
    body.extend(envelope(0, first.to_string().as_bytes()));
    body.extend(&envelope(0, first.to_string().as_bytes())[..20]);
    let stream = send_in_chunks(&envd, "StreamInput", &body, body.len()).await;
    events.until_output("first").await;
    drop(stream);
    assert_eq!(envd.type_in(pid, "second").await.0, StatusCode::OK);
    events.until_output("second").await;
}

// Rules: STREAM-7, TRAP-16
#[tokio::test]
async fn every_follower_of_a_silent_process_gets_keepalives() {
    let envd = Envd::start().await;
    let interval = [("keepalive-ping-interval", "1")];
    let mut started = envd.start_process("sleep", &["1000"], json!({}), &interval).await;
    let pid = started.pid().await;
    let body = json!({ "process": { "pid": pid } });
    let mut connected = envd.stream("Connect", &interval, &[body]).await;
    connected.pid().await;
    for events in [&mut started, &mut connected] {
        for _ in 0..2 {
            assert_eq!(events.next().await, Ok(json!({ "event": { "keepalive": {} } })));
        }
    }
}

// Rules: STREAM-10
#[tokio::test]
async fn a_call_that_takes_too_long_is_given_up() {
    let envd = Envd::start().await;
    let mut events = envd.sh("exec sleep 1000", json!({})).await;
    let pid = events.pid().await;
    // More than fits into the pipe.
    let stdin = STANDARD.encode("x".repeat(1 << 20));
    let input = json!({ "stdin": stdin });
    let timeout = [("connect-timeout-ms", "100")];
    let body = json!({ "process": { "pid": pid }, "input": input });
    let path = "/process.Process/SendInput";
    let (status, answer) = envd.post_with(path, &timeout, &body).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::GATEWAY_TIMEOUT, &json!("deadline_exceeded"))
    );
    let messages =
        [json!({ "start": { "process": { "pid": pid } } }), json!({ "data": { "input": input } })];
    let trailer = envd.stream("StreamInput", &timeout, &messages).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "deadline_exceeded");
    assert_eq!(envd.list().await, [pid]);
}

// Rules: STREAM-11, RPC-22
#[tokio::test]
async fn a_timeout_is_a_whole_number_of_milliseconds() {
    let envd = Envd::start().await;
    for good in ["0", "9999999999"] {
        let timeout = [("connect-timeout-ms", good)];
        let mut events = envd.start_process("true", &[], json!({}), &timeout).await;
        assert_eq!(events.outcome().await.trailer, json!({}), "{good}");
        let list = envd.post_with("/process.Process/List", &timeout, &json!({})).await;
        assert_eq!(list.0, StatusCode::OK, "{good}");
    }
    let mut running = envd.sh("sleep 1000", json!({})).await;
    let process = json!({ "process": { "pid": running.pid().await } });
    for bad in ["soon", "-1", "1.5", "10000000000", " "] {
        let timeout = [("connect-timeout-ms", bad)];
        let mut events = envd.start_process("true", &[], json!({}), &timeout).await;
        assert_eq!(events.outcome().await.trailer["error"]["code"], "invalid_argument", "{bad}");
        let mut events = envd.stream("Connect", &timeout, std::slice::from_ref(&process)).await;
        assert_eq!(events.outcome().await.trailer["error"]["code"], "invalid_argument", "{bad}");
    }
}
