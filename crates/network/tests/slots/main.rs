//! Slots, tried for real: every test runs in a process and a network namespace of its own, where it
//! builds an internet, a private network and a metadata server ([`world`]), and looks at them from
//! inside a slot ([`probe`]). Needs root; without it the tests fail.
//!
//! The harness is our own, since a test must leave the host's network namespace before its process
//! has a second thread. It takes names (or parts of them) and `--exact`, and lists as cargo-nextest
//! expects.

// Without the standard harness this is no `cfg(test)`, which is what clippy.toml exempts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod dns;
mod internet;
mod lifecycle;
mod probe;
mod restart;
mod world;

use std::{
    env,
    path::PathBuf,
    pin::Pin,
    process::{Command, ExitCode},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        const TESTS: &[(&str, Test)] = &[
            $((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*
        ];
    };
}

tests! {
    internet::a_sandbox_reaches_the_internet_and_nothing_else,
    internet::udp_and_ping_pass,
    internet::offline_cuts_what_is_open_and_what_is_new,
    internet::a_forged_source_never_leaves,
    internet::there_is_no_ipv6_but_loopback,
    internet::nothing_comes_in_from_outside,
    internet::the_host_does_not_become_a_router,
    internet::two_instances_share_a_host_and_not_their_sandboxes,
    internet::a_flushed_firewall_comes_back,
    internet::a_sandbox_cannot_fill_the_connection_table,
    internet::a_silent_connection_is_forgotten_in_hours,
    dns::names_resolve_over_udp_and_tcp,
    dns::a_long_answer_is_had_over_tcp,
    dns::a_dead_or_failing_name_server_is_passed_over,
    dns::a_forged_answer_is_not_believed,
    dns::without_a_name_server_the_answer_is_a_failure,
    lifecycle::connect_finds_a_server_wherever_it_listens,
    lifecycle::root_in_a_sandbox_is_root_of_its_network_only,
    lifecycle::slots_come_and_go_without_a_trace,
    lifecycle::a_held_connection_does_not_hold_the_slot,
    lifecycle::the_next_run_cleans_up_after_a_crash,
    lifecycle::shutdown_removes_what_is_in_use_and_nothing_of_others,
    lifecycle::a_cancelled_take_loses_no_slot,
    lifecycle::a_full_node_says_so_and_recovers,
    lifecycle::a_failing_launcher_is_reported_and_not_hammered,
    lifecycle::bad_options_are_refused,
    restart::a_sandbox_outlives_the_daemon,
    restart::offline_stays_offline,
    restart::the_firewall_has_no_gap,
    restart::another_network_is_for_new_slots_only,
    restart::an_adopted_slot_is_released_like_any_other,
    restart::a_kept_slot_whose_sandbox_has_ended_is_discarded,
    restart::shutdown_leaves_what_lives_on,
    restart::only_its_own_namespaces_make_a_slot,
    restart::a_sandbox_may_have_taken_the_name_servers_port,
    restart::a_cancelled_adoption_loses_no_slot,
}

/// Set in the process of a single test.
const CHILD: &str = "ATOLL_NETWORK_TEST";
/// Where the launcher is, for a test's process.
const LAUNCHER: &str = "ATOLL_NETWORK_TEST_LAUNCHER";

/// Longest a test may take: several times what the slowest does.
const LONGEST: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "probe") {
        return probe::main(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "daemon") {
        return restart::daemon();
    }
    if let Ok(name) = env::var(CHILD) {
        let (_, test) = TESTS.iter().find(|(known, _)| *known == name).unwrap();
        return run(*test);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        let ignored = arguments.iter().any(|argument| argument == "--ignored");
        TESTS.iter().filter(|_| !ignored).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    parent(&arguments)
}

fn run(test: Test) -> ExitCode {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let test = async { tokio::time::timeout(LONGEST, test()).await.expect("the test hangs") };
    runtime.enable_all().build().unwrap().block_on(test);
    ExitCode::SUCCESS
}

/// Runs every wanted test in a process of its own.
fn parent(arguments: &[String]) -> ExitCode {
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let names: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| {
        names.is_empty()
            || names.iter().any(|word| if exact { name == *word } else { name.contains(*word) })
    };
    let launcher = build_launcher();
    let mut failed = Vec::new();
    for (name, _) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let output = Command::new(env::current_exe().unwrap())
            .env(CHILD, name)
            .env(LAUNCHER, &launcher)
            .output()
            .unwrap();
        println!("test {name} ... {}", if output.status.success() { "ok" } else { "FAILED" });
        if !output.status.success() {
            println!("{}", String::from_utf8_lossy(&output.stdout));
            println!("{}", String::from_utf8_lossy(&output.stderr));
            failed.push(*name);
        }
    }
    println!("\n{} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The launcher belongs to another package, which cargo does not build for our tests by itself.
fn build_launcher() -> PathBuf {
    // This program is target/<profile>/deps/slots-<hash>.
    let target = env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "atoll-launcher", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success(), "cannot build the launcher");
    target.join("debug/atoll-launcher")
}
