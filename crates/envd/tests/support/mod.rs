//! A real envd in a process of its own, and a client that speaks to it as the SDKs do: JSON over
//! HTTP/1.1, streams in Connect envelopes.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::{
    future::Future,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fails instead of hanging.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened by now")
}

/// Waits until a condition holds.
pub async fn until(mut condition: impl AsyncFnMut() -> bool) {
    soon(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The user whom the tests run as.
pub fn current_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let mut fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.find(|fields| fields.get(2) == Some(&uid.as_str())).unwrap()[0].to_owned()
}

/// A running envd. Its processes share its process group and go with it.
pub struct Envd {
    child: Child,
    address: SocketAddr,
}

impl Envd {
    /// Without configuration, as the user who runs the tests.
    pub async fn start() -> Self {
        let envd = Self::with_config("");
        let body = json!({ "defaultUser": current_user() });
        assert_eq!(envd.post("/init", &body).await.0, StatusCode::NO_CONTENT);
        envd
    }

    /// With this on standard input.
    pub fn with_config(config: &str) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_envd")), config)
    }

    /// As a node runs it: the listening socket is descriptor 3, the configuration is on stdin.
    pub fn run(mut command: Command, config: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        pass_as_descriptor_3(&mut command, &listener);
        let mut child = command
            .process_group(0)
            .env("LEAK", "must not reach commands")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
        Self { child, address }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens, for what no HTTP client sends.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        soon(sender.send_request(request)).await.unwrap()
    }

    /// Status, headers and body.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path).header("host", "envd");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Full::new(body.into())).unwrap()).await;
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, soon(body.collect()).await.unwrap().to_bytes())
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Value) {
        let (status, _, body) = self.call(Method::GET, path, headers, "").await;
        (status, parse(&body))
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (StatusCode, Value) {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let (status, _, body) = self.call(Method::POST, path, &headers, body.to_string()).await;
        (status, parse(&body))
    }

    /// A unary call of the Process service.
    pub async fn rpc(&self, method: &str, body: Value) -> (StatusCode, Value) {
        self.post(&format!("/process.Process/{method}"), &body).await
    }

    /// A streaming call of the Process service.
    pub async fn stream(&self, method: &str, headers: &[(&str, &str)], body: &[Value]) -> Events {
        let mut envelopes = BytesMut::new();
        for message in body {
            let message = message.to_string();
            envelopes.extend_from_slice(&[0]);
            envelopes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            envelopes.extend_from_slice(message.as_bytes());
        }
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/process.Process/{method}"))
            .header("host", "envd")
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Full::new(envelopes.freeze())).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Starts `sh -c script` with these further fields in the request.
    pub async fn sh(&self, script: &str, fields: Value) -> Events {
        self.start_process("/bin/sh", &["-c", script], fields, &[]).await
    }

    pub async fn start_process(
        &self,
        cmd: &str,
        args: &[&str],
        fields: Value,
        headers: &[(&str, &str)],
    ) -> Events {
        let mut body = json!({ "process": { "cmd": cmd, "args": args, "cwd": "/" } });
        merge(&mut body, fields);
        self.stream("Start", headers, &[body]).await
    }

    /// Follows a process that runs.
    pub async fn connect(&self, selector: Value) -> Events {
        self.stream("Connect", &[], &[json!({ "process": selector })]).await
    }

    /// The most memory that it ever had.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The process ids that List shows.
    pub async fn list(&self) -> Vec<u64> {
        let (status, body) = self.rpc("List", json!({})).await;
        assert_eq!(status, StatusCode::OK);
        let processes = body["processes"].as_array().cloned().unwrap_or_default();
        processes.iter().map(|process| process["pid"].as_u64().unwrap()).collect()
    }

    pub async fn kill(&self, pid: u64) -> (StatusCode, Value) {
        let body = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
        self.rpc("SendSignal", body).await
    }

    pub async fn type_in(&self, pid: u64, stdin: &str) -> (StatusCode, Value) {
        let input = json!({ "stdin": STANDARD.encode(stdin) });
        self.rpc("SendInput", json!({ "process": { "pid": pid }, "input": input })).await
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

#[allow(unsafe_code)]
fn pass_as_descriptor_3(command: &mut Command, listener: &TcpListener) {
    let listener = listener.try_clone().unwrap();
    // SAFETY: dup2 and fcntl are async-signal-safe, and nothing else happens in the child.
    unsafe {
        command.pre_exec(move || {
            // Onto itself dup2 would leave the close-on-exec flag alone.
            let result = if listener.as_raw_fd() == 3 {
                libc::fcntl(3, libc::F_SETFD, 0)
            } else {
                libc::dup2(listener.as_raw_fd(), 3)
            };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

fn merge(into: &mut Value, fields: Value) {
    match (into, fields) {
        (Value::Object(into), Value::Object(fields)) => {
            for (name, value) in fields {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value,
    }
}

fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or(Value::Null)
}

/// A stream's messages, and then its end.
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
}

/// Everything a process said, and how it ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub pid: u64,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    /// The end event.
    pub end: Value,
    /// The end-stream message.
    pub trailer: Value,
}

impl Outcome {
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }

    /// Takes in a message.
    pub fn add(&mut self, message: &Value) {
        let event = &message["event"];
        if let Some(pid) = event["start"]["pid"].as_u64() {
            self.pid = pid;
        }
        for (name, sink) in
            [("stdout", &mut self.stdout), ("stderr", &mut self.stderr), ("pty", &mut self.pty)]
        {
            if let Some(data) = event["data"][name].as_str() {
                sink.extend(STANDARD.decode(data).unwrap());
            }
        }
        if !event["end"].is_null() {
            self.end = event["end"].clone();
        }
    }
}

impl Events {
    /// The next message, or the end-stream message as an error.
    pub async fn next(&mut self) -> Result<Value, Value> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let flags = self.buffer[0];
                    self.buffer.advance(5);
                    let message = parse(&self.buffer.split_to(length));
                    return if flags & 2 == 0 { Ok(message) } else { Err(message) };
                }
            }
            let frame = soon(self.body.frame()).await.expect("the stream has an end").unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    /// The start event's process id; it must be the first message.
    pub async fn pid(&mut self) -> u64 {
        let message = self.next().await.unwrap();
        message["event"]["start"]["pid"].as_u64().expect("the first message is a start")
    }

    /// Reads on until the process has said this.
    pub async fn until_output(&mut self, text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let said = |outcome: &Outcome| {
            [&outcome.stdout, &outcome.pty]
                .iter()
                .any(|said| String::from_utf8_lossy(said).contains(text))
        };
        while !said(&outcome) {
            outcome.add(&self.next().await.expect("output before the end"));
        }
        outcome
    }

    /// Reads everything there is left.
    pub async fn outcome(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.next().await {
                Ok(message) => outcome.add(&message),
                Err(trailer) => {
                    outcome.trailer = trailer;
                    return outcome;
                }
            }
        }
    }
}
