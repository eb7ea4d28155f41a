//! What a build says, in the shapes of the contract (control-plane contract, section 10.8).

use atoll_orchestrator::commands::Output;
use atoll_wire::{
    build::{BuildEvent, BuildLine},
    log::LogLevel,
};
use jiff::Timestamp;

use super::{
    Shared,
    job::{LastLines, stream_name},
};

/// Longest line, bytes; longer ones are broken.
const LONGEST: usize = 4096;

/// The log of a build.
#[derive(Clone)]
pub(crate) struct Log<'a> {
    shared: &'a Shared,
    build: &'a str,
    step: String,
    prefix: String,
}

impl<'a> Log<'a> {
    pub(crate) fn new(shared: &'a Shared, build: &'a str) -> Self {
        Self { shared, build, step: "base".to_owned(), prefix: "[base]".to_owned() }
    }

    /// What is said from now on is of a step, which is shown as `prefix`.
    pub(crate) fn at(&mut self, step: &str, prefix: &str) {
        step.clone_into(&mut self.step);
        prefix.clone_into(&mut self.prefix);
    }

    pub(crate) fn say(&self, level: LogLevel, message: impl Into<String>) {
        let line = BuildLine {
            timestamp: Timestamp::now(),
            level,
            step: Some(self.step.clone()),
            message: message.into(),
        };
        self.shared.events.push(self.build, BuildEvent::Line(line));
    }

    /// As [`say`](Self::say), after what the step is shown as.
    pub(crate) fn note(&self, message: impl std::fmt::Display) {
        self.say(LogLevel::Info, format!("{} {message}", self.prefix));
    }

    /// Takes what a command prints, and puts it here line by line.
    pub(crate) fn output(&self) -> Lines<'_> {
        Lines { log: self, out: Vec::new(), err: Vec::new(), last: LastLines::default() }
    }
}

/// What a command prints.
pub(crate) struct Lines<'a> {
    log: &'a Log<'a>,
    /// Lines that have not ended yet.
    out: Vec<u8>,
    err: Vec<u8>,
    last: LastLines,
}

impl Lines<'_> {
    pub(crate) fn take(&mut self, stream: Output, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in piece.chunks(LONGEST) {
                self.pending(stream).extend_from_slice(piece);
                let pending = self.pending(stream);
                if pending.ends_with(b"\n") || pending.len() >= LONGEST {
                    self.put(stream);
                }
            }
        }
    }

    fn pending(&mut self, stream: Output) -> &mut Vec<u8> {
        match stream {
            Output::Out => &mut self.out,
            Output::Err => &mut self.err,
        }
    }

    fn put(&mut self, stream: Output) {
        let bytes = std::mem::take(self.pending(stream));
        let text = String::from_utf8_lossy(&bytes);
        // What a progress bar has overwritten is not shown.
        let text = text.trim_end_matches(['\r', '\n']);
        let text = text.rsplit('\r').next().unwrap_or_default().replace('\0', "");
        let level = LogLevel::Info;
        let (prefix, name) = (&self.log.prefix, stream_name(stream));
        self.log.say(level, format!("{prefix} [{name}]: {text}"));
        self.last.push(text);
    }

    /// The last lines, once the command has ended.
    pub(crate) fn end(mut self) -> LastLines {
        for stream in [Output::Out, Output::Err] {
            if !self.pending(stream).is_empty() {
                self.put(stream);
            }
        }
        self.last
    }
}
