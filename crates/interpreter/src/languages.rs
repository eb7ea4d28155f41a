//! Languages: their names, and what runs each.
//!
//! JavaScript, TypeScript and Bash are the server's own. Everything else is a Jupyter kernel that the
//! template installed, found by the name of its kernelspec and then by the language that says.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::kernel::jupyter::spec::Spec;

/// The language of a request that names none.
pub(crate) const DEFAULT: &str = "python";

/// What runs the cells of a language.
#[derive(Clone, Debug)]
pub(crate) enum Runtime {
    /// Node, which runs the cells as they are.
    JavaScript,
    /// Node, which drops the types first.
    TypeScript,
    /// Bash.
    Bash,
    /// A Jupyter kernel.
    Jupyter(Spec),
}

/// How the variables of a cell are written in its language.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Dialect {
    /// Python.
    Python,
    /// JavaScript and TypeScript.
    JavaScript,
    /// Bash.
    Bash,
    /// R.
    R,
    /// Java, whose environment cannot be changed: system properties instead.
    Java,
    /// Any other: its cells see the server's variables.
    Unknown,
}

/// A language that this sandbox can run.
#[derive(Clone, Debug)]
pub(crate) struct Language {
    /// Its normalised name.
    pub(crate) name: String,
    pub(crate) runtime: Runtime,
}

impl Language {
    /// How its variables are written.
    pub(crate) fn dialect(&self) -> Dialect {
        match &self.runtime {
            Runtime::JavaScript | Runtime::TypeScript => Dialect::JavaScript,
            Runtime::Bash => Dialect::Bash,
            Runtime::Jupyter(spec) => match spec.language.to_lowercase().as_str() {
                "python" => Dialect::Python,
                "javascript" | "typescript" => Dialect::JavaScript,
                "bash" => Dialect::Bash,
                "r" => Dialect::R,
                "java" => Dialect::Java,
                _ => Dialect::Unknown,
            },
        }
    }
}

/// No kernel runs this language. Sentences, the last without a full stop.
#[derive(Clone, Debug, thiserror::Error)]
#[error("No kernel for the language {name:?}. This sandbox has: {}. {}", .known.join(", "), advice(.name))]
pub(crate) struct Unknown {
    name: String,
    known: Vec<String>,
}

/// What an unknown language lacks, where that is known.
fn advice(name: &str) -> &'static str {
    match name {
        "python" => "Python needs ipykernel (`pip install ipykernel`)",
        "javascript" | "typescript" => "JavaScript and TypeScript need node in PATH",
        _ => "Any Jupyter kernel that is installed can be used, by its name or language",
    }
}

/// The name under which contexts and kernels know a language.
pub(crate) fn normalise(name: &str) -> String {
    let name = name.trim().to_lowercase();
    match name.as_str() {
        "" => DEFAULT.to_owned(),
        "js" => "javascript".to_owned(),
        "ts" => "typescript".to_owned(),
        _ => name,
    }
}

/// Finds what runs a language, by its normalised name.
///
/// # Errors
/// When nothing here does: with what there is instead.
pub(crate) async fn find(name: &str) -> Result<Language, Unknown> {
    let found = |runtime| Ok(Language { name: name.to_owned(), runtime });
    match name {
        "javascript" if in_path("node") => return found(Runtime::JavaScript),
        "typescript" if in_path("node") => return found(Runtime::TypeScript),
        "bash" if in_path("bash") => return found(Runtime::Bash),
        _ => {}
    }
    let mut specs = installed(&directories());
    if let Some(spec) = choose(&specs, name) {
        return found(Runtime::Jupyter(spec.clone()));
    }
    let python = choose(&specs, "python").is_none() && has_ipykernel().await;
    if python {
        if name == "python" {
            return found(Runtime::Jupyter(Spec::ipykernel()));
        }
        specs.insert("python".to_owned(), Spec::ipykernel());
    }
    let own = [("bash", "bash"), ("javascript", "node"), ("typescript", "node")];
    let own = own.iter().filter(|(_, program)| in_path(program)).map(|(name, _)| *name);
    let mut known: Vec<String> = own.map(str::to_owned).chain(specs.into_keys()).collect();
    known.sort();
    known.dedup();
    Err(Unknown { name: name.to_owned(), known })
}

/// The kernelspec of this name, or else the first that says it is for this language.
fn choose<'a>(specs: &'a BTreeMap<String, Spec>, name: &str) -> Option<&'a Spec> {
    specs.get(name).or_else(|| specs.values().find(|spec| spec.language.to_lowercase() == name))
}

/// Where kernelspecs are, most important first.
fn directories() -> Vec<PathBuf> {
    let path = env::var_os("JUPYTER_PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("kernels"))
        .collect();
    if let Some(home) = env::var_os("HOME") {
        directories.push(Path::new(&home).join(".local/share/jupyter/kernels"));
    }
    directories.push("/usr/local/share/jupyter/kernels".into());
    directories.push("/usr/share/jupyter/kernels".into());
    directories
}

/// The kernelspecs by name, in lower case. What cannot be read is not there.
fn installed(directories: &[PathBuf]) -> BTreeMap<String, Spec> {
    let mut specs = BTreeMap::new();
    for entry in directories.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if let Ok(spec) = Spec::read(&entry.path()) {
            specs.entry(name).or_insert(spec);
        }
    }
    specs
}

/// Whether a program is where programs are looked for.
fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .any(|dir| rustix::fs::access(dir.join(program), rustix::fs::Access::EXEC_OK).is_ok())
}

/// Whether `python3` could import ipykernel.
async fn has_ipykernel() -> bool {
    let code = "import importlib.util as u, sys; sys.exit(u.find_spec('ipykernel') is None)";
    let mut command = Command::new("python3");
    command.args(["-c", code]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).status().await.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernelspec(directory: &Path, name: &str, json: &str) {
        let directory = directory.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("kernel.json"), json).unwrap();
    }

    #[test]
    fn names_are_normalised() {
        for (given, name) in [
            ("", "python"),
            ("  ", "python"),
            (" Python ", "python"),
            ("JS", "javascript"),
            ("ts", "typescript"),
            ("R", "r"),
            ("my-kernel", "my-kernel"),
        ] {
            assert_eq!(normalise(given), name);
        }
    }

    #[test]
    fn a_kernel_is_found_by_its_name_and_then_by_its_language() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("a"), root.path().join("b"));
        let spec = |title: &str, language: &str| {
            format!(r#"{{"argv": ["{title}", "{{connection_file}}"], "language": "{language}"}}"#)
        };
        kernelspec(&first, "ir", &spec("ours", "R"));
        kernelspec(&second, "ir", &spec("theirs", "R"));
        kernelspec(&second, "Python3", &spec("python3", "python"));
        kernelspec(&second, "broken", "{");
        let specs = installed(&[first, second, root.path().join("missing")]);
        assert_eq!(specs.keys().collect::<Vec<_>>(), ["ir", "python3"]);
        let argv = |name| choose(&specs, name).map(|spec| spec.argv[0].as_str());
        assert_eq!(argv("r"), Some("ours"));
        assert_eq!(argv("ir"), Some("ours"));
        assert_eq!(argv("python"), Some("python3"));
        assert_eq!(argv("java"), None);
    }

    #[tokio::test]
    async fn an_unknown_language_is_told_what_there_is() {
        let error = find("klingon").await.unwrap_err().to_string();
        assert!(error.starts_with("No kernel for the language \"klingon\""), "{error}");
        assert!(error.contains("bash"), "{error}");
        assert!(error.ends_with(" by its name or language"), "{error}");
    }
}
