//! What a template's sandboxes start with: a command that runs on, and one that tells when the first
//! can be used (control-plane contract, section 10.5).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use atoll_storage::StartCommand;
use futures::future::{self, Either};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::commands::{Command, Exit, Guest, Happened, Output, Running};

/// Whether something else than envd listens: for templates that do not say when they are ready.
const SOMETHING_LISTENS: &str =
    "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -v ':C36F ' | grep -q ' 0A '";
/// Without a ready command, and with nothing that listens, this long is waited: the contract's
/// `sleep 20`.
const SETTLED_AFTER: Duration = Duration::from_secs(20);
/// Between two looks whether it is ready, growing from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// What the command printed just before it was ready comes by another connection, and may come later.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// Bytes of output that a failure shows.
const SHOWN_BYTES: usize = 4096;

/// Set for the ready command of a build, which may wait for more than that of a sandbox: what is warm
/// in the build is warm in every sandbox, where memory is kept.
const BUILDING: &str = "ATOLL_BUILD";

/// For whom a command is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A template that is being built.
    Build,
    /// Whoever waits for a sandbox.
    Sandbox,
}

/// Starts the command and returns when it can be used; it runs on. `say` is told what it prints until
/// then.
///
/// # Errors
/// `NOT_READY` when it fails, or is not ready `within` that time. What it began runs on then.
pub async fn start(
    guest: &Guest,
    start: &StartCommand,
    purpose: Start,
    within: Duration,
    mut say: impl FnMut(Output, &[u8]) + Send,
) -> Result<()> {
    let begun = Instant::now();
    let limit = if start.ready.is_some() { within } else { SETTLED_AFTER };
    let mut service = Service {
        running: Some(guest.start(Command::shell(&start.command), false).await?),
        printed: VecDeque::new(),
    };
    let ready = std::pin::pin!(ready(guest, start.ready.as_deref(), purpose));
    let service = std::pin::pin!(service.watch(&mut say));
    match timeout_at(begun + limit, future::select(ready, service)).await {
        Ok(Either::Left(((), service))) => {
            if purpose == Start::Build {
                let _ = timeout(LAST_WORDS, service).await;
            }
            Ok(())
        }
        Ok(Either::Right((failure, _))) => Err(failure),
        Err(_) if start.ready.is_none() => Ok(()),
        Err(_) => {
            let message = format!(
                "the ready command `{}` did not succeed within {} seconds after the start command \
                 `{}` was started.",
                start.ready.as_deref().unwrap_or_default(),
                limit.as_secs(),
                start.command,
            );
            Err(Error::new(codes::NOT_READY, message))
        }
    }
}

/// Returns when a look says that it is ready.
async fn ready(guest: &Guest, command: Option<&str>, purpose: Start) {
    let building = (BUILDING.to_owned(), "1".to_owned());
    let env_vars = BTreeMap::from_iter((purpose == Start::Build).then_some(building));
    let mut pause = FIRST_PAUSE;
    loop {
        let look = Command::shell(command.unwrap_or(SOMETHING_LISTENS));
        let look = Command { env_vars: env_vars.clone(), ..look };
        let exit = guest.run(look, None::<futures::stream::Empty<_>>, |_, _| {}).await;
        if exit.is_ok_and(|exit| exit.code == 0) {
            return;
        }
        sleep(pause).await;
        pause = LAST_PAUSE.min(pause * 2);
    }
}

struct Service {
    running: Option<Running>,
    /// The end of what it has printed.
    printed: VecDeque<u8>,
}

impl Service {
    /// Returns when it has failed, with how.
    async fn watch(&mut self, say: &mut (impl FnMut(Output, &[u8]) + Send)) -> Error {
        while let Some(running) = &mut self.running {
            match running.next().await {
                Ok(Happened::Printed(stream, bytes)) => {
                    say(stream, &bytes);
                    self.printed.extend(bytes);
                    let surplus = self.printed.len().saturating_sub(SHOWN_BYTES);
                    self.printed.drain(..surplus);
                }
                // It has put itself into the background.
                Ok(Happened::Ended(exit)) if exit.code == 0 => self.running = None,
                Ok(Happened::Ended(exit)) => return self.failure(&exit),
                Err(error) => return error,
            }
        }
        future::pending().await
    }

    fn failure(&mut self, exit: &Exit) -> Error {
        let printed = String::from_utf8_lossy(self.printed.make_contiguous()).into_owned();
        let printed = match printed.trim() {
            "" => "; it printed nothing".to_owned(),
            printed => format!("; it last printed:\n{printed}\n"),
        };
        let how = match &exit.error {
            Some(error) => error.clone(),
            None => format!("exit code {}", exit.code),
        };
        Error::new(codes::NOT_READY, format!("the start command ended with {how}{printed}."))
    }
}
