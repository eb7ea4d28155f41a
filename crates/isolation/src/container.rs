//! The `container` driver: Linux namespaces, an overlay root, cgroups and seccomp.
//!
//! The work is the launcher's (crate `atoll-launcher`): this driver takes a control group with a
//! launcher in it, writes the specification, reads the report and takes hold of the first process.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Error, InstanceId, Result, error::codes, lifecycle::Kept};
use atoll_launcher::{Job, RunSpec};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio_util::sync::CancellationToken;

use crate::{
    Driver, Dumped, Identity, Place, Running, Spec,
    berths::{Berth, Berths, failed},
    boot_id,
    cgroup::{Cgroup, Cgroups},
    checkpoint::{self, Checkpoints, criu::Version, probe},
    dumped,
    memory::Memory,
    process::FirstProcess,
    restore, seccomp,
};

/// The name every sandbox sees itself by.
pub const HOSTNAME: &str = "sandbox";

/// A launcher takes milliseconds; one that takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Configuration of the driver.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose objects these are.
    pub instance: InstanceId,
    /// The launcher's binary.
    pub launcher: PathBuf,
    /// An empty directory that launchers mount on, each in a namespace of its own.
    pub staging: PathBuf,
    /// Control groups, with a launcher in each, kept ready.
    pub ready: usize,
    /// Names of groups that hold sandboxes to adopt, and are left as they are.
    pub keep: HashSet<String>,
    /// A directory that CRIU was unpacked to, with its libraries, tar and gzip; what `atoll up` takes
    /// from `--criu` or `ATOLL_CRIU`. None for the one in `PATH`, if there is one.
    pub criu: Option<PathBuf>,
}

/// The driver.
#[derive(Debug)]
pub struct Container {
    options: Options,
    cgroups: Cgroups,
    berths: Arc<Berths>,
    memory: Memory,
    seccomp: String,
}

impl Container {
    /// Ends what an earlier run of this instance left behind, apart from what is to be kept, and is
    /// ready.
    ///
    /// # Errors
    /// `HOST_FEATURE_MISSING` when the host lacks control groups, `DATA_DIR_UNUSABLE` when the
    /// staging directory cannot be made, `INTERNAL` when there is no randomness.
    pub async fn start(options: Options) -> Result<Self> {
        std::fs::create_dir_all(&options.staging).map_err(|error| {
            Error::new(
                codes::DATA_DIR_UNUSABLE,
                format!("cannot create {}: {error}.", options.staging.display()),
            )
        })?;
        let cgroups = Cgroups::open(&options.instance)?;
        dumped::await_former(&cgroups, &options.keep).await;
        clean(&cgroups, &options.keep).await;
        let berths = Berths::start(cgroups.clone(), options.launcher.clone(), options.ready)?;
        let seccomp = seccomp::program().iter().map(|byte| format!("{byte:02x}")).collect();
        let memory = Memory::default();
        Ok(Self { options, cgroups, berths: Arc::new(berths), memory, seccomp })
    }

    /// Finds CRIU and tries whether checkpoints work here, in `place`, which is as unused afterwards
    /// as it was before. `scratch` is an empty directory for root alone, on the file system of the
    /// disks; what is left in it is for the caller to remove. Takes a fraction of a second. Until
    /// this has been called, [`memory`](Driver::memory) is [`Kept::Frozen`]; what came of it stays.
    ///
    /// # Errors
    /// The first thing that does not work here; that is no failure of the driver.
    pub async fn probe_memory(
        &self,
        place: Place<'_>,
        scratch: &Path,
    ) -> std::result::Result<Version, checkpoint::Error> {
        let (checkpoints, version) = probe::run(self, &self.options, place, scratch).await?;
        tracing::info!(%version, "CRIU works here: a pause with memory keeps a checkpoint");
        self.memory.found(checkpoints);
        Ok(version)
    }

    pub(crate) async fn dump_with(
        &self,
        checkpoints: &Checkpoints,
        running: &Running,
        images: &Path,
    ) -> Result<Dumped> {
        let namespaces = self.namespaces(running)?;
        dumped::dump(checkpoints, &self.berths, running, &namespaces.net, images).await
    }

    pub(crate) async fn restore_from(
        &self,
        checkpoints: Checkpoints,
        spec: &Spec<'_>,
        images: &Path,
        work: &Path,
        given_up: &CancellationToken,
    ) -> Result<Running> {
        restore::restore(checkpoints, self.berths.clone(), spec, images, work, given_up).await
    }

    /// The instance's control groups.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn run_spec(&self, spec: &Spec<'_>, boot_id: String, log: BorrowedFd<'_>) -> RunSpec {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let descriptor = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        RunSpec {
            user_ns: descriptor(spec.place.user_ns.as_raw_fd()),
            net_ns: descriptor(spec.place.net_ns.as_raw_fd()),
            log: descriptor(log.as_raw_fd()),
            first_uid: spec.place.first_uid,
            layers: spec.layers.iter().map(|path| text(path)).collect(),
            disk: text(&spec.disk),
            staging: text(&self.options.staging),
            hostname: HOSTNAME.to_owned(),
            boot_id,
            exec: spec.exec.clone(),
            stdin: spec.stdin.clone(),
            listen: spec.listen,
            // Docker's and the kernel's habit: half of the memory.
            shm_bytes: spec.limits.memory / 2,
            seccomp: self.seccomp.clone(),
        }
    }

    async fn launch(&self, spec: &Spec<'_>, mut berth: Berth) -> Result<Running> {
        let (log, log_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| failed(format!("the log's pipe cannot be made: {error}")))?;
        let boot_id = boot_id::generate()
            .map_err(|error| failed(format!("there is no randomness: {error}")))?;
        let job = Job::Run(self.run_spec(spec, boot_id, log_end.as_fd()));
        let report = match tokio::time::timeout(PATIENCE, berth.ask(&job)).await {
            Ok(Ok(report)) => report.lines(),
            Ok(Err(error)) => {
                return Err(failed(format!("the launcher's report is unreadable: {error}")));
            }
            Err(_) => return Err(failed("the launcher does not answer".to_owned())),
        };
        let Berth { cgroup, mut launcher, .. } = berth;
        // Its end takes the kernel a while, for its mounts; nobody has to wait for that here.
        tokio::spawn(async move { launcher.wait().await });
        match parse_report(&report) {
            Report::Started(pid) => Running::new(pid, cgroup, log),
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

/// Ends and removes what an earlier run left behind.
async fn clean(cgroups: &Cgroups, keep: &HashSet<String>) {
    let mut left = cgroups.existing();
    left.retain(|(name, _)| !keep.contains(name));
    if !left.is_empty() {
        tracing::info!(groups = left.len(), "ending what an earlier run left behind");
    }
    for (name, cgroup) in left {
        cgroup.kill();
        if let Err(cause) = cgroup.remove().await {
            tracing::warn!(name, %cause, "a leftover cgroup could not be removed");
        }
    }
}

/// Changes a group, which the kernel may take long for, and says what came of it for `running`.
async fn change(
    running: &Running,
    change: impl FnOnce(&Cgroup) -> io::Result<()> + Send + 'static,
) -> Result<()> {
    let cgroup = running.cgroup.clone();
    let changed = tokio::task::spawn_blocking(move || change(&cgroup)).await;
    let changed = changed.map_err(io::Error::other).and_then(|changed| changed);
    // Asked afterwards, and first: a group without processes can be frozen too.
    if running.process.has_ended().is_ok_and(|ended| ended) {
        return Err(Error::new(codes::SANDBOX_GONE, "the sandbox has ended."));
    }
    changed.map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::Unsupported => codes::DRIVER_UNSUPPORTED,
            _ => codes::INTERNAL,
        };
        Error::new(code, format!("the sandbox could not be stopped, or let go on: {error}."))
    })
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

    fn memory(&self) -> Kept {
        self.memory.kept()
    }

    async fn start(&self, spec: Spec<'_>) -> Result<Running> {
        let berth = self.berths.take().await?;
        let cgroup = berth.cgroup.clone();
        let started = match cgroup.limit(spec.limits) {
            Ok(()) => self.launch(&spec, berth).await,
            Err(error) => Err(failed(format!("its limits could not be set: {error}"))),
        };
        if started.is_err() {
            cgroup.kill();
            if let Err(cause) = cgroup.remove().await {
                tracing::warn!(sandbox = %spec.id, %cause, "a failed start left a cgroup");
            }
        }
        started
    }

    async fn adopt(&self, identity: &Identity) -> Result<Option<Running>> {
        let failed = |error: io::Error| {
            let message = format!("the cgroup {} cannot be taken over: {error}.", identity.cgroup);
            Error::new(codes::INTERNAL, message)
        };
        let Some(cgroup) = self.cgroups.find(&identity.cgroup) else { return Ok(None) };
        if let Some(running) = identity.find(cgroup.clone()).await.map_err(failed)? {
            return Ok(Some(running));
        }
        cgroup.kill();
        cgroup.remove().await.map_err(failed)?;
        Ok(None)
    }

    async fn freeze(&self, running: &Running) -> Result<()> {
        let frozen = change(running, Cgroup::freeze).await;
        if frozen.is_err() {
            // What is left of one whose first process has ended must be able to end too.
            let _ = change(running, Cgroup::thaw).await;
        }
        frozen
    }

    async fn thaw(&self, running: &Running) -> Result<()> {
        change(running, Cgroup::thaw).await
    }

    async fn dump(&self, running: &Running, images: &Path) -> Result<Dumped> {
        self.dump_with(&self.memory.checkpoints()?, running, images).await
    }

    async fn restore(
        &self,
        spec: Spec<'_>,
        images: &Path,
        work: &Path,
        given_up: &CancellationToken,
    ) -> Result<Running> {
        let checkpoints = self.memory.to_restore()?;
        self.restore_from(checkpoints, &spec, images, work, given_up).await
    }

    async fn shutdown(&self) {
        self.berths.close().await;
        self.cgroups.remove();
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
