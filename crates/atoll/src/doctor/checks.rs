//! What can be seen without trying.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Stdio,
};

use atoll_isolation::cgroup::Hierarchies;
use tokio::process::Command;

use super::{Arguments, Finding, names};
use crate::up::{data_dir::DataDir, ports::Listeners};

/// Overlays on id-mapped layers came with this kernel.
const OLDEST_KERNEL: (u32, u32) = (5, 19);
const GIB: u64 = 1024 * 1024 * 1024;
/// A pool of the smallest size, with the base template beside it.
const LEAST_DISK: u64 = 10 * GIB;
/// The base template's sandboxes have 1 GiB each by default.
const LEAST_MEMORY: u64 = 2 * GIB;

const TOOLS: [(&str, &str); 4] = [
    ("nft", "the firewall"),
    ("mkfs.btrfs", "sandboxes' disks"),
    ("btrfs", "sandboxes' disks"),
    ("mmdebstrap", "building the base template"),
];

/// All checks, in the order in which they matter.
pub(crate) async fn all(arguments: &Arguments) -> Vec<Finding> {
    let mut findings = vec![root(), kernel(), cgroups(), btrfs()];
    findings.extend(tools());
    findings.push(disk(&arguments.data_dir));
    findings.push(memory());
    findings.push(ports(arguments).await);
    findings.push(forwarding().await);
    findings.push(names::check(arguments.domain.name()).await);
    findings
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("root", "running as root")
    } else {
        Finding::failure(
            "root",
            "not running as root: namespaces, mounts and firewall rules need it",
            "Run with sudo.",
        )
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match parse_kernel(&release) {
        Some(version) if version >= OLDEST_KERNEL => Finding::ok("kernel", release),
        _ => Finding::failure(
            "kernel",
            format!("{release}: overlays on id-mapped layers need 5.19"),
            "Boot a newer kernel.",
        ),
    }
}

fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cgroups() -> Finding {
    match Hierarchies::detect() {
        Ok(found) => Finding::ok("cgroups", found.describe()),
        Err(error) => Finding::error("cgroups", &error),
    }
}

fn btrfs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.split_whitespace().any(|word| word == "btrfs"));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = [PathBuf::from("/lib/modules").join(&release).join("kernel/fs/btrfs")];
    if known || modules.iter().any(|path| path.exists()) {
        Finding::ok("btrfs", "the kernel has it: each sandbox's disk gets a limit")
    } else {
        Finding::failure(
            "btrfs",
            "the kernel does not know btrfs, on which sandboxes' disks get their limits",
            "Boot a kernel with btrfs, or install its modules package.",
        )
    }
}

fn tools() -> Vec<Finding> {
    let missing: Vec<&(&str, &str)> =
        TOOLS.iter().filter(|(tool, _)| find_program(tool).is_none()).collect();
    if missing.is_empty() {
        let names = TOOLS.map(|(tool, _)| tool).join(", ");
        return vec![Finding::ok("programs", names)];
    }
    missing
        .into_iter()
        .map(|(tool, purpose)| {
            Finding::failure(
                "programs",
                format!("{tool} is not installed; it is needed for {purpose}"),
                "On Debian and Ubuntu: apt-get install nftables btrfs-progs mmdebstrap.",
            )
        })
        .collect()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn disk(data_dir: &Path) -> Finding {
    let place = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let fact = format!("{} GiB free for {}", free / GIB, data_dir.display());
            if free >= LEAST_DISK || data_dir.join("pool.img").exists() {
                Finding::ok("disk", fact)
            } else {
                Finding::failure(
                    "disk",
                    format!("{fact}; the first start needs {}", LEAST_DISK / GIB),
                    "Free space, or choose another file system with --data-dir.",
                )
            }
        }
        Err(error) => Finding::failure(
            "disk",
            format!("{} cannot be looked at: {error}", place.display()),
            "Choose another place with --data-dir.",
        ),
    }
}

fn memory() -> Finding {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let total = total.unwrap_or(0);
    let fact = format!("{:.1} GiB", total as f64 / GIB as f64);
    if total >= LEAST_MEMORY {
        Finding::ok("memory", fact)
    } else {
        Finding::warning(
            "memory",
            format!("{fact}: room for few sandboxes"),
            "Give the machine more memory.",
        )
    }
}

async fn ports(arguments: &Arguments) -> Finding {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match Listeners::bind(loopback, &arguments.ports).await {
        Ok(_) => Finding::ok("ports", "all free"),
        Err(_) if DataDir::is_in_use(&arguments.data_dir) => {
            Finding::ok("ports", "in use by the Atoll that runs here")
        }
        // `atoll up` itself may be what listens, so this alone does not fail a host.
        Err(error) => Finding::warning("ports", error.message, error.fix),
    }
}

/// Another firewall may drop what sandboxes send before Atoll's rules can allow it.
async fn forwarding() -> Finding {
    let listed = Command::new("nft")
        .args(["list", "chains"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .await;
    let text = match &listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        _ => {
            return Finding::failure(
                "firewall",
                "`nft list chains` fails",
                "Install nftables, run as root, and use a kernel with nf_tables.",
            );
        }
    };
    if drops_forwarded(&text) {
        Finding::warning(
            "firewall",
            "another firewall drops forwarded traffic by default (Docker and ufw do): sandboxes \
             may not reach the internet",
            "Allow it there, for example: iptables -I DOCKER-USER -i a+ -j ACCEPT and -o a+ \
             likewise.",
        )
    } else {
        Finding::ok("firewall", "nft works; nothing else drops forwarded traffic")
    }
}

fn drops_forwarded(chains: &str) -> bool {
    let mut ours = false;
    chains.lines().any(|line| {
        if line.starts_with("table ") {
            ours = line.contains(" atoll_");
        }
        !ours && line.contains("hook forward") && line.contains("policy drop")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert_eq!(parse_kernel("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_kernel("5.4"), Some((5, 4)));
        assert_eq!(parse_kernel("six"), None);
    }

    #[test]
    fn other_firewalls_that_drop_are_seen_and_ours_is_not() {
        let docker = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n";
        let ours = docker.replace("ip filter", "inet atoll_abcdef");
        assert!(drops_forwarded(docker));
        assert!(!drops_forwarded(&ours));
        assert!(drops_forwarded(&format!("{ours}}}\n{docker}")));
    }
}
