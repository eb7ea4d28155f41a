//! Files that builds copy: signed addresses, and uploads to them.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    node::FakeNode,
    stack::{Answer, Stack, TEAM, send},
};

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// A template's id.
async fn template(stack: &Stack) -> String {
    stack.registered(json!({"name": "mine"})).await.0
}

async fn link(stack: &Stack, template: &str) -> (bool, String) {
    let answer = stack.get(&format!("/templates/{template}/files/{HASH}")).await.success(201);
    (answer["present"].as_bool().unwrap(), answer["url"].as_str().unwrap().to_owned())
}

/// As the published clients upload: no credentials, no content type.
fn put(stack: &Stack, url: &str) -> RequestBuilder {
    stack.client.put(url)
}

async fn upload(stack: &Stack, url: &str, bytes: Vec<u8>) -> Answer {
    send(put(stack, url).body(bytes)).await
}

fn stored(stack: &Stack) -> Option<Vec<u8>> {
    let archives = stack.builder.archives.lock().unwrap();
    archives.get(&(TEAM.to_string(), HASH.to_owned())).cloned()
}

#[tokio::test]
async fn files_are_uploaded_to_a_signed_address() {
    let stack = Stack::start().await;
    let template = template(&stack).await;
    let (present, url) = link(&stack, &template).await;
    assert!(!present);
    assert!(url.starts_with(&format!("http://{}/upload/", stack.address())), "{url}");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    let answer = upload(&stack, &url, bytes.clone()).await;
    assert!(answer.status.is_success() && answer.text.is_empty(), "{answer:?}");
    assert_eq!(stored(&stack), Some(bytes));

    // Of the team, whatever the template; and they may come again.
    let (other, _) = stack.registered(json!({"name": "other"})).await;
    let (present, again) = link(&stack, &other).await;
    assert!(present);
    upload(&stack, &again, b"new".to_vec()).await.success(204);
    assert_eq!(stored(&stack).as_deref(), Some(&b"new"[..]));
}

#[tokio::test]
async fn the_address_is_the_one_that_the_client_uses() {
    let stack = Stack::start().await;
    let template = template(&stack).await;
    let path = format!("/templates/{template}/files/{HASH}");
    for (headers, origin) in [
        (vec![("host", "api.sbx.test:8443")], "http://api.sbx.test:8443"),
        (vec![("host", "x"), ("x-forwarded-proto", "https")], "https://x"),
        (
            vec![("x-forwarded-host", "e2b.example"), ("x-forwarded-proto", "https, http")],
            "https://e2b.example",
        ),
    ] {
        let mut request =
            stack.anonymous(Method::GET, &path).header("X-Admin-Token", crate::stack::ADMIN_TOKEN);
        request = request.header("X-Team-ID", TEAM.to_string());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let url = send(request).await.success(201)["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with(&format!("{origin}/upload/{TEAM}/{HASH}?expires=")), "{url}");
    }
}

#[tokio::test]
async fn links_are_for_owners_and_proper_hashes() {
    let stack = Stack::start().await;
    let template = template(&stack).await;
    for hash in ["x", &HASH[1..], &HASH.to_uppercase(), "..%2F..%2Fetc"] {
        let message = stack.get(&format!("/templates/{template}/files/{hash}")).await.failure(400);
        assert_eq!(message, "Invalid files hash");
    }
    stack.get(&format!("/templates/nothing/files/{HASH}")).await.failure(404);
    let (_, key) = stack.other_team().await;
    let path = format!("/templates/{template}/files/{HASH}");
    let foreign = stack.anonymous(Method::GET, &path).header("X-API-Key", &key);
    send(foreign).await.failure(404);
    let public = stack.anonymous(Method::GET, &format!("/templates/base/files/{HASH}"));
    let message = send(public.header("X-API-Key", &key)).await.failure(403);
    assert_eq!(message, "User does not have access to the template");
    send(stack.anonymous(Method::GET, &path)).await.failure(401);
}

#[tokio::test]
async fn a_signature_is_for_one_archive_of_one_team_for_a_while() {
    let stack = Stack::start().await;
    let (_, url) = link(&stack, &template(&stack).await).await;
    let (other, _) = stack.other_team().await;
    let (head, expires) = url.split_once("expires=").unwrap();
    let (expires, signature) = expires.split_once('&').unwrap();
    let later = expires.parse::<i64>().unwrap() + 1;
    let now = jiff::Timestamp::now().as_second();
    assert!((29 * 60..=30 * 60).contains(&(later - 1 - now)), "{later}");
    for wrong in [
        url.replace(&TEAM.to_string(), &other.to_string()),
        url.replace(HASH, &HASH.replace('9', "8")),
        format!("{head}expires={later}&{signature}"),
        format!("{head}expires={expires}"),
        format!("{head}expires={expires}&signature=00"),
        url.split('?').next().unwrap().to_owned(),
        url.replace(&TEAM.to_string(), "x"),
    ] {
        let message = upload(&stack, &wrong, b"x".to_vec()).await.failure(403);
        assert!(message.contains("ask for a new one"), "{message}");
    }
    upload(&stack, &url.replace(HASH, "..%2Fx"), b"x".to_vec()).await.failure(400);
    assert_eq!(stored(&stack), None);
    stack.sql(&format!("UPDATE teams SET is_banned = TRUE WHERE id = '{TEAM}'")).await;
    upload(&stack, &url, b"x".to_vec()).await.failure(403);
}

#[tokio::test]
async fn a_link_that_was_not_used_in_time_is_of_no_use() {
    // The signature of 1970, made with the seed of the tests: what a correct one is.
    let stack = Stack::start().await;
    let signature = {
        use hmac::{Hmac, KeyInit, Mac};
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(crate::stack::SEED.as_bytes()).unwrap();
        mac.update(format!("upload\n{TEAM}\n{HASH}\n1").as_bytes());
        hex::encode(mac.finalize().into_bytes())
    };
    let base = format!("http://{}/upload/{TEAM}/{HASH}", stack.address());
    let old = format!("{base}?expires=1&signature={signature}");
    upload(&stack, &old, b"x".to_vec()).await.failure(403);
}

#[tokio::test]
async fn an_upload_is_as_large_as_the_disk_at_most() {
    let stack = Stack::start().await;
    stack.sql("UPDATE tiers SET disk_mb = 1").await;
    let (_, url) = link(&stack, &template(&stack).await).await;
    let mebibyte = vec![7; 1024 * 1024];
    upload(&stack, &url, mebibyte.clone()).await.success(204);
    // One that does not say how long it is.
    let pieces = [Bytes::from(mebibyte), Bytes::from_static(b"x")];
    let pieces = stream::iter(pieces.map(Ok::<_, std::io::Error>));
    let answer = send(put(&stack, &url).body(Body::wrap_stream(pieces))).await;
    let message = answer.failure(413);
    assert!(message.contains("1048576 bytes at most"), "{message}");
    assert_eq!(stored(&stack).unwrap().len(), 1024 * 1024, "the one before is there");

    // One that says so is refused before it is read.
    let (path, _) =
        url.split_once("/upload").map(|(_, path)| (format!("/upload{path}"), ())).unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\n\r\n");
    assert!(raw(&stack, &head).await.starts_with("HTTP/1.1 413 "));
}

/// Sends this and no more; what is answered before the connection ends.
async fn raw(stack: &Stack, text: &str) -> String {
    let mut connection = TcpStream::connect(stack.address()).await.unwrap();
    connection.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = connection.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn an_upload_takes_its_time_as_long_as_it_goes_on() {
    const BRIEF: Duration = Duration::from_secs(2);
    let stack = Stack::with(FakeNode::default(), |options| {
        options.handler_deadline = BRIEF;
        options.read_timeout = BRIEF;
    })
    .await;
    let (_, url) = link(&stack, &template(&stack).await).await;
    // Longer than a handler and a body may take.
    let slow = stream::unfold(0, async |number| {
        if number == 10 {
            return None;
        }
        tokio::time::sleep(BRIEF / 8).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), number + 1))
    });
    send(put(&stack, &url).body(Body::wrap_stream(slow))).await.success(204);
    assert_eq!(stored(&stack).unwrap().len(), 10);

    // One that stops is given up, and leaves what was there.
    let path = url.split_once("/upload").unwrap().1;
    let head = format!("PUT /upload{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab");
    let answer = raw(&stack, &head).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(stored(&stack).unwrap().len(), 10);
}

#[tokio::test]
async fn an_upload_that_is_cut_off_leaves_nothing() {
    let stack = Stack::start().await;
    let (_, url) = link(&stack, &template(&stack).await).await;
    let path = url.split_once("/upload").unwrap().1;
    let mut connection = TcpStream::connect(stack.address()).await.unwrap();
    let head = format!("PUT /upload{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab");
    connection.write_all(head.as_bytes()).await.unwrap();
    drop(connection);
    // The next one has its place.
    assert_eq!(stored(&stack), None);
    upload(&stack, &url, b"whole".to_vec()).await.success(204);
    assert_eq!(stored(&stack).as_deref(), Some(&b"whole"[..]));
}

#[tokio::test]
async fn archives_are_pruned() {
    let stack = Stack::start().await;
    let (_, url) = link(&stack, &template(&stack).await).await;
    upload(&stack, &url, b"x".to_vec()).await.success(204);
    let pruned = stack.post("/atoll/templates/prune", json!({})).await.success(200);
    assert_eq!(pruned, json!({"steps": {"step": 7}, "archives": 1, "archive_bytes": 3}));
    assert_eq!(stored(&stack), None);
}
