//! What one execution says, from the request to its last line.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use support::{Server, error, main_text, of_type, printed, soon};

#[tokio::test]
async fn a_cell_is_told_from_its_number_to_its_end() {
    let server = Server::start().await;
    let events = server.run("print('a'); 'b'").await;
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["number_of_executions", "stdout", "result", "end_of_execution"]);
    assert_eq!(events[0]["execution_count"], 1);
    assert_eq!(events[1]["text"], "a\n");
    let timestamp: jiff::Timestamp = events[1]["timestamp"].as_str().unwrap().parse().unwrap();
    assert!(timestamp <= jiff::Timestamp::now());
    let result = json!({"type": "result", "text": "b", "is_main_result": true, "extra": {}});
    assert_eq!(events[2], result);
    assert_eq!(server.run("1").await[0]["execution_count"], 2);
}

#[tokio::test]
async fn a_cell_without_code_ends() {
    let server = Server::start().await;
    for code in ["", "\n\n", "# nothing"] {
        let events = server.run(code).await;
        assert!(of_type(&events, "error").is_empty() && of_type(&events, "result").is_empty());
    }
    assert_eq!(server.value("1 + 1").await, "2");
}

#[tokio::test]
async fn an_error_is_told_without_colours_and_leaves_the_kernel_as_it_was() {
    let server = Server::start().await;
    let events = server.run("kept = 7\nprint('before')\nmissing").await;
    assert_eq!(error(&events), ("NameError".into(), "name 'missing' is not defined".into()));
    let traceback = of_type(&events, "error")[0]["traceback"].as_str().unwrap();
    assert!(traceback.contains("----> 3 missing") && !traceback.contains('\u{1b}'), "{traceback}");
    assert_eq!(printed(&events, "stdout"), "before\n");
    // At once: a cell that comes quickly after one that failed is not called off.
    assert_eq!(server.value("kept").await, "7");
    let (name, _) = error(&server.run("input()").await);
    assert_eq!(name, "StdinNotImplementedError");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    let post = async |body: &str| {
        let response = server.send(Method::POST, "/execute", &[], body.to_owned()).await;
        let status = response.status();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        (status.as_u16(), String::from_utf8(body.to_bytes().to_vec()).unwrap())
    };
    for malformed in
        ["", "{", "[]", "{}", r#"{"code": 1}"#, r#"{"code": "", "env_vars": {"": ""}}"#]
    {
        let (status, body) = post(malformed).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 422);
        assert!(body["detail"][0]["msg"].is_string(), "{body}");
    }
    let both = "Only one of context_id or language can be provided";
    let body = r#"{"code": "", "context_id": "x", "language": "python"}"#;
    assert_eq!(post(body).await, (400, both.into()));
    let body = r#"{"code": "", "context_id": "x"}"#;
    assert_eq!(post(body).await, (404, "Context x not found".into()));
    let (status, body) = post(r#"{"code": "", "language": "klingon"}"#).await;
    assert_eq!(status, 500);
    assert!(body.contains("klingon") && body.contains("python"), "{body}");
    let nulls = r#"{"code": "1", "context_id": null, "language": null, "env_vars": null}"#;
    assert_eq!(post(nulls).await.0, 200);
}

#[tokio::test]
async fn variables_are_the_sandboxs_and_for_one_cell_the_callers() {
    let server = Server::start().await;
    server.envd.set("SHARED", "it's \"here\"\n\\");
    let read = "import os; [os.environ.get(n) for n in ('SHARED', 'OWN')]";
    let text = async |own: Value| {
        let request = json!({"code": read, "env_vars": own});
        main_text(&server.begin(&request).await.rest().await)
    };
    let shared = r#"'it\'s "here"\n\\'"#;
    assert_eq!(text(json!({"OWN": "1"})).await, format!("[{shared}, '1']"));
    assert_eq!(text(json!({"SHARED": "2"})).await, "['2', None]");
    assert_eq!(text(Value::Null).await, format!("[{shared}, None]"));
    server.envd.set("SHARED", "new");
    // Setting them is neither counted nor seen.
    let events = server.run(read).await;
    assert_eq!(main_text(&events), "['new', None]");
    assert_eq!(events[0]["execution_count"], 4);
    server.envd.variables.lock().unwrap().clear();
    assert_eq!(text(Value::Null).await, "[None, None]");
    // A cell that begins with a magic still does.
    let events =
        server.begin(&json!({"code": "%%bash\necho $OWN", "env_vars": {"OWN": "3"}})).await;
    assert_eq!(printed(&events.rest().await, "stdout"), "3\n");
}

#[tokio::test]
async fn a_secured_sandbox_runs_no_code_of_strangers() {
    let server = Server::start().await;
    *server.envd.token.lock().unwrap() = Some("secret".to_owned());
    let body = json!({"code": "open('/tmp/never', 'w')"}).to_string();
    for headers in [&[][..], &[("x-access-token", "guessed")]] {
        let response = server.send(Method::POST, "/execute", headers, body.clone()).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let headers = [("x-access-token", "secret")];
    let response = server.send(Method::POST, "/execute", &headers, r#"{"code": "1"}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn for_strangers_nothing_is_read_or_started() {
    let server = Server::start().await;
    *server.envd.token.lock().unwrap() = Some("secret".to_owned());
    let body = r#"{"code": "1", "language": "bash"}"#;
    let response = server.send(Method::POST, "/execute", &[], body).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let (_, contexts) = server.call(Method::GET, "/contexts", &Value::Null).await;
    assert!(!contexts.contains("bash"), "{contexts}");

    // Answered without the body, of which nothing comes.
    assert_eq!(status_of(&server, "/execute", 60_000_000, 0).await, "401");
    // Who need no token need no long bodies.
    let too_long = (64 << 10) + 1;
    assert_eq!(status_of(&server, "/contexts", too_long, too_long).await, "413");
}

/// Of the answer to a request with a body of some length, of which only so much is sent.
async fn status_of(server: &Server, path: &str, length: usize, sent: usize) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &vec![b' '; sent]].concat()).await.unwrap();
    let mut line = [0; b"HTTP/1.1 401".len()];
    soon(stream.read_exact(&mut line)).await.unwrap();
    String::from_utf8_lossy(&line[b"HTTP/1.1 ".len()..]).into_owned()
}

#[tokio::test]
async fn health_and_cors_are_for_everybody() {
    let server = Server::start().await;
    let (status, body) = server.call(Method::GET, "/health", &Value::Null).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "\"OK\""));
    let headers = [("origin", "https://x.test"), ("access-control-request-method", "POST")];
    let response = server.send(Method::OPTIONS, "/execute", &headers, "").await;
    assert!(response.status().is_success());
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    assert_eq!(response.headers()["access-control-allow-headers"], "*");
    let response = server.send(Method::GET, "/contexts", &[("origin", "https://x.test")], "").await;
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
}
