//! Kernelspecs: how a Jupyter kernel is started.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Deserialize;

/// Languages whose kernels make ports on 127.0.0.1, where the world finds them, of what are to be sockets
/// in a directory: those of the Java machine, whose ZeroMQ (JeroMQ) has no others.
const ONLY_PORTS: [&str; 5] = ["java", "kotlin", "scala", "groovy", "clojure"];

/// A `kernel.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Spec {
    /// The command, with places for what differs from start to start.
    pub(crate) argv: Vec<String>,
    /// Variables on top of the server's own.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// The language its cells are in.
    #[serde(default)]
    pub(crate) language: String,
    /// How it is interrupted.
    #[serde(default)]
    pub(crate) interrupt_mode: InterruptMode,
    /// The directory it was read from.
    #[serde(skip)]
    directory: String,
}

/// How a kernel is interrupted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InterruptMode {
    /// By SIGINT.
    #[default]
    Signal,
    /// By a message on its control channel.
    Message,
}

impl Spec {
    /// Reads the one in a directory.
    ///
    /// # Errors
    /// When it is not there, or not one.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let mut spec: Self = serde_json::from_slice(&fs::read(directory.join("kernel.json"))?)?;
        if spec.argv.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "argv is empty"));
        }
        spec.directory = directory.to_string_lossy().into_owned();
        Ok(spec)
    }

    /// That of ipykernel, for templates that installed no kernelspec with it.
    pub(crate) fn ipykernel() -> Self {
        let argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
        Self {
            argv: argv.map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            language: "python".to_owned(),
            interrupt_mode: InterruptMode::Signal,
            directory: String::new(),
        }
    }

    /// Whether it is known that it cannot have sockets in a directory.
    pub(crate) fn knows_only_ports(&self) -> bool {
        ONLY_PORTS.contains(&self.language.to_lowercase().as_str())
    }

    /// The command for a kernel that is to read this connection file.
    pub(crate) fn command(&self, connection_file: &str) -> Vec<String> {
        let fill = |argument: &String| {
            let argument = argument.replace("{resource_dir}", &self.directory);
            argument.replace("{connection_file}", connection_file)
        };
        self.argv.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernelspec_becomes_a_command() {
        let root = tempfile::tempdir().unwrap();
        let json = r#"{"argv": ["java", "-jar", "{resource_dir}/k.jar", "{connection_file}"],
            "display_name": "Java", "language": "java", "interrupt_mode": "message"}"#;
        fs::write(root.path().join("kernel.json"), json).unwrap();
        let spec = Spec::read(root.path()).unwrap();
        let jar = format!("{}/k.jar", root.path().display());
        assert_eq!(spec.command("/c.json"), ["java", "-jar", &jar, "/c.json"]);
        assert_eq!(spec.interrupt_mode, InterruptMode::Message);
        assert!(spec.knows_only_ports() && !Spec::ipykernel().knows_only_ports());
        fs::write(root.path().join("kernel.json"), r#"{"argv": []}"#).unwrap();
        assert!(Spec::read(root.path()).is_err());
    }
}
