//! Unary calls on the wire: content types, the form of JSON, errors.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs::File,
    io::Write,
    time::{Duration, UNIX_EPOCH},
};

use atoll_wire::rpc::filesystem::{FileType, StatRequest, StatResponse};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use buffa::Message;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::Envd;
use tempfile::TempDir;

const JSON: (&str, &str) = ("content-type", "application/json");
const STAT: &str = "/filesystem.Filesystem/Stat";

/// An envd, and a file of five bytes with a link to it.
async fn fixture() -> (Envd, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "12345").unwrap();
    std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
    (Envd::start().await, directory)
}

fn text(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// What Stat says of a file of the directory.
async fn stat(envd: &Envd, directory: &TempDir, name: &str) -> Value {
    let (status, body) = envd.post(STAT, &json!({ "path": text(directory, name) })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["entry"].clone()
}

// Rules: RPC-1, RPC-2, RPC-3, SDK-5, TRAP-35
#[tokio::test]
async fn a_unary_call_is_plain_json() {
    let (envd, directory) = fixture().await;
    let body = json!({ "path": text(&directory, "file") }).to_string();
    let python = [
        ("connect-protocol-version", "1"),
        ("content-encoding", "identity"),
        ("connect-content-encoding", "identity"),
        ("connect-accept-encoding", "identity"),
        ("accept-encoding", "zstd,gzip,br"),
        ("connect-timeout-ms", "60000"),
    ];
    for kind in ["application/json", "application/json; charset=utf-8"] {
        for more in [&[][..], &python] {
            let headers = [&[("content-type", kind)], more].concat();
            let (status, headers, body) =
                envd.call(Method::POST, STAT, &headers, body.clone()).await;
            assert_eq!(status, StatusCode::OK);
            assert!(headers["content-type"].to_str().unwrap().starts_with("application/json"));
            // Compressed or not as the client takes it; these are too short to gain anything.
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["entry"]["name"], "file");
        }
    }
    let (status, list) = envd.rpc("List", json!({})).await;
    assert_eq!((status, list), (StatusCode::OK, json!({})));
}

// Rules: RPC-4
#[tokio::test]
async fn a_unary_call_may_be_binary() {
    let (envd, directory) = fixture().await;
    let request = StatRequest { path: text(&directory, "file"), ..StatRequest::default() };
    let proto = [("content-type", "application/proto")];
    let (status, headers, body) =
        envd.call(Method::POST, STAT, &proto, request.encode_to_vec()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "application/proto");
    let entry = StatResponse::decode_from_slice(&body).unwrap().entry.unwrap();
    assert_eq!((entry.name.as_str(), entry.size), ("file", 5));
    assert_eq!(entry.r#type, FileType::FILE_TYPE_FILE);
    // Errors are JSON whatever the messages are.
    let request = StatRequest { path: "/no/such".into(), ..StatRequest::default() };
    let (status, headers, body) =
        envd.call(Method::POST, STAT, &proto, request.encode_to_vec()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "not_found");
    let (status, _, _) = envd.call(Method::POST, STAT, &proto, vec![0x0a, 0xff]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

// Rules: RPC-6, RPC-11
#[tokio::test]
async fn a_request_may_be_gzipped() {
    let (envd, directory) = fixture().await;
    let body = json!({ "path": text(&directory, "file") }).to_string();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(body.as_bytes()).unwrap();
    let gzip = [JSON, ("content-encoding", "gzip")];
    let packed = packed.finish().unwrap();
    let (status, _, answer) = envd.call(Method::POST, STAT, &gzip, packed).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["entry"]["name"], "file");
    let (status, error) = envd.post_with(STAT, &gzip[1..], &json!({})).await;
    assert!(status.is_client_error() || status.is_server_error(), "{status}");
    assert!(["invalid_argument", "internal"].contains(&error["code"].as_str().unwrap()));
    let unknown = [("content-encoding", "snappy")];
    let (status, error) = envd.post_with(STAT, &unknown, &json!({})).await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_IMPLEMENTED, &json!("unimplemented")));
}

// Rules: RPC-7
#[tokio::test]
async fn an_unknown_content_type_is_told_the_known_ones() {
    let (envd, _directory) = fixture().await;
    for kind in [&[("content-type", "text/xml")][..], &[]] {
        let (status, headers, _) = envd.call(Method::POST, STAT, kind, "<stat/>").await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let known: Vec<_> = headers["accept-post"].to_str().unwrap().split(", ").collect();
        assert!(known.contains(&"application/json") && known.contains(&"application/proto"));
    }
}

// Rules: RPC-8, RPC-9
#[tokio::test]
async fn what_is_no_method_is_404_and_what_is_no_post_405() {
    let (envd, _directory) = fixture().await;
    for path in ["/process.Process/Fork", "/filesystem.Filesystem/List", "/other.Service/List"] {
        assert_eq!(envd.post(path, &json!({})).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let (status, _, _) = envd.call(method, "/process.Process/List", &[], "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

// Rules: RPC-10, RPC-11, TRAP-4
#[tokio::test]
async fn an_error_has_its_codes_status_and_name() {
    let (envd, directory) = fixture().await;
    let file = text(&directory, "file");
    let nobody = json!({ "process": { "pid": 4_000_000 }, "signal": "SIGNAL_SIGKILL" });
    for (path, body, status, code) in [
        (STAT, json!({ "path": "/no/such" }), 404, "not_found"),
        ("/filesystem.Filesystem/ListDir", json!({ "path": file }), 400, "invalid_argument"),
        (
            "/filesystem.Filesystem/MakeDir",
            json!({ "path": directory.path() }),
            409,
            "already_exists",
        ),
        ("/process.Process/SendSignal", nobody, 404, "not_found"),
    ] {
        let (_, headers, answer) = envd.call(Method::POST, path, &[JSON], body.to_string()).await;
        assert_eq!(headers["content-type"], "application/json", "{path}");
        let (found, answer) = (envd.post(path, &body).await.0, parsed(&answer));
        assert_eq!((found.as_u16(), answer["code"].as_str()), (status, Some(code)), "{path}");
        assert!(!answer["message"].as_str().unwrap().is_empty(), "{path}");
    }
    // "ghost:"
    let ghost = [("authorization", "Basic Z2hvc3Q6")];
    let (status, answer) = envd.post_with(STAT, &ghost, &json!({ "path": file })).await;
    assert_eq!((status.as_u16(), &answer["code"]), (401, &json!("unauthenticated")));
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

// Rules: RPC-12
#[tokio::test]
async fn what_is_no_message_is_an_invalid_argument() {
    let (envd, _directory) = fixture().await;
    for body in ["{", "7", r#"{"path":7}"#, r#"{"path":["x"]}"#, "\u{1f642}"] {
        let (status, _, answer) = envd.call(Method::POST, STAT, &[JSON], body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(parsed(&answer)["code"], "invalid_argument", "{body}");
    }
    assert_eq!(envd.get("/health", &[]).await.0, StatusCode::NO_CONTENT);
}

// Rules: RPC-13, RPC-14
#[tokio::test]
async fn requests_may_spell_fields_both_ways() {
    let (envd, directory) = fixture().await;
    let create = "/filesystem.Filesystem/CreateWatcher";
    let poll = "/filesystem.Filesystem/GetWatcherEvents";
    for (include, id) in [("includeEntry", "watcherId"), ("include_entry", "watcher_id")] {
        let body = json!({ "path": directory.path(), include: true, "fieldOfTomorrow": [1] });
        let (status, created) = envd.post(create, &body).await;
        assert_eq!(status, StatusCode::OK, "{created}");
        let watcher = created["watcherId"].as_str().unwrap();
        std::fs::write(directory.path().join("new"), "x").unwrap();
        let (_, polled) = envd.post(poll, &json!({ id: watcher })).await;
        let events = polled["events"].as_array().unwrap();
        assert!(events.iter().all(|event| event["entry"]["name"] == "new"), "{events:?}");
        let remove = "/filesystem.Filesystem/RemoveWatcher";
        assert_eq!(envd.post(remove, &json!({ id: watcher })).await.0, StatusCode::OK);
    }
}

// Rules: RPC-15, TRAP-17
#[tokio::test]
async fn bytes_are_base64_of_either_alphabet() {
    let envd = Envd::start().await;
    let mut events = envd.sh("head -c 8 | od -An -tx1", json!({ "stdin": true })).await;
    let pid = events.pid().await;
    // ff ef be, padded and not, in both alphabets; then two bytes with and without padding.
    for data in ["/+++", "_---", "AQ==", "AQ"] {
        let body = json!({ "process": { "pid": pid }, "input": { "stdin": data } });
        let (status, answer) = envd.rpc("SendInput", body).await;
        assert_eq!(status, StatusCode::OK, "{data}: {answer}");
    }
    assert_eq!(events.outcome().await.stdout(), " ff ef be ff ef be 01 01\n");

    let mut events = envd.sh("printf '\\377\\357\\276\\001'", json!({})).await;
    events.pid().await;
    let message = events.next().await.unwrap();
    assert_eq!(message["event"]["data"]["stdout"], STANDARD.encode([0xff, 0xef, 0xbe, 1]));
    let wrong = json!({ "process": { "pid": 1 }, "input": { "stdin": "!" } });
    let (status, answer) = envd.rpc("SendInput", wrong).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_argument")));
}

// Rules: RPC-16, RPC-17, RPC-18, RPC-19, TRAP-17
#[tokio::test]
async fn an_entry_is_written_as_proto3_says() {
    let (envd, directory) = fixture().await;
    let file = stat(&envd, &directory, "file").await;
    assert_eq!((&file["size"], &file["type"]), (&json!("5"), &json!("FILE_TYPE_FILE")));
    let link = stat(&envd, &directory, "link").await;
    assert_eq!(link["symlinkTarget"], text(&directory, "file"));
    assert_eq!(link["isSymlink"], true);
    for absent in ["symlinkTarget", "isSymlink", "metadata"] {
        assert!(!file.as_object().unwrap().contains_key(absent), "{absent}: {file}");
    }
    File::create(directory.path().join("empty")).unwrap();
    let empty = stat(&envd, &directory, "empty").await;
    assert!(!empty.as_object().unwrap().contains_key("size"), "{empty}");
    std::fs::create_dir(directory.path().join("none")).unwrap();
    let list = json!({ "path": text(&directory, "none") });
    let (status, listed) = envd.post("/filesystem.Filesystem/ListDir", &list).await;
    assert_eq!((status, listed), (StatusCode::OK, json!({})));
}

// Rules: RPC-17, RPC-19, RPC-21
#[tokio::test]
async fn an_event_is_one_thing() {
    let envd = Envd::start().await;
    let mut events = envd.sh("sleep 600", json!({ "tag": "" })).await;
    let message = events.next().await.unwrap();
    let event = message["event"].as_object().unwrap();
    assert_eq!(event.keys().collect::<Vec<_>>(), ["start"]);
    let pid = event["start"]["pid"].as_u64().unwrap();
    let (_, list) = envd.rpc("List", json!({})).await;
    assert_eq!(list["processes"][0]["tag"], "", "an empty tag is a tag");
    let mut other = envd.sh("sleep 600", json!({})).await;
    other.pid().await;
    let (_, list) = envd.rpc("List", json!({})).await;
    let processes = list["processes"].as_array().unwrap();
    let tags = processes.iter().filter(|process| process.get("tag").is_some()).count();
    assert_eq!((processes.len(), tags), (2, 1), "{list}");
    // An enum as a number.
    let kill = json!({ "process": { "pid": pid }, "signal": 9 });
    assert_eq!(envd.rpc("SendSignal", kill).await.0, StatusCode::OK);
    assert_eq!(events.outcome().await.end["error"], "signal: killed");
}

// Rules: RPC-20, TRAP-17
#[tokio::test]
async fn times_have_as_many_digits_as_they_need() {
    let (envd, directory) = fixture().await;
    let file = File::options().write(true).open(directory.path().join("file")).unwrap();
    for (nanos, expected) in [
        (0, "2023-11-14T22:13:20Z"),
        (500_000_000, "2023-11-14T22:13:20.500Z"),
        (25_000, "2023-11-14T22:13:20.000025Z"),
        (123_456_789, "2023-11-14T22:13:20.123456789Z"),
    ] {
        file.set_modified(UNIX_EPOCH + Duration::new(1_700_000_000, nanos)).unwrap();
        assert_eq!(stat(&envd, &directory, "file").await["modifiedTime"], expected);
    }
}

// Rules: RPC-22
#[tokio::test]
async fn a_timeout_is_ten_digits_at_most() {
    let envd = Envd::start().await;
    let list = async |timeout: &str| {
        let headers = [("connect-timeout-ms", timeout)];
        envd.post_with("/process.Process/List", &headers, &json!({})).await
    };
    for good in ["60000", "9999999999", "0"] {
        assert_eq!(list(good).await.0, StatusCode::OK, "{good}");
    }
    for bad in ["10000000000", "-1", "1.5", "1s", "x"] {
        let (status, answer) = list(bad).await;
        let found = (status, answer["code"].as_str());
        assert_eq!(found, (StatusCode::BAD_REQUEST, Some("invalid_argument")), "{bad}");
    }
}

// Rules: RPC-24, RPC-11
#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let envd = Envd::start().await;
    let path = "x".repeat(5 << 20);
    let (status, answer) = envd.post(STAT, &json!({ "path": path })).await;
    assert_eq!((status.as_u16(), &answer["code"]), (429, &json!("resource_exhausted")));
    let pid = 1;
    let stdin = STANDARD.encode(vec![0; 24 << 20]);
    let body = json!({ "process": { "pid": pid }, "input": { "stdin": stdin } });
    let (status, answer) = envd.rpc("SendInput", body).await;
    assert_eq!((status.as_u16(), &answer["code"]), (429, &json!("resource_exhausted")));
    assert_eq!(envd.list().await, Vec::<u64>::new());
}
