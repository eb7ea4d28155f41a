//! What envd says of its own work: lines of JSON for the node, which ships them.
//!
//! The log is the program's, like standard output, which is where the launcher passes its pipe:
//! [`open`] takes that once, and without it records go nowhere. A line is written whole or not at
//! all, and writing never waits. A line that does not fit (the node is behind) is dropped, and the
//! next one that fits says how many were.
//!
//! What commands print is never logged, only how much it was.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use atoll_wire::log::{LINE_MAX, LogLevel};
use buffa_types::google::protobuf::Timestamp;
use rustix::io::Errno;

/// Most bytes of one text as it is written, so that one does not crowd out the others.
const TEXT_MAX: usize = 1024;

/// Room for the number of dropped lines and the end of the line.
const RESERVED: usize = 40;

/// Follows a text that was cut.
const ELLIPSIS: &str = "…";

static LOG: OnceLock<Sink> = OnceLock::new();

/// Sends everything logged from now on to `pipe`, which must not block. The first call counts.
pub fn open(pipe: OwnedFd) {
    let _ = LOG.set(Sink { pipe, dropped: Mutex::new(0) });
}

/// Something that happened.
pub fn info(logger: &str, message: &str) -> Record<'static> {
    Record::new(LOG.get(), LogLevel::Info, logger, message)
}

/// Something that did not go as the client wanted.
pub fn warn(logger: &str, message: &str) -> Record<'static> {
    Record::new(LOG.get(), LogLevel::Warn, logger, message)
}

/// Where lines go.
struct Sink {
    pipe: OwnedFd,
    /// Lines dropped since the last that was written.
    dropped: Mutex<u64>,
}

impl Sink {
    fn write(&self, mut line: String) {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        if *dropped > 0 {
            line.push_str(&format!(",\"dropped\":{dropped}"));
        }
        line.push_str("}\n");
        loop {
            match rustix::io::write(&self.pipe, line.as_bytes()) {
                Ok(_) => *dropped = 0,
                Err(Errno::INTR) => continue,
                // The node is behind. If instead it has gone, nobody will ask for the number.
                Err(_) => *dropped += 1,
            }
            return;
        }
    }
}

/// A line that is being put together. Written by [`Record::send`].
#[must_use = "a record is written when it is sent"]
pub struct Record<'a> {
    /// Nothing is put together for nobody.
    sink: Option<&'a Sink>,
    line: String,
}

impl<'a> Record<'a> {
    fn new(sink: Option<&'a Sink>, level: LogLevel, logger: &str, message: &str) -> Self {
        let line = if sink.is_some() {
            format!("{{\"timestamp\":\"{}\",\"level\":\"{}\"", now(), level.as_str())
        } else {
            String::new()
        };
        Self { sink, line }.text("logger", logger).text("message", message)
    }

    /// Adds a text, cut where it is too long.
    pub fn text(mut self, name: &str, text: &str) -> Self {
        if self.sink.is_none() {
            return self;
        }
        // Quotes, colon, comma.
        let around = name.len() + 6;
        let room = (LINE_MAX - RESERVED).saturating_sub(self.line.len() + around).min(TEXT_MAX);
        let fitting = prefix(text, room.saturating_sub(ELLIPSIS.len()));
        let end = if fitting.len() < text.len() { ELLIPSIS } else { "" };
        if room > ELLIPSIS.len()
            && let Ok(value) = serde_json::to_string(&format!("{fitting}{end}"))
        {
            self.line.push_str(&format!(",\"{name}\":{value}"));
        }
        self
    }

    /// Adds a text if there is one.
    pub fn optional(self, name: &str, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(name, text),
            None => self,
        }
    }

    /// Adds a number.
    pub fn number(mut self, name: &str, number: impl Into<i64>) -> Self {
        let field = format!(",\"{name}\":{}", number.into());
        if self.sink.is_some() && self.line.len() + field.len() <= LINE_MAX - RESERVED {
            self.line.push_str(&field);
        }
        self
    }

    /// Writes the line.
    pub fn send(self) {
        if let Some(sink) = self.sink {
            sink.write(self.line);
        }
    }
}

/// As much of `text` as takes `room` bytes inside of a JSON string.
fn prefix(text: &str, room: usize) -> &str {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        taken += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..' ' => 6,
            _ => character.len_utf8(),
        };
        if taken > room {
            return &text[..at];
        }
    }
    text
}

/// The time in RFC 3339, to the nanosecond.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    };
    match serde_json::to_value(timestamp) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use rustix::pipe::{PipeFlags, pipe_with};
    use serde_json::Value;

    use super::*;

    fn sink() -> (File, Sink) {
        let (reader, pipe) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        (File::from(reader), Sink { pipe, dropped: Mutex::new(0) })
    }

    fn record(sink: &Sink) -> Record<'_> {
        Record::new(Some(sink), LogLevel::Info, "process", "Process started")
    }

    /// What is in the pipe: every line is checked to be whole.
    fn lines(reader: &mut File) -> Vec<Value> {
        let mut text = Vec::new();
        // Ends with "would block".
        let _ = reader.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_when_who_and_what() {
        let (mut reader, sink) = sink();
        record(&sink).number("pid", 7).text("cmd", "a\"b\n\u{1}é").optional("tag", None).send();
        let [line] = &lines(&mut reader)[..] else { panic!("not one line") };
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(serde_json::from_value::<Timestamp>(timestamp.into()).unwrap().seconds > 0);
        assert_eq!((&line["level"], &line["logger"]), (&"info".into(), &"process".into()));
        assert_eq!((&line["message"], &line["pid"]), (&"Process started".into(), &7.into()));
        assert_eq!(line["cmd"], "a\"b\n\u{1}é");
        assert!(line.get("tag").is_none() && line.get("dropped").is_none());
    }

    #[test]
    fn no_line_is_longer_than_a_pipe_takes_at_once() {
        let (mut reader, sink) = sink();
        for text in ["\u{1}", "é", "\"", "x", "🦀"] {
            let long = text.repeat(5000);
            let mut record = record(&sink);
            for name in ["cmd", "args", "cwd", "tag", "user", "error"] {
                record = record.text(name, &long).number(name, i64::MIN);
            }
            assert!(record.line.len() <= LINE_MAX - RESERVED, "{}", record.line.len());
            record.send();
            let line = &lines(&mut reader)[0];
            assert!(line["cmd"].is_string() || line["cmd"].is_number());
        }
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        let (mut reader, sink) = sink();
        record(&sink).text("cmd", &"é".repeat(5000)).text("tag", "kept").send();
        let line = &lines(&mut reader)[0];
        let cmd = line["cmd"].as_str().unwrap();
        assert!(cmd.len() <= TEXT_MAX && cmd.ends_with("é…"), "{cmd}");
        assert_eq!(line["tag"], "kept");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_never_waits() {
        let (mut reader, sink) = sink();
        const SENT: usize = 500;
        for number in 0..SENT {
            record(&sink).number("number", number as i64).text("x", &"x".repeat(900)).send();
        }
        let first = lines(&mut reader);
        assert!(first.len() < SENT);
        record(&sink).send();
        record(&sink).send();
        let [after, next] = &lines(&mut reader)[..] else { panic!("not two lines") };
        assert_eq!(after["dropped"].as_u64(), Some((SENT - first.len()) as u64));
        assert!(next.get("dropped").is_none());
    }

    #[test]
    fn a_reader_that_has_gone_is_nothing_special() {
        let (reader, sink) = sink();
        drop(reader);
        record(&sink).send();
    }

    #[test]
    fn without_a_pipe_nothing_is_put_together() {
        let record = Record::new(None, LogLevel::Warn, "process", "x").text("a", "b");
        assert!(record.number("n", 1).line.is_empty());
    }
}
