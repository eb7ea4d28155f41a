//! `GET /metrics`: what the sandbox uses, as seen from inside.
//!
//! In a virtual machine that is what the kernel says of the machine. A container sees the host's
//! figures, so there the sandbox's processes are added up and measured by the limits it was given.
//! The node measures its control group itself; that is what the API reports.

use std::{
    fs, io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use atoll_wire::guest::{GuestLimits, GuestMetrics};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};

use crate::{auth::rest_error, guest::Guest};

struct Meter {
    guest: Arc<Guest>,
    last: Mutex<CpuSample>,
}

/// The metrics route. Processor use is counted from here on.
pub fn router(guest: Arc<Guest>) -> Router {
    let last = Mutex::new(CpuSample::take(guest.limits()));
    Router::new().route("/metrics", get(metrics)).with_state(Arc::new(Meter { guest, last }))
}

async fn metrics(State(meter): State<Arc<Meter>>) -> Response {
    match meter.measure() {
        Ok(metrics) => ([(header::CACHE_CONTROL, "no-store")], Json(metrics)).into_response(),
        Err(error) => rest_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("error reading the use of the sandbox: {error}"),
        ),
    }
}

impl Meter {
    fn measure(&self) -> io::Result<GuestMetrics> {
        let limits = self.guest.limits();
        let memory = match limits {
            Some(limits) => {
                Memory { total: limits.memory, used: Processes::sum().memory, cache: 0 }
            }
            None => Memory::of_system()?,
        };
        let disk = rustix::fs::statvfs("/")?;
        let cpu = CpuSample::take(limits);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::replace(&mut *last, cpu);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(GuestMetrics {
            ts: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            cpu_count: limits.map_or_else(processors, |limits| limits.vcpu),
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
}

/// The processors that the system has.
fn processors() -> u32 {
    thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

/// What all processes use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Processes {
    /// Bytes that are theirs alone.
    memory: u64,
    /// Processor time of theirs and of those they have waited for.
    busy: Duration,
}

impl Processes {
    /// A look at each; those that end meanwhile are left out.
    fn sum() -> Self {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let mut sum = Self::default();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let read = |file| fs::read_to_string(entry.path().join(file)).ok();
            let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
            let Some(stat) = is_process.then(|| read("stat")).flatten() else { continue };
            let time = ticks_in(&stat).unwrap_or(0) as f64 / ticks as f64;
            sum.busy += Duration::try_from_secs_f64(time).unwrap_or_default();
            sum.memory += read("statm").and_then(|statm| pages_in(&statm)).unwrap_or(0) * page;
        }
        sum
    }
}

/// User and system time of a process and of its waited-for children: fields 14 to 17 of
/// `/proc/PID/stat`. The name before them may hold anything, parentheses too.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let numbers = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
    numbers.sum::<Result<u64, _>>().ok()
}

/// Resident pages less those shared with files or others: fields 2 and 3 of `/proc/PID/statm`.
fn pages_in(statm: &str) -> Option<u64> {
    let mut fields = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared))
}

/// Processor time spent up to some moment, and processor time there was to spend.
#[derive(Clone, Copy, Debug)]
struct CpuSample {
    busy: Duration,
    available: Duration,
}

impl CpuSample {
    fn take(limits: Option<GuestLimits>) -> Self {
        let Some(limits) = limits else {
            return Self::of_system()
                .unwrap_or(Self { busy: Duration::ZERO, available: Duration::ZERO });
        };
        static STARTED: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let passed = STARTED.get_or_init(Instant::now).elapsed();
        Self { busy: Processes::sum().busy, available: passed * limits.vcpu.max(1) }
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
    fn of_system() -> io::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        Self::parse_system(&meminfo)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo"))
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
    use atoll_wire::guest::BootConfig;

    use super::*;

    #[test]
    fn cache_and_buffers_are_not_used_memory() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 300 kB\nBuffers: 50 kB\nCached: 200 kB\n\
                       SwapCached: 9 kB\nSReclaimable: 50 kB\n";
        let memory = Memory::parse_system(meminfo).unwrap();
        assert_eq!(memory, Memory { total: 1000 << 10, used: 400 << 10, cache: 250 << 10 });
    }

    #[test]
    fn a_process_may_be_named_like_its_own_entry() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 10 20 3 4 20 0 1 0 5 0 0";
        assert_eq!(ticks_in(stat), Some(37));
        assert_eq!(ticks_in("7 (short) S 1"), Some(0));
        assert_eq!(ticks_in("nothing"), None);
        assert_eq!(pages_in("900 300 100 1 0 50 0"), Some(200));
        assert_eq!(pages_in("900"), None);
    }

    // Rules: METRICS-2
    #[test]
    fn processes_are_measured_by_their_limits() {
        let limits = Some(GuestLimits { vcpu: 2, memory: 1 << 30 });
        let guest = Guest::new(BootConfig { limits, ..BootConfig::default() });
        let meter = Meter { guest, last: Mutex::new(CpuSample::take(limits)) };
        let ballast = vec![1_u8; 32 << 20];
        let metrics = meter.measure().unwrap();
        assert_eq!((metrics.cpu_count, metrics.mem_total), (2, 1 << 30));
        assert!(metrics.mem_used >= 32 << 20, "{metrics:?}");
        assert!((0.0..=100.0).contains(&metrics.cpu_used_pct), "{metrics:?}");
        drop(ballast);
    }

    // Rules: METRICS-2
    #[test]
    fn waiting_for_disks_is_idle_time() {
        let before = CpuSample::parse_system("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = CpuSample::parse_system("cpu  10 0 15 50 25 0 0 0 99 99\n").unwrap();
        assert_eq!(after.percent_since(&before), 25.0);
        assert_eq!(after.percent_since(&after), 0.0);
    }
}
