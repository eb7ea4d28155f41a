//! The command line. Its flags are those of the envd that templates and scripts know; several
//! switch on what this one does not have, and are accepted.

use atoll_envd::VERSION;
use atoll_wire::guest::ENVD_PORT;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Serve, on this port if no socket was inherited.
    Serve {
        /// TCP port.
        port: u16,
    },
    /// Print this and exit.
    Print(&'static str),
}

/// The commit that this was built from, where the build knew it.
const COMMIT: Option<&str> = option_env!("ATOLL_COMMIT");

/// Parses the arguments after the program's name. Flags take one dash or two.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Action, String> {
    let mut args = args;
    let mut port = ENVD_PORT;
    while let Some(arg) = args.next() {
        let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(&arg);
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut value =
            || inline.clone().or_else(|| args.next()).ok_or(format!("-{name} needs a value"));
        match name {
            "version" => return Ok(Action::Print(VERSION)),
            "commit" => return Ok(Action::Print(COMMIT.unwrap_or("unknown"))),
            "port" => {
                let value = value()?;
                port = value.parse().map_err(|_| format!("not a port: {value}"))?;
            }
            // Groups are the node's, outside the sandbox; there is no metadata service, no log.
            "cgroup-root" => drop(value()?),
            "isnotfc" | "no-cgroups" | "verbose" => {}
            _ => return Err(format!("unknown flag: {arg}")),
        }
    }
    Ok(Action::Serve { port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Action, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    // Rules: BOOT-6
    #[test]
    fn known_flags_are_accepted() {
        let serve = |port| Ok(Action::Serve { port });
        assert_eq!(parsed(&[]), serve(49983));
        let all = ["-isnotfc", "-no-cgroups", "-verbose", "-cgroup-root", "/x", "-port", "8000"];
        assert_eq!(parsed(&all), serve(8000));
        assert_eq!(parsed(&["--port=8001"]), serve(8001));
        assert_eq!(parsed(&["-version"]), Ok(Action::Print("0.6.13")));
    }

    // Rules: BOOT-6
    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [&["-port"][..], &["-port", "70000"], &["-nonsense"], &["serve"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
