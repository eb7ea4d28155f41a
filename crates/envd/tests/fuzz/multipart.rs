//! Forms of uploads, at the route that takes them.

use std::{collections::BTreeMap, fs, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use atoll_envd::files;
use axum::{Router, body::Body};
use bytes::Bytes;
use futures::stream;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use proptest::{prelude::*, sample::Index};
use serde_json::Value;
use tower::ServiceExt;

use super::{guest, runner, runtime};

/// No upload here takes this long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a boundary may consist of; a blank not at its end.
fn boundary() -> impl Strategy<Value = String> {
    prop_oneof!["[0-9a-zA-Z'()+_,./:=?-]{1,70}", "[-b ]{0,6}[-b]"]
}

/// A file name that a form can carry and a file system can hold.
fn name() -> impl Strategy<Value = String> {
    let strange = prop::sample::select(vec![
        "a",
        "b",
        " ",
        ".",
        "\"",
        "\\",
        "%22",
        "%0d",
        ";",
        "=",
        "'",
        "--",
        "\u{e9}",
        "\u{1f600}",
        "name",
        "file",
        "*",
        "\t",
    ]);
    let strange = prop::collection::vec(strange, 1..8).prop_map(|pieces| pieces.concat());
    prop_oneof![strange, "[^/\\x00-\\x1f\\x7f]{1,30}"]
        .prop_filter("no file can have this name", |name| !matches!(name.as_str(), "." | ".."))
}

/// Content in which delimiters, and halves of them, are likely.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"\r\n--".to_vec()),
        Just(b"--".to_vec()),
        Just(b"\r".to_vec()),
        prop::collection::vec(any::<u8>(), 0..200),
        Just(vec![b'x'; 5000]),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// Cuts `body` at these places.
fn cut(body: &[u8], places: &[Index]) -> Vec<Bytes> {
    let mut places: Vec<_> = places.iter().map(|place| place.index(body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places.windows(2).map(|ends| Bytes::copy_from_slice(&body[ends[0]..ends[1]])).collect()
}

fn quote(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

async fn post(router: Router, target: &str, kind: &str, body: Vec<Bytes>) -> (StatusCode, Value) {
    let body = Body::from_stream(stream::iter(body.into_iter().map(Ok::<_, std::io::Error>)));
    let request = Request::post(target).header("content-type", kind).body(body).unwrap();
    let answer = async {
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

fn files_in(directory: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().as_bytes().to_vec(), fs::read(entry.path()).unwrap()))
        .collect()
}

// Rules: PUT-3, PUT-4, PUT-27
#[test]
fn a_form_arrives_as_it_was_put_together() {
    let runtime = runtime();
    let router = files::router(guest(None));
    let inputs = (
        boundary(),
        prop::collection::btree_map(name(), content(), 0..5),
        prop::collection::vec(any::<Index>(), 0..20),
        any::<bool>(),
    );
    runner(96, "tests/fuzz/corpus/multipart.txt")
        .run(&inputs, |(boundary, parts, places, preamble)| {
            let delimiter = format!("\r\n--{boundary}").into_bytes();
            let clash = |content: &[u8]| {
                let content = [b"\r\n", content].concat();
                content.windows(delimiter.len()).any(|window| window == delimiter)
            };
            prop_assume!(!parts.values().any(|content| clash(content)));
            let directory = tempfile::tempdir().unwrap();
            let mut body = if preamble { b"preamble\r\n".to_vec() } else { Vec::new() };
            for (name, content) in &parts {
                let path = directory.path().join(name);
                let path = quote(path.to_str().unwrap());
                body.extend_from_slice(
                    format!(
                        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
                         filename=\"{path}\"\r\nContent-Type: text/plain\r\n\r\n"
                    )
                    .as_bytes(),
                );
                body.extend_from_slice(content);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
            let kind = format!("multipart/form-data; boundary=\"{boundary}\"");
            let answer = post(router.clone(), "/files", &kind, cut(&body, &places));
            let (status, answer) = runtime.block_on(answer);
            prop_assert_eq!(status, StatusCode::OK, "{}", answer);
            let names: Vec<_> =
                answer.as_array().unwrap().iter().map(|file| &file["name"]).collect();
            prop_assert_eq!(names, parts.keys().collect::<Vec<_>>());
            let expected: BTreeMap<_, _> =
                parts.into_iter().map(|(name, content)| (name.into_bytes(), content)).collect();
            prop_assert_eq!(files_in(directory.path()), expected);
            Ok(())
        })
        .unwrap();
}

// Rules: PUT-3
#[test]
fn any_body_is_answered_and_cuts_make_no_difference() {
    let runtime = runtime();
    let router = files::router(guest(None));
    let piece = prop_oneof![
        Just(b"--b".to_vec()),
        Just(b"\r\n--b".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"--".to_vec()),
        Just(b"Content-Disposition: form-data; name=\"file\"".to_vec()),
        Just(b"; filename=\"f\"".to_vec()),
        Just(b"; filename*=utf-8''%ff".to_vec()),
        Just(vec![b'h'; 20_000]),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let inputs = (
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat()),
        prop::collection::vec(any::<Index>(), 0..20),
    );
    runner(128, "tests/fuzz/corpus/multipart_bytes.txt")
        .run(&inputs, |(body, places)| {
            let upload = |places: &[Index]| {
                let directory = tempfile::tempdir().unwrap();
                // Always here, whatever the form says of names.
                let target = format!("/files?path={}/f", directory.path().display());
                let kind = "multipart/form-data; boundary=b";
                let answer = post(router.clone(), &target, kind, cut(&body, places));
                let (status, answer) = runtime.block_on(answer);
                let message = answer["message"].as_str().unwrap_or_default();
                let message = message.replace(directory.path().to_str().unwrap(), "");
                (status, message, files_in(directory.path()))
            };
            let whole = upload(&[]);
            prop_assert!(matches!(whole.0.as_u16(), 200 | 400), "{:?}", whole);
            prop_assert_eq!(upload(&places), whole);
            Ok(())
        })
        .unwrap();
}
