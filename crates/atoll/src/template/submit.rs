//! A build from its registration to its end: uploads, log, failure, and Ctrl-C.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{
    log::LogLevel,
    rest::{BuildLogEntry, BuildStatus, BuildStatusReason, RegisteredTemplate, TemplateBuildInfo},
};
use jiff::Timestamp;
use tokio_util::io::ReaderStream;

use super::{build::blocking, bytes, context::Context, import::unusable, seconds};
use crate::{
    client::{Client, Plan, Registration},
    terminal::{self, Filter},
};

/// How often a build is asked how far it is: as often as the SDKs do.
const PAUSE: Duration = Duration::from_millis(200);
const UPLOAD_CHUNK: usize = 256 * 1024;

/// What a template is to be called and how its sandboxes are to be.
#[derive(clap::Args)]
pub(super) struct Target {
    /// Its name; a new one makes a new template.
    #[arg(long, value_name = "NAME[:TAG]")]
    pub(super) name: String,
    /// A tag for this build; may be repeated [default: default].
    #[arg(long)]
    pub(super) tag: Vec<String>,
    /// Processors of its sandboxes [default: 2].
    #[arg(long, value_name = "N")]
    pub(super) cpu: Option<u32>,
    /// Memory of its sandboxes [default: 1024].
    #[arg(long, value_name = "MIB")]
    pub(super) memory: Option<u32>,
    /// A command that runs in all of its sandboxes, instead of the image's own.
    #[arg(long, value_name = "COMMAND")]
    pub(super) start: Option<String>,
    /// A command that succeeds once that can be used.
    #[arg(long, value_name = "COMMAND")]
    pub(super) ready: Option<String>,
}

/// A build that is to be made.
pub(super) struct Order {
    pub(super) registration: Registration,
    pub(super) plan: Plan,
    /// By the hashes that the plan has.
    pub(super) uploads: HashMap<String, Upload>,
    /// The Dockerfile's line of each step.
    pub(super) lines: Vec<Option<usize>>,
}

/// Something to upload, unless it is there.
#[derive(Clone)]
pub(super) enum Upload {
    /// What a COPY copies.
    Files { context: Arc<Context>, source: String },
    /// A whole file.
    Archive(PathBuf),
}

impl Upload {
    fn describe(&self) -> String {
        match self {
            Self::Files { source, .. } => format!("files of COPY {source}"),
            Self::Archive(path) => path.display().to_string(),
        }
    }

    /// What is to be sent.
    fn open(&self) -> Result<File> {
        match self {
            Self::Files { context, source } => context.archive(source),
            Self::Archive(path) => File::open(path).map_err(|error| unusable(path, &error)),
        }
    }
}

/// What happens to a build, to be shown.
pub(super) enum News<'a> {
    /// What is uploaded, and its bytes.
    Upload(&'a str, u64),
    /// A line of its log, whatever its level.
    Line(&'a BuildLogEntry),
}

/// Makes a build, shows its log, and says what came of it.
pub(super) async fn run(client: &Client, order: Order) -> Result<ExitCode> {
    let started = Instant::now();
    let Some(build) = run_to_end(client, &order).await? else {
        return Ok(ExitCode::from(terminal::INTERRUPTED));
    };
    terminal::say(&success(&build, &order.registration, started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Makes a build and shows its log. None if it was interrupted.
pub(super) async fn run_to_end(
    client: &Client,
    order: &Order,
) -> Result<Option<RegisteredTemplate>> {
    let build = client.register(&order.registration).await?;
    terminal::say(&format!("Build {} of {}", build.build_id, order.registration.name));
    let mut first = None;
    let mut show = |news: News<'_>| match news {
        News::Upload(what, length) => {
            terminal::say(&format!("Uploading {what}, {}", bytes(length)));
        }
        News::Line(line) => {
            // Why it failed is said at the end, with what to do.
            let is_reason =
                line.level == LogLevel::Error && line.message.starts_with("Build failed: ");
            if line.level >= LogLevel::Info && !is_reason {
                print_line(line, *first.get_or_insert(line.timestamp));
            }
        }
    };
    tokio::select! {
        ended = perform(client, &build, order, &mut show) => ended?,
        _ = tokio::signal::ctrl_c() => {
            cancel(client, &build).await?;
            return Ok(None);
        }
    }
    Ok(Some(build))
}

/// Makes a registered build and returns when it is ready.
///
/// # Errors
/// Why it failed; those of the API. Then it is over.
pub(super) async fn perform(
    client: &Client,
    build: &RegisteredTemplate,
    order: &Order,
    show: &mut (impl FnMut(News<'_>) + Send),
) -> Result<()> {
    let ended = match start_and_follow(client, build, order, show).await {
        Ok(ended) => ended,
        Err(error) => {
            // Or it would wait for ever to be started.
            if let Err(error) = client.cancel_build(&build.build_id).await {
                tracing::debug!(%error, "a build that was not followed to its end");
            }
            return Err(error);
        }
    };
    if ended.status == BuildStatus::Ready {
        return Ok(());
    }
    Err(failure(build, order, ended.reason))
}

async fn start_and_follow(
    client: &Client,
    build: &RegisteredTemplate,
    order: &Order,
    show: &mut (impl FnMut(News<'_>) + Send),
) -> Result<TemplateBuildInfo> {
    let hashes = order.plan.steps.iter().filter_map(|step| step.files_hash.as_ref());
    for hash in hashes.chain(&order.plan.from_archive) {
        if let Some(upload) = order.uploads.get(hash) {
            send(client, build, hash, upload, show).await?;
        }
    }
    client.start_build(&build.template_id, &build.build_id, &order.plan).await?;
    let show = |line: &BuildLogEntry| show(News::Line(line));
    follow(client, &build.template_id, &build.build_id, PAUSE, show).await
}

/// Uploads an archive if the team has none of this hash.
async fn send(
    client: &Client,
    build: &RegisteredTemplate,
    hash: &str,
    upload: &Upload,
    show: &mut (impl FnMut(News<'_>) + Send),
) -> Result<()> {
    let files = client.files(&build.template_id, hash).await?;
    if files.present {
        return Ok(());
    }
    let own = upload.clone();
    let file = blocking(move || own.open()).await?;
    let unreadable =
        |error| Error::new(codes::INTERNAL, format!("{}: {error}.", upload.describe()));
    let length = file.metadata().map_err(unreadable)?.len();
    show(News::Upload(&upload.describe(), length));
    let content = ReaderStream::with_capacity(tokio::fs::File::from_std(file), UPLOAD_CHUNK);
    client.upload(&files.url, length, content).await
}

/// Waits for the end of a build and shows its log until then.
pub(crate) async fn follow(
    client: &Client,
    template: &str,
    build: &str,
    pause: Duration,
    mut show: impl FnMut(&BuildLogEntry),
) -> Result<TemplateBuildInfo> {
    let mut offset = 0;
    loop {
        let info = client.build(template, build, offset).await?;
        offset += info.log_entries.len();
        info.log_entries.iter().for_each(&mut show);
        if !info.log_entries.is_empty() {
            continue;
        }
        if matches!(info.status, BuildStatus::Ready | BuildStatus::Error) {
            return Ok(info);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Prints a line with the time since the first.
pub(super) fn print_line(line: &BuildLogEntry, first: Timestamp) {
    let elapsed = line.timestamp.duration_since(first).as_secs_f64();
    for text in line.message.lines() {
        terminal::say(&format!("{elapsed:>7.1}s  {}", plain(text)));
    }
}

/// A line as a terminal would leave it: without colours, and what is behind the last return.
fn plain(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    Filter::plain().pass(line.rsplit('\r').next().unwrap_or(line))
}

/// Stops a build that Ctrl-C was pressed for; pressing it again does not wait.
async fn cancel(client: &Client, build: &RegisteredTemplate) -> Result<()> {
    terminal::note("Cancelling the build…");
    let cancelled = tokio::select! {
        cancelled = client.cancel_build(&build.build_id) => cancelled,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    match cancelled {
        Ok(()) => terminal::note(
            "The build is cancelled. Steps that were done are kept for the next one.",
        ),
        // It ended meanwhile.
        Err(error) if error.code == codes::NOT_FOUND || error.code == codes::CONFLICT => {
            terminal::note("The build was over already.");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The template as it is to be named to get this build.
fn reference(registration: &Registration) -> String {
    match registration.tags.first() {
        Some(tag) if !registration.name.contains(':') => format!("{}:{tag}", registration.name),
        _ => registration.name.clone(),
    }
}

fn success(build: &RegisteredTemplate, registration: &Registration, elapsed: Duration) -> String {
    let name = reference(registration);
    format!(
        "
{name} is ready after {} (template {}).

  atoll sandbox create {name}
  python3 -c 'from e2b import Sandbox; print(Sandbox.create(\"{name}\").sandbox_id)'",
        seconds(elapsed),
        build.template_id,
    )
}

/// What failed, why, and how to look.
fn failure(build: &RegisteredTemplate, order: &Order, reason: Option<BuildStatusReason>) -> Error {
    let Some(BuildStatusReason { message, step, code, .. }) = reason else {
        return Error::new(codes::BUILD_FAILED, "the build failed, and there is no word why.");
    };
    let number = code.strip_prefix("ATL-").and_then(|number| number.parse().ok());
    let code = number.and_then(codes::find).unwrap_or(codes::BUILD_FAILED);
    // For clients that show the message alone, the code is at its end.
    let end = format!("({code})");
    let message = message.trim_end().strip_suffix(&end).unwrap_or(&message).trim_end();
    let lines: Vec<String> = message.lines().map(terminal::harmless).collect();
    let place = step.as_deref().map(|step| place(order, step)).unwrap_or_default();
    let what = format!("{place}{}", lines.join("\n  "));
    // Before the first step there is nothing to look at.
    let has_state = step.is_some_and(|step| step != "base")
        && [codes::STEP_FAILED, codes::NOT_READY, codes::BUILD_FAILED].contains(&code);
    let advice = if has_state {
        format!("To look around where it failed: atoll template shell {}", build.build_id)
    } else {
        format!("More: atoll explain {code}")
    };
    Error::new(code, format!("{what}\n{advice}")).with_fix("")
}

/// Which step it was, as the Dockerfile has it.
fn place(order: &Order, step: &str) -> String {
    let steps = &order.plan.steps;
    let Some(index) = step.parse::<usize>().ok().and_then(|number| number.checked_sub(1)) else {
        return String::new();
    };
    let Some(planned) = steps.get(index) else { return String::new() };
    let command = planned.args.first().and_then(|arg| arg.lines().next()).unwrap_or_default();
    let line = order.lines.get(index).copied().flatten();
    let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
    format!("step {step} of {}{line}: {} {command}\n  ", steps.len(), planned.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::PlanStep;

    fn order() -> Order {
        let step = |kind: &str, arg: &str| PlanStep {
            kind: kind.to_owned(),
            args: vec![arg.to_owned()],
            force: false,
            files_hash: None,
        };
        Order {
            registration: Registration { name: "web".to_owned(), ..Registration::default() },
            plan: Plan {
                steps: vec![step("USER", "root"), step("RUN", "make\nmake install")],
                ..Plan::default()
            },
            uploads: HashMap::new(),
            lines: vec![None, Some(7)],
        }
    }

    fn failed(code: &str, message: &str, step: &str) -> Error {
        let build = RegisteredTemplate {
            template_id: "t".to_owned(),
            build_id: "b".to_owned(),
            public: false,
            names: Vec::new(),
            tags: Vec::new(),
            aliases: Vec::new(),
        };
        let reason = BuildStatusReason {
            message: message.to_owned(),
            step: Some(step.to_owned()),
            log_entries: Vec::new(),
            code: code.to_owned(),
        };
        failure(&build, &order(), Some(reason))
    }

    #[test]
    fn a_failed_step_is_named_as_the_dockerfile_has_it() {
        let message = "it ended with code 2.\nno \u{1b}[1mrule\n(ATL-5005)";
        let error = failed("ATL-5005", message, "2");
        assert_eq!(
            error.to_string(),
            "ATL-5005: step 2 of 2, line 7: RUN make\n  it ended with code 2.\n  no \\u{1b}[1mrule\n\
             To look around where it failed: atoll template shell b"
        );
    }

    #[test]
    fn lines_are_as_a_terminal_would_leave_them() {
        for (line, expected) in [
            ("plain", "plain"),
            ("\u{1b}[1;32mok\u{1b}[0m done", "ok done"),
            (" 10%\r 50%\r100%\r", "100%"),
            ("a\u{1b}[", "a"),
            ("\u{1b}]0;title\u{7}b", "b"),
        ] {
            assert_eq!(plain(line), expected);
        }
    }

    #[test]
    fn there_is_no_shell_where_there_is_nothing_yet() {
        let error = failed("ATL-5006", "there is no such image.", "base");
        assert_eq!(
            error.to_string(),
            "ATL-5006: there is no such image.\nMore: atoll explain ATL-5006"
        );
        assert_eq!(failed("ATL-99999", "x", "77").code, codes::BUILD_FAILED);
    }

    #[test]
    fn a_build_is_named_by_a_tag_that_it_has() {
        let registration = |name: &str, tags: &[&str]| Registration {
            name: name.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Registration::default()
        };
        assert_eq!(reference(&registration("a", &[])), "a");
        assert_eq!(reference(&registration("a", &["v1", "v2"])), "a:v1");
        assert_eq!(reference(&registration("a:v0", &["v1"])), "a:v0");
    }
}
