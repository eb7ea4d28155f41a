//! Sandboxes that are asleep: which requests may wake one, and waking it once however many wait.
//!
//! A request that waits is held as it came: nothing of its body is read, and a connection that is to
//! be switched to another protocol is not touched.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_core::{Error, Result, SandboxId, error::codes};
use atoll_wire::guest::ENVD_PORT;
use http::HeaderMap;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::{Asleep, Directory, engine::TRAFFIC_TOKEN, pool, reply::Failure, server::Lifecycle};

/// How long a request is held, and how often it asks. From the contract, 15.5.
pub(crate) const HOLD: Duration = Duration::from_secs(60);
pub(crate) const ATTEMPTS: usize = 3;

/// How often it looks whether a sandbox runs that will in a moment.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);

const ACCESS_TOKEN: &str = "x-access-token";

/// Whether a request with these headers may wake a sandbox with what it sends to `port`.
pub(crate) fn may_wake(asleep: &Asleep, port: u16, headers: &HeaderMap) -> bool {
    let (name, token) = match port {
        ENVD_PORT => (ACCESS_TOKEN, &asleep.envd_token),
        _ => (TRAFFIC_TOKEN, &asleep.traffic_token),
    };
    let Some(token) = token else { return true };
    let given = headers.get(name);
    given.is_some_and(|given| given.as_bytes().ct_eq(token.as_bytes()).into())
}

/// Why a sandbox was not woken.
pub(crate) enum Refusal {
    /// With the answer that the contract has for it.
    Failure(Failure),
    /// Something else failed.
    Error(Error),
}

type Outcome = Option<Result<()>>;

/// The wakes under way.
pub(crate) struct Wakes {
    directory: Arc<dyn Directory>,
    lifecycle: Lifecycle,
    under_way: Mutex<HashMap<SandboxId, watch::Sender<Outcome>>>,
}

impl Wakes {
    pub(crate) fn new(directory: Arc<dyn Directory>, lifecycle: Lifecycle) -> Arc<Self> {
        Arc::new(Self { directory, lifecycle, under_way: Mutex::default() })
    }

    /// Wakes a sandbox, or waits for the wake that is under way.
    pub(crate) async fn wake(self: &Arc<Self>, id: &SandboxId) -> std::result::Result<(), Refusal> {
        let mut outcome = self.join(id).map_err(Refusal::Failure)?;
        let woken = match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(woken)) => woken.clone(),
            _ => Err(Error::new(codes::INTERNAL, "waking the sandbox was given up.")),
        };
        woken.map_err(|error| match error.code {
            codes::NOT_FOUND => Refusal::Failure(Failure::NotFound),
            codes::CONCURRENCY_LIMIT => Refusal::Failure(Failure::NoPlace(error.message)),
            codes::SANDBOX_BUSY => Refusal::Failure(Failure::Transitioning),
            _ => Refusal::Error(error),
        })
    }

    /// The outcome to come.
    fn join(
        self: &Arc<Self>,
        id: &SandboxId,
    ) -> std::result::Result<watch::Receiver<Outcome>, Failure> {
        let mut under_way = self.lock();
        if let Some(sender) = under_way.get(id) {
            // As many as may have a connection when it runs.
            if sender.receiver_count() >= pool::MAX_CONNECTIONS {
                return Err(Failure::TooManyConnections(pool::MAX_CONNECTIONS));
            }
            return Ok(sender.subscribe());
        }
        let (sender, outcome) = watch::channel(None);
        under_way.insert(id.clone(), sender.clone());
        let entry = Entry { wakes: Arc::clone(self), id: id.clone() };
        let abort = self.lifecycle.abort.clone();
        // A task of its own: those who wait come and go.
        self.lifecycle.tasks.spawn(async move {
            let wake = entry.wakes.directory.wake(&entry.id);
            let woken = abort.run_until_cancelled(wake).await;
            // First: who comes from now on is to look again.
            drop(entry);
            sender.send_replace(woken);
        });
        Ok(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, watch::Sender<Outcome>>> {
        // A panic between two operations on the map leaves it usable.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wake in the table; removes itself whatever becomes of it.
struct Entry {
    wakes: Arc<Wakes>,
    id: SandboxId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.wakes.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn each_kind_of_port_has_its_token() {
        let token = |text: &str| Some(text.to_owned());
        let open = Asleep::default();
        let secure = Asleep { envd_token: token("envd"), ..Asleep::default() };
        let private = Asleep { traffic_token: token("traffic"), ..Asleep::default() };
        let both = Asleep { envd_token: token("envd"), traffic_token: token("traffic") };
        for (asleep, port, header, allowed) in [
            (&open, ENVD_PORT, None, true),
            (&open, 80, None, true),
            (&secure, ENVD_PORT, None, false),
            (&secure, ENVD_PORT, Some((ACCESS_TOKEN, "")), false),
            (&secure, ENVD_PORT, Some((ACCESS_TOKEN, "env")), false),
            (&secure, ENVD_PORT, Some((TRAFFIC_TOKEN, "envd")), false),
            (&secure, ENVD_PORT, Some((ACCESS_TOKEN, "envd")), true),
            (&secure, 80, None, true),
            (&private, ENVD_PORT, None, true),
            (&private, 80, None, false),
            (&private, 80, Some((ACCESS_TOKEN, "traffic")), false),
            (&private, 80, Some((TRAFFIC_TOKEN, "traffic")), true),
            (&both, 80, Some((TRAFFIC_TOKEN, "envd")), false),
            (&both, ENVD_PORT, Some((ACCESS_TOKEN, "traffic")), false),
        ] {
            let headers: HeaderMap = header
                .into_iter()
                .map(|(name, value)| {
                    (http::HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
            assert_eq!(may_wake(asleep, port, &headers), allowed, "{asleep:?} {port} {headers:?}");
        }
    }
}
