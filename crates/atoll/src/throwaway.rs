//! A sandbox for the time of one command, which ends it whatever happens.

use std::{process::ExitCode, time::Duration};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use tokio::signal::unix::{SignalKind, signal};

use crate::{client::Client, terminal};

/// How long the sandbox may outlive a command that went away without a word, seconds.
pub(crate) const LIFETIME: u32 = 300;
/// How often that is put off.
const REFRESH: Duration = Duration::from_secs(60);

/// Does `work` with a sandbox made to live for [`LIFETIME`], keeps it meanwhile, and kills it then,
/// also when this program is asked to end.
pub(crate) async fn with(
    client: &Client,
    sandbox: &rest::Sandbox,
    work: impl Future<Output = Result<ExitCode>>,
) -> Result<ExitCode> {
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = gone() => Ok(ExitCode::FAILURE),
        () = refresh(client, sandbox) => Err(Error::new(codes::SANDBOX_GONE, "the sandbox ended.")),
    };
    end(client, sandbox).await;
    outcome
}

/// Kills a sandbox, and says so if it is left.
pub(crate) async fn end(client: &Client, sandbox: &rest::Sandbox) {
    match client.kill(&sandbox.sandbox_id).await {
        Err(error) if error.code != codes::NOT_FOUND => {
            terminal::fail(&format!("the sandbox {} is left: {error}", sandbox.sandbox_id));
        }
        _ => {}
    }
}

/// Keeps the sandbox while it is used; returns when it is gone.
async fn refresh(client: &Client, sandbox: &rest::Sandbox) {
    loop {
        match client.connect(&sandbox.sandbox_id, LIFETIME).await {
            Err(error) if error.code == codes::NOT_FOUND => return,
            // The next try may do it.
            Ok(_) | Err(_) => tokio::time::sleep(REFRESH).await,
        }
    }
}

/// Returns when this program is asked to end, for the sandbox to be ended too.
async fn gone() {
    let (Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
