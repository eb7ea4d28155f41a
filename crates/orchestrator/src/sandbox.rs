//! A sandbox that runs, and its end.
//!
//! One task owns each sandbox's objects and waits for its first process to end, whatever the cause:
//! a kill, an expiry, a crash. Only that task takes things apart, in one order, so nothing is freed
//! twice or forgotten. Everybody else asks by sending SIGKILL, and waits.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use atoll_core::SandboxId;
use atoll_isolation::{Limits, Running, cgroup::Cgroup, process::FirstProcess};
use atoll_network::Slot;
use atoll_proxy::{Access, Target};
use atoll_storage::Disk;
use atoll_wire::{
    log::LogLevel,
    node::{CreateTimings, EndReason, NodeSandbox, Sample, SandboxRecord},
};
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::logs::{Journal, Logs, reader};

/// What a started sandbox consists of.
pub(crate) struct Parts {
    pub(crate) record: SandboxRecord,
    pub(crate) envd_version: String,
    pub(crate) limits: Limits,
    pub(crate) running: Running,
    pub(crate) slot: Slot,
    pub(crate) disk: Disk,
}

struct Clock {
    cpu_us: u64,
    at: Instant,
}

/// A running sandbox, as the rest of the node sees it.
pub struct Sandbox {
    record: Mutex<SandboxRecord>,
    envd_version: String,
    limits: Limits,
    process: FirstProcess,
    cgroup: Cgroup,
    journal: Journal,
    /// Processes killed for want of memory, as far as the journal knows.
    oom_kills: Mutex<u64>,
    /// Both are given back when the sandbox has ended.
    slot: Mutex<Option<Arc<Slot>>>,
    disk: Mutex<Option<Arc<Disk>>>,
    reason: Mutex<EndReason>,
    clock: Mutex<Clock>,
    /// Cancelled when it is being ended, or has ended by itself: before its processes are killed,
    /// so that no answer cut short can pass for a complete one.
    ended: CancellationToken,
    /// Cancelled when nothing of it is left on the host.
    gone: CancellationToken,
}

impl Sandbox {
    /// The sandbox, which reports to `logs`, and the pipe with its envd's log.
    pub(crate) fn new(parts: Parts, logs: Arc<Logs>) -> (Self, OwnedFd) {
        let started = Clock { cpu_us: 0, at: Instant::now() };
        let sandbox = Self {
            envd_version: parts.envd_version,
            limits: parts.limits,
            process: parts.running.process,
            cgroup: parts.running.cgroup,
            journal: Journal::new(logs, parts.record.id.clone(), parts.record.team.clone()),
            oom_kills: Mutex::new(0),
            record: Mutex::new(parts.record),
            slot: Mutex::new(Some(Arc::new(parts.slot))),
            disk: Mutex::new(Some(Arc::new(parts.disk))),
            reason: Mutex::new(EndReason::Died),
            clock: Mutex::new(started),
            ended: CancellationToken::new(),
            gone: CancellationToken::new(),
        };
        (sandbox, parts.running.log)
    }

    /// Says in its log that it runs, and how long that took.
    pub(crate) fn report_start(&self, timings: &CreateTimings) {
        let template = lock(&self.record).template.to_string();
        self.journal.say(
            LogLevel::Info,
            "Sandbox started",
            [
                ("event_type", "sandbox_start".to_owned()),
                ("template", template),
                ("cpu_count", self.limits.vcpu.to_string()),
                ("memory_bytes", self.limits.memory.to_string()),
                ("take_us", timings.take_us.to_string()),
                ("start_us", timings.start_us.to_string()),
                ("init_us", timings.init_us.to_string()),
            ],
        );
    }

    /// Says in its log how it ended.
    fn report_end(&self, reason: EndReason) {
        let (level, how) = match reason {
            EndReason::Killed => (LogLevel::Info, "killed"),
            EndReason::Expired => (LogLevel::Info, "expired"),
            EndReason::Died => (LogLevel::Error, "died"),
            EndReason::Shutdown => (LogLevel::Warn, "shutdown"),
        };
        let fields = [("event_type", "sandbox_end".to_owned()), ("reason", how.to_owned())];
        self.journal.say(level, "Sandbox ended", fields);
    }

    /// Says in its log if processes were killed for want of memory since the last look.
    fn report_oom_kills(&self) {
        let Ok(now) = self.cgroup.oom_kills() else { return };
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
            self.journal.say(LogLevel::Warn, message, fields);
        }
    }

    /// Its id.
    pub fn id(&self) -> SandboxId {
        lock(&self.record).id.clone()
    }

    /// What the control plane may know of it.
    pub fn describe(&self) -> NodeSandbox {
        NodeSandbox { record: lock(&self.record).clone(), envd_version: self.envd_version.clone() }
    }

    pub(crate) fn set_end(&self, end_at: Timestamp) {
        lock(&self.record).end_at = end_at;
    }

    pub(crate) fn end_at(&self) -> Timestamp {
        lock(&self.record).end_at
    }

    /// Ends it and waits until nothing of it is left.
    pub(crate) async fn kill(&self, reason: EndReason) -> io::Result<()> {
        if !self.ended.is_cancelled() {
            *lock(&self.reason) = reason;
        }
        self.ended.cancel();
        self.process.kill()?;
        self.gone.cancelled().await;
        Ok(())
    }

    /// Waits for the end and takes the sandbox apart. Run exactly once, to its end.
    pub(crate) async fn supervise(&self, log: OwnedFd) -> EndReason {
        let over = CancellationToken::new();
        let reading = reader::read(log, self.journal.clone(), over.clone());
        let ending = async {
            let reason = self.end().await;
            over.cancel();
            reason
        };
        let ((), reason) = tokio::join!(reading, ending);
        self.report_end(reason);
        reason
    }

    async fn end(&self) -> EndReason {
        let ended = async {
            let ended = self.process.ended().await;
            self.ended.cancel();
            ended
        };
        // It is reaped only when it has been moved: its number could be another's by then.
        let (ended, ()) = tokio::join!(ended, self.set_envd_apart());
        let reaped = match ended {
            Ok(()) => self.process.wait().await,
            Err(error) => Err(error),
        };
        if let Err(cause) = reaped {
            tracing::error!(sandbox = %self.id(), %cause, "cannot wait for a sandbox; ending it");
            self.cgroup.kill();
        }
        let reason = *lock(&self.reason);
        self.report_oom_kills();
        if let Err(cause) = self.cgroup.remove().await {
            tracing::error!(sandbox = %self.id(), %cause, "a cgroup could not be removed");
        }
        // Connections being opened may hold the slot, and a sample the disk, a moment longer; the
        // last holder gives it back.
        drop(lock(&self.slot).take());
        let disk = lock(&self.disk).take().and_then(Arc::into_inner);
        if let Some(disk) = disk
            && let Err(cause) = disk.destroy().await
        {
            tracing::error!(sandbox = %self.id(), %cause, "a disk could not be removed");
        }
        reason
    }

    /// Moves envd to where users' processes cannot starve it. Not part of the create, which would
    /// have to wait for the kernel.
    async fn set_envd_apart(&self) {
        let (cgroup, envd) = (self.cgroup.clone(), self.process.pid());
        let moved = tokio::task::spawn_blocking(move || cgroup.set_apart(envd)).await;
        if let Err(cause) = moved.map_err(io::Error::other).and_then(|moved| moved) {
            tracing::warn!(sandbox = %self.id(), %cause, "envd shares its users' cgroup");
        }
    }

    /// Tells those who wait in [`kill`](Self::kill) that nothing is left.
    pub(crate) fn announce_gone(&self) {
        self.gone.cancel();
    }

    /// Its present resource use.
    pub(crate) async fn sample(&self) -> io::Result<Sample> {
        let usage = self.cgroup.usage()?;
        self.report_oom_kills();
        let disk = lock(&self.disk).clone().ok_or(io::ErrorKind::NotFound)?;
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

#[async_trait]
impl Target for Sandbox {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let slot = lock(&self.slot).clone().ok_or(io::ErrorKind::NotConnected)?;
        slot.connect(port).await
    }

    fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    fn access(&self) -> Access {
        Access::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
