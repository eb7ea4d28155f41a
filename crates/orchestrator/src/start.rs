//! The start of a run, from taking a slot to envd's answer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use atoll_core::{Error, LayerId, Result, error::codes};
use atoll_isolation::{Limits, Running, Spec};
use atoll_network::Slot;
use atoll_storage::{BuildManifest, Disk, Saved};
use atoll_wire::{
    guest::{BootConfig, ENVD_PORT, GuestLimits, InitRequest},
    node::{CreateTimings, SandboxRecord},
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::Guest,
    guest,
    journal::{Memory, RunEntry},
    run::{Parts, Run},
    sandbox::Sandbox,
    service::Inner,
    services::{self, Start},
};

/// Where the runtime layer has envd.
const ENVD_PATH: &str = "/usr/bin/envd";
const MIB: u64 = 1024 * 1024;
/// What CRIU writes beside a restore: its log, for the most part. Bytes.
const RESTORE_WORK: u64 = 4 * MIB;

/// What a template's sandboxes start with has to be ready this long after a create, before the control
/// plane gives up: its handlers have 70 seconds.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A run that has begun.
pub(crate) struct Started {
    pub(crate) run: Run,
    /// What its envd reported as version.
    pub(crate) envd_version: String,
    pub(crate) timings: CreateTimings,
}

/// Limits of a sandbox.
pub(crate) fn limits(inner: &Inner, record: &SandboxRecord) -> Limits {
    Limits {
        vcpu: record.resources.vcpu,
        memory: u64::from(record.resources.memory_mb) * MIB,
        processes: inner.options.max_processes,
    }
}

/// What a run starts from.
pub(crate) enum Source {
    /// The template, and an empty disk.
    Nothing,
    /// A copy of a saved disk.
    Disk(Saved),
    /// A copy of a saved disk, and the checkpoint that goes with it.
    Checkpoint(Saved, Memory),
}

/// Starts a run of a sandbox. On failure nothing is left; run it to its end, which a kill of the
/// sandbox brings near, and the node's shutdown.
pub(crate) async fn start(inner: &Inner, sandbox: &Sandbox, source: Source) -> Result<Started> {
    let (record, build) = {
        let known = sandbox.known();
        (known.entry.record.clone(), known.entry.build.clone())
    };
    let mut timings = CreateTimings::default();
    let mut watch = Stopwatch::start();

    let disk_bytes = u64::from(record.resources.disk_mb) * MIB;
    let disk = async {
        match &source {
            Source::Nothing => inner.storage.take_disk(disk_bytes).await,
            Source::Disk(saved) | Source::Checkpoint(saved, _) => {
                inner.storage.branch(saved, disk_bytes).await
            }
        }
    };
    let (slot, disk) = tokio::join!(inner.network.take(), disk);
    // Either is given back by its drop when the other failed.
    let (slot, disk) = (Arc::new(slot?), disk?);
    if has_no_internet(&record) {
        slot.set_internet(false).await?;
    }
    timings.take_us = watch.lap();

    let control_secret = control_secret()?;
    let limits = sandbox.limits;
    let place = Place { record: &record, slot: &slot, disk: &disk, limits };
    let mut settings = settings(&record, &build);
    let boots = !matches!(source, Source::Checkpoint(..));
    let (running, secret, stack) = match source {
        Source::Checkpoint(saved, then) => {
            settings = InitRequest {
                sandbox_id: Some(record.id.to_string()),
                template_id: Some(record.template.to_string()),
                control_secret: Some(control_secret.clone()),
                limits: Some(guest_limits(limits)),
                ..settings
            };
            let running = restore(inner, sandbox, &place, &saved, &then.stack).await?;
            (running, then.control_secret, then.stack)
        }
        Source::Nothing | Source::Disk(_) => {
            let stack = [&build.layers[..], slice::from_ref(&inner.options.runtime_layer)].concat();
            (boot(inner, &place, &stack, &control_secret).await?, control_secret.clone(), stack)
        }
    };
    timings.start_us = watch.lap();

    let up = async {
        let version = guest::init(&slot, &secret, &settings).await?;
        if let Some(start) = build.start.as_ref().filter(|_| boots) {
            let guest = Guest::starting(slot.clone(), record.envd_access_token.clone());
            services::start(&guest, start, Start::Sandbox, READY_WITHIN, |_, _| {}).await?;
        }
        Ok(version)
    };
    let answer = tokio::select! {
        answer = up => answer,
        _ = running.process.ended() => Err(Error::new(
            codes::SANDBOX_START_FAILED,
            "envd ended before it answered; its memory limit may be too small.",
        )),
        error = unwanted(inner, sandbox) => Err(error),
    };
    timings.init_us = watch.lap();
    let envd_version = match answer {
        Ok(version) => version,
        Err(error) => {
            undo(running).await;
            return Err(error);
        }
    };
    let entry = RunEntry {
        identity: running.identity(),
        slot: slot.index(),
        disk: disk.name().to_owned(),
        memory: Memory { stack, control_secret },
    };
    let parts = Parts { entry, limits, processes: Some((running, slot)), disk };
    Ok(Started { run: Run::new(parts, sandbox.log.clone()), envd_version, timings })
}

/// Why nothing begins any more.
pub(crate) fn stopping() -> Error {
    Error::new(codes::NODE_UNAVAILABLE, "the node is shutting down.")
}

/// Waits until a run that is being started is wanted no more, and says why.
async fn unwanted(inner: &Inner, sandbox: &Sandbox) -> Error {
    tokio::select! {
        () = sandbox.killed.cancelled() => {
            Error::new(codes::SANDBOX_ENDING, "the sandbox was killed meanwhile.")
        }
        () = inner.stopping.cancelled() => stopping(),
    }
}

/// Whether a sandbox is cut off.
pub(crate) fn has_no_internet(record: &SandboxRecord) -> bool {
    record.allow_internet_access == Some(false)
}

/// Where a run is to be.
struct Place<'a> {
    record: &'a SandboxRecord,
    slot: &'a Slot,
    disk: &'a Disk,
    limits: Limits,
}

impl Place<'_> {
    fn spec(&self, inner: &Inner, stack: &[LayerId]) -> Spec<'_> {
        Spec {
            id: &self.record.id,
            place: self.slot.into(),
            layers: stack.iter().map(|layer| inner.storage.layer_dir(layer)).collect(),
            disk: disk_directory(self.disk),
            limits: self.limits,
            exec: vec![ENVD_PATH.to_owned()],
            stdin: String::new(),
            listen: ENVD_PORT,
        }
    }
}

async fn boot(
    inner: &Inner,
    place: &Place<'_>,
    stack: &[LayerId],
    secret: &str,
) -> Result<Running> {
    let boot = BootConfig {
        control_secret: secret.to_owned(),
        sandbox_id: place.record.id.to_string(),
        template_id: place.record.template.to_string(),
        limits: Some(guest_limits(place.limits)),
    };
    let stdin = serde_json::to_string(&boot)
        .map_err(|error| Error::new(codes::INTERNAL, format!("envd's settings: {error}.")))?;
    inner.driver.start(Spec { stdin, ..place.spec(inner, stack) }).await
}

async fn restore(
    inner: &Inner,
    sandbox: &Sandbox,
    place: &Place<'_>,
    saved: &Saved,
    stack: &[LayerId],
) -> Result<Running> {
    // A directory of its own that no crash leaves behind for long.
    let name = format!("{}-restore", place.record.id);
    let work = inner.storage.begin_saved(&name, RESTORE_WORK, RESTORE_WORK).await?;
    let spec = place.spec(inner, stack);
    let (images, given_up) = (saved.memory_dir(), CancellationToken::new());
    let mut restoring = inner.driver.restore(spec, &images, &work, &given_up);
    let restored = tokio::select! {
        restored = &mut restoring => restored,
        error = unwanted(inner, sandbox) => {
            given_up.cancel();
            // The processes end before what they live in does.
            match restoring.await {
                Ok(running) => undo(running).await,
                Err(cause) => tracing::debug!(%cause, "a restore was given up"),
            }
            Err(error)
        }
    };
    if let Err(error) = inner.storage.drop_saved(&name).await {
        tracing::warn!(name, %error, "what a restore wrote stays until the next start");
    }
    restored
}

fn guest_limits(limits: Limits) -> GuestLimits {
    GuestLimits { vcpu: limits.vcpu, memory: limits.memory }
}

/// The directory that holds a disk's `upper` and `work`.
fn disk_directory(disk: &Disk) -> PathBuf {
    let upper = disk.upper();
    upper.parent().map_or(upper.clone(), Path::to_path_buf)
}

fn settings(record: &SandboxRecord, build: &BuildManifest) -> InitRequest {
    InitRequest {
        env_vars: Some(env_vars(record, build)),
        access_token: record.envd_access_token.clone(),
        timestamp: Some(Timestamp::now().to_string()),
        default_user: Some(build.default_user.clone()),
        default_workdir: build.default_workdir.clone(),
        ..InitRequest::default()
    }
}

/// The template's variables, and those of the sandbox, which count for more.
fn env_vars(record: &SandboxRecord, build: &BuildManifest) -> BTreeMap<String, String> {
    build.env_vars.iter().chain(&record.env_vars).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Kills processes that are of no use without the rest.
pub(crate) fn kill(running: &Running) {
    if let Err(cause) = running.kill() {
        tracing::error!(%cause, "a sandbox of no use could not be ended");
    }
    running.cgroup.kill();
}

/// As [`kill`], and waits until nothing of them is left.
pub(crate) async fn undo(running: Running) {
    kill(&running);
    if let Err(cause) = running.process.wait().await {
        tracing::error!(%cause, "a sandbox of no use could not be waited for");
    }
    if let Err(cause) = running.cgroup.remove().await {
        tracing::error!(%cause, "a sandbox of no use left a cgroup");
    }
}

fn control_secret() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(codes::INTERNAL, format!("no randomness: {error}.")))?;
    Ok(hex::encode(bytes))
}

struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> u64 {
        let lap = self.0.elapsed();
        self.0 = Instant::now();
        u64::try_from(lap.as_micros()).unwrap_or(u64::MAX)
    }
}
