//! What clients rely on in processes, beyond the stories that `process.rs` and `input.rs` tell:
//! each test is about a rule or two.

#![allow(clippy::unwrap_used)]

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};

use http::StatusCode;
use serde_json::{Value, json};
use support::{Envd, Events, current_user, until};

fn code(answer: &(StatusCode, Value)) -> &str {
    answer.1["code"].as_str().unwrap()
}

fn pty() -> Value {
    json!({ "pty": { "size": { "cols": 80, "rows": 24 } } })
}

fn gone(pid: u64) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// A field of `/proc/PID/status`.
fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

// Rules: PROC-3
#[tokio::test]
async fn nothing_selected_is_unimplemented_everywhere() {
    let envd = Envd::start().await;
    let input = json!({ "stdin": "eA==" });
    for (method, body) in [
        ("SendInput", json!({ "input": input })),
        ("SendSignal", json!({ "signal": "SIGNAL_SIGKILL", "process": {} })),
        ("CloseStdin", json!({ "process": {} })),
        ("Update", pty()),
    ] {
        let answer = envd.rpc(method, body).await;
        let refused = (StatusCode::NOT_IMPLEMENTED, "unimplemented");
        assert_eq!((answer.0, code(&answer)), refused, "{method}");
    }
    for (method, body) in [("Connect", json!({})), ("StreamInput", json!({ "start": {} }))] {
        let trailer = envd.stream(method, &[], &[body]).await.outcome().await.trailer;
        assert_eq!(trailer["error"]["code"], "unimplemented", "{method}");
    }
}

// Rules: PROC-62, PROC-65
#[tokio::test]
async fn what_is_unknown_is_not_found_everywhere() {
    let envd = Envd::start().await;
    let input = json!({ "stdin": "eA==" });
    for (selector, which) in [(json!({ "pid": 1 }), "pid 1"), (json!({ "tag": "x y" }), "tag x y")]
    {
        let message = format!("process with {which} not found");
        let not_found = json!({ "code": "not_found", "message": message });
        for (method, mut body) in [
            ("SendInput", json!({ "input": input })),
            ("SendSignal", json!({ "signal": "SIGNAL_SIGKILL" })),
            ("CloseStdin", json!({})),
            ("Update", pty()),
        ] {
            body["process"] = selector.clone();
            let answer = envd.rpc(method, body).await;
            assert_eq!(answer, (StatusCode::NOT_FOUND, not_found.clone()), "{method}");
        }
        let trailer = envd.connect(selector).await.outcome().await.trailer;
        assert_eq!(trailer["error"], not_found);
    }
}

// Rules: PROC-9, PROC-7
#[tokio::test]
async fn the_pid_is_that_of_the_program() {
    let envd = Envd::start().await;
    let outcome = envd.sh("echo $$", json!({})).await.outcome().await;
    assert_eq!(outcome.stdout(), format!("{}\n", outcome.pid));
    let outcome = envd.sh("echo $$", pty()).await.outcome().await;
    assert_eq!(outcome.pty, format!("{}\r\n", outcome.pid).as_bytes());
}

// Rules: PROC-10, TRAP-41
#[tokio::test]
async fn commands_do_not_inherit_the_priorities_of_envd() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can raise a priority");
        return;
    }
    let mut command = Command::new("nice");
    command.args(["-n", "5", env!("CARGO_BIN_EXE_envd")]);
    let envd = Envd::run(command, "");
    let fields = json!({ "stdin": false });
    let outcome = envd.sh("nice; cat /proc/self/oom_score_adj", fields).await.outcome().await;
    assert_eq!(outcome.stdout(), "0\n100\n");
}

// Rules: PROC-15, PROC-16
#[tokio::test]
async fn a_directory_is_resolved_for_its_user() {
    let envd = Envd::start().await;
    let pwd = async |cwd: Option<&str>| {
        let mut body = json!({ "process": { "cmd": "pwd" } });
        if let Some(cwd) = cwd {
            body["process"]["cwd"] = json!(cwd);
        }
        envd.stream("Start", &[], &[body]).await.outcome().await
    };
    let home = pwd(None).await.stdout().trim_end().to_owned();
    assert_eq!(pwd(Some("~")).await.stdout().trim_end(), home);
    let below = tempfile::tempdir_in(&home).unwrap();
    let name = below.path().file_name().unwrap().to_str().unwrap();
    for cwd in [name.to_owned(), format!("~/{name}"), format!("./{name}/.")] {
        assert_eq!(Path::new(pwd(Some(&cwd)).await.stdout().trim_end()), below.path(), "{cwd}");
    }
    let missing = pwd(Some("no/such")).await.trailer;
    let message = format!("cwd '{}' does not exist", Path::new(&home).join("no/such").display());
    assert_eq!(missing["error"], json!({ "code": "invalid_argument", "message": message }));

    let body = json!({ "defaultUser": current_user(), "defaultWorkdir": "/usr" });
    envd.post("/init", &body).await;
    for cwd in [None, Some("")] {
        assert_eq!(pwd(cwd).await.stdout(), "/usr\n");
    }
    assert_eq!(pwd(Some("~")).await.stdout().trim_end(), home);
    assert_eq!(Path::new(pwd(Some(name)).await.stdout().trim_end()), below.path());
}

// Rules: PROC-18, TRAP-33
#[tokio::test]
async fn a_directory_that_is_a_file_is_an_error_of_the_request() {
    let envd = Envd::start().await;
    let fields = json!({ "process": { "cwd": "/etc/passwd" } });
    let trailer = envd.sh("true", fields).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: PROC-19
#[tokio::test]
async fn a_terminal_that_cannot_start_says_what_it_was_to_be() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can run commands as somebody else");
        return;
    }
    let envd = Envd::start().await;
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut fields = pty();
    fields["process"] = json!({ "cwd": closed.path() });
    let nobody = [("authorization", "Basic bm9ib2R5Og==")];
    let trailer =
        envd.start_process("bash", &["-i"], fields, &nobody).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
    let expected = format!(
        "error starting pty with command 'bash -i' in dir '{}' with '80' cols and '24' rows: ",
        closed.path().display()
    );
    let message = trailer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with(&expected), "{message}");
}

// Rules: PROC-20
#[tokio::test]
async fn when_descriptors_run_out_a_start_is_refused_and_nothing_else_is() {
    let mut command = Command::new("prlimit");
    command.args(["--nofile=96:96", env!("CARGO_BIN_EXE_envd")]);
    let envd = Envd::run(command, "");
    envd.post("/init", &json!({ "defaultUser": current_user() })).await;
    let mut running = Vec::new();
    let refused = loop {
        let mut events = envd.sh("exec sleep 1000", json!({})).await;
        match events.next().await {
            Ok(_) => running.push(events),
            Err(trailer) => break trailer,
        }
        assert!(running.len() < 96);
    };
    assert_eq!(refused["error"]["code"], "resource_exhausted");
    let pids = envd.list().await;
    assert_eq!(pids.len(), running.len());
    for pid in pids {
        assert_eq!(envd.kill(pid).await.0, StatusCode::OK);
    }
    for events in &mut running {
        assert_eq!(events.outcome().await.end["error"], "signal: killed");
    }
    drop(running);
    assert_eq!(envd.sh("echo again", json!({})).await.outcome().await.stdout(), "again\n");
}

// Rules: PROC-22, PROC-23
#[tokio::test]
async fn only_a_terminal_makes_a_session() {
    let envd = Envd::start().await;
    // Group, session and terminal.
    let script = "cut -d ' ' -f 5-7 /proc/$$/stat";
    let own = std::fs::read_to_string(format!("/proc/{}/stat", envd.pid())).unwrap();
    let own: Vec<_> = own.split(' ').skip(4).take(3).collect();
    let outcome = envd.sh(script, json!({})).await.outcome().await;
    assert_eq!(outcome.stdout().trim_end(), own.join(" "));

    let outcome = envd.sh(&format!("{script}; tty"), pty()).await.outcome().await;
    let said = String::from_utf8(outcome.pty).unwrap();
    let fields: Vec<_> = said.lines().next().unwrap().split(' ').collect();
    assert_eq!(fields[..2], [outcome.pid.to_string(), outcome.pid.to_string()]);
    assert_ne!(fields[2], "0");
    assert!(said.contains("/dev/pts/"), "{said}");
}

// Rules: PROC-27
#[tokio::test]
async fn arguments_and_variables_pass_verbatim() {
    let envd = Envd::start().await;
    let args = ["%s|", "", "a b", "$HOME `id` \\ '\"*", "two\nlines\t", "ü你🙂", "--", "-x"];
    let outcome = envd.start_process("printf", &args, json!({}), &[]).await.outcome().await;
    assert_eq!(outcome.stdout(), args[1..].join("|") + "|");

    let value = "a=b\n$HOME 'ü' ";
    let fields = json!({ "process": { "envs": { "V": value, "EMPTY": "" } } });
    let script = "printf '%s|%s' \"$V\" \"${EMPTY-unset}\"";
    let outcome = envd.sh(script, fields).await.outcome().await;
    assert_eq!(outcome.stdout(), format!("{value}|"));

    for process in [
        json!({ "envs": { "V": "a\0b" } }),
        json!({ "envs": { "V\0W": "x" } }),
        json!({ "cmd": "tr\0ue" }),
        json!({ "cwd": "/\0" }),
    ] {
        let trailer = envd.sh("true", json!({ "process": process })).await.outcome().await.trailer;
        assert_eq!(trailer["error"]["code"], "invalid_argument", "{process}");
    }
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: PROC-12, TRAP-33
#[tokio::test]
async fn what_exists_but_cannot_be_executed_is_126() {
    let envd = Envd::start().await;
    let run = async |cmd: &str, args: &[&str]| {
        let outcome = envd.start_process(cmd, args, json!({}), &[]).await.outcome().await;
        assert_eq!(outcome.trailer, json!({}));
        outcome.end["exitCode"].clone()
    };
    assert_eq!(run("/usr", &[]).await, 126);
    // Longer than the kernel takes.
    assert_eq!(run("true", &["x".repeat(200_000).as_str()]).await, 126);
    assert_eq!(run("/etc/passwd/x", &[]).await, 127);
    assert_eq!(run("", &[]).await, 127);
}

// Rules: PROC-37, TRAP-9, TRAP-48
#[tokio::test]
async fn every_deadly_signal_has_its_name() {
    let envd = Envd::start().await;
    for (signal, name) in [
        (1, "hangup"),
        (2, "interrupt"),
        (3, "quit"),
        (4, "illegal instruction"),
        (5, "trace/breakpoint trap"),
        (6, "aborted"),
        (7, "bus error"),
        (8, "floating point exception"),
        (9, "killed"),
        (10, "user defined signal 1"),
        (11, "segmentation fault"),
        (12, "user defined signal 2"),
        (13, "broken pipe"),
        (14, "alarm clock"),
        (15, "terminated"),
    ] {
        // Without cores, whatever the system says.
        let script = format!("ulimit -c 0; kill -{signal} $$");
        let end = envd.sh(&script, json!({ "stdin": false })).await.outcome().await.end;
        let status = format!("signal: {name}");
        assert_eq!(end, json!({ "exitCode": -1, "status": status, "error": status }));
    }
}

// Rules: PROC-36
#[tokio::test]
async fn every_code_is_told() {
    let envd = Envd::start().await;
    for code in [1, 2, 127, 128, 255] {
        let end = envd.sh(&format!("exit {code}"), json!({})).await.outcome().await.end;
        let status = format!("exit status {code}");
        let expected =
            json!({ "exitCode": code, "exited": true, "status": status, "error": status });
        assert_eq!(end, expected);
    }
}

// Rules: PROC-41
#[tokio::test]
async fn a_process_may_refuse_to_be_terminated() {
    let envd = Envd::start().await;
    let script = "trap 'echo refused' TERM; echo ready; while :; do sleep 0.02; done";
    let mut events = envd.sh(script, json!({})).await;
    let pid = events.pid().await;
    events.until_output("ready").await;
    let body = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGTERM" });
    assert_eq!(envd.rpc("SendSignal", body).await.0, StatusCode::OK);
    events.until_output("refused").await;
    assert_eq!(envd.list().await, [pid]);
    envd.kill(pid).await;
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

/// Starts `sleep` as a child of the command, and tells its pid.
const WITH_CHILD: &str = "sleep 1000 & echo child $! end; wait";

async fn child_of(events: &mut Events) -> u64 {
    let said = events.until_output("end").await;
    let text = [said.stdout, said.pty].concat();
    String::from_utf8(text).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

// Rules: PROC-42, PROC-48, TRAP-32
#[tokio::test]
async fn a_kill_reaps_the_process_and_leaves_its_children() {
    let envd = Envd::start().await;
    let mut events = envd.sh(WITH_CHILD, json!({})).await;
    let pid = events.pid().await;
    let child = child_of(&mut events).await;
    assert_eq!(envd.kill(pid).await.0, StatusCode::OK);
    assert!(gone(pid));
    assert!(!gone(child));
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

// Rules: PROC-49
#[tokio::test]
async fn killing_a_shell_in_a_terminal_hangs_up_what_it_runs() {
    let envd = Envd::start().await;
    let mut events = envd.sh(WITH_CHILD, pty()).await;
    let pid = events.pid().await;
    let child = child_of(&mut events).await;
    assert_eq!(envd.kill(pid).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
    // Not ours to reap, unless envd is the first process.
    until(async || {
        let state = status_field(u32::try_from(child).unwrap(), "State");
        state.is_none_or(|state| state.starts_with('Z'))
    })
    .await;
}

// Rules: PROC-40, PROC-44, PROC-48, TRAP-8
#[tokio::test]
async fn a_timeout_does_not_wait_for_children() {
    let envd = Envd::start().await;
    let timeout = [("connect-timeout-ms", "3000")];
    let args = ["-c", WITH_CHILD];
    let mut events = envd.start_process("/bin/sh", &args, json!({}), &timeout).await;
    let pid = events.pid().await;
    let child = child_of(&mut events).await;
    let mut other = envd.connect(json!({ "pid": pid })).await;
    let outcome = events.outcome().await;
    assert_eq!(outcome.trailer["error"]["code"], "deadline_exceeded");
    // Who has no timeout sees how it ended.
    assert_eq!(other.outcome().await.end["error"], "signal: killed");
    assert!(gone(pid));
    assert!(!gone(child));
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: PROC-46, PROC-43, TRAP-8
#[tokio::test]
async fn the_end_of_one_stream_is_not_that_of_another() {
    let envd = Envd::start().await;
    let mut started = envd.sh("read line; echo $line", json!({})).await;
    let pid = started.pid().await;
    let timeout = [("connect-timeout-ms", "100")];
    let body = json!({ "process": { "pid": pid } });
    let outcome = envd.stream("Connect", &timeout, &[body]).await.outcome().await;
    assert_eq!(outcome.trailer["error"]["code"], "deadline_exceeded");
    envd.type_in(pid, "still here\n").await;
    let outcome = started.outcome().await;
    assert_eq!((outcome.stdout(), &outcome.trailer), ("still here\n", &json!({})));
}

// Rules: PROC-60, TRAP-31
#[tokio::test]
async fn list_repeats_what_was_asked_for() {
    let envd = Envd::start().await;
    let configs = [
        json!({ "cmd": "sleep", "args": ["1000"] }),
        json!({ "cmd": "sleep", "args": ["1000", "1"], "envs": { "A": "1" }, "cwd": "/usr" }),
    ];
    let mut expected = Vec::new();
    let mut running = Vec::new();
    for config in configs {
        let mut events = envd.stream("Start", &[], &[json!({ "process": config })]).await;
        expected.push(json!({ "config": config, "pid": events.pid().await }));
        running.push(events);
    }
    let (_, body) = envd.rpc("List", json!({})).await;
    assert_eq!(body, json!({ "processes": expected }));
}

// Rules: PROC-63, PROC-61, TRAP-31
#[tokio::test]
async fn a_new_process_takes_the_tag_of_an_ended_one() {
    let envd = Envd::start().await;
    let ended = envd.sh("exit 4", json!({ "tag": "t" })).await.outcome().await;
    let mut late = envd.connect(json!({ "tag": "t" })).await;
    assert_eq!(late.pid().await, ended.pid);
    assert_eq!(late.next().await.unwrap()["event"]["end"]["exitCode"], 4);
    assert_eq!(late.next().await, Err(json!({})));
    let mut new = envd.sh("read line; exit 5", json!({ "tag": "t" })).await;
    let pid = new.pid().await;
    let mut connected = envd.connect(json!({ "tag": "t" })).await;
    assert_eq!(connected.pid().await, pid);
    let old = envd.connect(json!({ "pid": ended.pid })).await.outcome().await;
    assert_eq!(old.trailer["error"]["code"], "not_found");
    envd.type_in(pid, "\n").await;
    assert_eq!(connected.outcome().await.end["exitCode"], 5);
}

// Rules: PROC-64
#[tokio::test]
async fn a_tag_is_found_among_others() {
    let envd = Envd::start().await;
    let mut running = Vec::new();
    for tag in [json!("a"), Value::Null, json!("b"), json!("same"), json!("same"), json!("")] {
        let mut events = envd.sh("read line", json!({ "tag": tag })).await;
        let pid = events.pid().await;
        running.push((tag, pid, events));
    }
    let pids: Vec<_> = running.iter().map(|(_, pid, _)| *pid).collect();
    for tag in ["b", "a", ""] {
        let pid = envd.connect(json!({ "tag": tag })).await.pid().await;
        let (_, expected, _) = running.iter().find(|(own, _, _)| *own == tag).unwrap();
        assert_eq!(pid, *expected, "{tag}");
    }
    assert!(pids[3..5].contains(&envd.connect(json!({ "tag": "same" })).await.pid().await));
}
