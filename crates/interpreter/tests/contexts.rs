//! Contexts: made, listed, restarted, interrupted and deleted, and kernels that end by themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use support::{Server, error, kill, main_text, of_type, printed, state, until};

async fn list(server: &Server) -> Vec<Value> {
    let (status, body) = server.call(Method::GET, "/contexts", &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_str(&body).unwrap()
}

async fn post(server: &Server, path: &str) -> (u16, String) {
    let (status, body) = server.call(Method::POST, path, &Value::Null).await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn each_has_its_state_and_its_place() {
    let server = Server::start().await;
    until(|| server.is_ready()).await;
    let place = tempfile::tempdir().unwrap();
    let cwd = place.path().to_str().unwrap();
    let body = json!({"language": " Python ", "cwd": cwd});
    let (status, body) = server.call(Method::POST, "/contexts", &body).await;
    assert_eq!(status, StatusCode::OK);
    let context: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&context["language"], &context["cwd"]), (&json!("python"), &json!(cwd)));
    let listed = list(&server).await;
    assert_eq!(listed[0]["language"], "python");
    assert_eq!(listed.last(), Some(&context));

    let id = context["id"].as_str().unwrap();
    server.run("x = 'default'").await;
    server.run_in(id, "x = 'other'").await;
    assert_eq!(server.value("x").await, "default");
    assert_eq!(main_text(&server.run_in("default", "x").await), "default");
    assert_eq!(main_text(&server.run_in(id, "x").await), "other");
    assert_eq!(main_text(&server.run_in(id, "import os; os.getcwd()").await), cwd);
    // A restart applies it again, and forgets the rest.
    server.run_in(id, "os.chdir('/')").await;
    assert_eq!(post(&server, &format!("/contexts/{id}/restart")).await, (200, "null".into()));
    let events = server.run_in(id, "import os; os.getcwd()").await;
    assert_eq!((main_text(&events).as_str(), &events[0]["execution_count"]), (cwd, &json!(1)));
    assert_eq!(error(&server.run_in(id, "x").await).0, "NameError");
}

#[tokio::test]
async fn what_cannot_be_made_or_found_is_said() {
    let server = Server::start().await;
    let create = async |body: Value| server.call(Method::POST, "/contexts", &body).await;
    let (status, body) = create(json!({"cwd": "/missing"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(body, "The working directory /missing does not exist");
    let (status, body) = create(json!({"language": "klingon"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("klingon"), "{body}");
    let missing = (404, "Context x not found".to_owned());
    assert_eq!(post(&server, "/contexts/x/restart").await, missing);
    assert_eq!(post(&server, "/contexts/x/interrupt").await, missing);
    assert_eq!(server.call(Method::DELETE, "/contexts/x", &Value::Null).await.0, 404);
}

#[tokio::test]
async fn there_is_an_end_to_how_many_there_can_be() {
    let server = Server::start().await;
    let create =
        async || server.call(Method::POST, "/contexts", &json!({"language": "bash"})).await;
    let (_, first) = create().await;
    for _ in 1..64 {
        assert_eq!(create().await.0, StatusCode::OK);
    }
    let (status, body) = create().await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("64 contexts"), "{body}");
    // And nothing is looked for in vain.
    let unknown = json!({"language": "klingon"});
    assert_eq!(server.call(Method::POST, "/contexts", &unknown).await, (status, body));
    // A language that is used for the first time has its default all the same.
    let events = server.begin(&json!({"code": "echo 1", "language": "bash"})).await.rest().await;
    assert_eq!(printed(&events, "stdout"), "1\n");
    let first: Value = serde_json::from_str(&first).unwrap();
    let path = format!("/contexts/{}", first["id"].as_str().unwrap());
    assert_eq!(server.call(Method::DELETE, &path, &Value::Null).await.0, StatusCode::OK);
    assert_eq!(create().await.0, StatusCode::OK);
}

#[tokio::test]
async fn they_run_beside_each_other_and_their_cells_one_after_another() {
    let server = Server::start().await;
    let other = server.context().await;
    let file = server.directory.path().join("go");
    let code =
        format!("import os, time\nprint(1)\nwhile not os.path.exists({file:?}): time.sleep(0.01)");
    let mut first = server.begin(&json!({"code": code})).await;
    first.until("stdout").await;
    let second = server.begin(&json!({"code": "order = 2"})).await;
    let gone = server.begin(&json!({"code": "order = 3"})).await;
    drop(gone);
    let third = server.begin(&json!({"code": "order"})).await;
    assert_eq!(main_text(&server.run_in(&other, "1").await), "1");
    std::fs::write(file, "").unwrap();
    first.rest().await;
    second.rest().await;
    // What nobody waits for any more was not run.
    assert_eq!(main_text(&third.rest().await), "2");
}

#[tokio::test]
async fn a_restart_ends_the_cell_and_the_next_runs_in_the_new_kernel() {
    let server = Server::start().await;
    let id = server.context().await;
    let before = server.kernel(&id).await;
    let code = "print(1)\nwhile True: pass";
    let mut first = server.begin(&json!({"code": code, "context_id": id})).await;
    first.until("stdout").await;
    let queued = server.begin(&json!({"code": "1", "context_id": id})).await;
    assert_eq!(post(&server, &format!("/contexts/{id}/restart")).await.0, 200);
    let (name, value) = error(&first.rest().await);
    assert_eq!(name, "ContextRestarting");
    assert!(value.starts_with("Context was restarted"), "{value}");
    assert_eq!(main_text(&queued.rest().await), "1");
    assert_eq!(state(before), None);
    assert_ne!(server.kernel(&id).await, before);
}

#[tokio::test]
async fn deleting_ends_the_cell_and_all_that_the_kernel_started() {
    let server = Server::start().await;
    let id = server.context().await;
    let kernel = server.kernel(&id).await;
    let code =
        "import subprocess\nprint(subprocess.Popen(['sleep', '1000']).pid)\nwhile True: pass";
    let mut running = server.begin(&json!({"code": code, "context_id": id})).await;
    let child = running.until("stdout").await["text"].as_str().unwrap().trim().parse().unwrap();
    assert!(state(child).is_some());
    let path = format!("/contexts/{id}");
    assert_eq!(
        server.call(Method::DELETE, &path, &Value::Null).await,
        (StatusCode::OK, "null".into())
    );
    assert_eq!(error(&running.rest().await).0, "UnexpectedEndOfExecution");
    until(|| state(kernel).is_none() && state(child).is_none()).await;
    assert_eq!(server.call(Method::DELETE, &path, &Value::Null).await.0, StatusCode::NOT_FOUND);
    assert!(list(&server).await.iter().all(|context| context["id"] != id.as_str()));
}

#[tokio::test]
async fn cells_that_wait_in_a_context_that_is_deleted_say_so() {
    let server = Server::start().await;
    let id = server.context().await;
    let code = "print(1, flush=True)\nwhile True: pass";
    let mut running = server.begin(&json!({"code": code, "context_id": id})).await;
    running.until("stdout").await;
    let mut all = vec![running];
    for _ in 0..2 {
        all.push(server.begin(&json!({"code": "1", "context_id": id})).await);
    }
    server.call(Method::DELETE, &format!("/contexts/{id}"), &Value::Null).await;
    for cell in all {
        assert_eq!(error(&cell.rest().await).0, "UnexpectedEndOfExecution");
    }
}

#[tokio::test]
async fn one_that_is_kept_from_its_variables_can_be_restarted_and_deleted() {
    // Much sooner than the kernel is given up.
    let soon = async |call: BoxFuture<'_, (StatusCode, String)>| {
        timeout(Duration::from_secs(30), call).await.unwrap().0
    };
    let server = Server::start().await;
    let id = server.context().await;
    let path = format!("/contexts/{id}");
    let blocks =
        "import asyncio, time; asyncio.get_running_loop().call_soon(time.sleep, 1000); None";
    let variables = json!({"A": "1"});
    // What it had is to be taken back.
    let cell = json!({"code": blocks, "context_id": id, "env_vars": variables});
    server.begin(&cell).await.rest().await;
    let restart = format!("{path}/restart");
    assert_eq!(soon(server.call(Method::POST, &restart, &Value::Null).boxed()).await, 200);
    // It is to be given some.
    let kernel = server.kernel(&id).await;
    server.run_in(&id, blocks).await;
    let cell = json!({"code": "1", "context_id": id, "env_vars": variables});
    let waits = server.begin(&cell).await;
    assert_eq!(soon(server.call(Method::POST, &restart, &Value::Null).boxed()).await, 200);
    assert_eq!(error(&waits.rest().await).0, "ContextRestarting");
    server.run_in(&id, blocks).await;
    let waits = server.begin(&cell).await;
    assert_eq!(soon(server.call(Method::DELETE, &path, &Value::Null).boxed()).await, 200);
    assert_eq!(error(&waits.rest().await).0, "UnexpectedEndOfExecution");
    until(|| state(kernel).is_none()).await;
}

#[tokio::test]
async fn an_interrupt_reaches_what_keeps_a_cell_from_its_variables() {
    let server = Server::start().await;
    let (go, blocked) =
        (server.directory.path().join("go"), server.directory.path().join("blocked"));
    // Only once its cell is over: it would keep that from its end, too.
    let blocks = format!(
        "let kept = 1; const fs = require('fs')
        const timer = setInterval(() => {{
            if (!fs.existsSync({go:?})) return
            clearInterval(timer); fs.writeFileSync({blocked:?}, ''); for (;;);
        }}, 1); 0"
    );
    server.begin(&json!({"code": blocks, "language": "javascript"})).await.rest().await;
    std::fs::write(go, "").unwrap();
    until(|| blocked.exists()).await;
    let contexts = list(&server).await;
    let id = contexts.iter().find(|context| context["language"] == "javascript").unwrap()["id"]
        .as_str()
        .unwrap();
    let cell = json!({"code": "kept + process.env.A", "context_id": id, "env_vars": {"A": "1"}});
    let mut waits = server.begin(&cell).await;
    let interrupts = async {
        loop {
            post(&server, &format!("/contexts/{id}/interrupt")).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let begins = timeout(Duration::from_secs(30), async {
        tokio::select! {
            event = waits.until("number_of_executions") => event,
            () = interrupts => unreachable!(),
        }
    });
    begins.await.unwrap();
    let events = waits.rest().await;
    // The last interrupt can come so late that it hits the cell itself.
    if !of_type(&events, "error").iter().any(|error| error["name"] == "Interrupted") {
        assert_eq!(main_text(&events), "11");
    }
    assert_eq!(printed(&events, "stderr"), "");
    assert_eq!(main_text(&server.run_in(id, "kept + 1").await), "2");
}

#[tokio::test]
async fn a_kernel_that_cannot_be_started_is_no_kernel_that_died() {
    let server = Server::start().await;
    let place = tempfile::tempdir().unwrap();
    let body = json!({"cwd": place.path().to_str().unwrap()});
    let (_, body) = server.call(Method::POST, "/contexts", &body).await;
    let context: Value = serde_json::from_str(&body).unwrap();
    let id = context["id"].as_str().unwrap();
    let kernel = server.kernel(id).await;
    std::fs::remove_dir(place.path()).unwrap();
    kill(kernel);
    until(|| state(kernel).is_none()).await;
    for _ in 0..2 {
        let (name, value) = error(&server.run_in(id, "1").await);
        assert_eq!(name, "KernelNotStarted");
        assert!(value.contains("cannot be started"), "{value}");
    }
    std::fs::create_dir(place.path()).unwrap();
    let events = server.run_in(id, "1").await;
    assert_eq!(main_text(&events), "1");
    let notice = printed(&events, "stderr");
    assert!(notice.contains("signal 9"), "{notice}");
}

#[tokio::test]
async fn a_default_that_was_deleted_is_made_anew() {
    let server = Server::start().await;
    server.run("x = 1").await;
    let id = list(&server).await[0]["id"].as_str().unwrap().to_owned();
    server.call(Method::DELETE, &format!("/contexts/{id}"), &Value::Null).await;
    assert_eq!(error(&server.run("x").await).0, "NameError");
    let pythons = list(&server).await.into_iter().filter(|context| context["language"] == "python");
    let ids: Vec<Value> = pythons.map(|context| context["id"].clone()).collect();
    assert_eq!(ids.len(), 1);
    assert_ne!(ids[0], id.as_str());
}

#[tokio::test]
async fn an_interrupt_ends_the_cell_alone() {
    let server = Server::start().await;
    let id = server.context().await;
    server.run_in(&id, "kept = 1").await;
    // Nothing runs: nothing happens.
    assert_eq!(post(&server, &format!("/contexts/{id}/interrupt")).await, (200, "null".into()));
    for body in ["while True: pass", "import time; time.sleep(1000)", "!sleep 1000"] {
        let code = format!("print(1, flush=True)\n{body}");
        let mut running = server.begin(&json!({"code": code, "context_id": id})).await;
        running.until("stdout").await;
        assert_eq!(post(&server, &format!("/contexts/{id}/interrupt")).await.0, 200);
        running.until("end_of_execution").await;
        assert_eq!(main_text(&server.run_in(&id, "kept").await), "1");
    }
}

#[tokio::test]
async fn a_kernel_that_ends_in_a_cell_is_replaced_and_the_cell_says_so() {
    let server = Server::start().await;
    for (code, why) in [
        ("exit()", "exit()"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
    ] {
        let (name, value) = error(&server.run(code).await);
        assert_eq!(name, "ContextRestarting");
        assert!(value.starts_with("Context was restarted: ") && value.contains(why), "{value}");
        let events = server.run("1").await;
        assert_eq!(main_text(&events), "1");
        // It was said already.
        assert_eq!(printed(&events, "stderr"), "");
    }
}

#[tokio::test]
async fn a_kernel_that_ends_between_cells_is_replaced_and_the_next_says_so() {
    let server = Server::start().await;
    let id = server.context().await;
    let code = "import os, subprocess; (os.getpid(), subprocess.Popen(['sleep', '1000']).pid)";
    let text = main_text(&server.run_in(&id, code).await);
    let (kernel, child) = text.trim_matches(['(', ')']).split_once(", ").unwrap();
    let (kernel, child): (i32, i32) = (kernel.parse().unwrap(), child.parse().unwrap());
    kill(kernel);
    // Until the server has seen it: it waits for the process only then.
    until(|| !std::path::Path::new(&format!("/proc/{kernel}")).exists()).await;
    let events = server.run_in(&id, "1").await;
    assert_eq!(main_text(&events), "1");
    let notice = printed(&events, "stderr");
    assert!(
        notice.starts_with("Context was restarted: ") && notice.contains("variables"),
        "{notice}"
    );
    // After the number of the execution, which comes first.
    assert_eq!(
        (&events[0]["type"], &events[1]["type"]),
        (&json!("number_of_executions"), &json!("stderr"))
    );
    assert_eq!(printed(&server.run_in(&id, "1").await, "stderr"), "");
    // The leader was long gone when its group was ended.
    until(|| state(child).is_none()).await;
}

#[tokio::test]
async fn a_kernel_that_an_interrupt_ends_or_does_not_end_is_missed_by_the_next() {
    for (action, why) in [("SIG_DFL", "signal 2"), ("SIG_IGN", "interrupted")] {
        let server = Server::start().await;
        let code = format!(
            "import signal, time\nsignal.signal(signal.SIGINT, signal.{action})\n\
             print(1, flush=True)\nwhile True: time.sleep(1)"
        );
        let mut running = server.begin(&json!({"code": code})).await;
        running.until("stdout").await;
        drop(running);
        let events = server.run("1").await;
        assert_eq!(main_text(&events), "1");
        let notice = printed(&events, "stderr");
        assert!(
            notice.starts_with("Context was restarted: ") && notice.contains(why),
            "{action}: {notice}"
        );
        assert_eq!(printed(&server.run("1").await, "stderr"), "");
    }
}

#[tokio::test]
async fn a_client_that_goes_leaves_it_to_the_next_to_hear_of_a_restart() {
    let server = Server::start().await;
    let id = server.context().await;
    let kernel = server.kernel(&id).await;
    let before = server.places();
    kill(kernel);
    until(|| !std::path::Path::new(&format!("/proc/{kernel}")).exists()).await;
    let first = server.begin(&json!({"code": "1", "context_id": id})).await;
    // Another kernel starts for it, which takes longer than to hear that it is not wanted.
    until(|| !server.places().is_subset(&before)).await;
    drop(first);
    let notice = printed(&server.run_in(&id, "1").await, "stderr");
    assert!(notice.starts_with("Context was restarted: "), "{notice}");
    assert_eq!(printed(&server.run_in(&id, "1").await, "stderr"), "");
}

#[tokio::test]
async fn kernels_that_nobody_has_used_end_first_when_memory_runs_out() {
    let server = Server::start().await;
    let (_, body) = server.call(Method::POST, "/contexts", &json!({"language": "bash"})).await;
    let context: Value = serde_json::from_str(&body).unwrap();
    let scores = || {
        let of = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        server.kernels().iter().map(of).collect::<Vec<_>>()
    };
    assert!(scores().iter().all(|score| score == "900\n"), "{:?}", scores());
    let used = server.run_in(context["id"].as_str().unwrap(), "cat /proc/self/oom_score_adj").await;
    assert_eq!(printed(&used, "stdout"), "500\n");
    assert_eq!(scores().iter().filter(|score| *score == "500\n").count(), 1);
}

#[tokio::test]
async fn each_language_has_its_default_and_its_variables() {
    let server = Server::start().await;
    server.envd.set("SHARED", "it's");
    for (language, code) in [
        (
            "js",
            "var n = (globalThis.n ?? 0) + 1; console.log(process.env.SHARED, process.env.OWN, n)",
        ),
        (
            "ts",
            "var n: number = (globalThis.n ?? 0) + 1; console.log(process.env.SHARED, process.env.OWN, n)",
        ),
        ("bash", "n=$((n + 1)); echo $SHARED ${OWN-undefined} $n"),
    ] {
        let run = async |request: Value| {
            let events = server.begin(&request).await.rest().await;
            assert_eq!(events[0]["type"], "number_of_executions", "{events:?}");
            printed(&events, "stdout")
        };
        let own = json!({"code": code, "language": language, "env_vars": {"OWN": "$1"}});
        assert_eq!(run(own).await, "it's $1 1\n");
        let shared = json!({"code": code, "language": language});
        assert_eq!(run(shared).await, "it's undefined 2\n");
    }
    let languages: Vec<Value> =
        list(&server).await.into_iter().map(|context| context["language"].clone()).collect();
    assert_eq!(languages, ["python", "javascript", "typescript", "bash"]);
}
