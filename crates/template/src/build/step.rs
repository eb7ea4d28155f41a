//! Steps, as the SDKs' builders and converters of Dockerfiles write them (control-plane contract,
//! section 10.5), and the keys that their results are kept by.

use atoll_core::{Error, Result, error::codes};
use atoll_wire::build::Step;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Runs a command, as another user than the build's if there is one.
    Run { command: String, user: Option<String> },
    /// Unpacks uploaded files.
    Copy(Copy),
    /// Sets variables.
    Set(Vec<(String, String)>),
    /// Makes a directory, and works there from now on.
    Workdir(String),
    /// Makes a user, and works as that from now on.
    User { name: String, sudo: bool },
}

/// A COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Hash of the archive.
    pub(crate) files: String,
    pub(crate) source: String,
    pub(crate) destination: String,
    /// `user` or `user:group`.
    pub(crate) owner: Option<String>,
    /// Octal.
    pub(crate) mode: Option<String>,
}

/// What a step does.
///
/// # Errors
/// `INVALID_REQUEST` with what is wrong with it; `FILES_MISSING` for a COPY that names none.
pub(crate) fn action(step: &Step) -> Result<Action> {
    let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
    let bad = |why: &str| {
        Error::new(codes::INVALID_REQUEST, format!("{} {why}.", step.kind)).with_fix(
            "Correct the step; builders of the published SDKs write them as they should be.",
        )
    };
    let given = |text: &&str| Some((*text).to_owned()).filter(|text| !text.is_empty());
    match (step.kind.to_ascii_uppercase().as_str(), args.as_slice()) {
        ("RUN", [command, rest @ ..]) if rest.len() < 2 => {
            Ok(Action::Run { command: (*command).to_owned(), user: rest.first().and_then(given) })
        }
        ("COPY" | "ADD", [source, destination, rest @ ..]) if rest.len() < 3 => {
            let files = step.files.clone().ok_or_else(|| {
                let message = format!("{} {source} does not say which files.", step.kind);
                Error::new(codes::FILES_MISSING, message)
            })?;
            Ok(Action::Copy(Copy {
                files,
                source: (*source).to_owned(),
                destination: (*destination).to_owned(),
                owner: rest.first().and_then(given),
                mode: rest.get(1).and_then(given),
            }))
        }
        ("ENV" | "ARG", args) if !args.is_empty() && args.len() % 2 == 0 => {
            let pairs = args.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned()));
            let pairs: Vec<_> = pairs.collect();
            match pairs.iter().find(|(name, value)| !is_name(name) || value.contains('\0')) {
                Some((name, _)) => Err(bad(&format!("cannot set {name:?}"))),
                None => Ok(Action::Set(pairs)),
            }
        }
        ("WORKDIR", [path]) if !path.is_empty() => Ok(Action::Workdir((*path).to_owned())),
        ("USER", [name, rest @ ..]) if !name.is_empty() && rest.len() < 2 => {
            Ok(Action::User { name: (*name).to_owned(), sudo: rest.first() == Some(&"true") })
        }
        ("RUN" | "COPY" | "ADD" | "ENV" | "ARG" | "WORKDIR" | "USER", _) => {
            Err(bad(&format!("cannot have these arguments: {args:?}")))
        }
        // The contract's words.
        _ => Err(Error::new(
            codes::INVALID_REQUEST,
            format!("command type {} is not implemented", step.kind),
        )),
    }
}

/// Whether the environment can have a variable of this name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The step as people know it, on one line.
pub(crate) fn text(step: &Step) -> String {
    const LONGEST: usize = 200;
    let words = match step.kind.to_ascii_uppercase().as_str() {
        "ENV" | "ARG" => {
            let pairs = step.args.chunks(2).map(|pair| pair.join("="));
            pairs.collect::<Vec<_>>().join(" ")
        }
        // Who runs it is no part of the command.
        "RUN" => step.args.first().cloned().unwrap_or_default(),
        _ => step.args.iter().filter(|arg| !arg.is_empty()).cloned().collect::<Vec<_>>().join(" "),
    };
    let line = format!("{} {}", step.kind, words.replace('\n', " "));
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// What the result of a step is kept by: equal keys, equal results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// That of what a build of the team begins with.
    pub(crate) fn first<'a>(team: &'a str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::hashed(["atoll build 1", team].into_iter().chain(parts))
    }

    /// That of a step on this.
    pub(crate) fn then(&self, step: &Step) -> Self {
        let kind = step.kind.to_ascii_uppercase();
        let (parent, count) = (self.hex(), step.args.len().to_string());
        let files = step.files.as_deref().unwrap_or_default();
        let args = step.args.iter().map(String::as_str);
        Self::hashed([parent.as_str(), &kind, &count, files].into_iter().chain(args))
    }

    /// Each part is preceded by its length, so that no two lists are alike.
    fn hashed<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub(crate) fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first characters, for people.
    pub(crate) fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// The id of the build that the result is.
    pub(crate) fn build_id(&self) -> String {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[..16]);
        Uuid::from_bytes(bytes).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: &str, args: &[&str]) -> Step {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Step { kind: kind.to_owned(), args, files: None, force: false }
    }

    #[test]
    fn steps_are_read_as_the_sdks_write_them() {
        let run = |user: Option<&str>| Action::Run {
            command: "make".into(),
            user: user.map(str::to_owned),
        };
        for (step, expected) in [
            (step("RUN", &["make"]), run(None)),
            (step("run", &["make", "root"]), run(Some("root"))),
            (step("RUN", &["make", ""]), run(None)),
            (
                step("ENV", &["A", "1", "B", ""]),
                Action::Set(vec![("A".into(), "1".into()), ("B".into(), "".into())]),
            ),
            (step("WORKDIR", &["/app"]), Action::Workdir("/app".into())),
            (step("USER", &["joe", "true"]), Action::User { name: "joe".into(), sudo: true }),
            (step("USER", &["joe"]), Action::User { name: "joe".into(), sudo: false }),
        ] {
            assert_eq!(action(&step).unwrap(), expected);
        }
        let copy = Step { files: Some("f".into()), ..step("ADD", &["a", "b/", "joe", "0644"]) };
        let Action::Copy(copy) = action(&copy).unwrap() else { panic!() };
        assert_eq!((copy.owner.as_deref(), copy.mode.as_deref()), (Some("joe"), Some("0644")));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_a_sentence() {
        for (step, expected) in [
            (step("HEALTHCHECK", &[]), "command type HEALTHCHECK is not implemented"),
            (step("RUN", &[]), "RUN cannot have these arguments: []."),
            (step("ENV", &["A"]), "ENV cannot have these arguments: [\"A\"]."),
            (step("ENV", &["A=B", "1"]), "ENV cannot set \"A=B\"."),
            (step("COPY", &["a", "b"]), "COPY a does not say which files."),
        ] {
            assert_eq!(action(&step).unwrap_err().message, expected);
        }
    }

    #[test]
    fn a_key_depends_on_all_that_matters_and_on_the_team() {
        let first = |team: &str| Key::first(team, ["image", "sha256:1"]);
        let base = first("a");
        assert_ne!(base, first("b"));
        let one = base.then(&step("RUN", &["ab", "c"]));
        assert_eq!(one, base.then(&step("run", &["ab", "c"])));
        for other in [
            base.then(&step("RUN", &["a", "bc"])),
            base.then(&step("RUN", &["abc"])),
            base.then(&Step { files: Some("x".into()), ..step("RUN", &["ab", "c"]) }),
            one.then(&step("RUN", &["ab", "c"])),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one.build_id(), base.then(&step("RUN", &["ab", "c"])).build_id());
    }

    #[test]
    fn a_step_is_shown_on_one_line_of_bounded_length() {
        assert_eq!(text(&step("RUN", &["a\nb", "root"])), "RUN a b");
        assert_eq!(text(&step("ENV", &["A", "1", "B", "2"])), "ENV A=1 B=2");
        assert_eq!(text(&step("RUN", &["ä".repeat(300).as_str()])).chars().count(), 201);
    }
}
