//! The `container` driver: Linux namespaces, an overlay root, cgroups and seccomp.
//!
//! The work is the launcher's (crate `atoll-launcher`): this driver makes the control group, writes
//! the specification, reads the report and takes hold of the first process.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use async_trait::async_trait;
use atoll_core::{Error, InstanceId, Result, error::codes};
use atoll_launcher::RunSpec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::{
    Capabilities, Driver, Running, Spec,
    cgroup::{Cgroup, Cgroups},
    process::FirstProcess,
    seccomp,
};

/// The name every sandbox sees itself by.
pub const HOSTNAME: &str = "sandbox";

/// Configuration of the driver.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose objects these are.
    pub instance: InstanceId,
    /// The launcher's binary.
    pub launcher: PathBuf,
    /// An empty directory that launchers mount on, each in a namespace of its own.
    pub staging: PathBuf,
}

/// The driver.
#[derive(Debug)]
pub struct Container {
    options: Options,
    cgroups: Cgroups,
    seccomp: String,
}

impl Container {
    /// Prepares the driver.
    ///
    /// # Errors
    /// `HOST_FEATURE_MISSING` when the host lacks control groups, `DATA_DIR_UNUSABLE` when the
    /// staging directory cannot be made.
    pub fn new(options: Options) -> Result<Self> {
        std::fs::create_dir_all(&options.staging).map_err(|error| {
            Error::new(
                codes::DATA_DIR_UNUSABLE,
                format!("cannot create {}: {error}.", options.staging.display()),
            )
        })?;
        let cgroups = Cgroups::open(&options.instance)?;
        let seccomp = seccomp::program().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { options, cgroups, seccomp })
    }

    /// The instance's control groups.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn run_spec(&self, spec: &Spec<'_>, cgroup: &Cgroup) -> RunSpec {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let descriptor = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        RunSpec {
            user_ns: descriptor(spec.slot.user_ns().as_raw_fd()),
            net_ns: descriptor(spec.slot.net_ns().as_raw_fd()),
            first_uid: spec.slot.first_uid(),
            cgroups: cgroup.join_files().iter().map(|path| text(path)).collect(),
            layers: spec.layers.iter().map(|path| text(path)).collect(),
            disk: text(&spec.disk),
            staging: text(&self.options.staging),
            hostname: HOSTNAME.to_owned(),
            exec: spec.exec.clone(),
            stdin: spec.stdin.clone(),
            listen: spec.listen,
            // Docker's and the kernel's habit: half of the memory.
            shm_bytes: spec.limits.memory / 2,
            seccomp: self.seccomp.clone(),
        }
    }

    async fn launch(&self, spec: &Spec<'_>, cgroup: &Cgroup) -> Result<FirstProcess> {
        let request = serde_json::to_vec(&self.run_spec(spec, cgroup))
            .map_err(|error| failed(format!("the specification cannot be written: {error}")))?;
        let mut launcher = Command::new(&self.options.launcher)
            .arg("run")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("the launcher cannot be run: {error}")))?;
        let (stdin, stdout) = (launcher.stdin.take(), launcher.stdout.take());
        let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else {
            return Err(failed("the launcher has no pipes".to_owned()));
        };
        let mut report = String::new();
        let talk = async {
            // A launcher that ends early closes the pipe; its report says why.
            let _ = stdin.write_all(&request).await;
            drop(stdin);
            stdout.read_to_string(&mut report).await
        };
        talk.await
            .map_err(|error| failed(format!("the launcher's report is unreadable: {error}")))?;
        launcher
            .wait()
            .await
            .map_err(|error| failed(format!("the launcher cannot be waited for: {error}")))?;
        match parse_report(&report) {
            Report::Started(pid) => FirstProcess::open(pid),
            Report::Failed { pid, cause } => {
                // It is our child, and a zombie until it is waited for.
                if let Some(process) = pid.and_then(|pid| FirstProcess::open(pid).ok()) {
                    let _ = process.kill();
                    let _ = process.wait().await;
                }
                Err(failed(cause))
            }
        }
    }
}

fn failed(cause: String) -> Error {
    Error::new(codes::SANDBOX_START_FAILED, format!("the sandbox did not start: {cause}."))
}

#[derive(Debug, PartialEq, Eq)]
enum Report {
    Started(u32),
    Failed { pid: Option<u32>, cause: String },
}

/// Reads `pid N` and `error STEP: CAUSE`: a first process that fails does so after its number was
/// reported.
fn parse_report(report: &str) -> Report {
    let pid = report.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
    let error = report.lines().find_map(|line| line.strip_prefix("error "));
    match (pid, error) {
        (Some(pid), None) => Report::Started(pid),
        (pid, Some(error)) => Report::Failed { pid, cause: error.to_owned() },
        (None, None) => Report::Failed { pid, cause: "the launcher reported nothing".to_owned() },
    }
}

#[async_trait]
impl Driver for Container {
    fn name(&self) -> &'static str {
        "container"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { memory_snapshots: false }
    }

    async fn start(&self, spec: Spec<'_>) -> Result<Running> {
        let cgroup = self.cgroups.create(spec.id.as_str(), spec.limits)?;
        match self.launch(&spec, &cgroup).await {
            Ok(process) => Ok(Running { process, cgroup }),
            Err(error) => {
                cgroup.kill();
                if let Err(cause) = cgroup.remove().await {
                    tracing::warn!(sandbox = %spec.id, %cause, "a failed start left a cgroup");
                }
                Err(error)
            }
        }
    }

    async fn clean(&self) -> Result<usize> {
        let left = self.cgroups.existing();
        let count = left.len();
        for (name, cgroup) in left {
            cgroup.kill();
            if let Err(cause) = cgroup.remove().await {
                tracing::warn!(sandbox = name, %cause, "a leftover cgroup could not be removed");
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        assert_eq!(parse_report("pid 42\n"), Report::Started(42));
        assert_eq!(
            parse_report("pid 42\nerror start envd: No such file\n"),
            Report::Failed { pid: Some(42), cause: "start envd: No such file".to_owned() }
        );
        for silent in ["", "pid x\n"] {
            assert!(matches!(parse_report(silent), Report::Failed { pid: None, .. }), "{silent:?}");
        }
    }
}
