//! Entry point: see the library's documentation for what this program is.

mod capabilities;
mod dump;
mod mounts;
mod restore;
mod root;
mod run;
mod slot;
mod sys;

use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    // For people who look at processes; nothing depends on it.
    let _ = sys::set_name(c"atoll-launcher");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-c", "gzip"] => dump::compress(),
        // CRIU runs its action script as it would have a shell run it.
        _ if dump::is_hook() => dump::hook(),
        ["run", ..] => run::run(&arguments[1..]),
        ["wait"] => wait(),
        ["slot", uid] => slot::hold(uid),
        _ => Err(sys::Failure::new("usage", "atoll-launcher run CGROUP... | slot UID | wait")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody to tell when this fails: the exit code is what is left.
            let _ = writeln!(std::io::stdout(), "error {failure}");
            ExitCode::FAILURE
        }
    }
}

/// A first process that does nothing, to see whether sandboxes, or checkpoints of them, work.
fn wait() -> sys::Result<()> {
    loop {
        std::thread::park();
    }
}
