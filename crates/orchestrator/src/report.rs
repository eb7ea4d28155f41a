//! What the node says in a sandbox's log of what it did with it.

use atoll_core::{
    Error,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_wire::{log::LogLevel, node::EndReason};

use crate::sandbox::Sandbox;

impl Sandbox {
    /// Says that it has got into another state, where its users care.
    pub(crate) fn report_state(&self, before: State, state: State) {
        match (before, state) {
            (State::Starting, State::Running) => self.report_start(),
            (State::Resuming(kept), State::Running) => self.say_kept(
                LogLevel::Info,
                "sandbox_resume",
                match kept {
                    Kept::Disk => "Sandbox resumed from its disk: it has booted anew",
                    Kept::Frozen | Kept::Checkpoint => "Sandbox resumed",
                },
                kept,
            ),
            // With a node that stops, nobody may be listening any more: the next one says it.
            (State::Paused(Kept::Frozen) | State::Resuming(Kept::Frozen), State::Paused(_))
                if !self.known().entry.has_lost_memory =>
            {
                self.report_lost_memory();
            }
            (State::Pausing(_), State::Paused(kept)) => self.say_kept(
                LogLevel::Info,
                "sandbox_pause",
                match kept {
                    Kept::Disk => "Sandbox paused: its disk is kept",
                    Kept::Checkpoint => "Sandbox paused: its memory is saved",
                    Kept::Frozen => {
                        "Sandbox paused: its processes are frozen; when Atoll or the machine is \
                         shut down, only its disk is left"
                    }
                },
                kept,
            ),
            (State::Running, State::Paused(kept)) => {
                let message = "Sandbox taken back to a snapshot";
                self.say_kept(LogLevel::Info, "sandbox_rewind", message, kept);
            }
            _ => {}
        }
    }

    /// Says that its frozen processes are gone.
    pub(crate) fn report_lost_memory(&self) {
        let message = "Its processes have ended with Atoll or the machine; its disk is kept, and it \
                       boots anew when it is resumed";
        self.say_kept(LogLevel::Warn, "sandbox_memory_lost", message, Kept::Disk);
    }

    fn say_kept(&self, level: LogLevel, event: &str, message: &str, kept: Kept) {
        let kept = match kept {
            Kept::Disk => "disk",
            Kept::Frozen => "frozen",
            Kept::Checkpoint => "checkpoint",
        };
        let fields = [("event_type", event.to_owned()), ("kept", kept.to_owned())];
        self.log.say(level, message, fields);
    }

    /// Says that it runs, and how long that took.
    fn report_start(&self) {
        let (template, timings) = {
            let known = self.known();
            (known.entry.record.template.to_string(), known.timings)
        };
        self.log.say(
            LogLevel::Info,
            "Sandbox started",
            [
                ("event_type", "sandbox_start".to_owned()),
                ("template", template),
                ("cpu_count", self.limits.vcpu.to_string()),
                ("memory_bytes", self.limits.memory.to_string()),
                ("take_us", timings.take_us.to_string()),
                ("start_us", timings.start_us.to_string()),
                ("init_us", timings.init_us.to_string()),
            ],
        );
    }

    /// Says that a step has failed, where that changes what its users asked for.
    pub(crate) fn report_failure(&self, error: &Error) {
        let (event, message) = match self.state() {
            State::Pausing(Kept::Checkpoint) if error.code == codes::CHECKPOINT_FAILED => {
                return self.report_no_checkpoint(error, "its processes are frozen instead");
            }
            State::Pausing(_) => ("sandbox_pause", "The sandbox could not be paused, and runs on"),
            State::Resuming(_) => {
                ("sandbox_resume", "The sandbox could not be resumed, and stays paused")
            }
            _ => return,
        };
        let fields = [("event_type", event.to_owned()), ("error", error.message.clone())];
        self.log.say(LogLevel::Warn, message, fields);
    }

    /// Says that its memory could not be written, and what is done instead.
    pub(crate) fn report_no_checkpoint(&self, error: &Error, instead: &str) {
        let message = format!("The sandbox's memory could not be saved: {instead}");
        let fields =
            [("event_type", "checkpoint_failed".to_owned()), ("error", error.message.clone())];
        self.log.say(LogLevel::Warn, message, fields);
    }

    /// Says that it is ended because it could not be paused.
    pub(crate) fn report_no_pause(&self) {
        let message = "The sandbox could not be paused when its time was up, and is ended";
        let fields = [("event_type", "sandbox_pause".to_owned())];
        self.log.say(LogLevel::Error, message, fields);
    }

    /// Says that it lives on under another run of the node.
    pub(crate) fn report_adopted(&self) {
        let fields = [("event_type", "sandbox_adopt".to_owned())];
        self.log.say(LogLevel::Info, "The node started again, and the sandbox goes on", fields);
    }

    /// Says how it ended.
    pub(crate) fn report_end(&self, reason: EndReason) {
        let (level, how) = match reason {
            EndReason::Killed => (LogLevel::Info, "killed"),
            EndReason::Expired => (LogLevel::Info, "expired"),
            EndReason::Died => (LogLevel::Error, "died"),
            EndReason::Shutdown => (LogLevel::Warn, "shutdown"),
        };
        let fields = [("event_type", "sandbox_end".to_owned()), ("reason", how.to_owned())];
        self.log.say(level, "Sandbox ended", fields);
    }
}
