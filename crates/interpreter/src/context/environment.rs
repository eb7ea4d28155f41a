//! Variables of cells: hidden code that makes a kernel have those that it should.

use std::{collections::BTreeSet, env};

use serde_json::json;

use crate::{envd::Variables, kernel::bash::quoted, languages::Dialect};

/// The variables that a kernel was given since it started.
#[derive(Debug)]
pub(crate) struct Environment {
    dialect: Dialect,
    given: Variables,
}

impl Environment {
    /// That of a kernel which has just started, with the server's variables.
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { dialect, given: Variables::new() }
    }

    /// The code after which the kernel has the sandbox's variables and a cell's own on top of the
    /// server's, and none that it was given before and are not among them; nothing if that is so
    /// already. To be run. A cell's own are always set: cells before it may have changed them.
    pub(crate) fn change(&mut self, sandboxes: &Variables, own: &Variables) -> Option<String> {
        let wanted: Variables = sandboxes
            .iter()
            .chain(own)
            .filter(|(name, value)| self.can_have(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut set = wanted.clone();
        set.retain(|name, value| {
            own.contains_key(name) || self.value(name).as_ref() != Some(value)
        });
        let mut unset = BTreeSet::new();
        for name in self.given.keys().filter(|name| !wanted.contains_key(*name)) {
            match env::var(name) {
                Ok(value) => drop(set.insert(name.clone(), value)),
                Err(_) => drop(unset.insert(name.clone())),
            }
        }
        self.given = wanted;
        if set.is_empty() && unset.is_empty() {
            return None;
        }
        code(self.dialect, &set, &unset)
    }

    /// The value it has in the kernel, as far as that was not changed by cells.
    fn value(&self, name: &str) -> Option<String> {
        self.given.get(name).cloned().or_else(|| env::var(name).ok())
    }

    /// What a kernel cannot have is left out: other programs of the sandbox may.
    fn can_have(&self, name: &str, value: &str) -> bool {
        is_valid(name, value) && (self.dialect != Dialect::Bash || is_identifier(name))
    }
}

/// Whether a system can have such a variable at all.
pub(crate) fn is_valid(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

/// Whether a shell can name it.
fn is_identifier(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// The code that sets some and unsets others. A text of JSON is one of Python, JavaScript, R and Java,
/// too.
fn code(dialect: Dialect, set: &Variables, unset: &BTreeSet<String>) -> Option<String> {
    let each = |before: &str, after: &str, text: &dyn Fn(&str, &str) -> String| {
        set.iter().map(|(name, value)| format!("{before}{}{after}", text(name, value))).collect()
    };
    Some(match dialect {
        // One expression without a value: it leaves no name behind.
        Dialect::Python => format!(
            "(lambda e: (e.update({}), [e.pop(n, None) for n in {}]) and None)(__import__('os').environ)",
            json!(set),
            json!(unset),
        ),
        Dialect::JavaScript => format!(
            "Object.assign(process.env, {}); for (const n of {}) delete process.env[n]; undefined",
            json!(set),
            json!(unset),
        ),
        Dialect::Bash => {
            let mut code: String =
                each("export ", "\n", &|name, value| format!("{name}={}", quoted(value)));
            code.extend(unset.iter().map(|name| format!("unset {name}\n")));
            code
        }
        Dialect::R => {
            let mut code: String = each("", "", &|name, value| {
                format!("do.call(Sys.setenv, setNames(list({}), {}));", json!(value), json!(name))
            });
            code.extend(unset.iter().map(|name| format!("Sys.unsetenv({});", json!(name))));
            format!("invisible({{{code}}})")
        }
        Dialect::Java => {
            let mut code: String = each("System.setProperty(", ");", &|name, value| {
                format!("{}, {}", json!(name), json!(value))
            });
            code.extend(unset.iter().map(|name| format!("System.clearProperty({});", json!(name))));
            code
        }
        Dialect::Unknown => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn none() -> Variables {
        Variables::new()
    }

    #[test]
    fn only_what_changed_is_set_and_what_was_given_is_taken_back() {
        let mut environment = Environment::new(Dialect::Bash);
        let mut change = |pairs: &[(&str, &str)]| environment.change(&variables(pairs), &none());
        let path = env::var("PATH").unwrap();
        assert_eq!(change(&[("PATH", &path)]), None);
        let code = change(&[("A", "it's"), ("PATH", "/x"), ("b c", "")]);
        assert_eq!(code.unwrap(), "export A='it'\\''s'\nexport PATH='/x'\n");
        assert_eq!(change(&[("A", "it's"), ("PATH", "/x")]), None);
        assert_eq!(change(&[]).unwrap(), format!("export PATH={}\nunset A\n", quoted(&path)));
        assert_eq!(change(&[]), None);
    }

    #[test]
    fn what_a_call_says_holds_whatever_cells_have_changed() {
        let mut environment = Environment::new(Dialect::Bash);
        let (path, mode) = (env::var("PATH").unwrap(), variables(&[("MODE", "prod")]));
        assert!(environment.change(&mode, &none()).is_some());
        let own = variables(&[("MODE", "prod"), ("PATH", &path)]);
        let set = format!("export MODE='prod'\nexport PATH={}\n", quoted(&path));
        assert_eq!(environment.change(&mode, &own), Some(set));
    }

    #[test]
    fn what_no_system_can_have_is_left_out() {
        for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
            assert!(!is_valid(name, value));
            let mut environment = Environment::new(Dialect::Python);
            assert_eq!(environment.change(&variables(&[(name, value)]), &none()), None);
        }
    }

    /// Runs code and what shows a variable after it.
    fn shown(program: &str, flag: &str, code: &str, show: &str) -> String {
        let mut command = Command::new(program);
        let output = command.args([flag, &format!("{code}\n{show}")]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_value_arrives_as_it_is(value in "(\\PC|[\n\r\t'\"\\\\$`{}]){0,20}") {
            let change = |dialect| {
                Environment::new(dialect).change(&none(), &variables(&[("ATOLL_X", &value)])).unwrap()
            };
            let python = shown("python3", "-c", &change(Dialect::Python),
                "import os, sys; sys.stdout.buffer.write(os.environb[b'ATOLL_X'])");
            prop_assert_eq!(&python, &value);
            let bash = shown("bash", "-c", &change(Dialect::Bash), "printf %s \"$ATOLL_X\"");
            prop_assert_eq!(&bash, &value);
        }
    }
}
