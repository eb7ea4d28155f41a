//! Berths: control groups with a launcher already in them, made ahead of time.
//!
//! Moving a process into a group waits for a grace period of the kernel, tens of milliseconds on an
//! otherwise idle machine, and making the directories waits for the same lock. Neither depends on
//! the sandbox, so both are done before one asks.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use atoll_launcher::Job;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    sync::{Notify, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cgroup::{Cgroup, Cgroups},
    report::Report,
};

/// After a failure the next try waits: the cause will not be gone at once.
const RETRY: Duration = Duration::from_secs(1);

/// A group and the launcher that waits in it.
#[derive(Debug)]
pub(crate) struct Berth {
    pub(crate) cgroup: Cgroup,
    pub(crate) launcher: Child,
    /// Its end tells the launcher that it has all of its job, or none.
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) report: Report,
}

impl Berth {
    /// Has the launcher do its job, and waits for its report. The process need not have ended then.
    pub(crate) async fn ask(&mut self, job: &Job) -> io::Result<&Report> {
        // Its end tells the launcher that there is no more.
        if let Some(mut stdin) = self.stdin.take() {
            give(&mut stdin, job).await?;
        }
        self.report.all().await?;
        Ok(&self.report)
    }

    /// Ends the launcher and removes the group.
    pub(crate) async fn discard(self) {
        let Self { cgroup, mut launcher, stdin, report } = self;
        drop((stdin, report));
        // It may not have joined yet. One that has ended needs no signal.
        let _ = launcher.start_kill();
        cgroup.kill();
        if let Err(cause) = launcher.wait().await {
            tracing::warn!(%cause, "a launcher could not be waited for");
        }
        if let Err(cause) = cgroup.remove().await {
            tracing::warn!(%cause, "a cgroup could not be removed");
        }
    }
}

/// Gives a launcher its job.
pub(crate) async fn give(stdin: &mut ChildStdin, job: &Job) -> io::Result<()> {
    let mut request = serde_json::to_vec(job)?;
    request.push(b'\n');
    // A launcher that has ended early has closed the pipe; its report says why.
    let _ = stdin.write_all(&request).await;
    Ok(())
}

#[derive(Debug)]
struct Shared {
    cgroups: Cgroups,
    launcher: PathBuf,
    /// In every name, so that none is like that of a group an earlier run left.
    run: u64,
    next: AtomicU64,
    ready: Mutex<VecDeque<Berth>>,
    wanted: Notify,
    closed: CancellationToken,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct Berths {
    shared: Arc<Shared>,
    refill: Mutex<Option<JoinHandle<()>>>,
}

impl Berths {
    /// Begins to fill a pool of `target` berths.
    ///
    /// # Errors
    /// `INTERNAL` when there is no randomness.
    pub(crate) fn start(cgroups: Cgroups, launcher: PathBuf, target: usize) -> Result<Self> {
        let run = getrandom::u64()
            .map_err(|error| Error::new(codes::INTERNAL, format!("no randomness: {error}.")))?;
        let shared = Arc::new(Shared {
            cgroups,
            launcher,
            run,
            next: AtomicU64::new(0),
            ready: Mutex::default(),
            wanted: Notify::new(),
            closed: CancellationToken::new(),
        });
        let refill = tokio::spawn(refill(shared.clone(), target));
        Ok(Self { shared, refill: Mutex::new(Some(refill)) })
    }

    /// A berth from the pool, or a new one when the pool is empty.
    ///
    /// # Errors
    /// `SANDBOX_START_FAILED` when one cannot be made.
    pub(crate) async fn take(&self) -> Result<Berth> {
        let ready = self.shared.ready().pop_front();
        self.shared.wanted.notify_one();
        match ready {
            Some(berth) => Ok(berth),
            None => self.shared.make().await,
        }
    }

    /// As [`take`](Self::take), for calls that may be dropped: that leaves nothing.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub(crate) async fn take_whole(self: &Arc<Self>) -> Result<Berth> {
        let (give, taken) = oneshot::channel();
        let berths = self.clone();
        tokio::spawn(async move {
            if let Err(Ok(unwanted)) = give.send(berths.take().await) {
                unwanted.discard().await;
            }
        });
        taken.await.unwrap_or_else(|_| Err(failed("the pool has ended".to_owned())))
    }

    /// Ends the pool.
    pub(crate) async fn close(&self) {
        self.shared.closed.cancel();
        // Not aborted: a berth that is being made must be in the pool to be removed from it.
        let refill = self.refill.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(refill) = refill
            && let Err(cause) = refill.await
        {
            tracing::warn!(%cause, "the pool of berths failed");
        }
        let ready: Vec<Berth> = self.shared.ready().drain(..).collect();
        futures::future::join_all(ready.into_iter().map(Berth::discard)).await;
    }
}

async fn refill(shared: Arc<Shared>, target: usize) {
    let closed = shared.closed.clone();
    while !closed.is_cancelled() {
        if shared.ready().len() >= target {
            tokio::select! {
                () = shared.wanted.notified() => {}
                () = closed.cancelled() => {}
            }
            continue;
        }
        match shared.make().await {
            Ok(berth) => shared.ready().push_back(berth),
            Err(error) => {
                tracing::warn!(%error, "a berth could not be made");
                let _ = tokio::time::timeout(RETRY, closed.cancelled()).await;
            }
        }
    }
}

impl Shared {
    fn ready(&self) -> MutexGuard<'_, VecDeque<Berth>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self) -> Result<Berth> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("b{:016x}-{number}", self.run);
        let cgroups = self.cgroups.clone();
        // The kernel may hold the directories' lock for long: not on a thread that serves others.
        let made = tokio::task::spawn_blocking(move || cgroups.create(&name)).await;
        let cgroup =
            made.map_err(|error| failed(format!("the cgroup was not made: {error}")))??;
        match self.spawn(&cgroup) {
            Ok((launcher, stdin, report)) => {
                Ok(Berth { cgroup, launcher, stdin: Some(stdin), report })
            }
            Err(error) => {
                if let Err(cause) = cgroup.remove().await {
                    tracing::warn!(%cause, "a failed start left a cgroup");
                }
                Err(error)
            }
        }
    }

    fn spawn(&self, cgroup: &Cgroup) -> Result<(Child, ChildStdin, Report)> {
        let mut launcher = Command::new(&self.launcher)
            .arg("run")
            .args(cgroup.join_files())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // It may become CRIU: a signal from the terminal is for this process to act on.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("the launcher cannot be run: {error}")))?;
        match (launcher.stdin.take(), launcher.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok((launcher, stdin, Report::new(stdout))),
            _ => Err(failed("the launcher has no pipes".to_owned())),
        }
    }
}

pub(crate) fn failed(cause: String) -> Error {
    Error::new(codes::SANDBOX_START_FAILED, format!("the sandbox did not start: {cause}."))
}
