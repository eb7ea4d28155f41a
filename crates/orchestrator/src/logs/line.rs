//! What a line of envd means. The sandbox may have written it: nothing in it is taken on trust.

use std::collections::BTreeMap;

use atoll_wire::log::LogLevel;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

/// How far envd's clock may be from ours before its word is not taken.
const MOST_SKEW: SignedDuration = SignedDuration::from_secs(60);
/// Most fields beside those that every line has.
const MOST_FIELDS: usize = 32;
/// Longest name of a field, and of a logger, bytes.
const LONGEST_NAME: usize = 64;

/// What a line says, whoever's it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) timestamp: Timestamp,
    pub(super) level: LogLevel,
    pub(super) logger: String,
    pub(super) message: String,
    pub(super) fields: BTreeMap<String, String>,
}

/// Reads a line that arrived `now`; none if envd cannot have written it.
pub(super) fn parse(line: &[u8], now: Timestamp) -> Option<Said> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let level: LogLevel = serde_json::from_value(object.remove("level")?).ok()?;
    let logger = text(&mut object, "logger")?;
    let message = text(&mut object, "message")?;
    let timestamp = text(&mut object, "timestamp")
        .and_then(|text| text.parse::<Timestamp>().ok())
        .filter(|timestamp| now.duration_since(*timestamp).abs() <= MOST_SKEW)
        .unwrap_or(now);
    let too_long = |name: &String| name.is_empty() || name.len() > LONGEST_NAME;
    if too_long(&logger) || object.len() > MOST_FIELDS || object.keys().any(too_long) {
        return None;
    }
    let fields = object.into_iter().map(|(name, value)| (name, as_text(value))).collect();
    Some(Said { timestamp, level, logger, message, fields })
}

fn text(object: &mut Map<String, Value>, name: &str) -> Option<String> {
    match object.remove(name)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A text as it is, anything else as JSON.
fn as_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-05-05T12:00:00Z".parse().unwrap()
    }

    fn said(line: &str) -> Option<Said> {
        parse(line.as_bytes(), now())
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = r#"{"timestamp":"2026-05-05T11:59:59.123456789Z","level":"warn","logger":"process",
            "message":"é\n","pid":7,"cmd":"ls","list":[1,{"a":null}],"flag":true}"#;
        let said = said(line).unwrap();
        assert_eq!(said.timestamp.to_string(), "2026-05-05T11:59:59.123456789Z");
        assert_eq!((said.level, said.logger.as_str()), (LogLevel::Warn, "process"));
        assert_eq!(said.message, "é\n");
        let fields = [("cmd", "ls"), ("flag", "true"), ("list", r#"[1,{"a":null}]"#), ("pid", "7")];
        assert!(said.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(fields));
    }

    #[test]
    fn a_clock_that_is_far_off_is_not_believed() {
        for timestamp in [
            "\"1970-01-01T00:00:00Z\"",
            "\"2026-05-05T12:01:01Z\"",
            "\"9999-12-31T23:59:59Z\"",
            "\"-009999-01-02T01:59:59Z\"",
            "\"soon\"",
            "7",
            "null",
        ] {
            let line =
                format!(r#"{{"timestamp":{timestamp},"level":"info","logger":"a","message":""}}"#);
            assert_eq!(said(&line).unwrap().timestamp, now(), "{timestamp}");
        }
    }

    #[test]
    fn what_envd_does_not_write_is_refused() {
        let many: String = (0..33).map(|number| format!(r#","f{number}":1"#)).collect();
        let many = format!(r#"{{"level":"info","logger":"a","message":"b"{many}}}"#);
        let long = "x".repeat(65);
        let long = format!(r#"{{"level":"info","logger":"a","message":"b","{long}":1}}"#);
        for line in [
            "",
            "null",
            "[]",
            "{}",
            "plain text",
            r#"{"level":"info","logger":"a"}"#,
            r#"{"level":"info","message":"a"}"#,
            r#"{"logger":"a","message":"b"}"#,
            r#"{"level":"fatal","logger":"a","message":"b"}"#,
            r#"{"level":1,"logger":"a","message":"b"}"#,
            r#"{"level":"info","logger":"","message":"b"}"#,
            r#"{"level":"info","logger":"a","message":{}}"#,
            r#"{"level":"info","logger":"a","message":"b"} {}"#,
            &many,
            &long,
        ] {
            assert_eq!(said(line), None, "{line}");
        }
        assert_eq!(
            parse(b"{\"level\":\"info\",\"logger\":\"\xff\",\"message\":\"\"}", now()),
            None
        );
        assert_eq!(parse("[".repeat(4000).as_bytes(), now()), None);
    }
}
