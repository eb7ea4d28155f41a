//! `GET /metrics`: what the sandbox uses, for the node to collect.
//!
//! Where the sandbox sees its own control group, that is measured; else the whole system, which
//! is the same in a virtual machine.

use std::{
    fs, io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use atoll_wire::guest::GuestMetrics;
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};

use crate::auth::rest_error;

/// The root of the sandbox's own control group, in a private cgroup namespace.
const CGROUP: &str = "/sys/fs/cgroup";

/// The metrics route. Processor use is counted from here on.
pub fn router() -> Router {
    let last = Arc::new(Mutex::new(CpuSample::take()));
    Router::new().route("/metrics", get(metrics)).with_state(last)
}

async fn metrics(State(last): State<Arc<Mutex<CpuSample>>>) -> Response {
    match measure(&last) {
        Ok(metrics) => ([(header::CACHE_CONTROL, "no-store")], Json(metrics)).into_response(),
        Err(error) => rest_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("error reading the use of the sandbox: {error}"),
        ),
    }
}

fn measure(last: &Mutex<CpuSample>) -> io::Result<GuestMetrics> {
    let memory = Memory::read()?;
    let disk = rustix::fs::statvfs("/")?;
    let cpu = CpuSample::take();
    let previous =
        std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), cpu);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(GuestMetrics {
        ts: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        cpu_count: cpu_count(),
        cpu_used_pct: cpu.percent_since(&previous),
        mem_total_mib: memory.total >> 20,
        mem_used_mib: memory.used >> 20,
        mem_total: memory.total,
        mem_used: memory.used,
        mem_cache: memory.cache,
        disk_used: disk.f_blocks.saturating_sub(disk.f_bavail) * disk.f_frsize,
        disk_total: disk.f_blocks * disk.f_frsize,
    })
}

/// The processors that the sandbox may use.
fn cpu_count() -> u32 {
    thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

/// Processor time spent up to some moment, and processor time there was to spend.
#[derive(Clone, Copy, Debug)]
struct CpuSample {
    busy: Duration,
    available: Duration,
}

impl CpuSample {
    fn take() -> Self {
        Self::of_cgroup()
            .or_else(Self::of_system)
            .unwrap_or(Self { busy: Duration::ZERO, available: Duration::ZERO })
    }

    fn of_cgroup() -> Option<Self> {
        // The root group of a host has no limits, and is not a sandbox.
        fs::metadata(format!("{CGROUP}/cpu.max")).ok()?;
        let stat = fs::read_to_string(format!("{CGROUP}/cpu.stat")).ok()?;
        let busy = Duration::from_micros(field(&stat, "usage_usec")?);
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime = uptime.split_whitespace().next()?.parse().ok()?;
        let uptime = Duration::try_from_secs_f64(uptime).ok()?;
        Some(Self { busy, available: uptime * cpu_count() })
    }

    fn of_system() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        Self::parse_system(&stat)
    }

    /// From the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal,
    /// in ticks; ratios need no unit.
    fn parse_system(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let all: u64 = ticks.iter().sum();
        let idle: u64 = ticks.get(3..5)?.iter().sum();
        Some(Self {
            busy: Duration::from_millis(all - idle),
            available: Duration::from_millis(all),
        })
    }

    /// Percent of what there was, in hundredths.
    fn percent_since(&self, previous: &Self) -> f64 {
        let available = self.available.saturating_sub(previous.available);
        if available.is_zero() {
            return 0.0;
        }
        let busy = self.busy.saturating_sub(previous.busy);
        let percent = 100.0 * busy.as_secs_f64() / available.as_secs_f64();
        (percent.clamp(0.0, 100.0) * 100.0).round() / 100.0
    }
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    total: u64,
    used: u64,
    cache: u64,
}

impl Memory {
    fn read() -> io::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let system = Self::parse_system(&meminfo)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo"))?;
        Ok(Self::of_cgroup(system.total).unwrap_or(system))
    }

    fn of_cgroup(system_total: u64) -> Option<Self> {
        let read = |file| fs::read_to_string(format!("{CGROUP}/{file}")).ok();
        let limit = read("memory.max")?;
        let current: u64 = read("memory.current")?.trim().parse().ok()?;
        let cache = field(&read("memory.stat")?, "file")?;
        // "max" is no limit.
        let total = limit.trim().parse().map_or(system_total, |limit: u64| limit.min(system_total));
        Some(Self { total, used: current.saturating_sub(cache), cache })
    }

    fn parse_system(meminfo: &str) -> Option<Self> {
        let kib = |name| field(meminfo, name).map(|kib| kib << 10);
        let (total, free) = (kib("MemTotal:")?, kib("MemFree:")?);
        let cache = kib("Cached:")? + kib("SReclaimable:").unwrap_or(0);
        let buffers = kib("Buffers:").unwrap_or(0);
        Some(Self { total, used: total.saturating_sub(free + cache + buffers), cache })
    }
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_and_buffers_are_not_used_memory() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 300 kB\nBuffers: 50 kB\nCached: 200 kB\n\
                       SwapCached: 9 kB\nSReclaimable: 50 kB\n";
        let memory = Memory::parse_system(meminfo).unwrap();
        assert_eq!(memory, Memory { total: 1000 << 10, used: 400 << 10, cache: 250 << 10 });
    }

    #[test]
    fn waiting_for_disks_is_idle_time() {
        let before = CpuSample::parse_system("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = CpuSample::parse_system("cpu  10 0 15 50 25 0 0 0 99 99\n").unwrap();
        assert_eq!(after.percent_since(&before), 25.0);
        assert_eq!(after.percent_since(&after), 0.0);
    }
}
