//! `atoll template build`: a template from a Dockerfile.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use atoll_core::{Error, Result, error::codes};

use super::{
    context::Context,
    dockerfile::{self, Recipe, Step},
    submit::{self, Order, Upload},
};
use crate::{
    client::{Client, Plan, PlanStep, Registration},
    sandbox::pair,
    terminal,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory with what COPY copies.
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    target: submit::Target,
    /// The Dockerfile [default: DIR/Dockerfile].
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A value for one of its ARGs; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    build_arg: Vec<(String, String)>,
    /// Build on this template or snapshot, instead of on the image of FROM.
    #[arg(long, value_name = "TEMPLATE")]
    from_template: Option<String>,
    /// Run every step, whatever was built before.
    #[arg(long)]
    no_cache: bool,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<ExitCode> {
    let order = order(arguments).await?;
    submit::run(client, order).await
}

impl Arguments {
    /// The directory's Dockerfile, as it is.
    pub(super) fn of(directory: &Path, target: submit::Target) -> Self {
        Self {
            directory: directory.to_owned(),
            target,
            file: None,
            build_arg: Vec::new(),
            from_template: None,
            no_cache: false,
        }
    }
}

/// What is to be built: reads the Dockerfile, and all that it copies.
pub(super) async fn order(arguments: Arguments) -> Result<Order> {
    let path = arguments.file.clone().unwrap_or_else(|| arguments.directory.join("Dockerfile"));
    let content = fs::read_to_string(&path).map_err(|error| no_dockerfile(&path, &error))?;
    let values: BTreeMap<String, String> = arguments.build_arg.iter().cloned().collect();
    let recipe = dockerfile::read(&content, &values, arguments.from_template.is_none())?;
    order_of(arguments, recipe).await
}

fn no_dockerfile(path: &Path, error: &io::Error) -> Error {
    Error::new(codes::BAD_OPTION, format!("{} cannot be read: {error}.", path.display()))
        .with_fix("Name the directory that holds the Dockerfile, or the file with --file.")
}

async fn order_of(arguments: Arguments, recipe: Recipe) -> Result<Order> {
    for note in &recipe.notes {
        terminal::note(&format!("Note: {note}"));
    }
    let target = arguments.target;
    let waits = recipe.ready.as_deref() == Some(dockerfile::READY);
    if waits && target.start.is_none() && target.ready.is_none() {
        terminal::note(
            "Note: the start command is given 20 seconds. HEALTHCHECK or --ready says when it is ready.",
        );
    }
    let from_image = match (&arguments.from_template, recipe.image) {
        (None, image) => image,
        (Some(template), Some(image)) => {
            terminal::note(&format!("Note: it is built on {template}, not on {image}."));
            None
        }
        (Some(_), None) => None,
    };
    let lines = recipe.steps.iter().map(|step| step.line).collect();
    let context = Arc::new(Context::open(&arguments.directory)?);
    let (steps, uploads) = plan_steps(context, recipe.steps).await?;
    // What the file waits for is not what another start command is to be waited for.
    let ready = if target.start.is_some() { None } else { recipe.ready };
    Ok(Order {
        registration: target.registration(),
        plan: Plan {
            from_image,
            from_template: arguments.from_template,
            force: arguments.no_cache,
            steps,
            start_cmd: target.start.or(recipe.start),
            ready_cmd: target.ready.or(ready),
            ..Plan::default()
        },
        uploads,
        lines,
    })
}

/// Steps with the hashes of their files, and how to pack these.
async fn plan_steps(
    context: Arc<Context>,
    steps: Vec<Step>,
) -> Result<(Vec<PlanStep>, HashMap<String, Upload>)> {
    let (mut planned, mut uploads) = (Vec::new(), HashMap::new());
    for Step { kind, args, line } in steps {
        let mut files_hash = None;
        if kind == "COPY" {
            let (source, destination) = (args[0].clone(), args[1].clone());
            let (own, named) = (context.clone(), source.clone());
            let hash = blocking(move || own.hash(&named, &destination)).await;
            let hash = hash.map_err(|error| in_line(line, error))?;
            files_hash = Some(hash.clone());
            uploads.insert(hash, Upload::Files { context: context.clone(), source });
        }
        planned.push(PlanStep { kind: kind.to_owned(), args, force: false, files_hash });
    }
    Ok((planned, uploads))
}

/// An error, with the line of the Dockerfile that it is of.
fn in_line(line: Option<usize>, error: Error) -> Error {
    let Some(line) = line else { return error };
    Error { message: format!("Dockerfile, line {line}: {}", error.message), ..error }
}

/// Does what reads many files elsewhere.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(codes::INTERNAL, format!("reading files failed: {error}.")))
    })
}

impl submit::Target {
    pub(super) fn registration(&self) -> Registration {
        Registration {
            name: self.name.clone(),
            tags: self.tag.clone(),
            cpu_count: self.cpu,
            memory_mb: self.memory,
        }
    }
}
