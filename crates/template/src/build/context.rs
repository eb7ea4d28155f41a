//! What a step runs with: variables, user and working directory, as the steps before it have set them.

use std::collections::BTreeMap;

use atoll_core::{Error, Result, error::codes};
use atoll_orchestrator::commands::Command;
use atoll_storage::BuildManifest;

/// The user of templates that set none.
pub(crate) const DEFAULT_USER: &str = "user";
/// Most bytes of all variables together, and of a text with what its variables stand for. No command
/// could be started with more, and each variable may name others many times: without a limit a few
/// lines of a client would fill the node's memory.
const LARGEST: usize = 128 << 10;

/// Where a build stands, apart from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) env_vars: BTreeMap<String, String>,
    pub(crate) user: String,
    /// None is the user's home.
    pub(crate) workdir: Option<String>,
}

impl Default for Context {
    fn default() -> Self {
        Self { env_vars: BTreeMap::new(), user: DEFAULT_USER.to_owned(), workdir: None }
    }
}

impl Context {
    /// What a build on another one begins with.
    pub(crate) fn of(build: &BuildManifest) -> Self {
        Self {
            env_vars: build.env_vars.clone(),
            user: build.default_user.clone(),
            workdir: build.default_workdir.clone(),
        }
    }

    /// `command` of a shell, in this context.
    pub(crate) fn shell(&self, command: &str) -> Command {
        // A login shell sets the path anew.
        let line = match self.env_vars.get("PATH") {
            Some(path) => format!("export PATH={}\n{command}", quoted(path)),
            None => command.to_owned(),
        };
        Command {
            user: Some(self.user.clone()),
            directory: self.workdir.clone(),
            env_vars: self.env_vars.clone(),
            ..Command::shell(&line)
        }
    }

    /// Sets variables, of which each sees those before it.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when they become too large.
    pub(crate) fn set(&mut self, pairs: &[(String, String)]) -> Result<()> {
        let mut bytes = self.bytes();
        for (name, value) in pairs {
            let value = self.expanded(value)?;
            bytes += size(name, &value);
            if let Some(former) = self.env_vars.insert(name.clone(), value) {
                bytes -= size(name, &former);
            }
            if bytes > LARGEST {
                return Err(too_large());
            }
        }
        Ok(())
    }

    /// Refuses variables that no command could be started with.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for them.
    pub(crate) fn check(&self) -> Result<()> {
        if self.bytes() > LARGEST { Err(too_large()) } else { Ok(()) }
    }

    fn bytes(&self) -> usize {
        self.env_vars.iter().map(|(name, value)| size(name, value)).sum()
    }

    /// `path`, from the working directory on if it is relative; none is the home.
    ///
    /// # Errors
    /// As of [`expanded`](Self::expanded).
    pub(crate) fn resolve(&self, path: &str) -> Result<Option<String>> {
        let path = self.expanded(path)?;
        if path.starts_with('/') {
            return Ok(Some(path));
        }
        // Below a home that is known only inside: the shell says where.
        let from = |workdir: &String| format!("{}/{path}", workdir.trim_end_matches('/'));
        Ok(self.workdir.as_ref().map(from))
    }

    /// `text` with `$NAME` and `${NAME}` replaced by what they stand for: nothing, if they are not set.
    /// A backslash keeps a dollar sign.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when it becomes too large.
    pub(crate) fn expanded(&self, text: &str) -> Result<String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(['$', '\\']) {
            if expanded.len() > LARGEST {
                return Err(too_large());
            }
            expanded.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("\\$") {
                expanded.push('$');
                rest = after;
            } else if let Some((name, after)) = variable(rest) {
                expanded.push_str(self.env_vars.get(name).map_or("", String::as_str));
                rest = after;
            } else {
                expanded.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
        expanded.push_str(rest);
        if expanded.len() > LARGEST { Err(too_large()) } else { Ok(expanded) }
    }
}

/// What a variable takes of the room that there is for all.
fn size(name: &str, value: &str) -> usize {
    name.len() + value.len() + "=\0".len()
}

fn too_large() -> Error {
    let message = format!("variables are too large: {} KiB are the most.", LARGEST >> 10);
    Error::new(codes::INVALID_REQUEST, message)
        .with_fix("Put what is larger into a file, and set a variable to its path.")
}

/// The name of the variable that `text` begins with, and what comes after it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('$')?;
    let length = |text: &str| {
        text.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(text.len())
    };
    let (name, after) = match text.strip_prefix('{') {
        Some(braced) => {
            let (name, after) = braced.split_at(length(braced));
            (name, after.strip_prefix('}')?)
        }
        None => text.split_at(length(text)),
    };
    let begins_well = name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    begins_well.then_some((name, after))
}

/// `text` as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Context {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let mut context = Context::default();
        context.set(&pairs).unwrap();
        context
    }

    #[test]
    fn variables_are_expanded_in_order() {
        let context = context(&[("A", "1"), ("B", "$A/${A}x"), ("PATH", "/x:$PATH"), ("C", "$$A")]);
        let value = |name: &str| context.env_vars[name].as_str();
        assert_eq!((value("B"), value("PATH"), value("C")), ("1/1x", "/x:", "$1"));
    }

    #[test]
    fn what_is_no_variable_stays() {
        let context = context(&[("A", "1")]);
        for (text, expected) in [
            ("\\$A", "$A"),
            ("$", "$"),
            ("$1", "$1"),
            ("${A", "${A"),
            ("${A-x}", "${A-x}"),
            ("a\\nb", "a\\nb"),
            ("ä$Aö", "ä1ö"),
        ] {
            assert_eq!(context.expanded(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn variables_that_name_each_other_many_times_are_refused() {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let mut context = Context::default();
        let bomb = [
            pair("A", "x".repeat(1000)),
            pair("B", "$A".repeat(1000)),
            pair("C", "$B".repeat(1000)),
            pair("D", "$C".repeat(1000)),
        ];
        assert_eq!(context.set(&bomb).unwrap_err().code, codes::INVALID_REQUEST);
        assert!(context.expanded(&"$A".repeat(1000)).is_err());
        // Set again and again, one takes the room of one.
        let again: Vec<_> = (0..1000).map(|_| pair("A", "x".repeat(1000))).collect();
        let mut context = Context::default();
        context.set(&again).unwrap();
        let many: Vec<_> = (0..1000).map(|n| pair(&n.to_string(), "x".repeat(1000))).collect();
        assert!(context.set(&many).is_err());
    }

    #[test]
    fn a_path_counts_from_the_working_directory() {
        let mut context = context(&[("D", "/data")]);
        assert_eq!(context.resolve("/a").unwrap(), Some("/a".into()));
        assert_eq!(context.resolve("$D/a").unwrap(), Some("/data/a".into()));
        assert_eq!(context.resolve("a").unwrap(), None);
        context.workdir = Some("/app/".into());
        assert_eq!(context.resolve("a").unwrap(), Some("/app/a".into()));
    }

    #[test]
    fn the_path_survives_a_login_shell() {
        let command = context(&[("PATH", "/a'b:/bin")]).shell("true");
        assert_eq!(command.args[2], "export PATH='/a'\\''b:/bin'\ntrue");
    }
}
