//! What an attacker chooses byte by byte: Connect framing, multipart forms, signatures, paths.
//!
//! A few cases of each run with the other tests; `make fuzz` runs as many as fit in its time. An
//! input that fails is written to `corpus/`, is tried first from then on, and belongs in the
//! repository.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod framing;
mod multipart;
mod paths;
mod signature;

use std::{env, sync::Arc};

use atoll_envd::guest::Guest;
use atoll_wire::guest::{BootConfig, InitRequest};
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use support::current_user;
use tokio::runtime::{Builder, Runtime};

/// A runner with this many cases, unless `PROPTEST_CASES` says otherwise.
fn runner(cases: u32, corpus: &'static str) -> TestRunner {
    let mut config = Config::default();
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(corpus)));
    TestRunner::new(config)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A sandbox whose files belong to whoever runs the tests.
fn guest(token: Option<&str>) -> Arc<Guest> {
    let guest = Guest::new(BootConfig::default());
    let settings = InitRequest {
        access_token: token.map(str::to_owned),
        default_user: Some(current_user()),
        ..InitRequest::default()
    };
    guest.apply(settings, None);
    guest
}
