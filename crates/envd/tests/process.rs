//! Starting processes, following them and how they end, as a client sees it.

#![allow(clippy::unwrap_used)]

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path};

use http::StatusCode;
use serde_json::{Value, json};
use support::{Envd, current_user, until};

// Rules: PROC-30, PROC-36, PROC-7
#[tokio::test]
async fn output_comes_before_the_end_and_says_where_it_was_written() {
    let envd = Envd::start().await;
    let outcome = envd.sh("echo out; echo err >&2; exit 3", json!({})).await.outcome().await;
    assert!(outcome.pid > 0);
    assert_eq!((outcome.stdout(), outcome.stderr()), ("out\n", "err\n"));
    let end = json!({
        "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3",
    });
    assert_eq!(outcome.end, end);
    assert_eq!(outcome.trailer, json!({}));
}

// Rules: RPC-18, TRAP-9, PROC-35, RPC-15, RPC-21
#[tokio::test]
async fn success_leaves_out_what_is_zero() {
    let envd = Envd::start().await;
    let outcome = envd.sh("true", json!({})).await.outcome().await;
    assert_eq!(outcome.end, json!({ "exited": true, "status": "exit status 0" }));
}

// Rules: TRAP-9, TRAP-48, PROC-37
#[tokio::test]
async fn a_signal_is_named() {
    let envd = Envd::start().await;
    let end = |status: &str| json!({ "exitCode": -1, "status": status, "error": status });
    for (signal, status) in [("KILL", "signal: killed"), ("TERM", "signal: terminated")] {
        let outcome = envd.sh(&format!("kill -{signal} $$"), json!({})).await.outcome().await;
        assert_eq!(outcome.end, end(status));
    }
}

// Rules: TRAP-33, PROC-11, PROC-12
#[tokio::test]
async fn what_cannot_be_executed_fails_as_in_a_shell() {
    let envd = Envd::start().await;
    let run = async |cmd: &str| {
        let mut events = envd.start_process(cmd, &["argument"], json!({}), &[]).await;
        let outcome = events.outcome().await;
        (outcome.end["exitCode"].clone(), outcome.stderr().to_owned())
    };
    assert_eq!(run("no-such-program").await, (json!(127), "no-such-program: not found\n".into()));
    assert_eq!(run("/no/such").await, (json!(127), "/no/such: not found\n".into()));
    assert_eq!(run("/etc/passwd").await, (json!(126), "/etc/passwd: Permission denied\n".into()));
}

#[tokio::test]
async fn a_script_needs_no_interpreter_line() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "echo \"$1\"\n").unwrap();
    set_mode(&script, 0o755);
    let path = directory.path().to_str().unwrap();
    let fields = json!({ "process": { "envs": { "PATH": format!("/no/such:{path}:/bin") } } });
    let outcome = envd.start_process("script", &["a b"], fields, &[]).await.outcome().await;
    assert_eq!(outcome.stdout(), "a b\n");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

// Rules: PROC-13
#[tokio::test]
async fn commands_get_the_variables_meant_for_them_and_no_other() {
    let envd = Envd::start().await;
    let body = json!({ "envVars": { "A": "sandbox", "B": "sandbox" } });
    envd.post("/init", &body).await;
    let fields = json!({ "process": { "envs": { "B": "request", "C": "x=y" } } });
    let outcome = envd.start_process("env", &[], fields, &[]).await.outcome().await;
    let mut names: Vec<_> =
        outcome.stdout().lines().map(|line| line.split_once('=').unwrap().0).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "B", "C", "E2B_SANDBOX", "HOME", "LOGNAME", "PATH", "USER"]);
    let user = current_user();
    for line in ["A=sandbox", "B=request", "C=x=y", "E2B_SANDBOX=true", &format!("USER={user}")] {
        assert!(outcome.stdout().lines().any(|seen| seen == line), "{line}");
    }
}

// Rules: PROC-10
#[tokio::test]
async fn commands_start_with_a_clean_slate() {
    let envd = Envd::start().await;
    let script = "ls /proc/self/fd; grep -E 'Sig(Ign|Blk)' /proc/self/status; \
                  cat /proc/self/oom_score_adj; umask";
    let fields = json!({ "stdin": false });
    let outcome = envd.sh(script, fields).await.outcome().await;
    // `ls` itself has the directory open as 3.
    let expected = "0\n1\n2\n3\n\
                    SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n100\n0022\n";
    assert_eq!(outcome.stdout(), expected);
}

// Rules: TRAP-33, PROC-17
#[tokio::test]
async fn the_working_directory_must_exist() {
    let envd = Envd::start().await;
    let fields = |cwd: &str| json!({ "process": { "cwd": cwd } });
    let outcome = envd.sh("pwd", fields("/usr")).await.outcome().await;
    assert_eq!(outcome.stdout(), "/usr\n");
    let outcome = envd.sh("pwd", fields("/no/such")).await.outcome().await;
    let error = json!({ "code": "invalid_argument", "message": "cwd '/no/such' does not exist" });
    assert_eq!(outcome.trailer["error"], error);
    let home = envd.sh("cd; pwd", fields("~")).await.outcome().await;
    assert_eq!(envd.sh("pwd", fields("")).await.outcome().await.stdout(), home.stdout());
}

// Rules: TRAP-40, PROC-14, PROC-18
#[tokio::test]
async fn a_user_is_taken_with_all_its_groups_and_no_more() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can run commands as somebody else");
        return;
    }
    let envd = Envd::start().await;
    let nobody = [("authorization", "Basic bm9ib2R5Og==")];
    let mut events = envd.start_process("id", &[], json!({}), &nobody).await;
    let expected = std::process::Command::new("id").arg("nobody").output().unwrap().stdout;
    assert_eq!(events.outcome().await.stdout.trim_ascii(), expected.trim_ascii());

    let closed = tempfile::tempdir().unwrap();
    set_mode(closed.path(), 0o700);
    let fields = json!({ "process": { "cwd": closed.path() } });
    let trailer = envd.start_process("id", &[], fields, &nobody).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
    let message = trailer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("error starting process 'id': chdir: Permission denied"));
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: PROC-27
#[tokio::test]
async fn a_nul_byte_is_an_error_of_the_request() {
    let envd = Envd::start().await;
    let trailer =
        envd.start_process("echo", &["a\0b"], json!({}), &[]).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
}

// Rules: PROC-60
#[tokio::test]
async fn list_shows_what_was_asked_for_while_it_lives() {
    let envd = Envd::start().await;
    let mut events = envd.sh("cat", json!({ "tag": "mine" })).await;
    let pid = events.pid().await;
    let (_, body) = envd.rpc("List", json!({})).await;
    let config = json!({ "cmd": "/bin/sh", "args": ["-c", "cat"], "cwd": "/" });
    let process = json!({ "config": config, "pid": pid, "tag": "mine" });
    assert_eq!(body, json!({ "processes": [process] }));
    envd.rpc("CloseStdin", json!({ "process": { "tag": "mine" } })).await;
    assert_eq!(events.outcome().await.end["exited"], true);
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: TRAP-10, PROC-43, PROC-31, PROC-34, PROC-3
#[tokio::test]
async fn a_process_outlives_its_client_and_can_be_found_again() {
    let envd = Envd::start().await;
    let mut first = envd.sh("echo before; read line; echo $line", json!({ "tag": "t" })).await;
    let pid = first.pid().await;
    first.until_output("before").await;
    drop(first);
    let mut by_pid = envd.stream("Connect", &[], &[json!({ "process": { "pid": pid } })]).await;
    let mut by_tag = envd.stream("Connect", &[], &[json!({ "process": { "tag": "t" } })]).await;
    assert_eq!((by_pid.pid().await, by_tag.pid().await), (pid, pid));
    envd.type_in(pid, "after\n").await;
    for events in [&mut by_pid, &mut by_tag] {
        let outcome = events.outcome().await;
        assert_eq!(outcome.stdout(), "after\n");
        assert_eq!(outcome.end["exited"], true);
    }
}

// Rules: TRAP-31, PROC-61, PROC-62
#[tokio::test]
async fn an_end_can_be_asked_for_afterwards() {
    let envd = Envd::start().await;
    let started = envd.sh("exit 4", json!({ "tag": "t" })).await.outcome().await;
    for selector in [json!({ "pid": started.pid }), json!({ "tag": "t" })] {
        let body = json!({ "process": selector });
        let late = envd.stream("Connect", &[], &[body]).await.outcome().await;
        assert_eq!((late.pid, late.end), (started.pid, started.end.clone()));
    }
    let body = json!({ "process": { "pid": 4_000_000_000_u32 } });
    let unknown = envd.stream("Connect", &[], &[body]).await.outcome().await;
    let message = "process with pid 4000000000 not found";
    assert_eq!(unknown.trailer["error"], json!({ "code": "not_found", "message": message }));
}

// Rules: TRAP-12, PROC-65, PROC-37
#[tokio::test]
async fn killing_what_has_ended_is_not_found() {
    let envd = Envd::start().await;
    let mut events = envd.sh("sleep 1000", json!({})).await;
    let pid = events.pid().await;
    assert_eq!(envd.kill(pid).await, (StatusCode::OK, json!({})));
    let (status, body) = envd.kill(pid).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

// Rules: TRAP-32, RPC-17, PROC-47, PROC-3
#[tokio::test]
async fn only_two_signals_can_be_sent() {
    let envd = Envd::start().await;
    let mut events = envd.sh("sleep 1000", json!({})).await;
    let pid = events.pid().await;
    for signal in [json!("SIGNAL_UNSPECIFIED"), json!(2)] {
        let body = json!({ "process": { "pid": pid }, "signal": signal });
        let (status, body) = envd.rpc("SendSignal", body).await;
        assert_eq!((status, &body["code"]), (StatusCode::NOT_IMPLEMENTED, &json!("unimplemented")));
    }
    let (status, _) = envd.rpc("SendSignal", json!({ "signal": "SIGNAL_SIGKILL" })).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    let body = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGTERM" });
    assert_eq!(envd.rpc("SendSignal", body).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.end["error"], "signal: terminated");
}

// Rules: TRAP-9, PROC-39
#[tokio::test]
async fn a_normal_end_waits_for_all_who_write() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("go");
    let script =
        format!("(until [ -e {} ]; do sleep 0.02; done; echo late) & echo early", flag.display());
    let mut events = envd.sh(&script, json!({})).await;
    let pid = events.pid().await;
    events.until_output("early").await;
    // Reaped at once, though not over.
    until(async || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert_eq!(envd.list().await, [pid]);
    std::fs::write(&flag, "").unwrap();
    let outcome = events.outcome().await;
    assert_eq!(outcome.stdout(), "late\n");
    assert_eq!(outcome.end, json!({ "exited": true, "status": "exit status 0" }));
}

// Rules: TRAP-9, PROC-40
#[tokio::test]
async fn a_kill_does_not_wait_for_those_left_behind() {
    let envd = Envd::start().await;
    let mut killed = envd.sh("sleep 1000 & echo ready; wait", json!({})).await;
    let pid = killed.pid().await;
    killed.until_output("ready").await;
    envd.kill(pid).await;
    assert_eq!(killed.outcome().await.end["error"], "signal: killed");

    // Nor does it when only they are left.
    let mut left = envd.sh("sleep 1000 & echo ready", json!({})).await;
    let pid = left.pid().await;
    left.until_output("ready").await;
    until(async || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert_eq!(envd.kill(pid).await.0, StatusCode::OK);
    assert_eq!(left.outcome().await.end["status"], "exit status 0");
}

// Rules: TRAP-8, PROC-44, PROC-45, STREAM-10
#[tokio::test]
async fn the_timeout_of_a_start_is_the_life_of_the_process() {
    let envd = Envd::start().await;
    let timeout = [("connect-timeout-ms", "3000")];
    let mut followed = envd.start_process("sleep", &["1000"], json!({}), &timeout).await;
    let outcome = followed.outcome().await;
    assert_eq!(outcome.trailer["error"]["code"], "deadline_exceeded");
    assert_eq!(outcome.end, Value::Null);
    until(async || envd.list().await.is_empty()).await;

    let mut left = envd.start_process("sleep", &["1000"], json!({}), &timeout).await;
    let pid = left.pid().await;
    drop(left);
    until(async || envd.list().await.is_empty()).await;
    let body = json!({ "process": { "pid": pid } });
    let end = envd.stream("Connect", &[], &[body]).await.outcome().await.end;
    assert_eq!(end["error"], "signal: killed");
}

// Rules: TRAP-8, PROC-46, STREAM-10, STREAM-11
#[tokio::test]
async fn the_timeout_of_a_connect_ends_only_the_stream() {
    let envd = Envd::start().await;
    let forever = [("connect-timeout-ms", "0")];
    let mut started = envd.start_process("sleep", &["1000"], json!({}), &forever).await;
    let pid = started.pid().await;
    let timeout = [("connect-timeout-ms", "100")];
    let body = json!({ "process": { "pid": pid } });
    let outcome = envd.stream("Connect", &timeout, &[body]).await.outcome().await;
    assert_eq!(outcome.trailer["error"]["code"], "deadline_exceeded");
    assert_eq!(envd.list().await, [pid]);
}

// Rules: RPC-22
#[tokio::test]
async fn a_timeout_must_be_a_number() {
    let envd = Envd::start().await;
    let timeout = [("connect-timeout-ms", "soon")];
    let trailer =
        envd.start_process("true", &[], json!({}), &timeout).await.outcome().await.trailer;
    assert_eq!(trailer["error"]["code"], "invalid_argument");
}

// Rules: TRAP-16, STREAM-7
#[tokio::test]
async fn silence_is_broken_by_keepalives() {
    let envd = Envd::start().await;
    let interval = [("keepalive-ping-interval", "1")];
    let mut events = envd.start_process("sleep", &["1000"], json!({}), &interval).await;
    events.pid().await;
    assert_eq!(events.next().await.unwrap(), json!({ "event": { "keepalive": {} } }));
}

// Rules: TRAP-10, PROC-34
#[tokio::test]
async fn nobody_has_to_read_the_output() {
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("head -c 20000000 /dev/zero; touch {}", done.display());
    let mut events = envd.sh(&script, json!({})).await;
    events.pid().await;
    drop(events);
    until(async || done.exists()).await;
}

// Rules: PROC-32
#[tokio::test]
async fn a_slow_reader_gets_everything_and_costs_little() {
    const BYTES: usize = 64 << 20;
    let envd = Envd::start().await;
    let count = BYTES.to_string();
    let mut slow = envd.start_process("head", &["-c", &count, "/dev/zero"], json!({}), &[]).await;
    let pid = slow.pid().await;
    // The others are served meanwhile.
    let other = envd.sh("echo hi", json!({})).await.outcome().await;
    assert_eq!(other.stdout(), "hi\n");
    assert_eq!(envd.list().await, [pid]);
    let outcome = slow.outcome().await;
    assert_eq!(outcome.stdout.len(), BYTES);
    assert_eq!(outcome.end["exited"], true);

    let status = std::fs::read_to_string(format!("/proc/{}/status", envd.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 48 << 10, "peak of {peak_kib} KiB");
}
