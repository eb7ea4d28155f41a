//! What envd's log says of processes: what was run, how it ended, and how much it printed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use atoll_wire::rpc::process::process_event::EndEvent;
use connectrpc::ConnectError;

use super::{Live, output::Stream};
use crate::log;

const LOGGER: &str = "process";

/// Ties what is said of one process together.
static NEXT_OPERATION: AtomicU64 = AtomicU64::new(1);

/// A process that the log has the start of.
pub struct Entry {
    operation: String,
    pid: u32,
    since: Instant,
}

/// Says that a process could not be started.
pub fn not_started(error: &ConnectError) {
    let reason = error.message.as_deref().unwrap_or_default();
    log::warn(LOGGER, "Process could not be started")
        .text("event_type", "process_start_failed")
        .text("error", reason)
        .send();
}

impl Entry {
    /// Says that a process was started.
    pub fn start(live: &Live) -> Self {
        let operation = NEXT_OPERATION.fetch_add(1, Ordering::Relaxed).to_string();
        let pid = live.process.pid();
        log::info(LOGGER, &format!("Process with pid {pid} started"))
            .text("event_type", "process_start")
            .text("operation_id", &operation)
            .number("pid", pid)
            .optional("tag", live.process.tag.as_deref())
            .optional("cwd", live.config.cwd.as_deref())
            .text("cmd", &live.config.cmd)
            .text("args", &live.config.args.join(" "))
            .send();
        Self { operation, pid, since: Instant::now() }
    }

    /// Says how it ended and how many bytes it printed to each stream.
    pub fn end(self, end: &EndEvent, printed: &[(Stream, u64)]) {
        let Self { operation, pid, since } = self;
        let mut record = log::info(LOGGER, &format!("Process with pid {pid} ended"))
            .text("event_type", "process_end")
            .text("operation_id", &operation)
            .number("pid", pid)
            .number("exit_code", end.exit_code)
            .optional("error", end.error.as_deref())
            .number("duration_ms", number(since.elapsed().as_millis()));
        for (stream, bytes) in printed {
            let name = match stream {
                Stream::Stdout => "stdout_bytes",
                Stream::Stderr => "stderr_bytes",
                Stream::Terminal => "pty_bytes",
            };
            record = record.number(name, number(*bytes));
        }
        record.send();
    }
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
