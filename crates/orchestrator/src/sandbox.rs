//! A sandbox that runs, and its end.
//!
//! One task owns each sandbox's objects and waits for its first process to end, whatever the cause:
//! a kill, an expiry, a crash. Only that task takes things apart, in one order, so nothing is freed
//! twice or forgotten. Everybody else asks by sending SIGKILL, and waits.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use atoll_core::SandboxId;
use atoll_isolation::{Limits, Running, cgroup::Cgroup, process::FirstProcess};
use atoll_network::Slot;
use atoll_proxy::{Access, Target};
use atoll_storage::Disk;
use atoll_wire::node::{EndReason, NodeSandbox, Sample, SandboxRecord};
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

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
    pub(crate) fn new(parts: Parts) -> Self {
        let started = Clock { cpu_us: 0, at: Instant::now() };
        Self {
            record: Mutex::new(parts.record),
            envd_version: parts.envd_version,
            limits: parts.limits,
            process: parts.running.process,
            cgroup: parts.running.cgroup,
            slot: Mutex::new(Some(Arc::new(parts.slot))),
            disk: Mutex::new(Some(Arc::new(parts.disk))),
            reason: Mutex::new(EndReason::Died),
            clock: Mutex::new(started),
            ended: CancellationToken::new(),
            gone: CancellationToken::new(),
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
    pub(crate) async fn supervise(&self) -> EndReason {
        if let Err(cause) = self.process.wait().await {
            tracing::error!(sandbox = %self.id(), %cause, "cannot wait for a sandbox; ending it");
            self.cgroup.kill();
        }
        self.ended.cancel();
        let reason = *lock(&self.reason);
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

    /// Tells those who wait in [`kill`](Self::kill) that nothing is left.
    pub(crate) fn announce_gone(&self) {
        self.gone.cancel();
    }

    /// Its present resource use.
    pub(crate) async fn sample(&self) -> io::Result<Sample> {
        let usage = self.cgroup.usage()?;
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
