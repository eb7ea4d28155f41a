//! The unary calls: look, make, move, remove, list.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_wire::guest::InitRequest;
use serde_json::{Value, json};

use crate::fixture::Fixture;

// Rules: STAT-1, STAT-5, STAT-10, TRAP-28
#[tokio::test]
async fn an_entry_says_all_about_a_file() {
    let fixture = Fixture::new().await;
    fixture.upload("a.txt", "abc").await;
    let path = fixture.text("a.txt");
    let answer = fixture.call("Stat", json!({ "path": path })).await;
    let mut entry = answer["entry"].clone();
    let modified = entry.as_object_mut().unwrap().remove("modifiedTime").unwrap();
    assert!(modified.as_str().unwrap().ends_with('Z'), "{modified}");
    let expected = json!({
        "name": "a.txt", "type": "FILE_TYPE_FILE", "path": path, "size": "3", "mode": 0o644,
        "permissions": "-rw-r--r--", "owner": "daemon", "group": "daemon",
    });
    assert_eq!(entry, expected);

    symlink("a.txt", fixture.path("link")).unwrap();
    let link = fixture.call("Stat", json!({ "path": fixture.text("link") })).await;
    assert_eq!(link["entry"]["type"], "FILE_TYPE_FILE");
    assert_eq!(link["entry"]["symlinkTarget"], path);
    assert_eq!(link["entry"]["isSymlink"], true);
    assert_eq!(link["entry"]["permissions"], "Lrwxrwxrwx");
}

// Rules: STAT-9
#[tokio::test]
async fn metadata_of_uploads_is_part_of_the_entry() {
    let fixture = Fixture::new().await;
    let target = format!("/files?path={}", fixture.text("a"));
    let headers = [("content-type", "application/octet-stream"), ("x-metadata-k", "v")];
    fixture.server.post(&target, &headers, "").await;
    let entry = fixture.call("Stat", json!({ "path": fixture.text("a") })).await;
    assert_eq!(entry["entry"]["metadata"], json!({ "k": "v" }));
}

// Rules: PATH-1, PATH-2, PATH-3, PATH-6
#[tokio::test]
async fn the_caller_decides_where_paths_start() {
    let fixture = Fixture::new().await;
    let answer = fixture.call_as(Some("root"), "Stat", json!({ "path": "~" })).await;
    assert_eq!(answer.json()["entry"]["path"], "/root");
    let answer = fixture.call_as(None, "Stat", json!({ "path": "" })).await;
    assert_eq!(answer.json()["entry"]["path"], "/usr/sbin");
    let answer = fixture.call_as(Some("nosuchuser"), "Stat", json!({ "path": "/" })).await;
    assert_eq!(answer.status, 401);
    let (status, code, message) = fixture.fail("Stat", json!({ "path": "~bob" })).await;
    assert_eq!((status, code.as_str()), (400, "invalid_argument"));
    assert_eq!(message, "cannot expand user-specific home dir");
}

// Rules: STAT-2, DIR-1, DIR-9, TRAP-12, RPC-10, RPC-11
#[tokio::test]
async fn codes_tell_what_sdks_turn_into_booleans() {
    let fixture = Fixture::new().await;
    let (dir, gone) = (fixture.text("a/b"), fixture.text("gone"));
    let (status, code, message) = fixture.fail("Stat", json!({ "path": gone })).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert!(message.starts_with("file not found: "), "{message}");

    let entry = fixture.call("MakeDir", json!({ "path": dir })).await;
    assert_eq!(entry["entry"]["type"], "FILE_TYPE_DIRECTORY");
    let (status, code, message) = fixture.fail("MakeDir", json!({ "path": dir })).await;
    assert_eq!((status, code.as_str()), (409, "already_exists"));
    assert_eq!(message, format!("directory already exists: {dir}"));

    assert_eq!(fixture.call("Remove", json!({ "path": gone })).await, json!({}));
    assert_eq!(fixture.call("Remove", json!({ "path": fixture.text("a") })).await, json!({}));
    assert!(!fixture.path("a").exists());
}

// Rules: DIR-4, DIR-7, DIR-8
#[tokio::test]
async fn a_move_answers_with_the_new_place() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("old"), "x").unwrap();
    let (source, destination) = (fixture.text("old"), fixture.text("sub/new"));
    let message = json!({ "source": source, "destination": destination });
    let answer = fixture.call("Move", message.clone()).await;
    assert_eq!(answer["entry"]["path"], destination);
    let (_, code, message) = fixture.fail("Move", message).await;
    assert_eq!(code, "not_found");
    assert!(message.starts_with("source file not found"), "{message}");
}

// Rules: LIST-1, LIST-5, LIST-8, TRAP-29
#[tokio::test]
async fn a_listing_goes_as_deep_as_asked() {
    let fixture = Fixture::new().await;
    fs::create_dir_all(fixture.path("d/e")).unwrap();
    fs::write(fixture.path("d/f"), "").unwrap();
    fs::write(fixture.path("g"), "").unwrap();
    let names = async |message: Value| {
        let answer = fixture.call("ListDir", message).await;
        let entries = answer["entries"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let path = fixture.dir.path().to_str().unwrap();
    assert_eq!(names(json!({ "path": path })).await, ["d", "g"]);
    assert_eq!(names(json!({ "path": path, "depth": 2 })).await, ["d", "e", "f", "g"]);
    let empty = fixture.call("ListDir", json!({ "path": fixture.text("d/e") })).await;
    assert_eq!(empty, json!({}));
    let (_, code, message) = fixture.fail("ListDir", json!({ "path": fixture.text("g") })).await;
    assert_eq!(code, "invalid_argument");
    assert!(message.starts_with("path is not a directory: "), "{message}");
}

// Rules: PATH-5, STAT-1
#[tokio::test]
async fn an_absolute_path_comes_back_as_it_was_sent() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("d")).unwrap();
    fs::write(fixture.path("file"), "x").unwrap();
    let path = fixture.text("d/..//./file");
    let answer = fixture.call("Stat", json!({ "path": path })).await;
    assert_eq!(
        (&answer["entry"]["path"], &answer["entry"]["name"]),
        (&json!(path), &json!("file"))
    );
    let root = fixture.text("d/..");
    let answer = fixture.call("ListDir", json!({ "path": root })).await;
    assert_eq!(answer["entries"][1]["path"], fixture.text("d/../file"));
}

// Rules: PATH-1, PATH-4
#[tokio::test]
async fn only_an_empty_path_starts_at_the_working_directory() {
    let fixture = Fixture::new().await;
    let default_workdir = Some(fixture.dir.path().to_str().unwrap().to_owned());
    fixture.guest.apply(InitRequest { default_workdir, ..InitRequest::default() }, None);
    let path = async |path: &str| {
        fixture.call("Stat", json!({ "path": path })).await["entry"]["path"].take()
    };
    assert_eq!(path("").await, fixture.dir.path().to_str().unwrap());
    assert_eq!(path("../../bin/..").await, "/");
}

// Rules: STAT-4
#[tokio::test]
async fn an_owner_without_a_name_is_a_number() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("file"), "").unwrap();
    std::os::unix::fs::chown(fixture.path("file"), Some(54_321), Some(54_322)).unwrap();
    let answer = fixture.call("Stat", json!({ "path": fixture.text("file") })).await;
    assert_eq!(answer["entry"]["owner"], "54321");
    assert_eq!(answer["entry"]["group"], "54322");
}

// Rules: STAT-1, STAT-8
#[tokio::test]
async fn what_is_no_file_has_no_type() {
    let fixture = Fixture::new().await;
    nix::unistd::mkfifo(&fixture.path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path("socket")).unwrap();
    for (path, letters) in
        [(fixture.text("fifo"), "p"), (fixture.text("socket"), "S"), ("/dev/null".into(), "Dc")]
    {
        let entry = fixture.call("Stat", json!({ "path": path })).await["entry"].take();
        // Zeros are left out.
        assert_eq!(entry.get("type"), None, "{entry}");
        assert_eq!(entry.get("size"), None, "{entry}");
        assert!(entry["permissions"].as_str().unwrap().starts_with(letters), "{entry}");
    }
}

// Rules: STAT-9
#[tokio::test]
async fn metadata_is_that_of_the_links_target_and_text() {
    let fixture = Fixture::new().await;
    let file = fixture.path("file");
    fs::write(&file, "").unwrap();
    for (name, value) in
        [("user.e2b.kind", &b"test"[..]), ("user.e2b.bytes", b"\xff"), ("user.other", b"x")]
    {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    symlink("file", fixture.path("link")).unwrap();
    for name in ["file", "link"] {
        let answer = fixture.call("Stat", json!({ "path": fixture.text(name) })).await;
        assert_eq!(answer["entry"]["metadata"], json!({ "kind": "test" }));
    }
}

// Rules: STAT-1
#[tokio::test]
async fn times_have_nanoseconds() {
    let fixture = Fixture::new().await;
    let file = fs::File::create(fixture.path("file")).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_767_225_600, 123_456_789);
    file.set_modified(time).unwrap();
    let answer = fixture.call("Stat", json!({ "path": fixture.text("file") })).await;
    assert_eq!(answer["entry"]["modifiedTime"], "2026-01-01T00:00:00.123456789Z");
}

// Rules: LIST-10, TRAP-29
#[tokio::test]
async fn a_list_may_be_long() {
    let fixture = Fixture::new().await;
    for number in 0..5_000 {
        fs::write(fixture.path(&format!("{number:05}")), "").unwrap();
    }
    let path = fixture.dir.path();
    let entries = fixture.call("ListDir", json!({ "path": path })).await["entries"].take();
    let names = entries.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap());
    assert!(names.eq((0..5_000).map(|number| format!("{number:05}"))));
}

// Rules: LIST-6
#[tokio::test]
async fn a_walk_bears_with_what_vanishes() {
    let fixture = Fixture::new().await;
    let dir = fixture.path("busy");
    fs::create_dir(&dir).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let churn = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Relaxed) {
                fs::create_dir_all(dir.join("a/b/c")).unwrap();
                fs::remove_dir_all(dir.join("a")).unwrap();
            }
        }
    });
    for _ in 0..200 {
        let message = json!({ "path": fixture.text("busy"), "depth": 5 });
        let answer = fixture.call_as(None, "ListDir", message).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    over.store(true, Ordering::Relaxed);
    churn.join().unwrap();
    // Processes come and go, and with them what is below them.
    fixture.call("ListDir", json!({ "path": "/proc", "depth": 3 })).await;
}

// Rules: LIST-2, LIST-7, LIST-9, TRAP-29
#[tokio::test]
async fn a_link_as_root_of_a_list() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("real")).unwrap();
    fs::write(fixture.path("real/file"), "").unwrap();
    for (target, link) in [("real", "link"), ("nowhere", "broken"), ("cycle", "cycle")] {
        symlink(target, fixture.path(link)).unwrap();
    }
    let answer = fixture.call("ListDir", json!({ "path": fixture.text("link") })).await;
    assert_eq!(answer["entries"][0]["path"], fixture.text("link/file"));
    let fail =
        async |name: &str| fixture.fail("ListDir", json!({ "path": fixture.text(name) })).await;
    let (status, code, message) = fail("broken").await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert_eq!(message, format!("path not found: {}", fixture.text("broken")));
    let (status, code, message) = fail("cycle").await;
    assert_eq!((status, code.as_str()), (400, "failed_precondition"));
    let expected = format!("cyclic symlink or chain >255 links at \"{}\"", fixture.text("cycle"));
    assert_eq!(message, expected);
}

// Rules: DIR-2, DIR-5, DIR-6
#[tokio::test]
async fn what_is_in_the_way_of_a_directory_or_a_move() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("file"), "").unwrap();
    fs::create_dir_all(fixture.path("full/sub")).unwrap();
    fs::create_dir_all(fixture.path("dir/sub")).unwrap();
    fs::create_dir(fixture.path("empty")).unwrap();
    let path = fixture.text("file");
    let (status, code, message) = fixture.fail("MakeDir", json!({ "path": path })).await;
    assert_eq!((status, code.as_str()), (400, "invalid_argument"));
    assert_eq!(message, format!("path already exists but it is not a directory: {path}"));

    let to =
        |name: &str| json!({ "source": fixture.text("dir"), "destination": fixture.text(name) });
    for name in ["full", "file", "/dev/shm/on-another-file-system", "dir/into/itself"] {
        let message = match name.starts_with('/') {
            true => json!({ "source": fixture.text("dir"), "destination": name }),
            false => to(name),
        };
        assert_eq!(fixture.fail("Move", message).await.1, "internal", "{name}");
    }
    fixture.call("Move", to("empty")).await;
    assert!(fixture.path("empty/sub").exists() && !fixture.path("dir").exists());
}

// Rules: DIR-10
#[tokio::test]
async fn a_slash_behind_a_link_does_not_empty_what_it_leads_to() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("kept")).unwrap();
    fs::write(fixture.path("kept/file"), "").unwrap();
    symlink("kept", fixture.path("link")).unwrap();
    let path = fixture.text("link/");
    assert_eq!(fixture.call("Remove", json!({ "path": path })).await, json!({}));
    assert!(fixture.path("kept/file").exists());
    assert!(fixture.path("link").symlink_metadata().is_err());
    let (_, code, _) = fixture.fail("Remove", json!({ "path": fixture.text("kept/.") })).await;
    assert_eq!(code, "invalid_argument");
    assert!(fixture.path("kept/file").exists());
}
