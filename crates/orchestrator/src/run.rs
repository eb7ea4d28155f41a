//! One run of a sandbox: what it has on the host, from its first process to its disk.
//!
//! Only the sandbox's owner makes, freezes and ends a run; everybody else may look at it, or ask for
//! its end by killing its first process.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use atoll_core::{Error, Result, error::codes, lifecycle};
use atoll_isolation::{Driver, Dumped, Limits, Running};
use atoll_network::Slot;
use atoll_proxy::{Access, Target};
use atoll_storage::Disk;
use atoll_wire::{log::LogLevel, node::Sample};
use jiff::Timestamp;
use tokio::{
    net::TcpStream,
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    journal::RunEntry,
    logs::{SandboxLog, reader},
    sandbox::lock,
};

/// What a run is made of.
pub(crate) struct Parts {
    pub(crate) entry: RunEntry,
    pub(crate) limits: Limits,
    /// None when its processes died while nobody watched: its disk is all that is left.
    pub(crate) processes: Option<(Running, Arc<Slot>)>,
    pub(crate) disk: Disk,
}

/// A run.
pub(crate) struct Run {
    entry: RunEntry,
    limits: Limits,
    running: Option<Running>,
    /// Both are given back when the run has ended.
    slot: Mutex<Option<Arc<Slot>>>,
    disk: Mutex<Option<Arc<Disk>>>,
    frozen: AtomicBool,
    /// Held by who connects to it, and alone while nobody may.
    gate: Arc<RwLock<()>>,
    shut: Mutex<Option<OwnedRwLockWriteGuard<()>>>,
    /// Its memory was written, and it is stopped for that.
    dumped: Mutex<Option<Dumped>>,
    log: SandboxLog,
    /// The pipe with its envd's log, until somebody reads it.
    pipe: Mutex<Option<OwnedFd>>,
    reading: Mutex<Option<JoinHandle<()>>>,
    setting_apart: Mutex<Option<JoinHandle<io::Result<()>>>>,
    /// Cancelled when nobody can write to its log any more.
    over: CancellationToken,
    /// Processes killed for want of memory, as far as the log knows.
    oom_kills: Mutex<u64>,
    clock: Mutex<Clock>,
}

struct Clock {
    cpu_us: u64,
    at: Instant,
}

impl Run {
    /// A run whose envd reports to `log`.
    pub(crate) fn new(parts: Parts, log: SandboxLog) -> Self {
        let (mut running, slot) = parts.processes.unzip();
        let pipe = running.as_mut().and_then(|running| running.log.take());
        Self {
            entry: parts.entry,
            limits: parts.limits,
            running,
            slot: Mutex::new(slot),
            disk: Mutex::new(Some(Arc::new(parts.disk))),
            frozen: AtomicBool::new(false),
            gate: Arc::default(),
            shut: Mutex::default(),
            dumped: Mutex::default(),
            log,
            pipe: Mutex::new(pipe),
            reading: Mutex::default(),
            setting_apart: Mutex::default(),
            over: CancellationToken::new(),
            oom_kills: Mutex::new(0),
            clock: Mutex::new(Clock { cpu_us: 0, at: Instant::now() }),
        }
    }

    /// What the journal is to know of it.
    pub(crate) fn entry(&self) -> &RunEntry {
        &self.entry
    }

    /// Its limits.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether its processes run.
    pub(crate) fn look(&self) -> lifecycle::Run {
        // One that cannot be asked is taken for alive: its owner watches it too.
        let ended = |running: &Running| running.process.has_ended().unwrap_or(false);
        match &self.running {
            None => lifecycle::Run::Dead,
            Some(running) if ended(running) => lifecycle::Run::Dead,
            Some(_) if self.frozen.load(Ordering::SeqCst) => lifecycle::Run::Frozen,
            Some(_) => lifecycle::Run::Running,
        }
    }

    /// Waits until its first process has ended.
    pub(crate) async fn ended(&self) {
        if let Some(running) = &self.running
            && let Err(cause) = running.process.ended().await
        {
            tracing::error!(pid = running.process.pid(), %cause, "cannot watch a sandbox; ending it");
            running.cgroup.kill();
        }
    }

    /// Sends SIGKILL to its first process, and so to all.
    pub(crate) fn kill(&self) {
        let Some(running) = &self.running else { return };
        if let Err(cause) = running.kill() {
            tracing::error!(pid = running.process.pid(), %cause, "cannot kill a sandbox");
        }
    }

    /// Begins to read its log; whether that was new.
    pub(crate) fn begin_reading(&self) -> bool {
        let Some(pipe) = lock(&self.pipe).take() else { return false };
        let reading = reader::read(pipe, self.log.clone(), self.over.clone());
        *lock(&self.reading) = Some(tokio::spawn(reading));
        true
    }

    /// Begins to move envd to where users' processes cannot starve it. Not part of the create, which
    /// would have to wait for the kernel.
    pub(crate) fn begin_setting_apart(&self) {
        let Some(running) = &self.running else { return };
        let (cgroup, envd) = (running.cgroup.clone(), running.process.pid());
        let moving = tokio::task::spawn_blocking(move || cgroup.set_apart(envd));
        *lock(&self.setting_apart) = Some(moving);
    }

    /// Stops its processes.
    pub(crate) async fn freeze(&self, driver: &dyn Driver) -> Result<()> {
        let running = self.running.as_ref().ok_or_else(dead)?;
        let frozen = driver.freeze(running).await;
        match frozen {
            Ok(()) => self.frozen.store(true, Ordering::SeqCst),
            Err(_) => drop(lock(&self.shut).take()),
        }
        frozen
    }

    /// Waits for connections that are being made to it, and makes later ones wait until it is thawed.
    pub(crate) async fn shut(&self) {
        if lock(&self.shut).is_none() {
            let guard = self.gate.clone().write_owned().await;
            *lock(&self.shut) = Some(guard);
        }
    }

    /// Writes the memory of the frozen processes to `images`; they stay stopped until they are
    /// thawed, ended, or [let go](Self::let_go).
    pub(crate) async fn dump(&self, driver: &dyn Driver, images: &Path) -> Result<()> {
        let running = self.running.as_ref().ok_or_else(dead)?;
        let dumped = driver.dump(running, images).await?;
        *lock(&self.dumped) = Some(dumped);
        Ok(())
    }

    /// Sees to it that what was dumped has been stopped all the time since: to be asked once its disk is
    /// copied.
    ///
    /// # Errors
    /// `CHECKPOINT_FAILED` when it was let go: the copy may be of a later moment than its memory.
    pub(crate) fn still_held(&self) -> Result<()> {
        if lock(&self.dumped).as_ref().is_none_or(Dumped::still_holds) {
            return Ok(());
        }
        let message =
            "the sandbox's memory could not be saved: CRIU ended before the disk was copied.";
        Err(Error::new(codes::CHECKPOINT_FAILED, message))
    }

    /// Lets go of what was dumped, if it was: it is frozen as before.
    ///
    /// # Errors
    /// `CHECKPOINT_FAILED` when it may run.
    pub(crate) async fn let_go(&self) -> Result<()> {
        let dumped = lock(&self.dumped).take();
        // Whatever comes of it, it counts as frozen: so it is thawed, and can be reached again.
        match dumped {
            Some(dumped) => dumped.release().await,
            None => Ok(()),
        }
    }

    /// Lets them go on.
    pub(crate) async fn thaw(&self, driver: &dyn Driver) -> Result<()> {
        let running = self.running.as_ref().ok_or_else(dead)?;
        // Whether it is frozen after that does not matter.
        let _ = self.let_go().await;
        driver.thaw(running).await?;
        self.frozen.store(false, Ordering::SeqCst);
        drop(lock(&self.shut).take());
        Ok(())
    }

    /// Takes note that its processes may be frozen.
    pub(crate) fn assume_frozen(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// Its disk.
    pub(crate) fn disk(&self) -> Result<Arc<Disk>> {
        lock(&self.disk).clone().ok_or_else(dead)
    }

    /// Ends it, if it has not ended, and removes all it had. Run to its end.
    pub(crate) async fn end(&self) {
        if let Some(running) = &self.running {
            self.end_processes(running).await;
        }
        // Connections being opened may hold the slot, and a sample the disk, a moment longer; the
        // last holder gives it back.
        drop(lock(&self.slot).take());
        let disk = lock(&self.disk).take().and_then(Arc::into_inner);
        if let Some(disk) = disk
            && let Err(cause) = disk.destroy().await
        {
            tracing::error!(disk = self.entry.disk, %cause, "a disk could not be removed");
        }
    }

    async fn end_processes(&self, running: &Running) {
        let pid = running.process.pid();
        self.kill();
        if let Err(cause) = self.let_go().await {
            tracing::debug!(pid, %cause, "a dump ended with its sandbox");
        }
        // It is reaped only when it has been moved: its number could be another's by then.
        let moving = lock(&self.setting_apart).take();
        if let Some(moving) = moving
            && let Err(cause) = moving.await.map_err(io::Error::other).flatten()
        {
            tracing::warn!(pid, %cause, "envd shared its users' cgroup");
        }
        if let Err(cause) = running.process.wait().await {
            tracing::error!(pid, %cause, "cannot wait for a sandbox; ending it");
            running.cgroup.kill();
        }
        self.over.cancel();
        let reading = lock(&self.reading).take();
        if let Some(reading) = reading
            && let Err(cause) = reading.await
        {
            tracing::error!(pid, %cause, "a sandbox's log was not read to its end");
        }
        self.report_oom_kills();
        if let Err(cause) = running.cgroup.remove().await {
            tracing::error!(pid, %cause, "a cgroup could not be removed");
        }
    }

    /// Says in its log if processes were killed for want of memory since the last look.
    fn report_oom_kills(&self) {
        let Some(Ok(now)) = self.running.as_ref().map(|running| running.cgroup.oom_kills()) else {
            return;
        };
        let new = {
            let mut known = lock(&self.oom_kills);
            let new = now.saturating_sub(*known);
            *known += new;
            new
        };
        if new > 0 {
            let limit = self.limits.memory >> 20;
            let message = format!("The memory limit of {limit} MiB was reached: {new} killed");
            let fields = [("event_type", "oom_kill".to_owned()), ("processes", new.to_string())];
            self.log.say(LogLevel::Warn, message, fields);
        }
    }

    /// Takes the use so far, and the processes killed so far, for known: an earlier run of the node
    /// has reported them.
    pub(crate) fn forget_past(&self) {
        let Some(running) = &self.running else { return };
        if let Ok(usage) = running.cgroup.usage() {
            lock(&self.clock).cpu_us = usage.cpu_us;
        }
        if let Ok(killed) = running.cgroup.oom_kills() {
            *lock(&self.oom_kills) = killed;
        }
    }

    /// Bytes of memory that its processes have; none if that cannot be told.
    pub(crate) fn memory_in_use(&self) -> Option<u64> {
        self.running.as_ref()?.cgroup.usage().ok().map(|usage| usage.memory)
    }

    /// Its present resource use.
    pub(crate) async fn sample(&self) -> io::Result<Sample> {
        let running = self.running.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let usage = running.cgroup.usage()?;
        self.report_oom_kills();
        let disk = self.disk().map_err(io::Error::other)?;
        let (disk_used, disk_total) = disk.usage().await.map_err(io::Error::other)?;
        let vcpu = self.limits.vcpu.max(1);
        let cpu_used_pct = {
            let mut clock = lock(&self.clock);
            let now = Instant::now();
            let elapsed = now.duration_since(clock.at).as_micros().max(1);
            let busy = usage.cpu_us.saturating_sub(clock.cpu_us);
            *clock = Clock { cpu_us: usage.cpu_us, at: now };
            percent(busy, elapsed, vcpu)
        };
        Ok(Sample {
            timestamp: Timestamp::now().as_second(),
            cpu_count: vcpu,
            cpu_used_pct,
            mem_used: usage.memory,
            mem_total: self.limits.memory,
            mem_cache: usage.cache,
            disk_used,
            disk_total,
        })
    }
}

fn dead() -> Error {
    Error::new(codes::SANDBOX_GONE, "its processes have ended.")
}

/// The way into a run, for as long as it may be reached.
pub(crate) struct Door {
    run: Arc<Run>,
    /// Cancelled before its processes are frozen or killed, so that no answer cut short can pass for
    /// a complete one.
    closed: CancellationToken,
}

impl Door {
    pub(crate) fn new(run: Arc<Run>) -> Self {
        Self { run, closed: CancellationToken::new() }
    }

    /// Cuts every connection.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Target for Door {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let connected = self.closed.run_until_cancelled(async {
            let _open = self.run.gate.read().await;
            let slot = lock(&self.run.slot).clone().ok_or(io::ErrorKind::NotConnected)?;
            slot.connect(port).await
        });
        connected.await.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    fn ended(&self) -> CancellationToken {
        self.closed.clone()
    }

    fn access(&self) -> Access {
        Access::default()
    }
}

/// Share of `vcpu` processors used, 0 to 100 with two decimals.
fn percent(busy_us: u64, elapsed_us: u128, vcpu: u32) -> f64 {
    let share = busy_us as f64 / elapsed_us as f64 / f64::from(vcpu) * 100.0;
    (share.clamp(0.0, 100.0) * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_use_is_a_share_of_all_processors() {
        assert_eq!(percent(1_000_000, 1_000_000, 2), 50.0);
        assert_eq!(percent(333_333, 1_000_000, 1), 33.33);
        assert_eq!(percent(9_000_000, 1_000_000, 2), 100.0);
        assert_eq!(percent(0, 1, 4), 0.0);
    }
}
