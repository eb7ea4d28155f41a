//! The start of a run, from taking a slot to envd's answer.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use atoll_core::{Error, Result, error::codes};
use atoll_isolation::{Limits, Running, Spec};
use atoll_network::Slot;
use atoll_storage::{BuildManifest, Disk, Saved};
use atoll_wire::{
    guest::{BootConfig, ENVD_PORT, GuestLimits, InitRequest},
    node::{CreateTimings, SandboxRecord},
};
use jiff::Timestamp;

use crate::{
    guest,
    journal::RunEntry,
    run::{Parts, Run},
    sandbox::Sandbox,
    service::Inner,
};

/// Where the runtime layer has envd.
const ENVD_PATH: &str = "/usr/bin/envd";
const MIB: u64 = 1024 * 1024;

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

/// Starts a run of a sandbox, on a copy of the disk that is saved or else on an empty one. On failure
/// nothing is left; run it to its end, which a kill of the sandbox brings near.
pub(crate) async fn start(
    inner: &Inner,
    sandbox: &Sandbox,
    record: &SandboxRecord,
    saved: Option<&Saved>,
) -> Result<Started> {
    let build = inner.storage.build(&record.build).await?.ok_or_else(|| {
        Error::new(
            codes::TEMPLATE_MISSING,
            format!(
                "the node does not have build {} of template {}.",
                record.build, record.template
            ),
        )
    })?;
    let mut timings = CreateTimings::default();
    let mut watch = Stopwatch::start();

    let disk_bytes = u64::from(record.resources.disk_mb) * MIB;
    let disk = async {
        match saved {
            Some(saved) => inner.storage.branch(saved, disk_bytes).await,
            None => inner.storage.take_disk(disk_bytes).await,
        }
    };
    let (slot, disk) = tokio::join!(inner.network.take(), disk);
    // Either is given back by its drop when the other failed.
    let (slot, disk) = (slot?, disk?);
    if has_no_internet(record) {
        slot.set_internet(false).await?;
    }
    timings.take_us = watch.lap();

    let control_secret = control_secret()?;
    let limits = sandbox.limits;
    let running = boot(inner, record, &build, &slot, &disk, limits, &control_secret).await?;
    timings.start_us = watch.lap();

    let settings = settings(record, &build);
    let answer = tokio::select! {
        answer = guest::init(&slot, &control_secret, &settings) => answer,
        _ = running.process.ended() => Err(Error::new(
            codes::SANDBOX_START_FAILED,
            "envd ended before it answered; its memory limit may be too small.",
        )),
        () = sandbox.killed.cancelled() => {
            Err(Error::new(codes::SANDBOX_GONE, "the sandbox was ended meanwhile."))
        }
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
        control_secret,
    };
    let parts = Parts { entry, limits, processes: Some((running, slot)), disk };
    Ok(Started { run: Run::new(parts, sandbox.log.clone()), envd_version, timings })
}

/// Whether a sandbox is cut off.
pub(crate) fn has_no_internet(record: &SandboxRecord) -> bool {
    record.allow_internet_access == Some(false)
}

async fn boot(
    inner: &Inner,
    record: &SandboxRecord,
    build: &BuildManifest,
    slot: &Slot,
    disk: &Disk,
    limits: Limits,
    secret: &str,
) -> Result<Running> {
    let boot = BootConfig {
        control_secret: secret.to_owned(),
        sandbox_id: record.id.to_string(),
        template_id: record.template.to_string(),
        limits: Some(GuestLimits { vcpu: limits.vcpu, memory: limits.memory }),
    };
    let stdin = serde_json::to_string(&boot)
        .map_err(|error| Error::new(codes::INTERNAL, format!("envd's settings: {error}.")))?;
    let layers = build
        .layers
        .iter()
        .chain([&inner.options.runtime_layer])
        .map(|layer| inner.storage.layer_dir(layer))
        .collect();
    let spec = Spec {
        id: &record.id,
        slot,
        layers,
        disk: disk_directory(disk),
        limits,
        exec: vec![ENVD_PATH.to_owned()],
        stdin,
        listen: ENVD_PORT,
    };
    inner.driver.start(spec).await
}

/// The directory that holds a disk's `upper` and `work`.
fn disk_directory(disk: &Disk) -> PathBuf {
    let upper = disk.upper();
    upper.parent().map_or(upper.clone(), Path::to_path_buf)
}

fn settings(record: &SandboxRecord, build: &BuildManifest) -> InitRequest {
    InitRequest {
        env_vars: Some(record.env_vars.clone()),
        access_token: record.envd_access_token.clone(),
        timestamp: Some(Timestamp::now().to_string()),
        default_user: Some(build.default_user.clone()),
        default_workdir: build.default_workdir.clone(),
        ..InitRequest::default()
    }
}

/// Ends processes that are of no use without the rest.
pub(crate) async fn undo(running: Running) {
    if let Err(cause) = running.kill() {
        tracing::error!(%cause, "a sandbox of no use could not be ended");
    }
    running.cgroup.kill();
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
