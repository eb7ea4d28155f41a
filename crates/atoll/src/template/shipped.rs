//! Templates that Atoll ships: their recipes, and whether a deployment has what they make.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_storage::BuildManifest;
use atoll_template::Progress as _;
use atoll_wire::rest::{BuildStatus, TemplateBuild};
use clap::ValueEnum;
use sha2::{Digest, Sha256};

use super::{
    build, seconds,
    submit::{self, News, Order, Target},
};
use crate::{
    client::Client,
    helpers,
    scratch::Scratch,
    terminal::{self, Progress},
};

/// A tag that says of which recipe a build is, and how many digits of its digest that has.
const RECIPE_TAG: &str = "recipe-";
const RECIPE_DIGITS: usize = 16;
/// What a build's recipe tag has behind it, as another tag, if it was made where memory is kept.
const MEMORY_SUFFIX: &str = "-memory";
const DEFAULT_TAG: &str = "default";
/// What these are built on.
const BASE: &str = "base";
/// The step of a build that is none of its recipe's.
const FINALIZE: &str = "finalize";
/// What of a build's progress is steps of the recipe.
const STEPS_SHARE: f32 = 0.95;
/// Why a build is made that there is.
const COLD: &str = "again: memory can be kept now, so its programs need not start in each sandbox";
/// Words of a command that progress shows.
const SHOWN_WORDS: usize = 3;

/// The files of a recipe, whose directory is named first.
macro_rules! recipe {
    ($directory:literal, $($name:literal),+) => {
        &[$(($name, include_str!(concat!("../../../../templates/", $directory, "/", $name)))),+]
    };
}

/// A template that Atoll ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shipped {
    /// code-interpreter-v1, the default of E2B's code interpreter SDKs: Python with the packages of data
    /// science, JavaScript, TypeScript and Bash. It takes 1 GB.
    CodeInterpreter,
    /// httpbin, a server on port 8080 that says what it was sent.
    Httpbin,
}

impl Shipped {
    /// What sandboxes are created by.
    pub(crate) fn alias(self) -> &'static str {
        match self {
            Self::CodeInterpreter => "code-interpreter-v1",
            Self::Httpbin => "httpbin",
        }
    }

    /// What it is called on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CodeInterpreter => "code-interpreter",
            Self::Httpbin => "httpbin",
        }
    }

    /// How to build it.
    pub(crate) fn command(self) -> String {
        format!("atoll template add {}", self.name())
    }

    /// Processors and MiB of memory of its sandboxes.
    fn size(self) -> (u32, u32) {
        match self {
            Self::CodeInterpreter => (2, 2048),
            Self::Httpbin => (2, 1024),
        }
    }

    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::CodeInterpreter => recipe!(
                "code-interpreter",
                "Dockerfile",
                ".dockerignore",
                "requirements.txt",
                "matplotlibrc",
                "warm.py"
            ),
            Self::Httpbin => recipe!("httpbin", "Dockerfile", ".dockerignore", "server.py"),
        }
    }

    /// The tag of builds that need not be made again: a digest of all that they are made of. A template
    /// that keeps memory keeps the programs that Atoll puts into sandboxes, too.
    fn recipe_tag(self, base: &str) -> String {
        let mut hash = Sha256::new();
        let (cpus, memory) = self.size();
        let parts = [self.alias(), &format!("{cpus} {memory}"), base];
        let files = self.files().iter().flat_map(|(name, content)| [*name, *content]);
        let programs = [helpers::ENVD, helpers::INTERPRETER];
        for part in parts.into_iter().chain(files).map(str::as_bytes).chain(programs) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("{RECIPE_TAG}{}", &hex::encode(hash.finalize())[..RECIPE_DIGITS])
    }

    /// Its recipe, in a directory from which it can be built.
    fn unpack(self) -> io::Result<Scratch> {
        let scratch = Scratch::make()?;
        for (name, content) in self.files() {
            let path = scratch.path().join(name);
            fs::write(&path, content)?;
            // Modes count when files are told apart, and the creation mask is anybody's.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        Ok(scratch)
    }

    /// The build of its recipe, with these tags beside the default one.
    async fn order(self, directory: &Path, tags: Vec<String>) -> Result<Order> {
        let (cpu, memory) = self.size();
        let target = Target {
            name: self.alias().to_owned(),
            tag: [vec![DEFAULT_TAG.to_owned()], tags].concat(),
            cpu: Some(cpu),
            memory: Some(memory),
            start: None,
            ready: None,
        };
        build::order(build::Arguments::of(directory, target)).await
    }

    fn success(self, elapsed: Duration) -> String {
        let (alias, elapsed) = (self.alias(), seconds(elapsed));
        let (module, create, last) = match self {
            Self::CodeInterpreter => {
                ("e2b_code_interpreter", "Sandbox.create()", ".run_code(\"6 * 7\").text")
            }
            Self::Httpbin => ("e2b", "Sandbox.create(\"httpbin\")", ".get_host(8080)"),
        };
        format!(
            "
{alias} is ready after {elapsed}, for every team.

  atoll sandbox create {alias}
  python3 -c 'from {module} import Sandbox; print({create}{last})'"
        )
    }
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which.
    #[arg(required = true, value_name = "TEMPLATE")]
    templates: Vec<Shipped>,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    for &shipped in &arguments.templates {
        let started = Instant::now();
        let alias = shipped.alias();
        let Some(wanted) = prepare(client, shipped, None).await? else {
            terminal::say(&format!("{alias} is up to date: its recipe has not changed."));
            continue;
        };
        if submit::run_to_end(client, &wanted.order).await?.is_none() {
            return Ok(ExitCode::from(terminal::INTERRUPTED));
        }
        publish(client, shipped, &wanted.missing.tag).await?;
        terminal::say(&shipped.success(started.elapsed()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds it unless it is there as its recipe has it, and shows how that goes on `progress`. `keeper` is
/// the node's storage if the node keeps memory now: a build that does not have it is then made again.
///
/// # Errors
/// Those of the API and of the build.
pub(crate) async fn ensure(
    client: &Client,
    shipped: Shipped,
    keeper: Option<&atoll_storage::Handle>,
    progress: &Progress,
) -> Result<()> {
    let Some(Wanted { missing, order, _files }) = prepare(client, shipped, keeper).await? else {
        return Ok(());
    };
    progress.step(0.0, if missing.is_cold { COLD } else { "beginning" });
    let mut show = |news: News<'_>| {
        let News::Line(line) = news else { return };
        progress.line(&line.message);
        if let Some((fraction, what)) = line.step.as_deref().and_then(|step| place(&order, step)) {
            progress.step(fraction, &what);
        }
    };
    let build = client.register(&order.registration).await?;
    submit::perform(client, &build, &order, &mut show).await?;
    publish(client, shipped, &missing.tag).await
}

/// A build that is to be made.
struct Wanted {
    missing: Missing,
    order: Order,
    /// What the order sends.
    _files: Scratch,
}

/// Why a build is to be made.
struct Missing {
    /// What says of which recipe it is.
    tag: String,
    /// Only because there is one without memory, where memory can be kept.
    is_cold: bool,
}

/// What is to be built; none if there is nothing to do. `keeper` as in [`ensure`].
async fn prepare(
    client: &Client,
    shipped: Shipped,
    keeper: Option<&atoll_storage::Handle>,
) -> Result<Option<Wanted>> {
    let Some(missing) = missing(client, shipped, keeper).await? else { return Ok(None) };
    let files = shipped.unpack().map_err(|error| no_scratch(&error))?;
    let mut tags = vec![missing.tag.clone()];
    tags.extend(keeper.map(|_| with_memory(&missing.tag)));
    let order = shipped.order(files.path(), tags).await?;
    Ok(Some(Wanted { missing, order, _files: files }))
}

/// The tag of a build that was made where memory is kept. It need not have any: whatever kept it from
/// that would do so again.
fn with_memory(tag: &str) -> String {
    format!("{tag}{MEMORY_SUFFIX}")
}

/// How far a build is that does this step, and what that is.
fn place(order: &Order, step: &str) -> Option<(f32, String)> {
    if step == FINALIZE {
        return Some((STEPS_SHARE, "starting its programs once".to_owned()));
    }
    let (steps, number) = (&order.plan.steps, step.parse::<usize>().ok()?);
    let planned = steps.get(number.checked_sub(1)?).filter(|planned| planned.kind == "RUN")?;
    let command = planned.args.first()?.split_whitespace().take_while(|word| *word != "&&");
    let what = command.take(SHOWN_WORDS).collect::<Vec<_>>().join(" ");
    Some((STEPS_SHARE * (number - 1) as f32 / steps.len() as f32, what))
}

/// Why a build is to be made; none if the deployment has one of the current recipe, for all. `keeper` as
/// in [`ensure`].
///
/// # Errors
/// `FORBIDDEN` if the name is that of another team's template; those of the API and of the storage.
async fn missing(
    client: &Client,
    shipped: Shipped,
    keeper: Option<&atoll_storage::Handle>,
) -> Result<Option<Missing>> {
    let alias = shipped.alias();
    let base = client
        .templates()
        .await?
        .into_iter()
        .find(|template| template.aliases.iter().any(|alias| alias == BASE));
    let tag = shipped.recipe_tag(&base.map(|base| base.build_id).unwrap_or_default());
    let known = match client.template_named(alias).await {
        Err(error) if error.code.status == 404 => return Ok(Some(Missing { tag, is_cold: false })),
        known => known?,
    };
    let tags = match client.tags(&known.template_id).await {
        Err(error) if [403, 404].contains(&error.code.status) => return Err(foreign(alias)),
        tags => tags?,
    };
    let build = |name: &str| tags.iter().find(|tag| tag.tag == name).map(|tag| &tag.build_id);
    let Some(current) = build(DEFAULT_TAG).filter(|current| build(&tag) == Some(current)) else {
        return Ok(Some(Missing { tag, is_cold: false }));
    };
    let builds = client.builds(&known.template_id).await?;
    let is_current = |build: &TemplateBuild| build.build_id == *current;
    if !builds.iter().any(|build| is_current(build) && build.status == BuildStatus::Ready) {
        return Ok(Some(Missing { tag, is_cold: false }));
    }
    if let Some(storage) = keeper
        && build(&with_memory(&tag)) != Some(current)
        && storage.build(current).await?.is_some_and(|manifest| is_cold(&manifest))
    {
        return Ok(Some(Missing { tag, is_cold: true }));
    }
    if !known.public {
        client.publish_template(alias).await?;
    }
    Ok(None)
}

/// Whether its programs are started anew in each sandbox.
fn is_cold(build: &BuildManifest) -> bool {
    build.start.is_some() && build.snapshot.is_none()
}

/// What is there under the name need not be what is shipped, and cannot be looked into.
fn foreign(alias: &str) -> Error {
    let fact = format!(
        "{alias} is another team's, which has made it public: sandboxes of that name are of what that \
         team has built."
    );
    Error::new(codes::FORBIDDEN, fact).with_fix(
        "Run this with the key of the team that `atoll up` began with; if that is what says so, delete \
         the other team's template first.",
    )
}

/// Lets every team use it, by its plain name, and forgets of which recipes earlier builds were.
async fn publish(client: &Client, shipped: Shipped, tag: &str) -> Result<()> {
    let alias = shipped.alias();
    client.publish_template(alias).await?;
    let is_old = |old: &String| old.starts_with(RECIPE_TAG) && !old.starts_with(tag);
    let tags = client.tags(alias).await?.into_iter().map(|tag| tag.tag);
    let old: Vec<String> = tags.filter(is_old).collect();
    if old.is_empty() { Ok(()) } else { client.remove_tags(alias, &old).await }
}

fn no_scratch(error: &io::Error) -> Error {
    let message = format!("the recipe cannot be unpacked: {error}.");
    Error::new(codes::INTERNAL, message)
        .with_fix("Make room in the directory for temporary files, or name another with TMPDIR.")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_recipe_is_all_that_its_directory_has() {
        for shipped in Shipped::value_variants() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates");
            let there: BTreeSet<String> = fs::read_dir(root.join(shipped.name()))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "__pycache__")
                .collect();
            let carried = shipped.files().iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(there, carried);
        }
    }

    #[tokio::test]
    async fn recipes_can_be_built() {
        for shipped in Shipped::value_variants() {
            let scratch = shipped.unpack().unwrap();
            let order = shipped.order(scratch.path(), vec!["recipe-1".to_owned()]).await.unwrap();
            assert_eq!(order.registration.name, shipped.alias());
            assert_eq!(order.registration.tags, ["default", "recipe-1"]);
            assert_eq!(order.plan.from_image.as_deref(), Some("e2bdev/base"));
            // What nobody copies need not be there.
            let copied: BTreeSet<&str> = (order.plan.steps.iter())
                .filter(|step| step.kind == "COPY")
                .map(|step| step.args[0].as_str())
                .collect();
            let files = shipped.files().iter().map(|(name, _)| *name);
            let expected = files.filter(|name| !["Dockerfile", ".dockerignore"].contains(name));
            assert_eq!(copied, expected.collect());
            assert!(order.plan.start_cmd.is_some() && order.plan.ready_cmd.is_some());
        }
    }

    #[test]
    fn a_build_is_told_apart_by_all_that_it_is_of() {
        let tags: BTreeSet<String> = Shipped::value_variants()
            .iter()
            .flat_map(|shipped| ["one", "two"].map(|base| shipped.recipe_tag(base)))
            .collect();
        assert_eq!(tags.len(), 2 * Shipped::value_variants().len());
        for tag in tags {
            // A tag may look like no build's id.
            assert!(tag.len() < 32 && tag.starts_with(RECIPE_TAG), "{tag}");
            assert!(with_memory(&tag).len() < 32 && with_memory(&tag).starts_with(&tag));
        }
    }
}
