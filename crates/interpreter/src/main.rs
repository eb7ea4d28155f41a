//! `code-interpreter`: the server inside sandboxes that runs cells of code in stateful kernels and
//! streams what they print, show and raise (in-sandbox contract, section B).
//!
//! - [`server`]: the HTTP side. [`supervisor`]: the process that keeps it running.
//! - [`contexts`]: all contexts. [`context`]: one, with its queue, its variables and its kernel.
//! - [`kernel`]: what runs cells: Jupyter kernels, Node and Bash, behind one trait.
//! - [`languages`]: which there are. [`envd`]: the sandbox's variables. [`home`]: the directory.
//! - [`output`], [`lines`]: what an execution says, on its way to the client.
//! - [`patience`]: time limits that a pause of the sandbox does not use up.

mod context;
mod contexts;
mod envd;
mod home;
mod kernel;
mod languages;
mod lines;
mod output;
mod patience;
mod server;
mod supervisor;

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitCode,
};

use rustix::process::{Signal, set_parent_process_death_signal};

use server::Options;

/// Where the SDKs expect the server (contract, section B.1).
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 49999);

/// Where envd is, in every sandbox.
const ENVD: &str = "http://127.0.0.1:49983";

const USAGE: &str = "\
usage: code-interpreter [OPTION]...        serves
       code-interpreter ready [OPTION]...  exits with 0 if a server is ready: it has started the
                                           default Python kernel, if there is one; else with 1
  --listen ADDRESS:PORT  where it listens (0.0.0.0:49999)
  --dir DIRECTORY        what it writes (/run/code-interpreter)
  --envd URL             where envd is (http://127.0.0.1:49983)";

/// What the command line asks for.
#[derive(Debug)]
enum Action {
    Supervise(Vec<String>, Options),
    Serve(Options),
    Ready(Options),
    Print(&'static str),
}

fn main() -> ExitCode {
    let result = match parse(std::env::args().skip(1)) {
        Ok(Action::Supervise(arguments, options)) => {
            supervisor::run(&arguments, &options.directory).map(|never| match never {})
        }
        // The supervisor was asked to end, or killed.
        Ok(Action::Serve(options)) => set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(io::Error::from)
            .and_then(|()| server::run(&options)),
        Ok(Action::Ready(options)) => {
            return if home::is_ready(&options.directory) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Ok(Action::Print(text)) => writeln!(io::stdout(), "{text}"),
        Err(message) => Err(io::Error::new(io::ErrorKind::InvalidInput, message)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Parses the arguments after the program's name.
fn parse(arguments: impl Iterator<Item = String>) -> Result<Action, String> {
    let mut arguments = arguments.peekable();
    let known = |argument: &String| ["ready", supervisor::SERVER].contains(&argument.as_str());
    let command = arguments.next_if(known);
    let arguments: Vec<String> = arguments.collect();
    let mut options =
        Options { listen: LISTEN, directory: home::DIRECTORY.into(), envd: ENVD.to_owned() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--help" {
            return Ok(Action::Print(USAGE));
        }
        let mut value = || rest.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => {
                let value = value()?;
                options.listen = value.parse().map_err(|_| format!("not an address: {value}"))?;
            }
            "--dir" => options.directory = Path::new(value()?).into(),
            "--envd" => options.envd = value()?.clone(),
            _ => return Err(format!("unknown argument: {argument}\n{USAGE}")),
        }
    }
    Ok(match command.as_deref() {
        None => Action::Supervise(arguments, options),
        Some("ready") => Action::Ready(options),
        Some(_) => Action::Serve(options),
    })
}

/// Says something notable: a line on standard error. Nobody minds if nobody reads it.
fn log(message: &str) {
    let _ = writeln!(io::stderr(), "code-interpreter: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Action, String> {
        parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn arguments_are_understood() {
        let Ok(Action::Supervise(arguments, options)) = parsed(&["--dir", "/x"]) else {
            panic!("not understood")
        };
        assert_eq!(
            (arguments, options.directory),
            (vec!["--dir".into(), "/x".into()], "/x".into())
        );
        assert_eq!((options.listen.port(), options.envd.as_str()), (49999, ENVD));
        let Ok(Action::Serve(options)) = parsed(&["server", "--listen", "127.0.0.1:0"]) else {
            panic!("not understood")
        };
        assert_eq!(options.listen.to_string(), "127.0.0.1:0");
        assert!(matches!(parsed(&["ready"]), Ok(Action::Ready(_))));
        for bad in [&["--listen"][..], &["--listen", "x"], &["nonsense"], &["--dir"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
