//! What an execution says, as its client reads it: a JSON object a line (contract, section B.3).

use std::io::{self, Write};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{
    Map, Value,
    ser::{Formatter, Serializer},
};

use crate::kernel::{Event, Failure, Stream};

/// The most of what was printed that one line carries, bytes: what is more takes several.
const PIECE: usize = 256 << 10;

/// A line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    NumberOfExecutions {
        execution_count: u64,
    },
    Stdout {
        text: &'a str,
        timestamp: String,
    },
    Stderr {
        text: &'a str,
        timestamp: String,
    },
    Result {
        #[serde(flatten)]
        representations: Map<String, Value>,
        is_main_result: bool,
        extra: Map<String, Value>,
    },
    Error {
        name: &'a str,
        value: &'a str,
        traceback: &'a str,
    },
    Keepalive,
    EndOfExecution,
}

impl Line<'_> {
    fn bytes(&self) -> Bytes {
        let mut line = Vec::new();
        // Strings and maps with strings as keys, into memory: nothing that fails.
        let _ = self.serialize(&mut Serializer::with_formatter(&mut line, Ascii));
        line.push(b'\n');
        line.into()
    }
}

/// JSON in ASCII, for two kinds of clients: some take all of Unicode's ends of lines for one (the Python
/// SDKs), others decode each part of an answer for itself, and lose a character that is cut (the
/// JavaScript SDK).
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Nearly always, and all of a picture.
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(|char: char| !char.is_ascii()) {
            let (ascii, from) = rest.split_at(at);
            writer.write_all(ascii.as_bytes())?;
            let end = from.find(|char: char| char.is_ascii()).unwrap_or(from.len());
            let (others, after) = from.split_at(end);
            for unit in others.encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = after;
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Keeps a connection alive on which nothing happens.
pub(crate) fn keepalive() -> Bytes {
    Line::Keepalive.bytes()
}

/// Always the last.
pub(crate) fn end_of_execution() -> Bytes {
    Line::EndOfExecution.bytes()
}

/// Something failed.
pub(crate) fn error(Failure { name, value, traceback }: &Failure) -> Bytes {
    Line::Error { name, value, traceback }.bytes()
}

/// Something was printed.
pub(crate) fn printed(stream: Stream, text: &str, at: Timestamp) -> Bytes {
    let timestamp = format!("{at:.6}");
    match stream {
        Stream::Stdout => Line::Stdout { text, timestamp }.bytes(),
        Stream::Stderr => Line::Stderr { text, timestamp }.bytes(),
    }
}

/// The lines of one event, made one at a time: they are not all in memory beside it.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    event: Option<Event>,
    /// How much of what was printed is told, bytes.
    told: usize,
}

impl Lines {
    pub(crate) fn new(event: Event) -> Self {
        Self { event: Some(event), told: 0 }
    }

    /// The next piece of what was printed. Printing nothing is told, too.
    fn piece(&mut self, stream: Stream, text: String, at: Timestamp) -> Bytes {
        let mut end = text.len().min(self.told + PIECE);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let line = printed(stream, &text[self.told..end], at);
        if end < text.len() {
            self.told = end;
            self.event = Some(Event::Printed { stream, text, at });
        }
        line
    }
}

impl Iterator for Lines {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        Some(match self.event.take()? {
            Event::Started(execution_count) => Line::NumberOfExecutions { execution_count }.bytes(),
            Event::Printed { stream, text, at } => self.piece(stream, text, at),
            Event::Shown { data, is_main } => result(data, is_main),
            Event::Failed(failure) => error(&failure),
            Event::Done => end_of_execution(),
        })
    }
}

/// Something was shown.
fn result(data: Map<String, Value>, is_main_result: bool) -> Bytes {
    let (mut representations, mut extra) = (Map::new(), Map::new());
    for (media_type, value) in data {
        // No key is without a value.
        if value.is_null() {
            continue;
        }
        match key(&media_type) {
            Some("text") => {
                let text = match joined(value) {
                    Value::String(text) => Value::String(unquoted(text)),
                    value => value,
                };
                representations.insert("text".to_owned(), text);
            }
            // These two are objects.
            Some(key @ ("json" | "data" | "chart")) => {
                representations.insert(key.to_owned(), value);
            }
            Some(key) => {
                representations.insert(key.to_owned(), joined(value));
            }
            None => {
                extra.insert(media_type, value);
            }
        }
    }
    Line::Result { representations, is_main_result, extra }.bytes()
}

/// The name by which the SDKs know a representation.
fn key(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        "text/plain" => "text",
        "text/html" => "html",
        "text/markdown" => "markdown",
        "image/svg+xml" => "svg",
        "image/png" => "png",
        "image/jpeg" => "jpeg",
        "application/pdf" => "pdf",
        "text/latex" => "latex",
        "application/json" => "json",
        "application/javascript" => "javascript",
        "e2b/data" => "data",
        "e2b/chart" => "chart",
        _ => return None,
    })
}

/// Some kernels send a text as an array of its lines.
fn joined(value: Value) -> Value {
    match value {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<String>().into(),
        value => value,
    }
}

/// A text without the quotes around it: a string's representation has some, and is read as the string.
fn unquoted(text: String) -> String {
    for quote in ['\'', '"'] {
        let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.to_owned();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(event: Event) -> String {
        Lines::new(event).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    fn shown(data: Value) -> Value {
        let Value::Object(data) = data else { panic!("not an object") };
        serde_json::from_str(&text(Event::Shown { data, is_main: true })).unwrap()
    }

    #[test]
    fn lines_have_the_contracts_shapes() {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let printed = Event::Printed { stream: Stream::Stdout, text: "1\n".to_owned(), at };
        let failure = Failure {
            name: "NameError".to_owned(),
            value: "name 'x' is not defined".to_owned(),
            traceback: "line".to_owned(),
        };
        for (event, line) in [
            (Event::Started(1), r#"{"type":"number_of_executions","execution_count":1}"#),
            (
                printed,
                r#"{"type":"stdout","text":"1\n","timestamp":"2026-01-01T00:00:00.000000Z"}"#,
            ),
            (
                Event::Failed(failure),
                r#"{"type":"error","name":"NameError","value":"name 'x' is not defined","traceback":"line"}"#,
            ),
            (Event::Done, r#"{"type":"end_of_execution"}"#),
        ] {
            assert_eq!(text(event), format!("{line}\n"));
        }
        assert_eq!(keepalive(), "{\"type\":\"keepalive\"}\n");
    }

    #[test]
    fn a_line_is_ascii_and_ends_at_its_end() {
        let said = "\u{2027}\u{2028}\u{2029}\u{85}\u{b}\u{1c}\u{e9}\r\n\u{4e2d}a\u{1f41a}\u{7f}\"";
        let line = text(Event::Printed {
            stream: Stream::Stdout,
            text: said.to_owned(),
            at: Timestamp::now(),
        });
        let told = r#"\u2027\u2028\u2029\u0085\u000b\u001c\u00e9\r\n\u4e2da\ud83d\udc1a"#;
        assert!(line.is_ascii() && line.contains(told), "{line}");
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["text"], said);
    }

    #[test]
    fn representations_are_named_as_the_sdks_name_them() {
        let line = shown(json!({
            "text/plain": "'a'", "text/html": ["<b>", "</b>"], "application/json": ["a", "b"],
            "e2b/chart": {"type": "line"}, "text/x-other": [1], "text/latex": null, "x/y": null,
        }));
        assert_eq!(
            line,
            json!({
                "type": "result", "text": "a", "html": "<b></b>", "json": ["a", "b"],
                "chart": {"type": "line"}, "is_main_result": true, "extra": {"text/x-other": [1]},
            })
        );
    }

    #[test]
    fn one_pair_of_quotes_is_stripped() {
        for (text, plain) in
            [("'a'", "a"), ("\"a\"", "a"), ("''a''", "'a'"), ("'a\"", "'a\""), ("'", "'"), ("", "")]
        {
            assert_eq!(unquoted(text.to_owned()), plain);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_printed_is_told_whole(unit in "\\PC{1,3}", length in 0..3 * PIECE) {
            let whole = unit.repeat(length / unit.len());
            let event = Event::Printed { stream: Stream::Stderr, text: whole.clone(), at: Timestamp::now() };
            let mut told = String::new();
            for line in text(event).lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let piece = line["text"].as_str().unwrap();
                prop_assert!(piece.len() <= PIECE);
                told.push_str(piece);
            }
            prop_assert_eq!(told, whole);
        }
    }
}
