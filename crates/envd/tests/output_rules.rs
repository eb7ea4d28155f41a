//! Output: how it is cut up, who gets it, whom it holds back, and what it costs.

#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::{Value, json};
use support::{Envd, Outcome, soon, until};

fn gone(pid: u64) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

// Rules: PROC-28, PROC-29, PROC-30
#[tokio::test]
async fn output_comes_in_bounded_pieces_and_every_byte_of_it() {
    let envd = Envd::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bytes");
    std::fs::write(&file, &bytes).unwrap();
    let path = file.to_str().unwrap();
    // Raw, so that the terminal changes nothing.
    let terminal = format!("stty raw; cat {path}");
    let size = json!({ "pty": { "size": { "cols": 80, "rows": 24 } } });
    for (script, fields, most) in
        [(&*format!("cat {path}"), json!({}), 32 << 10), (&*terminal, size, 16 << 10)]
    {
        let mut events = envd.sh(script, fields).await;
        let mut outcome = Outcome::default();
        while outcome.end.is_null() {
            let message = events.next().await.unwrap();
            let data = &message["event"]["data"];
            for piece in [&data["stdout"], &data["pty"]].into_iter().filter_map(Value::as_str) {
                let length = STANDARD.decode(piece).unwrap().len();
                assert!(0 < length && length <= most, "{length}");
            }
            outcome.add(&message);
        }
        let said = [outcome.stdout, outcome.pty].concat();
        assert!(said == bytes, "{} bytes of {}", said.len(), bytes.len());
    }
}

// Rules: PROC-29, STREAM-14
#[tokio::test]
async fn half_a_character_is_passed_on() {
    let envd = Envd::start().await;
    let script = "printf '\\303'; read line; printf '\\251'";
    let mut events = envd.sh(script, json!({})).await;
    let pid = events.pid().await;
    let data = |base64: &str| json!({ "event": { "data": { "stdout": base64 } } });
    assert_eq!(events.next().await, Ok(data("ww==")));
    envd.type_in(pid, "\n").await;
    assert_eq!(events.next().await, Ok(data("qQ==")));
}

// Rules: PROC-31, PROC-61, TRAP-10
#[tokio::test]
async fn every_subscriber_gets_everything_from_then_on() {
    const BYTES: usize = 4 << 20;
    let envd = Envd::start().await;
    let script = format!("echo before; read line; head -c {BYTES} /dev/zero; exit 9");
    let mut first = envd.sh(&script, json!({ "tag": "t" })).await;
    let pid = first.pid().await;
    first.until_output("before").await;
    let mut all = vec![first];
    for number in 0..8 {
        let selector = if number % 2 == 0 { json!({ "pid": pid }) } else { json!({ "tag": "t" }) };
        let mut events = envd.connect(selector).await;
        assert_eq!(events.pid().await, pid);
        all.push(events);
    }
    envd.type_in(pid, "\n").await;
    let mut followers = tokio::task::JoinSet::new();
    for mut events in all {
        followers.spawn(async move { events.outcome().await });
    }
    for outcome in followers.join_all().await {
        assert!(outcome.stdout == [0; BYTES], "{} bytes", outcome.stdout.len());
        assert_eq!(outcome.end["exitCode"], 9);
        assert_eq!(outcome.trailer, json!({}));
    }
}

/// What a process has written so far.
fn written(pid: u64) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    written.parse().unwrap()
}

/// Waits until a process has written something, and then no longer does.
async fn until_held_back(pid: u64) -> u64 {
    let mut before = 0;
    until(async || {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = written(pid);
        now > 0 && std::mem::replace(&mut before, now) == now
    })
    .await;
    before
}

// Rules: PROC-32, PROC-33, TRAP-10
#[tokio::test]
async fn one_slow_subscriber_holds_back_all_until_it_goes() {
    const BYTES: u64 = 128 << 20;
    let envd = Envd::start().await;
    let count = BYTES.to_string();
    let mut slow = envd.start_process("head", &["-c", &count, "/dev/zero"], json!({}), &[]).await;
    let pid = slow.pid().await;
    let mut fast = envd.connect(json!({ "pid": pid })).await;
    fast.pid().await;
    let reader = tokio::spawn(async move { fast.outcome().await });
    let written = until_held_back(pid).await;
    assert!(written < BYTES / 4, "{written} bytes were taken from it");
    assert!(!reader.is_finished());
    drop(slow);
    let outcome = reader.await.unwrap();
    assert_eq!(outcome.end["status"], "exit status 0");
    assert!(envd.peak_kib() < 48 << 10, "peak of {} KiB", envd.peak_kib());
}

// Rules: PROC-32, PROC-40
#[tokio::test]
async fn a_process_that_is_held_back_can_be_killed() {
    let envd = Envd::start().await;
    let mut slow = envd.start_process("cat", &["/dev/zero"], json!({}), &[]).await;
    let pid = slow.pid().await;
    until_held_back(pid).await;
    assert_eq!(envd.kill(pid).await, (StatusCode::OK, json!({})));
    assert!(gone(pid));
    let outcome = slow.outcome().await;
    assert_eq!(outcome.end["error"], "signal: killed");
    assert_eq!(envd.list().await, [0; 0]);
}

// Rules: PROC-33, PROC-34, TRAP-10
#[tokio::test]
async fn those_who_go_away_hold_nobody_back_and_output_costs_nothing() {
    const BYTES: u64 = 256 << 20;
    let envd = Envd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("head -c {BYTES} /dev/zero; touch {}; exec cat", done.display());
    let mut first = envd.sh(&script, json!({})).await;
    let pid = first.pid().await;
    let second = envd.connect(json!({ "pid": pid })).await;
    drop(first);
    drop(second);
    until(async || done.exists()).await;
    assert!(envd.peak_kib() < 32 << 10, "peak of {} KiB", envd.peak_kib());
    // Nothing of it is kept for those who come later.
    let mut late = envd.connect(json!({ "pid": pid })).await;
    late.pid().await;
    envd.type_in(pid, "now").await;
    assert_eq!(late.next().await.unwrap()["event"]["data"]["stdout"], STANDARD.encode("now"));
}

/// What envd holds.
fn descriptors(envd: &Envd) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", envd.pid())).unwrap().count()
}

/// Its children, the dead as well as the living; some are its own.
fn children(envd: &Envd) -> String {
    let task = format!("/proc/{0}/task/{0}/children", envd.pid());
    std::fs::read_to_string(task).unwrap()
}

// Rules: PROC-42, TRAP-32
#[tokio::test]
async fn thousands_of_processes_leave_nothing() {
    const AT_ONCE: usize = 500;
    const ROUNDS: usize = 2;
    let envd = Envd::start().await;
    envd.sh("true", json!({})).await.outcome().await;
    let (idle, own) = (descriptors(&envd), children(&envd));
    for round in 0..ROUNDS {
        let mut running = Vec::new();
        for number in 0..AT_ONCE {
            let tag = format!("{round}-{number}");
            let fields = json!({ "tag": tag });
            let script = format!("read line; echo {tag} $line");
            let mut events = envd.sh(&script, fields).await;
            events.pid().await;
            running.push((tag, events));
        }
        assert_eq!(envd.list().await.len(), AT_ONCE);
        for (tag, mut events) in running {
            let input = json!({ "stdin": STANDARD.encode("typed\n") });
            let body = json!({ "process": { "tag": tag }, "input": input });
            assert_eq!(envd.rpc("SendInput", body).await.0, StatusCode::OK);
            let outcome = events.outcome().await;
            assert_eq!(outcome.stdout(), format!("{tag} typed\n"));
            assert_eq!(outcome.end["status"], "exit status 0");
        }
    }
    assert_eq!(envd.list().await, [0; 0]);
    assert_eq!(children(&envd), own);
    // Connections of the last requests may still be closing.
    until(async || descriptors(&envd) <= idle).await;
}

// Rules: PROC-42, PROC-30
#[tokio::test]
async fn processes_may_be_killed_amid_their_output() {
    let envd = Envd::start().await;
    let mut running = tokio::task::JoinSet::new();
    let mut pids = Vec::new();
    for _ in 0..4 {
        let mut events = envd.sh("while :; do echo $$; echo $$ >&2; done", json!({})).await;
        pids.push(events.pid().await);
        running.spawn(async move { events.outcome().await });
    }
    for pid in &pids {
        assert_eq!(envd.kill(*pid).await.0, StatusCode::OK);
        assert!(gone(*pid));
    }
    for outcome in soon(running.join_all()).await {
        assert_eq!(outcome.end["error"], "signal: killed");
        assert_eq!(outcome.trailer, json!({}));
    }
    assert_eq!(envd.list().await, [0; 0]);
}
