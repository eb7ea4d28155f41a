//! Connect, gRPC and gRPC-Web framing, at a real envd.
//!
//! Whatever comes is answered, within the protocol of the request, and cut up as the network likes
//! it gets the same answer.

use std::{convert::Infallible, time::Duration};

use bytes::{Buf, Bytes};
use flate2::{Compression, write::GzEncoder};
use futures::stream::{self, StreamExt};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use proptest::{prelude::*, sample::Index};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{runner, runtime, support::Envd};

/// No answer here takes this long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const METHODS: [&str; 6] = [
    "process.Process/Start",
    "process.Process/Connect",
    "process.Process/StreamInput",
    "process.Process/List",
    "filesystem.Filesystem/Stat",
    "filesystem.Filesystem/WatchDir",
];

const KINDS: [&str; 8] = [
    "application/connect+json",
    "application/connect+proto",
    "application/json",
    "application/proto",
    "application/grpc",
    "application/grpc+json",
    "application/grpc-web+proto",
    "application/grpc-web+json",
];

/// A request, as far as it is not HTTP's.
#[derive(Clone, Debug)]
struct Call {
    method: &'static str,
    kind: &'static str,
    encoding: &'static str,
    timeout: &'static str,
    body: Vec<u8>,
}

/// Messages that are valid for one method or another; none runs for long.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let json = prop::sample::select(vec![
        r#"{"process":{"cmd":"/bin/true","cwd":"/"},"stdin":false}"#,
        r#"{"process":{"cmd":"/no/such/program","cwd":"/"},"stdin":false}"#,
        r#"{"process":{"pid":4000000}}"#,
        r#"{"process":{"tag":"none"}}"#,
        r#"{"start":{"process":{"tag":"none"}}}"#,
        r#"{"data":{"input":{"stdin":"eA=="}}}"#,
        r#"{"keepalive":{}}"#,
        r#"{"path":"/no/such/directory"}"#,
        r#"{"path":7}"#,
        r#"{"process":{"cmd":null}}"#,
        "{}",
        "[",
        "null",
        "\u{0}",
    ]);
    let proto = prop::sample::select(vec![
        // process: { cmd: "/bin/true" }
        b"\x0a\x0b\x0a\x09/bin/true".to_vec(),
        // A field longer than the message.
        b"\x0a\xff\x01".to_vec(),
        // A varint that does not end.
        vec![0xff; 12],
        // Groups within groups.
        vec![0x0b; 300],
    ]);
    prop_oneof![
        4 => json.prop_map(|text| text.as_bytes().to_vec()),
        2 => proto,
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

fn envelope(flags: u8, length: usize, payload: &[u8]) -> Vec<u8> {
    let mut envelope = vec![flags];
    envelope.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    envelope.extend_from_slice(payload);
    envelope
}

/// A message in its envelope, or something that looks like one.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0_u8), 1 => Just(2), 1 => Just(128), 1 => any::<u8>()];
    prop_oneof![
        6 => message().prop_map(|message| envelope(0, message.len(), &message)),
        2 => (flags, message()).prop_map(|(flags, message)| envelope(flags, message.len(), &message)),
        1 => message().prop_map(|message| {
            let message = gzip(&message);
            envelope(1, message.len(), &message)
        }),
        1 => message().prop_map(|message| envelope(1, message.len(), &message)),
        // Longer than it says, and shorter.
        1 => (message(), any::<u32>()).prop_map(|(message, length)| {
            envelope(0, length as usize, &message)
        }),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let body = prop_oneof![
        3 => prop::collection::vec(frame(), 0..4).prop_map(|frames| frames.concat()),
        2 => message(),
    ];
    let encoding = prop::sample::select(vec!["", "", "", "identity", "gzip", "zstd", "nonsense"]);
    let timeout = prop::sample::select(vec![None, None, Some("soon"), Some("99999999999")]);
    let (method, kind) = (prop::sample::select(&METHODS[..]), prop::sample::select(&KINDS[..]));
    (method, kind, encoding, timeout, body).prop_map(|(method, kind, encoding, timeout, body)| {
        // Long enough not to matter, but for a watch, which would not end: no path is the home.
        let (timeout, enough) = match method.ends_with("WatchDir") {
            // gRPC takes a timeout that is none for no timeout.
            true => (timeout.filter(|_| !kind.starts_with("application/grpc")), "100"),
            false => (timeout, "20000"),
        };
        Call { method, kind, encoding, timeout: timeout.unwrap_or(enough), body }
    })
}

/// Status, headers, body and trailers.
type Answer = (StatusCode, HeaderMap, Bytes, Option<HeaderMap>);

async fn send(envd: &Envd, call: &Call, places: &[Index]) -> Answer {
    let mut places: Vec<_> = places.iter().map(|place| place.index(call.body.len() + 1)).collect();
    places.extend([0, call.body.len()]);
    places.sort_unstable();
    let pieces: Vec<_> = places
        .windows(2)
        .map(|ends| Bytes::copy_from_slice(&call.body[ends[0]..ends[1]]))
        .collect();
    let body = StreamBody::new(stream::iter(pieces).then(async |piece| {
        // So that each is sent by itself.
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Frame::data(piece))
    }));
    let mut request = Request::post(format!("/{}", call.method))
        .header("host", "envd")
        .header("content-type", call.kind)
        .header("te", "trailers")
        .header("connect-timeout-ms", call.timeout)
        .header("grpc-timeout", format!("{}m", call.timeout))
        .header("keepalive-ping-interval", "1");
    if !call.encoding.is_empty() {
        for name in ["content-encoding", "connect-content-encoding", "grpc-encoding"] {
            request = request.header(name, call.encoding);
        }
    }
    let stream = TcpStream::connect(envd.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    connection.abort();
    let trailers = body.trailers().cloned();
    (parts.status, parts.headers, body.to_bytes(), trailers)
}

/// Whether an answer keeps to the protocol of its call.
fn check(call: &Call, answer: &Answer) -> Result<(), String> {
    let (status, headers, body, trailers) = answer;
    if call.kind.starts_with("application/grpc-web") {
        return check_grpc_web(*status, headers, body.clone());
    }
    if call.kind.starts_with("application/grpc") {
        let status_in = |headers: &HeaderMap| headers.contains_key("grpc-status");
        let told = status_in(headers) || trailers.as_ref().is_some_and(status_in);
        // Sent over HTTP/1.1, which gRPC does not know: trailers need not be there.
        let ok = *status == StatusCode::OK
            && (told || !body.is_empty() || headers.contains_key("trailer"));
        return ok.then_some(()).ok_or_else(|| "no status".to_owned());
    }
    if call.kind.starts_with("application/connect+") {
        return check_stream(call, *status, headers, body.clone());
    }
    if status.is_success() {
        return Ok(());
    }
    // No method at all under this content type, or an error of the method.
    if *status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        return headers.get("accept-post").map(drop).ok_or_else(|| "no accept-post".to_owned());
    }
    let error: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    error["code"].as_str().map(drop).ok_or_else(|| format!("no code: {error}"))
}

fn frames(mut body: Bytes) -> Result<Vec<(u8, Bytes)>, String> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        if body.len() < 5 {
            return Err("half an envelope".into());
        }
        let flags = body.get_u8();
        let length = body.get_u32() as usize;
        if body.len() < length {
            return Err("half a message".into());
        }
        frames.push((flags, body.split_to(length)));
    }
    Ok(frames)
}

fn check_stream(
    call: &Call,
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(), String> {
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        return Ok(());
    }
    if status != StatusCode::OK || headers["content-type"] != call.kind {
        return Err(format!("{status}, {:?}", headers.get("content-type")));
    }
    let frames = frames(body)?;
    let Some(((2, end), messages)) = frames.split_last() else {
        return Err("no end of the stream".into());
    };
    let end: Value = serde_json::from_slice(end).map_err(|error| error.to_string())?;
    if !end["error"].is_null() && !end["error"]["code"].is_string() {
        return Err(format!("an error without a code: {end}"));
    }
    for (flags, message) in messages {
        let valid = !call.kind.ends_with("json")
            || serde_json::from_slice::<Value>(message).is_ok_and(|message| message.is_object());
        if *flags != 0 || !valid {
            return Err(format!("flags {flags}, {message:?}"));
        }
    }
    Ok(())
}

fn check_grpc_web(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(status.to_string());
    }
    if headers.contains_key("grpc-status") {
        return Ok(());
    }
    match frames(body)?.last() {
        Some((0x80, trailers)) if trailers.starts_with(b"grpc-status:") => Ok(()),
        Some((0x80, trailers)) if memchr::memmem::find(trailers, b"grpc-status").is_some() => {
            Ok(())
        }
        last => Err(format!("ends with {last:?}")),
    }
}

/// What was found, so that it stays fixed whatever cases are made from which seeds.
fn found() -> [Call; 1] {
    // Refused by its headers while the body was under way: the reset overtook the answer.
    [Call {
        method: "filesystem.Filesystem/WatchDir",
        kind: "application/grpc-web+json",
        encoding: "gzip",
        timeout: "99999999999",
        body: vec![10, 255, 1],
    }]
}

#[test]
fn what_was_found_stays_fixed() {
    let runtime = runtime();
    let envd = runtime.block_on(Envd::start());
    for call in found() {
        for _ in 0..20 {
            let answer = runtime.block_on(send(&envd, &call, &[]));
            assert_eq!(check(&call, &answer), Ok(()), "{answer:?}");
        }
    }
}

// Rules: STREAM-1, TRAP-34
#[test]
fn whatever_comes_is_answered_in_its_protocol() {
    let runtime = runtime();
    let envd = runtime.block_on(Envd::start());
    let inputs = (call(), prop::collection::vec(any::<Index>(), 0..12));
    runner(192, "tests/fuzz/corpus/framing.txt")
        .run(&inputs, |(call, places)| {
            let answers = async {
                let whole = send(&envd, &call, &[]).await;
                let cut = send(&envd, &call, &places).await;
                let health = envd.get("/health", &[]).await.0;
                (whole, cut, health)
            };
            let answers = runtime.block_on(async { tokio::time::timeout(PATIENCE, answers).await });
            let Ok((whole, cut, health)) = answers else {
                return Err(TestCaseError::fail("no answer"));
            };
            for answer in [&whole, &cut] {
                prop_assert_eq!(check(&call, answer), Ok(()), "{:?}", answer);
            }
            prop_assert_eq!(health, StatusCode::NO_CONTENT);
            // A process that was started has a number of its own, and a listing may show it.
            let lively =
                ["Start", "List", "WatchDir"].iter().any(|name| call.method.ends_with(name));
            if !lively {
                prop_assert_eq!((whole.0, whole.2), (cut.0, cut.2));
            }
            Ok(())
        })
        .unwrap();
}
