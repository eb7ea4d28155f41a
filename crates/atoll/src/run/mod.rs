//! `atoll run`: a file of code in a throwaway sandbox, as one cell of its code interpreter.
//!
//! - here: what is asked for, the sandbox, and what the cell prints.
//! - [`pictures`]: what it draws, in files.

mod pictures;

use std::{
    borrow::Cow,
    fs,
    future::Future,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use tokio::{
    io::{stderr, stdout},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use self::pictures::Pictures;
use crate::{
    client::{Cell, CellEvent, Client, Create, Shown},
    sandbox::{exec::write_all, pair},
    template::Shipped,
    terminal::{self, Filter},
    throwaway,
};

/// The template that has the interpreter.
const SHIPPED: Shipped = Shipped::CodeInterpreter;
/// A create that Ctrl-C interrupts is waited for this long, for what it makes to be ended.
const CREATE_GRACE: Duration = Duration::from_secs(10);
/// A terminal that takes nothing is left as it is.
const TERMINAL_GRACE: Duration = Duration::from_secs(1);
/// Languages by the extensions of their files.
const LANGUAGES: [(&str, &str); 7] = [
    ("py", "python"),
    ("js", "javascript"),
    ("mjs", "javascript"),
    ("cjs", "javascript"),
    ("ts", "typescript"),
    ("sh", "bash"),
    ("bash", "bash"),
];
/// What comes by standard input, unless it is said.
const DEFAULT_LANGUAGE: &str = "python";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file; `-` for standard input.
    file: PathBuf,
    /// Its language, such as python, javascript, typescript or bash; by default what the file's name
    /// says, and Python for standard input.
    #[arg(long, value_name = "LANGUAGE")]
    lang: Option<String>,
    /// A variable for the code; may be repeated.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Give up after so many seconds; without it the code runs for as long as it takes.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Template to use; one that starts a code interpreter.
    #[arg(long, default_value = SHIPPED.alias())]
    template: String,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let client = Client::from_variables()?;
    let language = language(&arguments)?;
    let code = read(&arguments.file)?;
    let pictures = Pictures::beside(&arguments.file);
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Error::new(codes::INTERNAL, format!("no signals: {error}.")))?;

    let Some(sandbox) = create(&client, &arguments, &mut interrupts).await? else {
        return Ok(ExitCode::from(terminal::INTERRUPTED));
    };
    let cell = Cell { code, language };
    let mut output = Output::new(pictures);
    let work = async {
        let followed = follow(&client, &sandbox, &cell, &mut output);
        tokio::select! {
            outcome = within(arguments.timeout, followed) => outcome,
            _ = interrupts.recv() => Ok(ExitCode::from(terminal::INTERRUPTED)),
        }
    };
    let outcome = throwaway::with(&client, &sandbox, work).await;
    let _ = timeout(TERMINAL_GRACE, output.leave()).await;
    outcome
}

fn language(arguments: &Arguments) -> Result<String> {
    if let Some(language) = &arguments.lang {
        return Ok(language.clone());
    }
    if is_stdin(&arguments.file) {
        return Ok(DEFAULT_LANGUAGE.to_owned());
    }
    let extension = arguments.file.extension().and_then(|extension| extension.to_str());
    let known = LANGUAGES.iter().find(|(known, _)| Some(*known) == extension);
    known.map(|(_, language)| (*language).to_owned()).ok_or_else(|| {
        let fact = format!("the name of {} does not say its language.", arguments.file.display());
        Error::new(codes::BAD_OPTION, fact).with_fix("Say it, such as with --lang python.")
    })
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

fn read(file: &Path) -> Result<String> {
    let bytes = if is_stdin(file) {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(file)
    };
    let unusable = |why: &dyn std::fmt::Display| {
        let fact = format!("{} cannot be read: {why}.", file.display());
        Error::new(codes::BAD_OPTION, fact).with_fix("")
    };
    let bytes = bytes.map_err(|error| unusable(&error))?;
    String::from_utf8(bytes).map_err(|_| unusable(&"it is not text in UTF-8"))
}

/// Creates the sandbox; none if that is interrupted.
async fn create(
    client: &Client,
    arguments: &Arguments,
    interrupts: &mut Signal,
) -> Result<Option<rest::Sandbox>> {
    let request = Create {
        template: arguments.template.clone(),
        timeout: Some(throwaway::LIFETIME),
        env_vars: arguments.env.iter().cloned().collect(),
        ..Create::default()
    };
    let mut creating = Box::pin(client.create(&request));
    let created = tokio::select! {
        created = &mut creating => created,
        _ = interrupts.recv() => {
            if let Ok(Ok(sandbox)) = timeout(CREATE_GRACE, creating).await {
                throwaway::end(client, &sandbox).await;
            }
            return Ok(None);
        }
    };
    created.map(Some).map_err(|error| explained(error, &arguments.template))
}

/// Says what to do where the template of the interpreter is missing.
fn explained(error: Error, template: &str) -> Error {
    if error.code != codes::TEMPLATE_NOT_FOUND || template != SHIPPED.alias() {
        return error;
    }
    Error::new(error.code, format!("this deployment has no template {template}."))
        .with_fix(format!("`{}` builds it.", SHIPPED.command()))
}

/// What becomes of `work` in so many seconds, if there is a limit.
async fn within(
    seconds: Option<u64>,
    work: impl Future<Output = Result<ExitCode>>,
) -> Result<ExitCode> {
    let Some(seconds) = seconds else { return work.await };
    timeout(Duration::from_secs(seconds), work).await.unwrap_or_else(|_| {
        let fact = format!("the code has run for {seconds} s, as long as --timeout lets it.");
        Err(Error::new(codes::CELL_TIMEOUT, fact))
    })
}

/// Runs the cell to its end.
async fn follow(
    client: &Client,
    sandbox: &rest::Sandbox,
    cell: &Cell,
    output: &mut Output,
) -> Result<ExitCode> {
    let mut running = client.execute(sandbox, cell).await?;
    loop {
        match running.next().await? {
            CellEvent::Stdout { text } => output.print(&text).await?,
            CellEvent::Stderr { text } => output.complain(&text).await?,
            CellEvent::Shown(shown) => output.show(&shown).await?,
            CellEvent::Failed { name, value, traceback } => {
                output.code = ExitCode::FAILURE;
                let text = if traceback.trim().is_empty() {
                    format!("{name}: {value}")
                } else {
                    traceback
                };
                note(&Filter::plain().pass(text.trim_end())).await;
            }
            CellEvent::Ended => return Ok(output.code),
            CellEvent::Other => {}
        }
    }
}

/// A line for people, beside what the cell prints.
async fn note(text: &str) {
    // They may have left; the cell goes on.
    let _ = write_all(&mut stderr(), format!("{text}\n").as_bytes()).await;
}

/// Where what the cell prints and shows goes, and how it ends.
struct Output {
    code: ExitCode,
    /// Whether standard output is at the start of a line.
    at_start: bool,
    /// Where a stream is a terminal. Others get what is printed as it is.
    stdout: Option<Filter>,
    stderr: Option<Filter>,
    pictures: Pictures,
}

impl Output {
    fn new(pictures: Pictures) -> Self {
        let filter = |is_terminal: bool| is_terminal.then(Filter::for_output);
        Self {
            code: ExitCode::SUCCESS,
            at_start: true,
            stdout: filter(io::stdout().is_terminal()),
            stderr: filter(io::stderr().is_terminal()),
            pictures,
        }
    }

    async fn print(&mut self, text: &str) -> Result<()> {
        let text = filtered(&mut self.stdout, text);
        if let Some(last) = text.as_bytes().last() {
            self.at_start = *last == b'\n';
        }
        write_all(&mut stdout(), text.as_bytes()).await
    }

    async fn complain(&mut self, text: &str) -> Result<()> {
        write_all(&mut stderr(), filtered(&mut self.stderr, text).as_bytes()).await
    }

    /// Saves pictures and pages, and prints what is neither, as a notebook chooses.
    async fn show(&mut self, shown: &Shown) -> Result<()> {
        match self.pictures.save(shown) {
            Ok(files) if !files.is_empty() => {
                for file in files {
                    note(&format!("Saved {}.", file.display())).await;
                }
                return Ok(());
            }
            Ok(_) => {}
            // The rest of a long computation may matter more.
            Err(error) => {
                terminal::fail(&error.to_string());
                self.code = ExitCode::FAILURE;
                return Ok(());
            }
        }
        let texts = [&shown.text, &shown.markdown, &shown.latex];
        let Some(text) = texts.into_iter().flatten().next() else { return Ok(()) };
        if let Some(filter) = &mut self.stdout {
            filter.begin();
        }
        let start = if self.at_start { "" } else { "\n" };
        self.print(&format!("{start}{}\n", text.trim_end_matches('\n'))).await
    }

    /// Takes back the colours that code which was stopped has left.
    async fn leave(&mut self) {
        if let Some(end) = self.stdout.as_mut().map(Filter::end) {
            let _ = write_all(&mut stdout(), end.as_bytes()).await;
        }
        if let Some(end) = self.stderr.as_mut().map(Filter::end) {
            let _ = write_all(&mut stderr(), end.as_bytes()).await;
        }
    }
}

fn filtered<'a>(filter: &mut Option<Filter>, text: &'a str) -> Cow<'a, str> {
    match filter {
        Some(filter) => filter.pass(text).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn language_of(line: &[&str]) -> Result<String> {
        let line = ["run"].iter().chain(line);
        language(&Line::try_parse_from(line).unwrap().arguments)
    }

    #[test]
    fn a_name_says_the_language() {
        assert_eq!(language_of(&["plots/a.b.py"]).unwrap(), "python");
        assert_eq!(language_of(&["a.mjs"]).unwrap(), "javascript");
        assert_eq!(language_of(&["a.ts"]).unwrap(), "typescript");
        assert_eq!(language_of(&["a.sh"]).unwrap(), "bash");
        assert_eq!(language_of(&["-"]).unwrap(), "python");
    }

    #[test]
    fn what_is_said_goes_before_the_name() {
        assert_eq!(language_of(&["--lang", "r", "a.py"]).unwrap(), "r");
    }

    #[test]
    fn a_deployment_without_the_template_is_told_how_to_build_it() {
        let missing = Error::new(codes::TEMPLATE_NOT_FOUND, "template not found").with_fix("");
        let own = explained(missing.clone(), "code-interpreter-v1").to_string();
        assert!(own.ends_with("`atoll template add code-interpreter` builds it."), "{own}");
        assert!(explained(missing, "mine").to_string().ends_with("template not found"));
    }

    #[test]
    fn a_name_without_a_language_wants_it_said() {
        for name in ["Makefile", "a.ipynb", ".py"] {
            let error = language_of(&[name]).unwrap_err();
            assert!(error.to_string().contains("--lang"), "{error}");
        }
    }
}
