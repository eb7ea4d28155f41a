//! A Dockerfile as steps of a template build.
//!
//! The steps are those that the published SDKs make of the same file, argument by argument, so that
//! builds of one use the cached steps of the other. What they pass over in silence is noted or
//! refused here, with the line and what to do instead.
//!
//! - here: what each instruction means. [`run`]: of RUN. [`copy`]: of COPY and ADD.
//! - [`lines`]: instructions. [`words`]: quotes, escapes and references to variables.

mod copy;
mod lines;
mod run;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::{Error, Result, error::codes};

use lines::Instruction;

/// How long an SDK waits for a start command of which it knows nothing else.
pub(super) const READY: &str = "sleep 20";
const DEFAULT_USER: &str = "user";
const DEFAULT_DIRECTORY: &str = "/home/user";

/// What a Dockerfile asks for.
#[derive(Debug, Default)]
pub(super) struct Recipe {
    /// The image of its FROM.
    pub(super) image: Option<String>,
    pub(super) steps: Vec<Step>,
    /// CMD and ENTRYPOINT.
    pub(super) start: Option<String>,
    /// HEALTHCHECK, or a time that a start command is given.
    pub(super) ready: Option<String>,
    /// What has no effect, for people to read.
    pub(super) notes: Vec<String>,
}

/// A step of a build.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: &'static str,
    pub(super) args: Vec<String>,
    /// Where it comes from; none of a default.
    pub(super) line: Option<usize>,
}

/// Reads a Dockerfile. `values` are for its ARGs; `needs_from` says that it must have a FROM.
///
/// # Errors
/// `INVALID_REQUEST`, with the line, for whatever cannot be built.
pub(super) fn read(
    content: &str,
    values: &BTreeMap<String, String>,
    needs_from: bool,
) -> Result<Recipe> {
    let (instructions, escape) = lines::parse(content)?;
    let mut reader = Reader {
        recipe: Recipe::default(),
        escape,
        values,
        used: BTreeSet::new(),
        variables: BTreeMap::new(),
        user: false,
        directory: false,
        entrypoint: None,
        command: None,
    };
    // As Docker begins.
    reader.push("USER", vec!["root".to_owned()], None);
    reader.push("WORKDIR", vec!["/".to_owned()], None);
    for instruction in &instructions {
        let before_from = reader.recipe.image.is_none() && needs_from;
        if before_from && !["ARG", "FROM"].contains(&instruction.name.as_str()) {
            let what = format!("{} comes before FROM.", instruction.name);
            return Err(refuse(instruction.line, what, "Begin with FROM and an image."));
        }
        reader.instruction(instruction)?;
    }
    if reader.recipe.image.is_none() && needs_from {
        return Err(Error::new(codes::INVALID_REQUEST, "the Dockerfile has no FROM.").with_fix(
            "Begin it with FROM and an image, or name a template with --from-template.",
        ));
    }
    Ok(reader.finish())
}

/// The error for a line.
fn refuse(line: usize, what: impl std::fmt::Display, fix: &str) -> Error {
    Error::new(codes::INVALID_REQUEST, format!("Dockerfile, line {line}: {what}")).with_fix(fix)
}

/// The strings of a JSON array, or none if it is no JSON array.
fn json(text: &str) -> std::result::Result<Option<Vec<String>>, String> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Array(items)) => {
            let strings = items.into_iter().map(|item| match item {
                serde_json::Value::String(text) => Ok(text),
                other => Err(format!("{other} is not a string.")),
            });
            strings.collect::<std::result::Result<_, _>>().map(Some)
        }
        _ => Ok(None),
    }
}

/// A command, in one of its two forms.
enum Command {
    Exec(Vec<String>),
    Shell(String),
}

struct Reader<'a> {
    recipe: Recipe,
    escape: char,
    /// Of ARGs, from the command line.
    values: &'a BTreeMap<String, String>,
    used: BTreeSet<&'a str>,
    /// What ARG and ENV have set so far.
    variables: BTreeMap<String, String>,
    user: bool,
    directory: bool,
    entrypoint: Option<Command>,
    command: Option<Command>,
}

impl<'a> Reader<'a> {
    fn push(&mut self, kind: &'static str, args: Vec<String>, line: Option<usize>) {
        self.recipe.steps.push(Step { kind, args, line });
    }

    fn note(&mut self, line: usize, text: impl std::fmt::Display) {
        self.recipe.notes.push(format!("line {line}: {text}"));
    }

    fn instruction(&mut self, one: &Instruction) -> Result<()> {
        let takes_flags = ["FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"];
        if let Some((flag, _)) = one.flags.first()
            && !takes_flags.contains(&one.name.as_str())
        {
            let what = format!("{} has no flag --{flag}.", one.name);
            return Err(refuse(one.line, what, "Leave it out."));
        }
        match one.name.as_str() {
            "FROM" => self.from(one),
            "RUN" => self.run(one),
            "COPY" | "ADD" => self.copy(one),
            "ENV" => self.env(one),
            "ARG" => self.arg(one),
            "USER" => {
                let name = self.single(one)?;
                self.user = true;
                self.push("USER", vec![name], Some(one.line));
                Ok(())
            }
            "WORKDIR" => {
                let path = self.single(one)?;
                self.directory = true;
                self.push("WORKDIR", vec![path], Some(one.line));
                Ok(())
            }
            "CMD" => {
                self.command = Some(self.command(one)?);
                Ok(())
            }
            "ENTRYPOINT" => {
                self.entrypoint = Some(self.command(one)?);
                Ok(())
            }
            "HEALTHCHECK" => self.health(one),
            "SHELL" => self.shell(one),
            _ => self.without_effect(one),
        }
    }

    fn without_effect(&mut self, one: &Instruction) -> Result<()> {
        let why = match one.name.as_str() {
            "EXPOSE" => "every port of a sandbox can be reached",
            "VOLUME" => "the directory is part of the template",
            "STOPSIGNAL" => "sandboxes are killed",
            "ONBUILD" => "write it in the Dockerfile that builds on this template",
            "LABEL" | "MAINTAINER" => "templates have no labels",
            name => {
                let what = format!("there is no instruction {name:?}.");
                let fix = "If the line before is to go on, end it with the escape character.";
                return Err(refuse(one.line, what, fix));
            }
        };
        self.note(one.line, format!("{} has no effect: {why}.", one.name));
        Ok(())
    }

    fn from(&mut self, one: &Instruction) -> Result<()> {
        if self.recipe.image.is_some() {
            return Err(refuse(
                one.line,
                "a second FROM begins another stage, and there are no stages.",
                "Build the earlier stage as a template of its own and this one with \
                 --from-template, or build the image with Docker and `atoll template import` it.",
            ));
        }
        for (flag, _) in &one.flags {
            if flag != "platform" {
                return Err(refuse(
                    one.line,
                    format!("FROM has no flag --{flag}."),
                    "Leave it out.",
                ));
            }
            self.note(
                one.line,
                "--platform has no effect: images are those of the node's processor.",
            );
        }
        let arguments: Vec<&str> = one.text.split_whitespace().collect();
        let image = match arguments[..] {
            [image] => image,
            [image, word, _] if word.eq_ignore_ascii_case("as") => image,
            _ => return Err(refuse(one.line, "FROM takes one image.", "Write FROM IMAGE.")),
        };
        let image = self.expanded(one, image)?;
        match image.as_str() {
            "" => {
                let fix = "Give an ARG before it a value, or pass one with --build-arg.";
                Err(refuse(one.line, "the image's name is empty.", fix))
            }
            "scratch" => {
                let fix = "Take an image that has a shell, such as debian:12-slim or alpine.";
                Err(refuse(one.line, "FROM scratch has no shell, which templates need.", fix))
            }
            _ => {
                self.recipe.image = Some(image);
                Ok(())
            }
        }
    }

    fn env(&mut self, one: &Instruction) -> Result<()> {
        let fix = "Write ENV NAME=VALUE.";
        let words = words::split(&one.text, self.escape);
        let mut pairs = Vec::new();
        match words.first() {
            None => return Err(refuse(one.line, "ENV sets nothing.", fix)),
            // The old form: all that follows is the value.
            Some(first) if !first.contains('=') => {
                let (name, value) = one.text.split_once(char::is_whitespace).ok_or_else(|| {
                    refuse(one.line, format!("ENV gives {first:?} no value."), fix)
                })?;
                pairs.push((name, value.trim_start()));
            }
            Some(_) => {
                for word in &words {
                    let pair = word.split_once('=');
                    pairs.push(pair.ok_or_else(|| {
                        refuse(one.line, format!("ENV gives {word:?} no value."), fix)
                    })?);
                }
            }
        }
        let mut set = Vec::new();
        for (name, value) in pairs {
            let name = self.named(one, name)?;
            let plain = self.plain(one, value)?;
            let value = self.expanded(one, value)?;
            self.variables.insert(name.clone(), value);
            upsert(&mut set, name, plain);
        }
        self.push("ENV", flat(set), Some(one.line));
        Ok(())
    }

    fn arg(&mut self, one: &Instruction) -> Result<()> {
        let words = words::split(&one.text, self.escape);
        if words.is_empty() {
            return Err(refuse(one.line, "ARG names nothing.", "Write ARG NAME=DEFAULT."));
        }
        let mut set = Vec::new();
        for word in &words {
            let (name, default) = word.split_once('=').unwrap_or((word, ""));
            let name = self.named(one, name)?;
            let given = self.values.get_key_value(&name);
            let (plain, value) = match given {
                Some((key, value)) => {
                    self.used.insert(key);
                    (value.clone(), value.clone())
                }
                None => (self.plain(one, default)?, self.expanded(one, default)?),
            };
            self.variables.insert(name.clone(), value);
            upsert(&mut set, name, plain);
        }
        // As the SDKs do: a step keeps it, and it is there when the template runs.
        self.push("ENV", flat(set), Some(one.line));
        Ok(())
    }

    fn named(&self, one: &Instruction, name: &str) -> Result<String> {
        let name = self.plain(one, name)?;
        if name.is_empty() {
            let what = format!("{} has a value without a name.", one.name);
            return Err(refuse(one.line, what, "Write NAME=VALUE."));
        }
        Ok(name)
    }

    fn single(&self, one: &Instruction) -> Result<String> {
        let text = self.plain(one, &one.text)?;
        if text.is_empty() {
            let what = format!("{} names nothing.", one.name);
            return Err(refuse(one.line, what, "Give it one argument."));
        }
        Ok(text)
    }

    /// A word whose references are left to the build.
    fn plain(&self, one: &Instruction, word: &str) -> Result<String> {
        words::plain(word, self.escape, None).map_err(|error| malformed(one, &error))
    }

    /// A word whose references are replaced by what is known here.
    fn expanded(&self, one: &Instruction, word: &str) -> Result<String> {
        words::plain(word, self.escape, Some(&self.variables))
            .map_err(|error| malformed(one, &error))
    }

    fn command(&self, one: &Instruction) -> Result<Command> {
        Ok(match array(one)? {
            Some(words) => Command::Exec(words),
            None => Command::Shell(one.text.clone()),
        })
    }

    /// What tells whether a container is healthy tells whether a template is ready.
    fn health(&mut self, one: &Instruction) -> Result<()> {
        let (kind, command) = one.text.split_once(char::is_whitespace).unwrap_or((&one.text, ""));
        let command = command.trim_start();
        self.recipe.ready = match kind.to_uppercase().as_str() {
            "NONE" => None,
            "CMD" if !command.is_empty() => Some(match json(command) {
                Ok(Some(words)) => words::join(&words),
                _ => command.to_owned(),
            }),
            _ => {
                let fix =
                    "Write HEALTHCHECK CMD and a command that succeeds once the template is ready.";
                return Err(refuse(one.line, "HEALTHCHECK has no command.", fix));
            }
        };
        Ok(())
    }

    /// Steps are run by bash, whatever this says.
    fn shell(&mut self, one: &Instruction) -> Result<()> {
        let words = array(one)?.unwrap_or_default();
        let is_usual = words.first().is_some_and(|program| {
            ["sh", "bash"].contains(&program.rsplit('/').next().unwrap_or_default())
        });
        if !is_usual {
            let fix = "Leave SHELL out and call the shell yourself: RUN [\"zsh\", \"-c\", \"…\"].";
            return Err(refuse(one.line, "steps are run by bash, and by no other shell.", fix));
        }
        let text = "SHELL has no effect: steps are run by `bash -l -c`. For its options, begin a step with, \
                    say, `set -o pipefail;`.";
        self.note(one.line, text);
        Ok(())
    }

    fn finish(mut self) -> Recipe {
        if let Some(start) = start(self.entrypoint.take(), self.command.take()) {
            self.recipe.start = Some(start);
            self.recipe.ready.get_or_insert_with(|| READY.to_owned());
        }
        // As templates begin, unless the file says otherwise.
        if !self.user {
            self.push("USER", vec![DEFAULT_USER.to_owned()], None);
        }
        if !self.directory {
            self.push("WORKDIR", vec![DEFAULT_DIRECTORY.to_owned()], None);
        }
        for name in self.values.keys().filter(|name| !self.used.contains(name.as_str())) {
            self.recipe
                .notes
                .push(format!("--build-arg {name} has no effect: there is no ARG {name}."));
        }
        self.recipe
    }
}

fn malformed(one: &Instruction, error: &str) -> Error {
    let fix = "Close quotes and braces, or escape them.";
    refuse(one.line, format!("{} has a word that cannot be read: {error}.", one.name), fix)
}

/// The exec form of an instruction, if it has it.
fn array(one: &Instruction) -> Result<Option<Vec<String>>> {
    let fix = "Put all of the array in double quotes.";
    json(&one.text).map_err(|error| refuse(one.line, format!("in its array, {error}"), fix))
}

/// What Docker makes of ENTRYPOINT and CMD, as one line for a shell.
fn start(entrypoint: Option<Command>, command: Option<Command>) -> Option<String> {
    let line = match (entrypoint, command) {
        (Some(Command::Exec(mut words)), command) => {
            match command {
                Some(Command::Exec(more)) => words.extend(more),
                Some(Command::Shell(line)) if !line.is_empty() => {
                    words.extend(["/bin/sh".to_owned(), "-c".to_owned(), line]);
                }
                _ => {}
            }
            words::join(&words)
        }
        (Some(Command::Shell(line)), _) | (None, Some(Command::Shell(line))) => line,
        (None, Some(Command::Exec(words))) => words::join(&words),
        (None, None) => return None,
    };
    (!line.trim().is_empty()).then_some(line)
}

/// Sets a name where it stood first.
fn upsert(set: &mut Vec<(String, String)>, name: String, value: String) {
    match set.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => set.push((name, value)),
    }
}

fn flat(set: Vec<(String, String)>) -> Vec<String> {
    set.into_iter().flat_map(|(name, value)| [name, value]).collect()
}

#[cfg(test)]
mod tests;
