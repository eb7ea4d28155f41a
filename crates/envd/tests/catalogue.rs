//! The messages of the Process service, bit by bit.

#![allow(clippy::unwrap_used)]

mod support;

use http::StatusCode;
use serde_json::json;
use support::{Envd, soon, until};

/// Binary protobuf by hand, so that the numbers of the fields are checked and not only repeated.
mod binary {
    pub(super) fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 128 {
            bytes.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// A field with bytes, text or a message in it.
    pub(super) fn field(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    /// A field with a number in it.
    pub(super) fn number(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    pub(super) fn envelope(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], message].concat()
    }
}

// Rules: PROC-1, PROC-2, STREAM-5, STREAM-19
#[tokio::test]
async fn binary_messages_have_the_numbers_of_the_catalogue() {
    use binary::{envelope, field, number};
    let envd = Envd::start().await;
    let headers = |streaming: bool| {
        let content_type =
            if streaming { "application/connect+proto" } else { "application/proto" };
        [("content-type", content_type), ("connect-protocol-version", "1")]
    };
    let call = async |method: &str, body: Vec<u8>, streaming: bool| {
        let path = format!("/process.Process/{method}");
        let (status, answered, body) =
            envd.call(http::Method::POST, &path, &headers(streaming), body).await;
        assert_eq!(status, StatusCode::OK, "{method}");
        assert_eq!(answered["content-type"], headers(streaming)[0].1);
        body.to_vec()
    };

    let variable = [field(1, "V"), field(2, "value")].concat();
    let script = field(2, "echo $V $(pwd) >&2; read line; stty size; kill -9 $$");
    let config =
        [field(1, "/bin/sh"), field(2, "-c"), script, field(3, variable), field(4, "/usr")];
    let size = |cols, rows| field(1, [number(1, cols), number(2, rows)].concat());
    let start = [field(1, config.concat()), field(2, size(90, 30)), field(3, "tagged")].concat();
    // The end of this stream comes with the end of the process.
    let started = call("Start", envelope(&start), true);
    let by_tag = field(1, field(2, "tagged"));
    let typing = async {
        until(async || envd.list().await.len() == 1).await;
        let pid = envd.list().await[0];
        let listed = call("List", Vec::new(), false).await;
        let info = [field(1, config.concat()), number(2, pid), field(3, "tagged")].concat();
        assert_eq!(listed, field(1, info));
        let resize = [by_tag.clone(), field(2, size(132, 43))].concat();
        assert_eq!(call("Update", resize, false).await, [0; 0]);
        let first = [by_tag.clone(), field(2, field(2, " "))].concat();
        assert_eq!(call("SendInput", first, false).await, [0; 0]);
        let messages = [
            envelope(&field(1, &by_tag)),
            envelope(&field(3, "")),
            envelope(&field(2, field(2, field(2, "\n")))),
        ];
        let answer = call("StreamInput", messages.concat(), true).await;
        assert_eq!(answer, [&envelope(b""), &b"\x02\0\0\0\x02{}"[..]].concat());
        pid
    };
    let (said, pid) = soon(async { tokio::join!(started, typing) }).await;

    let event = |event: Vec<u8>| envelope(&field(1, event));
    assert!(said.starts_with(&event(field(1, number(1, pid)))));
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains("value /usr\r\n") && text.contains("43 132"), "{text}");
    // -1 in zigzag form is 1; `exited` is left out.
    let status = "signal: killed";
    let end = event(field(3, [number(1, 1), field(3, status), field(4, status)].concat()));
    let end = [&end[..], b"\x02\0\0\0\x02{}"].concat();
    assert!(said.ends_with(&end), "{text}");

    // Standard input and error are numbers of their own, and so are codes and signals.
    let cat = [field(1, "/bin/sh"), field(2, "-c"), field(2, "cat; cat >&2; exit 3")].concat();
    let start = [field(1, cat), field(3, "pipes"), number(4, 1)].concat();
    let started = call("Start", envelope(&start), true);
    let by_tag = field(1, field(2, "pipes"));
    let typing = async {
        until(async || envd.list().await.len() == 1).await;
        let input = [by_tag.clone(), field(2, field(1, "typed"))].concat();
        assert_eq!(call("SendInput", input, false).await, [0; 0]);
        assert_eq!(call("CloseStdin", by_tag.clone(), false).await, [0; 0]);
    };
    let (said, ()) = soon(async { tokio::join!(started, typing) }).await;
    let data = event(field(2, field(1, "typed")));
    assert!(said.windows(data.len()).any(|window| window == data));
    let status = "exit status 3";
    let end = field(3, [number(1, 6), number(2, 1), field(3, status), field(4, status)].concat());
    let end = [&event(end)[..], b"\x02\0\0\0\x02{}"].concat();
    assert!(said.ends_with(&end));
    let late = call("Connect", envelope(&field(1, field(2, "pipes"))), true).await;
    assert!(late.ends_with(&end));

    let mut sleeping = envd.sh("sleep 1000", json!({})).await;
    let by_pid = field(1, number(1, sleeping.pid().await));
    let signal = [by_pid, number(2, 15)].concat();
    assert_eq!(call("SendSignal", signal, false).await, [0; 0]);
    assert_eq!(sleeping.outcome().await.end["error"], "signal: terminated");
}
