//! `POST /files/compose`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Fixture, SmallDisk, daemon, rights};
use crate::http::Answer;

async fn compose(fixture: &Fixture, body: Value) -> Answer {
    fixture.server.post("/files/compose", &[], body.to_string()).await
}

// Rules: COMPOSE-1, COMPOSE-4
#[tokio::test]
async fn parts_are_joined() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("1"), "one ").unwrap();
    fs::write(fixture.path("2"), "two").unwrap();
    let destination = fixture.text("sub/whole");
    let sources = [fixture.text("1"), fixture.text("2")];
    let request = json!({ "source_paths": sources, "destination": destination });
    let answer = compose(&fixture, request).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({ "path": destination, "name": "whole", "type": "file" }));
    assert_eq!(fs::read(&destination).unwrap(), b"one two");
    assert_eq!(rights(Path::new(&destination)), (0o644, daemon().uid, daemon().gid));
    assert!(!fixture.path("1").exists() && !fixture.path("2").exists());
    assert_eq!(fs::read_dir(fixture.path("sub")).unwrap().count(), 1);
}

// Rules: COMPOSE-2, COMPOSE-3, COMPOSE-4
#[tokio::test]
async fn what_cannot_be_joined_is_left_alone() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("1"), "one").unwrap();
    fs::create_dir(fixture.path("dir")).unwrap();
    fs::write(fixture.path("dir/old"), "old").unwrap();
    let (one, missing, dir) = (fixture.text("1"), fixture.text("missing"), fixture.text("dir"));
    let old = fixture.text("dir/old");
    for (body, status) in [
        (json!({ "source_paths": [], "destination": old }), 400),
        (json!({ "source_paths": [one] }), 400),
        (json!({ "source_paths": [one, old], "destination": old }), 400),
        (json!({ "source_paths": [one, dir], "destination": old }), 400),
        (json!({ "source_paths": [one], "destination": dir }), 400),
        (json!({ "source_paths": [one, missing], "destination": old }), 404),
        (json!({ "source_paths": [one], "destination": old, "username": "nosuchuser" }), 401),
        (json!("nonsense"), 400),
    ] {
        let answer = compose(&fixture, body.clone()).await;
        assert_eq!(answer.error().0, status, "{body}");
    }
    let missing = json!({ "source_paths": [missing], "destination": old });
    assert!(compose(&fixture, missing).await.error().1.starts_with("source file not found: "));
    assert_eq!(fs::read(&one).unwrap(), b"one");
    assert_eq!(fs::read(&old).unwrap(), b"old");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

// Rules: COMPOSE-1
#[tokio::test]
async fn parts_of_any_size_keep_their_order() {
    let fixture = Fixture::new().await;
    let mut whole = Vec::new();
    let mut sources = Vec::new();
    // One of them takes more than a step of copying, one is empty.
    for (number, size) in [20 << 20, 0, 1, 70_000].into_iter().enumerate() {
        let part = vec![u8::try_from(number).unwrap(); size];
        let name = number.to_string();
        fs::write(fixture.path(&name), &part).unwrap();
        sources.push(fixture.text(&name));
        whole.extend(part);
    }
    fs::write(fixture.path("whole"), "an older one").unwrap();
    let request = json!({
        "source_paths": sources, "destination": fixture.text("whole"), "username": "root",
    });
    assert_eq!(compose(&fixture, request).await.status, 200);
    assert!(fs::read(fixture.path("whole")).unwrap() == whole);
    assert_eq!(rights(&fixture.path("whole")).1, 0, "the user of the request");
}

// Rules: COMPOSE-4, COMPOSE-6
#[tokio::test]
async fn a_full_disk_leaves_the_parts() {
    let fixture = Fixture::new().await;
    let disk = SmallDisk::new("tmpfs", "size=64k");
    fs::write(fixture.path("part"), vec![b'x'; 1 << 20]).unwrap();
    let destination = disk.path("whole");
    let request = json!({ "source_paths": [fixture.text("part")], "destination": destination });
    let (status, message) = compose(&fixture, request).await.error();
    assert_eq!(status, 507);
    assert!(message.ends_with("not enough disk space available"), "{message}");
    assert!(fixture.path("part").exists() && !destination.exists());
    assert_eq!(fs::read_dir(disk.path("")).unwrap().count(), 0);
}
