//! Building templates: what a step costs when it does nothing, what a cache saves, and how fast an
//! image is unpacked.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest::{self, BuildStatus};
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use super::{
    Bench, failed,
    image::Image,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::{
    client::{Exec, ExecEvent, Plan, PlanStep, Registration},
    scratch::Scratch,
    template::{follow_build, hash_file},
};

/// So often is everything built.
const ROUNDS: usize = 3;
const STEPS: usize = 10;
const IMAGE_BYTES: u64 = 500 << 20;
/// Little, beside what is measured.
const PAUSE: Duration = Duration::from_millis(10);
/// What of a sandbox makes a root that templates can be made of.
const ROOT: &str = "cd / && exec tar --ignore-failed-read --exclude usr/lib/gcc -cf - \
                    bin sbin lib lib64 etc usr/bin usr/sbin usr/lib usr/share/ca-certificates \
                    2>/dev/null";

/// A template that is deleted whatever comes of the measurement.
struct Scratchpad<'a> {
    bench: &'a Bench,
    name: String,
}

impl Bench {
    /// Measures builds of a template of its own.
    pub(super) async fn measure_templates(&self, report: &mut Report) -> Result<()> {
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(|error| failed("no random name", error))?;
        let pad = Scratchpad { bench: self, name: format!("atoll-bench-{}", hex::encode(unique)) };
        let outcome = pad.measure(report).await;
        match self.client.delete_template(&pad.name).await {
            Err(error) if error.code != codes::NOT_FOUND => outcome.and(Err(error)),
            _ => outcome,
        }
    }
}

impl Scratchpad<'_> {
    async fn measure(&self, report: &mut Report) -> Result<()> {
        self.measure_steps(report).await?;
        self.measure_image(report).await?;
        report.note(
            "Results of steps that were measured are left; `atoll template prune` frees them.",
        );
        Ok(())
    }

    async fn measure_steps(&self, report: &mut Report) -> Result<()> {
        let (mut layers, mut cached, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let empty = self.build(&self.steps(0, "", true)).await?;
            let full = self.build(&self.steps(STEPS, &round.to_string(), true)).await?;
            layers.push(full.saturating_sub(empty) / STEPS as u32);
            cached.push(self.build(&self.steps(STEPS, &round.to_string(), false)).await?);
            let mut changed = self.steps(STEPS, &round.to_string(), false);
            if let Some(step) = changed.steps.last_mut() {
                step.args = vec![format!("true {} changed {round}", self.name)];
            }
            last.push(self.build(&changed).await?);
        }
        for (name, times) in [
            ("template, RUN of nothing", &layers),
            ("template, 10 cached steps", &cached),
            ("template, last of 10 changed", &last),
        ] {
            report.push(Row::time(name, 1, Statistics::of_durations(times)));
        }
        Ok(())
    }

    /// Steps that do nothing, and that nobody has built before.
    fn steps(&self, count: usize, round: &str, force: bool) -> Plan {
        let step = |index: usize| PlanStep {
            kind: "RUN".to_owned(),
            args: vec![format!("true {} {round} {index}", self.name)],
            force: false,
            files_hash: None,
        };
        Plan {
            from_template: Some(self.bench.template.clone()),
            steps: (0..count).map(step).collect(),
            force,
            ..Plan::default()
        }
    }

    async fn measure_image(&self, report: &mut Report) -> Result<()> {
        let scratch = Scratch::make().map_err(|error| failed("no scratch directory", error))?;
        let root = scratch.path().join("root.tar");
        self.bench.with_sandbox(async |sandbox| self.fetch_root(sandbox, &root).await).await?;
        let directory = scratch.path().to_owned();
        let image = blocking(move || Image::write(&directory, &root, IMAGE_BYTES)).await?;
        let plan =
            Plan { from_archive: Some(self.upload(&image.archive).await?), ..Plan::default() };
        let (mut rates, mut tar_rates) = (Vec::new(), Vec::new());
        let mib = image.bytes as f64 / f64::from(1 << 20);
        for round in 0..ROUNDS {
            let forced = self.build(&Plan { force: true, ..plan.clone() }).await?;
            // What is not unpacking takes as long when that was done before.
            let cached = self.build(&plan).await?;
            rates.push(mib / forced.saturating_sub(cached).as_secs_f64());
            let target = scratch.path().join(format!("tar-{round}"));
            tar_rates.push(mib / extract(&image, &target).await?.as_secs_f64());
        }
        let tar = Statistics::of(&tar_rates);
        report
            .push(Row::rate("image to template", Statistics::of(&rates)).beside([("tar -x", tar)]));
        report.push(Row::rate("tar -x of its layers", tar));
        Ok(())
    }

    /// Saves what an image needs to have, from a sandbox.
    async fn fetch_root(&self, sandbox: &rest::Sandbox, path: &Path) -> Result<()> {
        let broken = |error| failed("the root of a sandbox cannot be saved", error);
        let mut file = BufWriter::new(File::create(path).map_err(broken)?);
        let exec = Exec { user: Some("root".to_owned()), ..Exec::shell(ROOT) };
        let mut running = self.bench.client.exec(sandbox, exec).await?;
        loop {
            match running.next().await? {
                ExecEvent::Stdout(bytes) => file.write_all(&bytes).map_err(broken)?,
                ExecEvent::Stderr(_) => {}
                // One says that some name is missing, as is /lib64 on some processors.
                ExecEvent::Ended { code: 0..=2, .. } => return file.flush().map_err(broken),
                other => {
                    return Err(failed("tar in a sandbox", format!("{other:?}")));
                }
            }
        }
    }

    async fn upload(&self, archive: &Path) -> Result<String> {
        let unusable = |error| failed("the image cannot be read", error);
        let (own, client) = (archive.to_owned(), &self.bench.client);
        let hash = blocking(move || hash_file(&own)).await?;
        // The address is one of a template's.
        let registered = client.register(&self.registration()).await?;
        let files = client.files(&registered.template_id, &hash).await?;
        client.cancel_build(&registered.build_id).await?;
        let file = tokio::fs::File::open(archive).await.map_err(unusable)?;
        let length = file.metadata().await.map_err(unusable)?.len();
        client.upload(&files.url, length, ReaderStream::new(file)).await?;
        Ok(hash)
    }

    fn registration(&self) -> Registration {
        Registration { name: self.name.clone(), ..Registration::default() }
    }

    /// Makes a build, as a client does, and says how long that takes.
    async fn build(&self, plan: &Plan) -> Result<Duration> {
        let client = &self.bench.client;
        let started = Instant::now();
        let registered = client.register(&self.registration()).await?;
        let (template, build) = (&registered.template_id, &registered.build_id);
        client.start_build(template, build, plan).await?;
        let ended = follow_build(client, template, build, PAUSE, |_| {}).await?;
        let elapsed = started.elapsed();
        if ended.status == BuildStatus::Ready {
            return Ok(elapsed);
        }
        let why = ended.reason.map(|reason| reason.message).unwrap_or_default();
        Err(Error::new(codes::BUILD_FAILED, format!("a build that is measured failed: {why}")))
    }
}

/// Unpacks all layers, one over the other, with tar.
async fn extract(image: &Image, target: &Path) -> Result<Duration> {
    let broken = |error: std::io::Error| failed("tar", error);
    fs::create_dir(target).map_err(broken)?;
    let started = Instant::now();
    for layer in &image.layers {
        let mut command = Command::new("tar");
        command.arg("-xzf").arg(layer).arg("-C").arg(target);
        let status = command.status().await.map_err(broken)?;
        if !status.success() {
            return Err(failed("tar", status));
        }
    }
    let elapsed = started.elapsed();
    fs::remove_dir_all(target).map_err(broken)?;
    Ok(elapsed)
}

/// Does what writes or reads large files elsewhere.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let broken = |error: &dyn std::fmt::Display| failed("the image cannot be written", error);
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| broken(&error)),
        Err(error) => Err(broken(&error)),
    }
}
