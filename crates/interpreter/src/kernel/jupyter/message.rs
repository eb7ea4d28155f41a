//! Messages of the Jupyter protocol, version 5: frames with a signature, and what is in them.
//!
//! Nothing checks the signatures of what a kernel sends: it sends to sockets in a directory that only
//! the server can open, and hashing all that a cell prints takes longer than reading it.

use std::fmt::Write;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use uuid::Uuid;
use zeromq::ZmqMessage;

use crate::kernel::{Stream, pipes::Item};

/// Stands between the addresses of a message and the message.
const DELIMITER: &[u8] = b"<IDS|MSG>";

/// The version of the protocol that requests say they are in.
const VERSION: &str = "5.3";

/// Who talks to a kernel, and the secret both know.
#[derive(Debug)]
pub(crate) struct Session {
    id: String,
    key: String,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self { id: Uuid::new_v4().to_string(), key: Uuid::new_v4().to_string() }
    }

    /// What the kernel needs to know to check signatures.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// A request of some type, and the number its answers will carry.
    pub(crate) fn request(&self, kind: &str, content: &Value) -> (String, ZmqMessage) {
        let id = Uuid::new_v4().to_string();
        let header = json!({
            "msg_id": id, "msg_type": kind, "session": self.id, "username": "", "version": VERSION,
            "date": Timestamp::now().to_string(),
        });
        let parts = [header.to_string(), "{}".to_owned(), "{}".to_owned(), content.to_string()];
        let mut message = ZmqMessage::from(Bytes::from_static(DELIMITER));
        message.push_back(sign(&self.key, &parts).into());
        for part in parts {
            message.push_back(part.into());
        }
        (id, message)
    }
}

/// HMAC-SHA256 over the parts, in hexadecimal digits.
fn sign(key: &str, parts: &[String]) -> String {
    // A key of any length will do.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    for part in parts {
        mac.update(part.as_bytes());
    }
    mac.finalize().into_bytes().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a kernel sent.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its type, such as `execute_reply`.
    pub(crate) kind: String,
    /// The number of the request that it is about; empty if about none.
    pub(crate) parent: String,
    content: Bytes,
}

impl Message {
    /// Takes the frames apart. Nothing for what is no message.
    pub(crate) fn parse(frames: ZmqMessage) -> Option<Self> {
        #[derive(Deserialize)]
        struct Header {
            msg_type: String,
        }
        #[derive(Deserialize)]
        struct Parent {
            #[serde(default)]
            msg_id: String,
        }
        let mut frames = frames.into_vec().into_iter().skip_while(|frame| frame != DELIMITER);
        let (_delimiter, _signature) = (frames.next()?, frames.next()?);
        let header: Header = serde_json::from_slice(&frames.next()?).ok()?;
        let parent: Parent = serde_json::from_slice(&frames.next()?).ok()?;
        let (_metadata, content) = (frames.next()?, frames.next()?);
        Some(Self { kind: header.msg_type, parent: parent.msg_id, content })
    }

    /// How long what is in it is, bytes.
    pub(crate) fn size(&self) -> usize {
        self.content.len()
    }

    /// What is in it.
    ///
    /// # Errors
    /// When that is not of this shape.
    pub(crate) fn content<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.content)
    }
}

/// In `execute_input`.
#[derive(Debug, Deserialize)]
pub(crate) struct Input {
    pub(crate) execution_count: u64,
}

/// In `stream`.
#[derive(Debug, Deserialize)]
pub(crate) struct Printed {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// In `display_data` and `execute_result`.
#[derive(Debug, Deserialize)]
pub(crate) struct Shown {
    pub(crate) data: Map<String, Value>,
}

/// In `error`, and in replies to what failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Raised {
    pub(crate) ename: String,
    pub(crate) evalue: String,
    pub(crate) traceback: Vec<String>,
}

/// In `status`.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) execution_state: String,
}

/// In `execute_reply`.
#[derive(Debug, Deserialize)]
pub(crate) struct Reply {
    #[serde(default)]
    pub(crate) status: String,
    #[serde(flatten)]
    pub(crate) raised: Raised,
    #[serde(default)]
    pub(crate) payload: Vec<Payload>,
}

/// Something a cell asks of whoever shows it.
#[derive(Debug, Deserialize)]
pub(crate) struct Payload {
    #[serde(default)]
    pub(crate) source: String,
}

impl Printed {
    /// As something that was printed now.
    pub(crate) fn item(self) -> Item {
        let stream = if self.name == "stderr" { Stream::Stderr } else { Stream::Stdout };
        Item::Printed { stream, text: self.text, at: Timestamp::now() }
    }
}

impl Raised {
    /// What stands for the error of a cell that the kernel did not run, or not to its end.
    pub(crate) fn aborted() -> Self {
        Self {
            ename: "ExecutionAborted".to_owned(),
            evalue: "the kernel called the cell off".to_owned(),
            traceback: Vec::new(),
        }
    }
}

impl Reply {
    /// What stands for a reply that cannot be read, or does not come.
    pub(crate) fn unreadable() -> Self {
        Self { status: "aborted".to_owned(), raised: Raised::default(), payload: Vec::new() }
    }

    /// Whether the cell ended the kernel: `exit()` in Python replies first, and then ends it.
    pub(crate) fn ends_kernel(&self) -> bool {
        self.payload.iter().any(|payload| payload.source == "ask_exit")
    }
}

/// A text without what would colour it on a terminal.
pub(crate) fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
        } else if characters.next_if_eq(&'[').is_some() {
            // A control sequence lasts until its final character.
            let _ = characters.find(|character| ('@'..='~').contains(character));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let parts = ["what do ya want ".to_owned(), "for nothing?".to_owned()];
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(sign("Jefe", &parts), expected);
    }

    #[test]
    fn a_reply_is_read() {
        let json = r#"{"status": "error", "execution_count": 1, "ename": "E", "evalue": "v",
            "traceback": ["a"], "payload": [{"source": "ask_exit", "keepkernel": false}]}"#;
        let reply: Reply = serde_json::from_str(json).unwrap();
        assert!(reply.ends_kernel());
        assert_eq!((reply.status.as_str(), reply.raised.ename.as_str()), ("error", "E"));
        let reply: Reply = serde_json::from_str(r#"{"status": "ok"}"#).unwrap();
        assert!(!reply.ends_kernel());
    }

    #[test]
    fn colours_are_dropped() {
        assert_eq!(without_colours("\u{1b}[0;31mName\u{1b}[0m: é\u{1b}["), "Name: é");
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(kind in ".*", address in proptest::collection::vec(any::<u8>(), 0..8), code in ".*") {
            let (id, mut message) = Session::new().request(&kind, &json!({ "ename": code }));
            prop_assert!(!id.is_empty());
            message.push_front(address.into());
            let message = Message::parse(message).unwrap();
            prop_assert_eq!((message.kind.as_str(), message.parent.as_str()), (kind.as_str(), ""));
            prop_assert_eq!(message.content::<Raised>().unwrap().ename, code);
        }

        #[test]
        fn any_frames_are_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 1..9)) {
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            prop_assert!(Message::parse(ZmqMessage::try_from(frames).unwrap()).is_none());
        }

        #[test]
        fn plain_text_keeps_all_its_characters(text in "[^\u{1b}]*") {
            prop_assert_eq!(without_colours(&text), text);
        }
    }
}
