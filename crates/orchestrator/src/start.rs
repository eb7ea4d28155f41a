//! One create, from taking a slot to envd's answer.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use atoll_core::{Error, Result, error::codes};
use atoll_isolation::{Limits, Running, Spec};
use atoll_network::Slot;
use atoll_storage::{BuildManifest, Disk};
use atoll_wire::{
    guest::{BootConfig, ENVD_PORT, GuestLimits, InitRequest},
    node::{CreateTimings, SandboxRecord},
};
use jiff::Timestamp;

use crate::{guest, sandbox::Parts, service::Inner};

/// Where the runtime layer has envd.
const ENVD_PATH: &str = "/usr/bin/envd";
const MIB: u64 = 1024 * 1024;

/// Starts a sandbox. On failure nothing is left; run it to its end.
pub(crate) async fn start(inner: &Inner, record: SandboxRecord) -> Result<(Parts, CreateTimings)> {
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
    let (slot, disk) = tokio::join!(inner.network.take(), inner.storage.take_disk(disk_bytes));
    // Either is given back by its drop when the other failed.
    let (slot, disk) = (slot?, disk?);
    if record.allow_internet_access == Some(false) {
        slot.set_internet(false).await?;
    }
    timings.take_us = watch.lap();

    let secret = control_secret()?;
    let limits = Limits {
        vcpu: record.resources.vcpu,
        memory: u64::from(record.resources.memory_mb) * MIB,
        processes: inner.options.max_processes,
    };
    let running = boot(inner, &record, &build, &slot, &disk, limits, &secret).await?;
    timings.start_us = watch.lap();

    let settings = settings(&record, &build);
    let answer = tokio::select! {
        answer = guest::init(&slot, &secret, &settings) => answer,
        _ = running.process.wait() => Err(Error::new(
            codes::SANDBOX_START_FAILED,
            "envd ended before it answered; its memory limit may be too small.",
        )),
        () = inner.stopping.cancelled() => {
            Err(Error::new(codes::NODE_UNAVAILABLE, "the node is shutting down."))
        }
    };
    timings.init_us = watch.lap();
    match answer {
        Ok(envd_version) => {
            Ok((Parts { record, envd_version, limits, running, slot, disk }, timings))
        }
        Err(error) => {
            undo(running).await;
            Err(error)
        }
    }
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

async fn undo(running: Running) {
    if let Err(cause) = running.process.kill() {
        tracing::error!(%cause, "a sandbox that failed to start could not be ended");
    }
    running.cgroup.kill();
    if let Err(cause) = running.process.wait().await {
        tracing::error!(%cause, "a sandbox that failed to start could not be waited for");
    }
    if let Err(cause) = running.cgroup.remove().await {
        tracing::error!(%cause, "a sandbox that failed to start left a cgroup");
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
