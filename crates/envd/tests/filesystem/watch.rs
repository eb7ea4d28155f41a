//! Watches, streamed and polled.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use crate::fixture::{Fixture, brief};
use crate::fuse::Fuse;
use crate::http::{Frames, until};

// Rules: WATCH-13, WATCH-14, WATCH-16, TRAP-13, TRAP-38
#[tokio::test]
async fn a_poll_right_after_an_upload_sees_exactly_its_events() {
    let fixture = Fixture::new().await;
    for recursive in [false, true] {
        let message = json!({ "path": fixture.dir.path(), "recursive": recursive });
        let answer = fixture.call("CreateWatcher", message).await;
        let id = answer["watcherId"].as_str().unwrap();
        assert!(id.starts_with('w'));
        let poll = async || {
            fixture.call("GetWatcherEvents", json!({ "watcherId": id })).await["events"].take()
        };
        assert_eq!(poll().await, Value::Null);

        let name = format!("{recursive}.txt");
        fixture.upload(&name, "content").await;
        let event = |kind: &str| json!({ "name": name, "type": format!("EVENT_TYPE_{kind}") });
        assert_eq!(poll().await, json!([event("CREATE"), event("CHMOD"), event("WRITE")]));
        fixture.upload(&name, "other").await;
        let events = brief(&poll().await);
        // The kernel may merge the truncation with the write.
        assert_eq!(events[..2], [format!("CHMOD {name}"), format!("WRITE {name}")]);
        assert!(events[2..].iter().all(|event| *event == format!("WRITE {name}")), "{events:?}");

        assert_eq!(fixture.call("RemoveWatcher", json!({ "watcherId": id })).await, json!({}));
        for method in ["GetWatcherEvents", "RemoveWatcher"] {
            let failed = fixture.fail(method, json!({ "watcherId": id })).await;
            let message = format!("watcher with id {id} not found");
            assert_eq!(failed, (404, "not_found".to_owned(), message));
        }
    }
}

// Rules: WATCH-8, WATCH-10, TRAP-37
#[tokio::test]
async fn a_recursive_poll_sees_what_new_directories_hold() {
    let fixture = Fixture::new().await;
    let message = json!({ "path": fixture.dir.path(), "recursive": true });
    let id = fixture.call("CreateWatcher", message).await["watcherId"].take();
    fixture.call("MakeDir", json!({ "path": fixture.text("new/sub") })).await;
    fixture.upload("new/sub/file", "x").await;
    let answer = fixture.call("GetWatcherEvents", json!({ "watcherId": id })).await;
    let events = brief(&answer["events"]);
    for event in ["CREATE new", "CREATE new/sub", "CREATE new/sub/file", "WRITE new/sub/file"] {
        assert!(events.iter().any(|seen| seen == event), "{event} in {events:?}");
    }
}

// Rules: WATCH-5, WATCH-6, WATCH-11
#[tokio::test]
async fn a_stream_tells_events_as_they_happen() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[], json!({ "includeEntry": true })).await;
    fixture.upload("file", "abc").await;
    for kind in ["CREATE", "CHMOD", "WRITE"] {
        let (flags, message) = frames.next().await;
        assert_eq!(flags, 0);
        let event = &message["filesystem"];
        assert_eq!(event["type"], format!("EVENT_TYPE_{kind}"));
        assert_eq!(event["name"], "file");
        assert_eq!(event["entry"]["path"], fixture.text("file"));
    }
    fs::remove_file(fixture.path("file")).unwrap();
    let (_, message) = frames.next().await;
    assert_eq!(message, json!({ "filesystem": { "name": "file", "type": "EVENT_TYPE_REMOVE" } }));
}

// Rules: WATCH-19, TRAP-16
#[tokio::test]
async fn a_silent_stream_gives_signs_of_life() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[("keepalive-ping-interval", "1")], json!({})).await;
    assert_eq!(frames.next().await, (0, json!({ "keepalive": {} })));
}

// Rules: WATCH-17
#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let fixture = Fixture::new().await;
    let mut frames = fixture.watch(&[("connect-timeout-ms", "200")], json!({})).await;
    let (flags, message) = frames.next().await;
    assert_eq!((flags, &message["error"]["code"]), (2, &json!("deadline_exceeded")));
}

// Rules: WATCH-1, WATCH-2
#[tokio::test]
async fn what_cannot_be_watched_says_why() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("file"), "").unwrap();
    let (missing, file) = (fixture.text("missing"), fixture.text("file"));
    for (path, code, start) in [
        (&missing, "not_found", format!("path {missing} not found: ")),
        (&file, "invalid_argument", format!("path {file} not a directory")),
    ] {
        let (_, seen, message) = fixture.fail("CreateWatcher", json!({ "path": path })).await;
        assert_eq!(seen, code);
        assert!(message.starts_with(&start), "{message}");

        let target = "/filesystem.Filesystem/WatchDir";
        let message = json!({ "path": path });
        let mut frames = Frames::open(&fixture.server, target, &[], message).await;
        let (flags, message) = frames.next().await;
        assert_eq!((flags, &message["error"]["code"]), (2, &json!(code)));
    }
}

// Rules: WATCH-14, WATCH-17
#[tokio::test]
async fn a_watch_goes_with_its_client() {
    let fixture = Fixture::new().await;
    // The kernel names the inode of what an inotify instance watches.
    let mark = format!(" ino:{:x} ", fs::metadata(fixture.dir.path()).unwrap().ino());
    let is_watched = || {
        fs::read_dir("/proc/self/fdinfo").unwrap().any(|entry| {
            fs::read_to_string(entry.unwrap().path()).is_ok_and(|text| {
                text.lines().any(|line| line.starts_with("inotify") && line.contains(&mark))
            })
        })
    };
    let frames = fixture.watch(&[], json!({ "recursive": true })).await;
    assert!(is_watched());
    drop(frames);
    until(|| !is_watched()).await;

    let message = json!({ "path": fixture.dir.path() });
    let id = fixture.call("CreateWatcher", message).await["watcherId"].take();
    assert!(is_watched(), "though the request is over");
    fixture.call("RemoveWatcher", json!({ "watcherId": id })).await;
    until(|| !is_watched()).await;
}

// Rules: WATCH-3, WATCH-4, GATE-3
#[tokio::test]
async fn a_network_file_system_is_watched_only_on_demand() {
    let fixture = Fixture::new().await;
    let fuse = Fuse::mount();
    let path = fuse.path().to_str().unwrap();
    let (status, code, message) = fixture.fail("CreateWatcher", json!({ "path": path })).await;
    assert_eq!((status, code.as_str()), (400, "invalid_argument"));
    assert_eq!(message, format!("cannot watch path on network filesystem: {path}"));
    let target = "/filesystem.Filesystem/WatchDir";
    let mut frames = Frames::open(&fixture.server, target, &[], json!({ "path": path })).await;
    let (flags, refusal) = frames.next().await;
    assert_eq!((flags, &refusal["error"]["message"]), (2, &json!(message)));

    for key in ["allowNetworkMounts", "allow_network_mounts"] {
        let id = fixture.call("CreateWatcher", json!({ "path": path, key: true })).await;
        fixture.call("RemoveWatcher", id).await;
        let message = json!({ "path": path, key: true });
        let mut frames = Frames::open(&fixture.server, target, &[], message).await;
        assert_eq!(frames.next().await, (0, json!({ "start": {} })));
    }
}

// Rules: WATCH-6, WATCH-7, WATCH-9, WATCH-13, TRAP-37
#[tokio::test]
async fn a_poll_tells_everything_once_and_in_order() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("old"), "x").unwrap();
    let id = fixture.call("CreateWatcher", json!({ "path": fixture.dir.path() })).await;
    let poll = async || brief(&fixture.call("GetWatcherEvents", id.clone()).await["events"]);
    fs::read(fixture.path("old")).unwrap();
    fs::read_dir(fixture.dir.path()).unwrap().for_each(drop);
    assert_eq!(poll().await, [""; 0], "looking is no event");

    fs::set_permissions(fixture.path("old"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(fixture.path("old"), fixture.path("new")).unwrap();
    fs::write(fixture.path("new"), "longer").unwrap();
    fs::create_dir(fixture.path("dir")).unwrap();
    fs::hard_link(fixture.path("new"), fixture.path("link")).unwrap();
    fs::remove_file(fixture.path("link")).unwrap();
    fs::remove_dir(fixture.path("dir")).unwrap();
    let mut events = poll().await;
    // Of truncation and write, alike and in a row, the kernel keeps one unless somebody reads
    // between them. A link more or less changes the file's attributes.
    events.dedup();
    assert_eq!(
        events,
        [
            "CHMOD old",
            "RENAME old",
            "CREATE new",
            "WRITE new",
            "CREATE dir",
            "CREATE link",
            "REMOVE link",
            "REMOVE dir",
        ]
    );
    assert_eq!(poll().await, [""; 0], "and once");
}

// Rules: WATCH-11
#[tokio::test]
async fn entries_come_with_what_is_there() {
    let fixture = Fixture::new().await;
    let message = json!({ "path": fixture.dir.path(), "include_entry": true });
    let id = fixture.call("CreateWatcher", message).await;
    fs::write(fixture.path("old"), "abc").unwrap();
    fs::rename(fixture.path("old"), fixture.path("new")).unwrap();
    fs::remove_file(fixture.path("new")).unwrap();
    fs::write(fixture.path("kept"), "abcd").unwrap();
    let events = fixture.call("GetWatcherEvents", id).await["events"].take();
    for event in events.as_array().unwrap() {
        let kept = event["name"] == "kept";
        assert_eq!(event["entry"].is_object(), kept, "{event}");
        if kept {
            assert_eq!(event["entry"]["path"], fixture.text("kept"));
            assert_eq!(event["entry"]["size"], "4");
        }
    }
    assert_eq!(brief(&events).last().unwrap(), "WRITE kept");
}

// Rules: WATCH-8, WATCH-18, TRAP-37
#[tokio::test]
async fn the_end_of_the_watched_directory_is_seen() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("dir")).unwrap();
    let message = json!({ "path": fixture.path("dir") });
    let id = fixture.call("CreateWatcher", message).await;
    fs::set_permissions(fixture.path("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(fixture.path("dir"), fixture.path("moved")).unwrap();
    fs::remove_dir(fixture.path("moved")).unwrap();
    let events = brief(&fixture.call("GetWatcherEvents", id.clone()).await["events"]);
    assert_eq!(events, ["CHMOD .", "RENAME .", "REMOVE ."]);
    assert_eq!(fixture.call("GetWatcherEvents", id.clone()).await, json!({}));
    assert_eq!(fixture.call("RemoveWatcher", id).await, json!({}));
}

// Rules: WATCH-10
#[tokio::test]
async fn a_tree_that_is_moved_in_is_watched_with_all_its_directories() {
    let fixture = Fixture::new().await;
    let elsewhere = tempfile::tempdir_in(fixture.dir.path().parent().unwrap()).unwrap();
    fs::create_dir_all(elsewhere.path().join("tree/sub")).unwrap();
    let message = json!({ "path": fixture.dir.path(), "recursive": true });
    let id = fixture.call("CreateWatcher", message).await;
    fs::rename(elsewhere.path().join("tree"), fixture.path("tree")).unwrap();
    fixture.call("GetWatcherEvents", id.clone()).await;
    fs::write(fixture.path("tree/sub/file"), "").unwrap();
    let events = brief(&fixture.call("GetWatcherEvents", id).await["events"]);
    assert_eq!(events, ["CREATE tree/sub/file"]);
}

// Rules: WATCH-20, TRAP-37
#[tokio::test]
async fn watchers_that_clients_forget_do_not_pile_up_for_ever() {
    let fixture = Fixture::new().await;
    let message = json!({ "path": fixture.dir.path() });
    let mut ids = Vec::new();
    let refused = loop {
        let answer = fixture.call_as(None, "CreateWatcher", message.clone()).await;
        if answer.status != 200 {
            break answer;
        }
        ids.push(answer.json());
        assert!(ids.len() < 1000, "there is no limit");
    };
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["code"]),
        (429, &json!("resource_exhausted"))
    );
    fixture.call("RemoveWatcher", ids.remove(0)).await;
    fixture.call("CreateWatcher", message).await;
}
