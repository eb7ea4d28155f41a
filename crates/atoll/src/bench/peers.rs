//! What else on this machine runs a program in a fresh sandbox, timed as a whole process.

use std::{
    fs, io,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::Command;

use crate::{helpers::Launcher, scratch::Scratch};

/// A container of one static program, which ends at once.
const CRUN_CONFIG: &str = r#"{
  "ociVersion": "1.0.2",
  "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/probe"], "cwd": "/" },
  "root": { "path": "rootfs", "readonly": true },
  "hostname": "probe",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }
  ],
  "linux": {
    "namespaces": [
      { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
      { "type": "network" }
    ]
  }
}"#;

/// Times of each program that is installed and works, by name.
pub(crate) async fn measure(count: usize) -> Vec<(&'static str, Vec<Duration>)> {
    let mut found = Vec::new();
    let bwrap = ["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "/bin/true"];
    if let Some(times) = time(count, "bwrap", |_| bwrap.map(str::to_owned).to_vec(), Some(0)).await
    {
        found.push(("bwrap /bin/true", times));
    }
    let Ok(bundle) = Bundle::make() else { return found };
    let path = bundle.0.path().to_string_lossy().into_owned();
    let arguments = |round: usize| {
        ["--cgroup-manager=disabled", "run", "--bundle", &path]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("atoll-bench-{}-{round}", std::process::id())])
            .collect()
    };
    // The probe, called without arguments, says how it is called, and fails.
    if let Some(times) = time(count, "crun", arguments, Some(1)).await {
        found.push(("crun run of a static program", times));
    }
    found
}

async fn time(
    count: usize,
    program: &str,
    arguments: impl Fn(usize) -> Vec<String>,
    expected: Option<i32>,
) -> Option<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for round in 0..=count {
        let started = Instant::now();
        let status = Command::new(program)
            .args(arguments(round))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .ok()?;
        if status.code() != expected {
            return None;
        }
        // The first run warms the caches.
        if round > 0 {
            times.push(started.elapsed());
        }
    }
    Some(times)
}

/// A directory that crun runs; removed when dropped.
struct Bundle(Scratch);

impl Bundle {
    fn make() -> io::Result<Self> {
        let scratch = Scratch::make()?;
        let root = scratch.path().join("rootfs");
        for directory in ["proc", "dev"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::write(scratch.path().join("config.json"), CRUN_CONFIG)?;
        let launcher = Launcher::install(scratch.path()).map_err(io::Error::other)?;
        fs::copy(launcher.path(), root.join("probe"))?;
        Ok(Self(scratch))
    }
}
