//! What the commands share that a build runs in its sandbox: `unpack`, `copy`, `provision`, `user`.
//!
//! They are part of envd because it is the one program that every image has while it is built, and
//! needs nothing of it. They say what is worth knowing on standard output, as lines that begin with
//! `notice: `, and why they failed on standard error.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use rustix::io::Errno;

/// Ends of a command, numbered as in `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The command line is wrong.
    Usage = 64,
    /// An archive is hostile, damaged or too large.
    Refused = 65,
    /// Something is missing: a file that is to be copied, or what every template needs.
    Missing = 66,
    /// There is no such user.
    NoUser = 67,
    /// The disk is full or fails.
    Disk = 74,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it exits with.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What the parts of commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure for this reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A system call failed on `what`. Nearly always the disk is full.
    pub(crate) fn disk(what: impl Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
        let message = if full.contains(&error.raw_os_error()) {
            format!("the disk is full: {what} cannot be written")
        } else {
            format!("{what}: {error}")
        };
        Self::new(Reason::Disk, message)
    }
}

/// A name for people: what cannot be printed is escaped.
pub(crate) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(name) if !name.chars().any(char::is_control) => name.to_owned(),
        _ => name.escape_ascii().to_string(),
    }
}

/// Runs a command: its notices, then how it ended.
pub(crate) fn finish(result: Outcome<Vec<String>>) -> ExitCode {
    match result {
        Ok(notices) => {
            let mut stdout = io::stdout().lock();
            for notice in notices {
                // Nobody reads them: not a reason to fail.
                let _ = writeln!(stdout, "notice: {notice}");
            }
            ExitCode::SUCCESS
        }
        Err(Failure { reason, message }) => {
            let _ = writeln!(io::stderr(), "{message}");
            ExitCode::from(reason as u8)
        }
    }
}

/// Arguments of a command: flags with a value, flags without, and the rest in order.
pub(crate) struct Arguments {
    flags: Vec<(String, String)>,
    /// Those that are no flags.
    pub(crate) rest: Vec<String>,
}

impl Arguments {
    /// Sorts `args`; `valued` and `bare` are the flags there are. After `--` there are none.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = String>,
        valued: &[&str],
        bare: &[&str],
    ) -> Outcome<Self> {
        let mut parsed = Self { flags: Vec::new(), rest: Vec::new() };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.rest.extend(args);
                break;
            }
            let Some(flag) = arg.strip_prefix("--") else {
                parsed.rest.push(arg);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None if valued.contains(&flag) => (flag, args.next()),
                None => (flag, bare.contains(&flag).then(String::new)),
            };
            match value {
                Some(value) if valued.contains(&name) || bare.contains(&name) => {
                    parsed.flags.push((name.to_owned(), value));
                }
                _ => return Err(usage(format!("unknown flag, or one without a value: {arg}"))),
            }
        }
        Ok(parsed)
    }

    /// The value of a flag; that of its last use.
    pub(crate) fn value(&self, flag: &str) -> Option<&str> {
        let named = self.flags.iter().rev().find(|(name, _)| name == flag);
        named.map(|(_, value)| value.as_str())
    }

    /// The value of a flag, a number in this base.
    pub(crate) fn number(&self, flag: &str, base: u32) -> Outcome<Option<u64>> {
        let number = self.value(flag).map(|value| u64::from_str_radix(value, base));
        number.transpose().map_err(|_| usage(format!("--{flag} needs a number")))
    }
}

/// The command line is wrong.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Reason::Usage, message)
}

/// Runs the command that the arguments begin with; none if it is no such command, and envd is to be
/// the daemon.
pub fn run(mut args: impl Iterator<Item = String>) -> Option<ExitCode> {
    let result = match args.next()?.as_str() {
        "unpack" => crate::unpack::command(args),
        "copy" => crate::unpack::copy::command(args),
        "provision" => crate::provision::command(args),
        "user" => crate::provision::user_command(args),
        _ => return None,
    };
    Some(finish(result))
}
