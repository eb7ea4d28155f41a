//! What a step runs with: variables, user and working directory, as the steps before it have set them.

use std::collections::BTreeMap;

use atoll_orchestrator::commands::Command;
use atoll_storage::BuildManifest;

/// The user of templates that set none.
pub(crate) const DEFAULT_USER: &str = "user";

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
    pub(crate) fn set(&mut self, pairs: &[(String, String)]) {
        for (name, value) in pairs {
            let value = self.expanded(value);
            self.env_vars.insert(name.clone(), value);
        }
    }

    /// `path`, from the working directory on if it is relative; none is the home.
    pub(crate) fn resolve(&self, path: &str) -> Option<String> {
        let path = self.expanded(path);
        if path.starts_with('/') {
            return Some(path);
        }
        // Below a home that is known only inside: the shell says where.
        self.workdir.as_ref().map(|workdir| format!("{}/{path}", workdir.trim_end_matches('/')))
    }

    /// `text` with `$NAME` and `${NAME}` replaced by what they stand for: nothing, if they are not set.
    /// A backslash keeps a dollar sign.
    pub(crate) fn expanded(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(['$', '\\']) {
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
        expanded
    }
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
        context.set(&pairs);
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
            assert_eq!(context.expanded(text), expected, "{text}");
        }
    }

    #[test]
    fn a_path_counts_from_the_working_directory() {
        let mut context = context(&[("D", "/data")]);
        assert_eq!(context.resolve("/a"), Some("/a".into()));
        assert_eq!(context.resolve("$D/a"), Some("/data/a".into()));
        assert_eq!(context.resolve("a"), None);
        context.workdir = Some("/app/".into());
        assert_eq!(context.resolve("a"), Some("/app/a".into()));
    }

    #[test]
    fn the_path_survives_a_login_shell() {
        let command = context(&[("PATH", "/a'b:/bin")]).shell("true");
        assert_eq!(command.args[2], "export PATH='/a'\\''b:/bin'\ntrue");
    }
}
