//! One build, from what it starts from to a template.
//!
//! Each step has a key, and its result is a manifest under an id that follows from the key: layers, and
//! the context for what comes after. A step whose result is there is not done again. What a step
//! leaves is written as any layer and manifest is, so that a crash between two steps loses neither,
//! and one within a step leaves nothing of it.

use std::{collections::VecDeque, time::Duration};

use atoll_core::{Code, Error, LayerId, Result, error::codes};
use atoll_orchestrator::commands::{Exit, Output};
use atoll_storage::{BuildManifest, Layer, Lease, StepResult};
use atoll_wire::{
    build::{BuildFailure, BuildSpec, Step},
    log::LogLevel,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    Shared, base,
    context::Context,
    finish,
    log::Log,
    room::Room,
    step::{self, Action, Key},
    work,
};

/// Longest that one step may take (control-plane contract, section 10.5).
const LONGEST_STEP: Duration = Duration::from_secs(60 * 60);
/// Layers of a template: an overlay of more is slow to start, and the kernel's own limit is 500.
const MOST_LAYERS: usize = 120;
/// A result is marked as used once in this time.
const MARK_EVERY: SignedDuration = SignedDuration::from_hours(24);

/// A build under way.
pub(crate) struct Job<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) spec: &'a BuildSpec,
    pub(crate) log: Log<'a>,
    /// What the steps so far have left.
    pub(crate) parent: BuildManifest,
    pub(crate) key: Key,
    pub(crate) context: Context,
    /// Keeps the layers so far.
    _lease: Lease,
    /// Results of earlier builds are of no use any more.
    pub(crate) is_forced: bool,
}

/// Where a build has got to, for whoever reports its failure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// As in [`BuildFailure::step`].
    pub(crate) step: Option<String>,
    /// As in [`BuildFailure::parent`].
    pub(crate) parent: Option<String>,
}

impl Progress {
    /// The failure of what is being done.
    pub(crate) fn failure(&self, error: &Error) -> BuildFailure {
        let fix = if error.fix.is_empty() { String::new() } else { format!(" {}", error.fix) };
        // Clients show no more than this; `atoll explain` knows the code.
        let space = if error.message.contains('\n') { '\n' } else { ' ' };
        let message = format!("{}{fix}{space}({})", error.message, error.code);
        BuildFailure {
            step: self.step.clone(),
            code: error.code.to_string(),
            message,
            parent: self.parent.clone(),
        }
    }
}

/// Does all of a build; `progress` says where it is.
///
/// # Errors
/// Why it failed, for people.
pub(crate) async fn run(
    shared: &Shared,
    spec: &BuildSpec,
    progress: &std::sync::Mutex<Progress>,
) -> Result<()> {
    let note = |step: &str, parent: Option<&str>| {
        let mut progress = progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        progress.step = Some(step.to_owned());
        if let Some(parent) = parent {
            progress.parent = Some(parent.to_owned());
        }
    };
    note("base", None);
    let log = Log::new(shared, &spec.id);
    // A registry may give a byte a minute, and a turn is not to be held for as long as it likes.
    let begun = tokio::time::timeout(LONGEST_STEP, base::begin(shared, spec, log)).await;
    let mut job = begun.unwrap_or_else(|_| Err(too_long("what the build starts from")))?;
    for (index, step) in spec.steps.iter().enumerate() {
        note(&(index + 1).to_string(), Some(&job.parent.id));
        job.step(index, step).await?;
    }
    note("finalize", Some(&job.parent.id));
    finish::finish(job).await
}

impl<'a> Job<'a> {
    /// A build that stands at what `parent` holds, which has `key`.
    pub(crate) fn at(
        shared: &'a Shared,
        spec: &'a BuildSpec,
        log: Log<'a>,
        parent: Held,
        key: Key,
    ) -> Self {
        let Held { manifest: parent, lease } = parent;
        let context = Context::of(&parent);
        Self { shared, spec, log, parent, key, context, _lease: lease, is_forced: spec.force }
    }

    /// What is done from here on is of what `to` holds.
    fn go_to(&mut self, to: Held, key: Key) {
        self._lease = to.lease;
        self.parent = to.manifest;
        self.key = key;
    }

    /// Does a step, unless that was done before.
    async fn step(&mut self, index: usize, step: &Step) -> Result<()> {
        let action = step::action(step)?;
        self.is_forced |= step.force;
        let key = self.key.then(step);
        let (text, short) = (step::text(step), key.short());
        let number = format!("[builder {}/{}]", index + 1, self.spec.steps.len());
        let name = (index + 1).to_string();
        self.log.at(&name, &number);
        if let Action::Set(pairs) = action {
            self.log.say(LogLevel::Info, format!("{number} {text}"));
            self.context.set(&pairs)?;
            self.key = key;
            return Ok(());
        }
        if let Some(found) = find(self.shared, &self.spec.team, &key, self.is_forced).await? {
            self.log.say(LogLevel::Info, format!("CACHED {number} {text} [{short}]"));
            self.context = Context::of(&found.manifest);
            self.go_to(found, key);
            return Ok(());
        }
        self.log.say(LogLevel::Info, format!("{number} {text} [{short}]"));
        let done = tokio::time::timeout(LONGEST_STEP, self.perform(&action, &text, &key));
        let layer = done.await.unwrap_or_else(|_| Err(too_long(&format!("`{text}`"))))?;
        let kept = self.keep(layer, &key, text).await?;
        // Where an equal step was faster, it may have found other users than this one.
        self.context = Context::of(&kept.manifest);
        self.go_to(kept, key);
        Ok(())
    }

    /// Does it in a sandbox, and makes a layer of what it leaves.
    async fn perform(&mut self, action: &Action, text: &str, key: &Key) -> Result<Option<LayerId>> {
        if self.parent.layers.len() >= MOST_LAYERS {
            let message = format!("a template may have {MOST_LAYERS} layers.");
            return Err(Error::new(codes::STEP_FAILED, message)
                .with_fix("Join commands of several RUN steps with `&&`."));
        }
        let room = self.open(true).await?;
        let done = match action {
            Action::Run { command, user } => work::run(self, &room, command, user.as_deref()).await,
            Action::Copy(copy) => work::copy(self, &room, copy).await,
            Action::Workdir(path) => work::workdir(self, &room, path).await,
            Action::User { name, sudo } => work::user(self, &room, name, *sudo).await,
            Action::Set(_) => Ok(()),
        };
        done?;
        room.close("", layer(text, key)).await
    }

    /// A sandbox of what the steps so far have left.
    pub(crate) async fn open(&self, has_internet: bool) -> Result<Room> {
        let site = &self.shared.site;
        let room = Room::open(site, self.spec, &self.parent, has_internet).await?;
        // A build that was to do all again may have put its own result under the same id meanwhile.
        // What is written in a sandbox of that fits no other layers.
        let now = site.storage.build(&self.parent.id).await?;
        if now.is_some_and(|now| now.layers == self.parent.layers) {
            return Ok(room);
        }
        let message = "another build has replaced the results that this one stands on.";
        Err(Error::new(codes::CONFLICT, message).with_fix("Build again."))
    }

    /// Stores the result of a step, for this build and later ones; or gives that of another build,
    /// which was faster, and on which others may stand by now.
    pub(crate) async fn keep(
        &self,
        layer: Option<LayerId>,
        key: &Key,
        text: String,
    ) -> Result<Held> {
        if let Some(found) = find(self.shared, &self.spec.team, key, self.is_forced).await? {
            if let Some(layer) = layer {
                self.shared.site.storage.discard_layer(&layer).await?;
            }
            return Ok(found);
        }
        let layers = self.parent.layers.iter().cloned().chain(layer).collect();
        let result = StepResult { team: self.spec.team.clone(), text, used_at: Timestamp::now() };
        let manifest = BuildManifest {
            step: Some(result),
            parent: Some(self.parent.id.clone()),
            ..manifest(self.shared, self.spec, key, layers, &self.context)
        };
        Held::put(self.shared, manifest).await
    }
}

/// A manifest, and what keeps its layers even if another takes its place.
pub(crate) struct Held {
    pub(crate) manifest: BuildManifest,
    lease: Lease,
}

impl Held {
    /// Holds what is there.
    pub(crate) async fn of(shared: &Shared, manifest: BuildManifest) -> Result<Self> {
        let lease = shared.site.storage.lease(&manifest.layers).await?;
        Ok(Self { manifest, lease })
    }

    /// Stores a manifest. It is held before that: as soon as it is there it can be replaced.
    pub(crate) async fn put(shared: &Shared, manifest: BuildManifest) -> Result<Self> {
        let held = Self::of(shared, manifest).await?;
        shared.site.storage.put_build(&held.manifest).await?;
        Ok(held)
    }
}

/// What has taken as long as anything may.
fn too_long(what: &str) -> Error {
    let minutes = LONGEST_STEP.as_secs() / 60;
    Error::new(codes::STEP_FAILED, format!("{what} did not end within {minutes} minutes."))
}

/// The manifest of these layers, as the result of what has `key`.
pub(crate) fn manifest(
    shared: &Shared,
    spec: &BuildSpec,
    key: &Key,
    layers: Vec<LayerId>,
    context: &Context,
) -> BuildManifest {
    BuildManifest {
        id: key.build_id(),
        template: spec.template.clone(),
        alias: None,
        layers,
        envd_version: shared.envd_version.clone(),
        vcpu: spec.resources.vcpu,
        memory_mb: spec.resources.memory_mb,
        disk_mb: spec.resources.disk_mb,
        default_user: context.user.clone(),
        default_workdir: context.workdir.clone(),
        created_at: Timestamp::now(),
        recipe_digest: key.hex(),
        step: None,
        parent: None,
        env_vars: context.env_vars.clone(),
        start: None,
        snapshot: None,
        stack: Vec::new(),
        control_secret: None,
    }
}

/// What a layer is called.
pub(crate) fn layer(text: &str, key: &Key) -> Layer {
    Layer { name: text.to_owned(), recipe: key.hex(), created_at: Timestamp::now() }
}

/// The result that an earlier build of the team has left under a key.
pub(crate) async fn find(
    shared: &Shared,
    team: &str,
    key: &Key,
    is_forced: bool,
) -> Result<Option<Held>> {
    if is_forced {
        return Ok(None);
    }
    let storage = &shared.site.storage;
    let mut found = match storage.build(&key.build_id()).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error) if error.code == codes::LAYER_CORRUPT => {
            tracing::warn!(%error, "a step has to be done again");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let is_it = found.recipe_digest == key.hex();
    let Some(result) = found.step.as_mut().filter(|result| is_it && result.team == team) else {
        return Ok(None);
    };
    let now = Timestamp::now();
    let is_old = now.duration_since(result.used_at) > MARK_EVERY;
    if is_old {
        result.used_at = now;
    }
    let held = match Held::of(shared, found).await {
        // Replaced or pruned since it was found.
        Err(error) if error.code == codes::TEMPLATE_MISSING => return Ok(None),
        held => held?,
    };
    if is_old {
        storage.put_build(&held.manifest).await?;
    }
    Ok(Some(held))
}

/// The last lines that a command has printed, for the message of a failure.
#[derive(Debug, Default)]
pub(crate) struct LastLines(VecDeque<String>);

impl LastLines {
    const MOST: usize = 15;

    pub(crate) fn push(&mut self, line: String) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// The lines.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The failure of `what`, which ended so.
    pub(crate) fn failure(&self, code: Code, what: &str, exit: &Exit) -> Error {
        let how = match &exit.error {
            // What the kernel does to those who want more memory than there is looks like that.
            Some(error) if error.contains("killed") => {
                format!(
                    "{error}; if it was not by itself, it needs more memory than the template has"
                )
            }
            Some(error) if exit.code < 0 => error.clone(),
            _ => format!("exit code {}", exit.code),
        };
        let output = match self.0.is_empty() {
            true => "It printed nothing.".to_owned(),
            false => {
                let lines: String = self.0.iter().flat_map(|line| ["\n  ", line]).collect();
                format!("It last printed:{lines}")
            }
        };
        Error::new(code, format!("`{what}` failed with {how}. {output}")).with_fix("")
    }
}

/// What a stream is called in logs.
pub(crate) fn stream_name(stream: Output) -> &'static str {
    match stream {
        Output::Out => "stdout",
        Output::Err => "stderr",
    }
}
