//! The numbers that bound everything. Where no source is named it is the control-plane contract,
//! section 20.

use std::time::Duration;

/// Largest REST request body, bytes.
pub const MAX_BODY: usize = 16 * 1024 * 1024;
/// Longest a REST handler may take.
pub const HANDLER_DEADLINE: Duration = Duration::from_secs(70);
/// Longest a client may take to send a request's headers and body.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest page, and the default one.
pub const PAGE_SIZE: u32 = 100;
/// Default sandbox lifetime on the v1 create route.
pub const DEFAULT_TIMEOUT_V1: Duration = Duration::from_secs(15);
/// Default sandbox lifetime on the v2 create and connect routes.
pub const DEFAULT_TIMEOUT_V2: Duration = Duration::from_secs(300);
/// Shortest effective `/refreshes`.
pub const MIN_REFRESH: Duration = Duration::from_secs(15);
/// Longest `/refreshes`.
pub const MAX_REFRESH: Duration = Duration::from_secs(3600);
/// Shortest lifetime of a sandbox that traffic has woken.
pub const MIN_WAKE: Duration = Duration::from_secs(300);
/// Most forks in one request.
pub const MOST_FORKS: u32 = 100;
/// Idle connections through the proxies live longer than any SDK keepalive (contract 15.4).
pub const PROXY_IDLE: Duration = Duration::from_secs(620);
/// Most bytes of a sandbox's metadata, and of its variables, names included. Ours: the contract has
/// none, and the kernel takes little more in a program's environment.
pub const MAX_LABELS: usize = 256 * 1024;
/// Most sandbox ids in one metrics batch.
pub const METRICS_BATCH: usize = 100;
/// How often a sandbox's resource use is sampled (contract 9.1).
pub const METRICS_INTERVAL: Duration = Duration::from_secs(5);
/// Largest page of a log, and the default one.
pub const LOG_PAGE_SIZE: u32 = 1000;
/// How long lines of logs are kept, and how far back they are looked for (contract 9.3).
pub const LOG_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most lines of logs that are kept; the oldest go first. Ours: about a gigabyte of usual lines.
pub const MOST_LOG_LINES: u32 = 2_000_000;
/// Longest text to search a log for, characters (contract 9.3).
pub const LOG_SEARCH_LENGTH: usize = 256;

/// Virtual CPUs of a template that asks for none, and the most that one may ask for.
pub const TEMPLATE_VCPU: (u32, u32) = (2, 32);
/// Memory of a template that asks for none, and the least that one may ask for, MiB.
pub const TEMPLATE_MEMORY_MB: (u32, u32) = (1024, 128);
/// How long a registered build counts as under way, at most (contract 10.2).
pub const BUILD_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// How long files may be uploaded to an address that was handed out.
pub const UPLOAD_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Most lines of one build's log. Ours: later ones are left out.
pub const MOST_BUILD_LINES: u32 = 100_000;

/// What a team may use. The development tier is what `atoll up` seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Sandboxes running or starting at once.
    pub concurrent_sandboxes: u32,
    /// Longest run of one sandbox, hours.
    pub max_length_hours: u32,
    /// Virtual CPUs of one sandbox.
    pub max_vcpu: u32,
    /// Memory of one sandbox, MiB.
    pub max_ram_mb: u32,
    /// Writable disk of one sandbox, MiB.
    pub disk_mb: u32,
    /// Template builds under way or waiting at once.
    pub concurrent_builds: u32,
}

/// The tier of the development team.
pub const DEVELOPMENT_TIER: Tier = Tier {
    concurrent_sandboxes: 200,
    max_length_hours: 24,
    max_vcpu: 8,
    max_ram_mb: 8192,
    disk_mb: 10 * 1024,
    concurrent_builds: 20,
};
