//! The real program, with a real Python kernel, and a client that reads what executions say.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// Fails instead of hanging.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened by now")
}

/// Waits until a condition holds.
pub async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Whether a process is there and has not ended, and the letter of its state (proc(5)).
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(')')?.1.trim().chars().next()?;
    (state != 'Z').then_some(state)
}

/// Ends a process at once.
pub fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Stands for envd: answers with variables, to whoever has the token if there is one.
#[derive(Clone, Default)]
pub struct FakeEnvd {
    pub variables: Arc<Mutex<BTreeMap<String, String>>>,
    pub token: Arc<Mutex<Option<String>>>,
}

impl FakeEnvd {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/envs", get(Self::envs)).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, app).await });
        address
    }

    async fn envs(State(envd): State<Self>, headers: HeaderMap) -> impl IntoResponse {
        let offered = headers.get("x-access-token").and_then(|token| token.to_str().ok());
        let token = envd.token.lock().unwrap();
        if token.is_some() && token.as_deref() != offered {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        Json(envd.variables.lock().unwrap().clone()).into_response()
    }

    pub fn set(&self, name: &str, value: &str) {
        self.variables.lock().unwrap().insert(name.to_owned(), value.to_owned());
    }
}

/// A running server with its supervisor.
pub struct Server {
    supervisor: Child,
    log: BufReader<ChildStderr>,
    pub address: SocketAddr,
    pub directory: TempDir,
    pub envd: FakeEnvd,
}

impl Server {
    /// Waits until the server listens; its kernels may still be starting.
    pub async fn start() -> Self {
        Self::start_program(env!("CARGO_BIN_EXE_code-interpreter").as_ref()).await
    }

    /// The same, of a program that is the same one in another place.
    pub async fn start_program(program: &Path) -> Self {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-env");
        let mut path = env::var("PATH").unwrap();
        for part in ["node-bin", "newest/bin"] {
            let part = programs.join(part);
            assert!(part.is_dir(), "no Python with ipykernel, and Node: run scripts/test-env.sh");
            path = format!("{}:{path}", part.display());
        }
        let envd = FakeEnvd::default();
        let address = envd.serve().await;
        let directory = tempfile::tempdir().unwrap();
        // As a script starts what it puts in the background.
        let mut supervisor = Command::new("sh")
            .args(["-c", "trap '' INT QUIT; exec \"$@\"", "sh"])
            .arg(program)
            .args(["--listen", "127.0.0.1:0", "--envd", &format!("http://{address}"), "--dir"])
            .arg(directory.path())
            .env("PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(supervisor.stderr.take().unwrap());
        let mut server = Self { supervisor, log, address, directory, envd };
        server.find();
        server
    }

    /// Reads in the log where the server listens that was started last.
    pub fn find(&mut self) {
        self.address = self.logged("serves ").parse().unwrap();
    }

    /// The rest of the next line of the log that begins so.
    pub fn logged(&mut self, beginning: &str) -> String {
        let beginning = format!("code-interpreter: {beginning}");
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.trim().strip_prefix(&beginning) {
                return rest.to_owned();
            }
            line.clear();
        }
        panic!("it ended without a line that begins with {beginning:?}");
    }

    /// The number of the server's process.
    pub fn pid(&self) -> i32 {
        let supervisor = self.supervisor.id();
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        fs::read_to_string(path).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The directories of all kernels, of those too that are about to start.
    pub fn places(&self) -> BTreeSet<PathBuf> {
        let places = fs::read_dir(self.directory.path().join("kernels")).unwrap();
        places.map(|place| place.unwrap().path()).collect()
    }

    /// The numbers of the processes of all kernels that have started.
    pub fn kernels(&self) -> Vec<i32> {
        let pid = |place: PathBuf| fs::read_to_string(place.join("pid")).ok()?.parse().ok();
        self.places().into_iter().filter_map(pid).collect()
    }

    /// What `code-interpreter ready` says.
    pub fn is_ready(&self) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_code-interpreter"));
        command.args(["ready", "--dir"]).arg(self.directory.path());
        command.status().unwrap().success()
    }

    /// Sends a request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let stream = soon(TcpStream::connect(self.address)).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        // Ends when both the client and the body are dropped, and closes the connection.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        soon(client.send_request(request.body(Full::new(body.into())).unwrap())).await.unwrap()
    }

    /// Sends a request, and reads the whole answer.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> (StatusCode, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(method, path, &[], body).await;
        let status = response.status();
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Begins an execution.
    pub async fn begin(&self, request: &Value) -> Execution {
        let response = self.send(Method::POST, "/execute", &[], request.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Execution { body: response.into_body(), buffer: BytesMut::new(), searched: 0 }
    }

    /// Runs a cell in a context to its end.
    pub async fn run_in(&self, context: &str, code: &str) -> Vec<Value> {
        self.begin(&json!({ "code": code, "context_id": context })).await.rest().await
    }

    /// Runs Python in the default context to its end.
    pub async fn run(&self, code: &str) -> Vec<Value> {
        self.begin(&json!({ "code": code })).await.rest().await
    }

    /// The text of the last expression of some Python, which does not fail.
    pub async fn value(&self, code: &str) -> String {
        main_text(&self.run(code).await)
    }

    /// The number of the process of a Python kernel.
    pub async fn kernel(&self, context: &str) -> i32 {
        let events = self.run_in(context, "import os; os.getpid()").await;
        main_text(&events).parse().unwrap()
    }

    /// Makes a Python context.
    pub async fn context(&self) -> String {
        let (status, body) = self.call(Method::POST, "/contexts", &json!({})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        body["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

/// An execution that is being read. Dropped, its connection is closed.
pub struct Execution {
    body: Incoming,
    buffer: BytesMut,
    /// Up to where no line ends: one may come in hundreds of pieces.
    searched: usize,
}

impl Execution {
    /// The next event, keepalives among them; nothing after the last.
    pub async fn event(&mut self) -> Option<Value> {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let line = self.buffer.split_to(std::mem::take(&mut self.searched) + length + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.searched = self.buffer.len();
            let frame = soon(self.body.frame()).await?.unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// The next event of a type.
    pub async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event().await.expect("it ended before");
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// All events that are left, without keepalives; the last is the end.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            if event["type"] != "keepalive" {
                events.push(event);
            }
        }
        assert_eq!(events.last().unwrap()["type"], "end_of_execution");
        events
    }
}

/// Events of a type.
pub fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

/// What was printed, in one.
pub fn printed(events: &[Value], stream: &str) -> String {
    of_type(events, stream).iter().map(|event| event["text"].as_str().unwrap()).collect()
}

/// The text of the value of the last expression.
pub fn main_text(events: &[Value]) -> String {
    let main = events.iter().find(|event| event["is_main_result"] == true);
    let main = main.unwrap_or_else(|| panic!("no result in {events:?}"));
    main["text"].as_str().unwrap().to_owned()
}

/// Name and value of the one error.
pub fn error(events: &[Value]) -> (String, String) {
    let errors = of_type(events, "error");
    let [error] = errors[..] else { panic!("not one error in {events:?}") };
    (error["name"].as_str().unwrap().to_owned(), error["value"].as_str().unwrap().to_owned())
}
