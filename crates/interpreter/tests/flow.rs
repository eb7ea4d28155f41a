//! Output that is long or read slowly, and clients that go away.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::json;

use support::{Server, error, main_text, of_type, printed, state, until};

/// How much memory a process has (`VmRSS`), or at most had (`VmHWM`), bytes.
fn memory(pid: i32, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let prefix = format!("{field}:");
    let line = status.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_kernel_and_loses_nothing() {
    let server = Server::start().await;
    let kernel = server.kernel("default").await;
    // 100 MB.
    let code = "for i in range(100_000): print(f'{i:0999d}')";
    let running = server.begin(&json!({"code": code})).await;
    until(|| state(kernel) == Some('T')).await;
    let text = printed(&running.rest().await, "stdout");
    assert_eq!(text.len(), 100_000_000);
    assert!(text.lines().enumerate().all(|(at, line)| line.parse() == Ok(at)));
    let peak = memory(server.pid(), "VmHWM");
    assert!(peak < 64 << 20, "{peak}");
    assert_eq!(server.value("1").await, "1");
}

#[tokio::test]
async fn many_small_messages_are_all_told() {
    let server = Server::start().await;
    let code = "import sys\nfor i in range(20_000): print(i, flush=True)";
    let text = printed(&server.run(code).await, "stdout");
    assert!(text.lines().map(str::to_owned).eq((0..20_000).map(|i| i.to_string())));
}

#[tokio::test]
async fn what_a_cell_leaves_running_goes_on_to_print_and_the_next_cell_tells_the_first_of_it() {
    let server = Server::start().await;
    let path = server.directory.path().join("count");
    let count = || fs::read_to_string(&path).unwrap_or_default();
    let code = format!(
        "import threading\ndef count():\n    for n in range(1, 5001):\n        \
         print('request', n, flush=True)\n    open({path:?}, 'w').write('thread')\n\
         threading.Thread(target=count).start()"
    );
    let mut told = printed(&server.run(&code).await, "stdout");
    until(|| count() == "thread").await;
    let events = server.run("print('now')").await;
    assert_eq!(events[0]["type"], "number_of_executions");
    told += &printed(&events, "stdout");
    let lines: Vec<&str> = told.lines().collect();
    let (last, kept) = lines.split_last().unwrap();
    assert_eq!(*last, "now");
    assert!(kept.len() > 205, "{}", kept.len());
    assert!((1..).zip(kept).all(|(n, line)| *line == format!("request {n}")), "{told}");
    let rest = printed(&events, "stderr");
    assert!(rest.ends_with(" bytes of output between cells are left out]\n"), "{rest}");
    let events = server.run("1").await;
    assert_eq!((printed(&events, "stdout"), printed(&events, "stderr")), Default::default());

    // More than all pipes and sockets between here and there hold.
    let script = format!("yes | head -c 30000000; printf child > {}", path.display());
    server.run(&format!("import subprocess; subprocess.Popen(['sh', '-c', {script:?}])")).await;
    until(|| count() == "child").await;
}

#[tokio::test]
async fn a_large_result_arrives_whole_and_its_memory_is_given_back() {
    let server = Server::start().await;
    let code = "from IPython.display import HTML\nHTML('<b>' + 'é' * 40_000_000)";
    let events = server.run(code).await;
    let html = of_type(&events, "result")[0]["html"].as_str().unwrap();
    assert_eq!(html.chars().count(), 3 + 40_000_000);
    assert_eq!(server.value("1").await, "1");
    until(|| memory(server.pid(), "VmRSS") < 48 << 20).await;
}

#[tokio::test]
async fn what_is_too_large_to_be_passed_on_is_said() {
    let server = Server::start().await;
    let events = server.run("from IPython.display import HTML\nHTML('x' * 200_000_000)").await;
    let (name, value) = error(&events);
    assert_eq!(name, "OutputTooLarge");
    assert!(value.starts_with("200000"), "{value}");
    assert_eq!(server.value("1").await, "1");
    until(|| memory(server.pid(), "VmRSS") < 48 << 20).await;
}

#[tokio::test]
async fn a_kernel_that_stands_still_can_be_restarted() {
    let server = Server::start().await;
    let id = server.context().await;
    let kernel = server.kernel(&id).await;
    let code = "while True: print('x' * 9999)";
    let running = server.begin(&json!({"code": code, "context_id": id})).await;
    until(|| state(kernel) == Some('T')).await;
    let path = format!("/contexts/{id}/restart");
    assert_eq!(server.call(http::Method::POST, &path, &json!(null)).await.0, 200);
    assert_eq!(error(&running.rest().await).0, "ContextRestarting");
    assert_eq!(main_text(&server.run_in(&id, "1").await), "1");
    assert_eq!(state(kernel), None);
}

#[tokio::test]
async fn silence_is_broken_while_a_cell_runs_and_while_another_waits() {
    let server = Server::start().await;
    let file = server.directory.path().join("go");
    let code = format!("import os, time\nwhile not os.path.exists({file:?}): time.sleep(0.01)");
    let mut running = server.begin(&json!({"code": code})).await;
    let mut waiting = server.begin(&json!({"code": "1"})).await;
    assert_eq!(waiting.event().await.unwrap()["type"], "keepalive");
    running.until("keepalive").await;
    fs::write(file, "").unwrap();
    running.rest().await;
    assert_eq!(main_text(&waiting.rest().await), "1");
}

#[tokio::test]
async fn a_client_that_goes_away_interrupts_its_cell() {
    let server = Server::start().await;
    server.run("kept = 1").await;
    for code in [
        "print(1, flush=True)\nimport time; time.sleep(1000)",
        // It stands still when the client goes.
        "while True: print('x' * 9999)",
    ] {
        let mut running = server.begin(&json!({"code": code})).await;
        running.until("stdout").await;
        drop(running);
        let events = server.run("kept").await;
        assert_eq!(main_text(&events), "1");
        assert_eq!(printed(&events, "stderr"), "");
    }
}

/// Has the default context of JavaScript print without end while no cell runs.
async fn leave_printing(server: &Server) {
    let [go, gone] = ["go", "gone"].map(|name| server.directory.path().join(name));
    let code = format!(
        "const {{ existsSync, writeFileSync }} = require('fs')
        setInterval(() => {{
            if (!existsSync({go:?})) return
            writeFileSync({gone:?}, '')
            while (true) console.log('x'.repeat(1000))
        }}, 1)
        0"
    );
    server.begin(&json!({"code": code, "language": "js"})).await.rest().await;
    fs::write(go, "").unwrap();
    until(|| gone.exists()).await;
}

#[tokio::test]
async fn what_a_cell_leaves_printing_without_end_holds_nobody_else() {
    let server = Server::start().await;
    leave_printing(&server).await;
    server.begin(&json!({"code": "yes &", "language": "bash"})).await.rest().await;
    assert_eq!(server.value("1").await, "1");
}

#[tokio::test]
async fn a_kernel_that_prints_without_end_before_its_cell_begins_holds_nobody_else() {
    let server = Server::start().await;
    leave_printing(&server).await;
    // Its variables are set first.
    let cell = json!({"code": "1", "language": "js", "env_vars": {"A": "1"}});
    let mut waiting = server.begin(&cell).await;
    // By then much has been printed: none of it is kept but the first.
    assert_eq!(waiting.event().await.unwrap()["type"], "keepalive");
    assert_eq!(server.value("1").await, "1");
    let peak = memory(server.pid(), "VmHWM");
    assert!(peak < 64 << 20, "{peak}");
}

#[tokio::test]
async fn a_client_that_goes_away_from_output_without_end_interrupts_its_cell() {
    let server = Server::start().await;
    for (language, code) in [("js", "while (true) console.log('x')"), ("bash", "yes")] {
        let mut running = server.begin(&json!({"code": code, "language": language})).await;
        running.until("stdout").await;
        drop(running);
        assert_eq!(server.value("1").await, "1", "{language}");
        let events = server.begin(&json!({"code": "", "language": language})).await.rest().await;
        let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["number_of_executions", "end_of_execution"], "{language}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_leaves_nothing() {
    let server = Server::start().await;
    let file = server.directory.path().join("go");
    let code = format!("import os, time\nwhile not os.path.exists({file:?}): time.sleep(0.01)");
    let running = server.begin(&json!({"code": code})).await;
    let long = json!({"code": format!("# {}", "x".repeat(40_000_000))});
    let waiting = [server.begin(&long).await, server.begin(&long).await];
    assert!(memory(server.pid(), "VmRSS") > 80_000_000);
    drop(waiting);
    until(|| memory(server.pid(), "VmRSS") < 48 << 20).await;
    fs::write(file, "").unwrap();
    running.rest().await;
}
