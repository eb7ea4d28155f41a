//! The process that forks commands: what it gives away, and what becomes of commands without it.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{Envd, until};

/// The spawner of an envd that has just begun, which gives it its name a moment later.
async fn spawner_of(envd: &Envd) -> u32 {
    until(async || spawner(envd).is_some()).await;
    spawner(envd).unwrap()
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t").map(str::to_owned))
}

/// The spawner of this envd, while there is one.
fn spawner(envd: &Envd) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| {
        status(*pid, "PPid") == Some(envd.pid().to_string())
            && status(*pid, "Name").as_deref() == Some("envd-spawner")
            && status(*pid, "State").is_some_and(|state| !state.starts_with('Z'))
    })
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn signal_if_there(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

// Rules: PROC-9
#[tokio::test]
async fn commands_are_children_of_envd_and_not_of_whoever_forks_them() {
    let envd = Envd::start().await;
    let outcome = envd.sh("echo $PPID; exit 7", json!({})).await.outcome().await;
    assert_eq!(outcome.stdout(), format!("{}\n", envd.pid()));
    assert_eq!(outcome.end["exitCode"], json!(7));
    assert!(spawner(&envd).is_some());
}

#[tokio::test]
async fn it_has_no_descriptor_of_envds_and_no_signal_but_the_last_ends_it() {
    let envd = Envd::start().await;
    let pid = spawner_of(&envd).await;
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let open: Vec<String> =
        links.map(|link| fs::read_link(link.path()).unwrap().display().to_string()).collect();
    assert_eq!(open.iter().filter(|link| *link == "/dev/null").count(), 3, "{open:?}");
    assert_eq!(open.len(), 4, "{open:?}");
    for passing in [Signal::HUP, Signal::INT, Signal::TERM, Signal::PIPE, Signal::USR1] {
        signal(pid, passing);
    }
    assert_eq!(envd.sh("echo on", json!({})).await.outcome().await.stdout(), "on\n");
    assert_eq!(spawner(&envd), Some(pid));
}

// Rules: TRAP-41, PROC-26
#[tokio::test]
async fn commands_go_on_without_it() {
    let envd = Envd::start().await;
    let mut before = envd.sh("read line; echo got $line", json!({ "stdin": true })).await;
    let running = before.pid().await;
    signal(spawner_of(&envd).await, Signal::KILL);
    until(async || spawner(&envd).is_none()).await;

    let outcome = envd.sh("echo $PPID; exit 3", json!({})).await.outcome().await;
    assert_eq!(outcome.stdout(), format!("{}\n", envd.pid()));
    assert_eq!(outcome.end["exitCode"], json!(3));
    // One that it forked is none the worse for it.
    envd.type_in(running, "more\n").await;
    assert_eq!(before.outcome().await.stdout(), "got more\n");
}

#[tokio::test]
async fn one_that_was_stopped_is_woken() {
    let envd = Envd::start().await;
    let pid = spawner_of(&envd).await;
    signal(pid, Signal::STOP);
    until(async || status(pid, "State").unwrap().starts_with('T')).await;
    assert_eq!(envd.sh("echo on", json!({})).await.outcome().await.stdout(), "on\n");
    assert_eq!(spawner(&envd), Some(pid));
}

#[tokio::test]
async fn one_that_is_stopped_again_and_again_is_given_up_at_the_latest() {
    let envd = Envd::start().await;
    let pid = spawner_of(&envd).await;
    let over = Arc::new(AtomicBool::new(false));
    let stopper = thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Relaxed) {
                // Until it has been ended.
                signal_if_there(pid, Signal::STOP);
            }
        }
    });
    let mut refused = Vec::new();
    for number in 0..50 {
        let outcome = envd.sh(&format!("echo {number}"), json!({})).await.outcome().await;
        if outcome.trailer["error"].is_null() {
            assert_eq!(outcome.stdout(), format!("{number}\n"));
        } else {
            refused.push(outcome.trailer);
        }
    }
    // The one for which it was given up, if it had seen it: it may have run.
    assert!(refused.len() <= 1, "{refused:?}");
    over.store(true, Ordering::Relaxed);
    stopper.join().unwrap();
    signal_if_there(pid, Signal::CONT);
}

// Rules: TRAP-32, PROC-42
#[tokio::test]
async fn no_end_is_lost_however_soon_it_comes() {
    const EACH: usize = 40;
    let envd = Envd::start().await;
    let runs = (0..4).map(async |lane| {
        let mut pids = BTreeSet::new();
        for code in 0..EACH {
            let script = format!("exit {}", code + lane);
            let outcome = envd.sh(&script, json!({})).await.outcome().await;
            assert_eq!(outcome.end["exitCode"].as_u64().unwrap_or(0), (code + lane) as u64);
            pids.insert(outcome.pid);
        }
        assert_eq!(pids.len(), EACH);
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn a_command_may_be_as_long_as_the_kernel_takes() {
    // No argument may be longer than 128 KiB.
    let long = "x".repeat((128 << 10) - 1);
    let envd = Envd::start().await;
    let args: Vec<&str> = vec!["-c", "echo $# ${#1}", "sh", &long, &long, &long, &long];
    let outcome = envd.start_process("/bin/sh", &args, json!({}), &[]).await.outcome().await;
    assert_eq!(outcome.stdout(), "4 131071\n");
}

#[tokio::test]
async fn the_sandboxs_own_processes_are_forked_by_envd() {
    let envd = Envd::start().await;
    let pid = spawner_of(&envd).await;
    signal(pid, Signal::STOP);
    until(async || status(pid, "State").unwrap().starts_with('T')).await;
    let outcome = envd.sh("echo on", json!({ "tag": "_system" })).await.outcome().await;
    assert_eq!(outcome.stdout(), "on\n");
    assert!(status(pid, "State").unwrap().starts_with('T'));
    // It ends with envd, when it can.
    signal(pid, Signal::CONT);
}
