//! Proof that it works, before anybody is told so: a sandbox is created, used and ended through the
//! public ports, as a client would; and reached through the front by its name, which does not have to
//! resolve for that.

use std::time::{Duration, Instant};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::guest::ENVD_PORT;

use super::environment::Environment;
use crate::client::{Client, Create};

/// How long things took.
pub(crate) struct Times {
    /// From request to answer.
    pub(crate) create: Duration,
    /// From the create's request to the end of the first command.
    pub(crate) first_command: Duration,
    /// From request to answer.
    pub(crate) kill: Duration,
}

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the check.
///
/// # Errors
/// `SELF_CHECK_FAILED` with the cause.
pub(crate) async fn run(environment: &Environment) -> Result<Times> {
    let check = tokio::time::timeout(LIMIT, check(environment)).await;
    let outcome = check.unwrap_or_else(|_| {
        Err(Error::new(codes::INTERNAL, format!("no end after {} s.", LIMIT.as_secs())))
    });
    outcome.map_err(|cause| {
        Error::new(codes::SELF_CHECK_FAILED, format!("the self-check failed: {cause}"))
    })
}

async fn check(environment: &Environment) -> Result<Times> {
    let client = Client::of(environment);
    let create = Create { template: "base".to_owned(), timeout: Some(60), ..Create::default() };
    let started = Instant::now();
    let sandbox = client.create(&create).await?;
    let created = started.elapsed();
    let ran = client.run(&sandbox, "echo $((6 * 7)); id -un").await;
    let first_command = started.elapsed();
    let named = by_name(environment, &sandbox.sandbox_id).await;
    let killing = Instant::now();
    let killed = client.kill(&sandbox.sandbox_id).await;
    let (code, output) = ran?;
    killed?;
    named?;
    if code != 0 || output != "42\nuser\n" {
        return Err(Error::new(
            codes::INTERNAL,
            format!("a command in the sandbox exited {code} and said {output:?}."),
        ));
    }
    Ok(Times { create: created, first_command, kill: killing.elapsed() })
}

/// Asks the API and envd for their health through the front.
async fn by_name(environment: &Environment, sandbox: &str) -> Result<()> {
    let unreached = |what: &str| Error::new(codes::INTERNAL, format!("{what}."));
    let http = reqwest::Client::builder().no_proxy().build();
    let http = http.map_err(|error| unreached(&format!("no HTTP client: {error}")))?;
    let domain = &environment.domain;
    for host in [format!("api.{domain}"), format!("{ENVD_PORT}-{sandbox}.{domain}")] {
        let request = http.get(format!("http://{}/health", environment.front));
        let answer = request.header("Host", &host).send().await;
        let answer = answer.map_err(|error| unreached(&format!("{host}: {error}")))?;
        if !answer.status().is_success() {
            return Err(unreached(&format!("{host} answers {} to /health", answer.status())));
        }
    }
    Ok(())
}
