//! The command line, and envd as the first process of a sandbox.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use http::StatusCode;
use serde_json::json;
use support::{Envd, until};

const ENVD: &str = env!("CARGO_BIN_EXE_envd");

// Rules: BOOT-5
#[test]
fn the_version_is_printed_bare() {
    let output = Command::new(ENVD).arg("-version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"0.6.13\n");
}

#[test]
fn a_configuration_that_is_not_understood_stops_it() {
    let mut envd = Command::new(ENVD)
        .args(["-port", "0"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    envd.stdin.take().unwrap().write_all(br#"{"control_secret": 5}"#).unwrap();
    let output = envd.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("configuration on stdin"));
}

// Rules: META-2, TRAP-32, PROC-42
#[tokio::test]
async fn as_the_first_process_it_reaps_orphans_and_says_where_it_is() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can make a process namespace");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
    command.arg(format!("mount -t tmpfs none /run && exec {ENVD}"));
    let config = json!({ "control_secret": "s", "sandbox_id": "isbx", "template_id": "base" });
    let envd = Envd::run(command, &config.to_string());
    let secret = [("x-atoll-control", "s")];
    let (status, _) = envd.post_with("/init", &secret, &json!({ "defaultUser": "root" })).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    let script = "cd /run/e2b; stat -c '%n %a' .E2B*; cat .E2B*; \
                  echo; echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID";
    let identity = envd.sh(script, json!({})).await.outcome().await;
    let expected = ".E2B_SANDBOX 444\n.E2B_SANDBOX_ID 444\n.E2B_TEMPLATE_ID 444\n\
                    trueisbxbase\ntrue isbx base\n";
    assert_eq!(identity.stdout(), expected);

    // Orphans become its children; none may stay a zombie.
    envd.sh("for i in 1 2 3; do (setsid sleep 0.1 &) ; done", json!({})).await.outcome().await;
    until(async || {
        let script = "grep -l 'PPid:.1$' /proc/[0-9]*/status | wc -l";
        // The shell itself and the spawner are the only children left.
        envd.sh(script, json!({})).await.outcome().await.stdout() == "2\n"
    })
    .await;
}
