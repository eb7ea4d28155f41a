//! The server's own end, and what is left after it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use support::{Server, kill, state, until};

#[tokio::test]
async fn a_server_that_dies_is_replaced_and_its_kernels_end() {
    let mut server = Server::start().await;
    let code = "import os, subprocess; print(os.getpid(), subprocess.Popen(['sleep', '1000']).pid)";
    let mut running = server.begin(&json!({"code": format!("{code}\nwhile True: pass")})).await;
    let text = running.until("stdout").await["text"].as_str().unwrap().to_owned();
    let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let before = server.pid();
    kill(before);
    server.find();
    assert_ne!(server.pid(), before);
    until(|| pids.iter().all(|pid| state(*pid).is_none())).await;
    assert_eq!(server.value("1 + 1").await, "2");
}

#[tokio::test]
async fn a_server_that_cannot_be_started_is_started_later() {
    let program = env!("CARGO_BIN_EXE_code-interpreter");
    // Where a link to the program can be.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let link = directory.path().join("program");
    fs::hard_link(program, &link).unwrap();
    let mut server = Server::start_program(&link).await;
    fs::remove_file(&link).unwrap();
    kill(server.pid());
    server.logged("the server cannot be started: ");
    // Under this name the system knows it from then on (proc(5), `exe`).
    fs::hard_link(program, directory.path().join("program (deleted)")).unwrap();
    server.find();
    assert_eq!(server.value("1 + 1").await, "2");
}

#[tokio::test]
async fn everything_ends_with_the_supervisor() {
    let server = Server::start().await;
    let (process, kernel) = (server.pid(), server.kernel("default").await);
    drop(server);
    until(|| state(process).is_none() && state(kernel).is_none()).await;
}

#[tokio::test]
async fn it_is_ready_once_python_is() {
    let server = Server::start().await;
    let (status, _) = server.call(Method::GET, "/health", &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    until(|| server.is_ready()).await;
    // The kernel that `ready` spoke of is the one that the first cell finds: its set-up is done.
    assert_eq!(server.value("import sys; 'atoll_kernel' in sys.modules").await, "True");
    assert_eq!(server.value("[n for n in dir() if 'atoll' in n.lower()]").await, "[]");
}
