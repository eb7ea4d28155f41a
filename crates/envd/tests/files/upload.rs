//! `POST /files`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use atoll_envd::users::User;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{FORM, Fixture, RAW, SmallDisk, daemon, form, is_open, rights};
use crate::http::until;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

// Rules: PUT-9, PUT-14, PUT-16, TRAP-7
#[tokio::test]
async fn an_upload_creates_the_file_and_its_parents() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("old")).unwrap();
    let answer = fixture.upload("old/new/ü.txt", "content").await;
    assert_eq!(answer.status, 200);
    let path = fixture.text("old/new/ü.txt");
    assert_eq!(answer.json(), json!([{ "path": path, "name": "ü.txt", "type": "file" }]));
    assert_eq!(fs::read(&path).unwrap(), b"content");
    let User { uid, gid, .. } = daemon();
    assert_eq!(rights(Path::new(&path)), (0o644, uid, gid));
    assert_eq!(rights(&fixture.path("old/new")), (0o755, uid, gid));
    assert_eq!(rights(&fixture.path("old")).1, 0);
}

// Rules: PUT-16, PUT-17, TRAP-13
#[tokio::test]
async fn an_upload_writes_in_place() {
    let fixture = Fixture::new().await;
    let path = fixture.path("file");
    fs::write(&path, "a longer content than the new one").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&path, fixture.path("link")).unwrap();
    symlink("file", fixture.path("symlink")).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();

    assert_eq!(fixture.upload("symlink", "new").await.status, 200);
    assert_eq!(fs::read(fixture.path("link")).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(rights(&path), (0o600, daemon().uid, daemon().gid));
    assert!(fixture.path("symlink").symlink_metadata().unwrap().is_symlink());
}

// Rules: PUT-2, PUT-22, TRAP-15
#[tokio::test]
async fn bodies_of_any_framing_arrive() {
    let fixture = Fixture::new().await;
    let content: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let target = fixture.target("file");
    let mut stream = TcpStream::connect(fixture.server.address).await.unwrap();
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-type: application/octet-stream; charset=utf-8\r\n\
         content-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for chunk in content.chunks(777_777) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.unwrap();
        stream.write_all(chunk).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(fs::read(fixture.path("file")).unwrap() == content);
}

// Rules: PUT-2
#[tokio::test]
async fn gzip_is_taken_off() {
    let fixture = Fixture::new().await;
    let content = "content ".repeat(100_000);
    let packed = [RAW, ("content-encoding", "gzip")];
    let answer =
        fixture.server.post(&fixture.target("raw"), &packed, gzip(content.as_bytes())).await;
    assert_eq!(answer.status, 200);
    assert_eq!(fs::read_to_string(fixture.path("raw")).unwrap(), content);

    let body = gzip(form(&[("name=\"file\"; filename=\"x\"", &content)]).as_bytes());
    let packed = [FORM, ("content-encoding", "GZIP")];
    assert_eq!(fixture.server.post(&fixture.target("form"), &packed, body).await.status, 200);
    assert_eq!(fs::read_to_string(fixture.path("form")).unwrap(), content);

    let packed = [RAW, ("content-encoding", "gzip")];
    let answer = fixture.server.post(&fixture.target("bad"), &packed, "not gzip at all").await;
    assert_eq!(answer.error().0, 400);
    let answer =
        fixture.server.post(&fixture.target("bad"), &[RAW, ("content-encoding", "br")], "x").await;
    assert_eq!(answer.error().0, 400);
}

// Rules: PUT-3, PUT-4, PUT-9, TRAP-15
#[tokio::test]
async fn a_form_carries_many_files() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.text("one"), fixture.text("sub/a%22b.txt"));
    let answer = fixture
        .upload_form(
            "/files",
            &[
                (&format!("name=\"file\"; filename=\"{one}\""), "1"),
                ("name=\"note\"; filename=\"/nowhere/else\"", "ignored"),
                (&format!("name=\"file\"; filename=\"{other}\""), ""),
            ],
        )
        .await;
    assert_eq!(
        answer.json(),
        json!([
            { "path": one, "name": "one", "type": "file" },
            { "path": other, "name": "a%22b.txt", "type": "file" },
        ])
    );
    assert_eq!(fs::read(&one).unwrap(), b"1");
    assert_eq!(fs::read(&other).unwrap(), b"");

    let answer = fixture.upload_form("/files", &[("name=\"note\"", "no file")]).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!([])));
}

// Rules: PUT-4, PUT-5
#[tokio::test]
async fn the_path_of_the_query_beats_the_file_name() {
    let fixture = Fixture::new().await;
    let part = ("name=\"file\"; filename=\"/nowhere/else\"", "content");
    assert_eq!(fixture.upload_form(&fixture.target("file"), &[part]).await.status, 200);
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"content");

    let path = fixture.text("file");
    let expected = format!(
        "you cannot upload multiple files to the same path '{path}' in one upload request, only \
         the first specified file was uploaded"
    );
    let answer = fixture.upload_form(&fixture.target("file"), &[part, part]).await;
    assert_eq!(answer.error(), (400, expected.clone()));

    let other = fixture.text("other");
    let named = |path: &str| format!("name=\"file\"; filename=\"{path}\"");
    let answer = fixture
        .upload_form("/files", &[(&named(&other), "1"), (&named(&path), "2"), (&named(&path), "3")])
        .await;
    let expected = format!("{expected}, also the following files were uploaded: {other}");
    assert_eq!(answer.error(), (400, expected));
    assert_eq!(fs::read(&path).unwrap(), b"2");
}

// Rules: PUT-1, PUT-6, PUT-7, PUT-15, ERR-1
#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let fixture = Fixture::new().await;
    let post = async |target: &str, headers: &[(&str, &str)], body: &str| {
        fixture.server.post(target, headers, body.to_owned()).await.error()
    };
    let target = fixture.target("file");
    assert_eq!(
        post("/files", &[RAW], "x").await,
        (400, "path query parameter is required for raw body upload".to_owned())
    );
    assert_eq!(
        post(&target, &[("content-type", "text/plain")], "x").await,
        (
            400,
            "unsupported content type: text/plain, expected multipart/form-data or \
             application/octet-stream"
                .to_owned()
        )
    );
    assert_eq!(post("/files", &[FORM], &form(&[("name=\"file\"", "x")])).await.0, 400);
    assert_eq!(post(&target, &[FORM], "--xyz\r\n\r\nbroken off").await.0, 400);
    assert_eq!(post(&(target.clone() + "&signature_expiration=soon"), &[RAW], "x").await.0, 400);

    let dir = fixture.dir.path().to_str().unwrap();
    assert_eq!(
        post(&format!("/files?path={dir}"), &[RAW], "x").await,
        (400, format!("path is a directory: {dir}"))
    );
    let fifo = fixture.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(post(&fixture.target("fifo"), &[RAW], "x").await.0, 400);
    assert_eq!(fixture.server.get(&fixture.target("fifo"), &[]).await.error().0, 400);
    assert!(!fixture.path("file").exists());
}

// Rules: PUT-9, PUT-11, PUT-12, TRAP-30
#[tokio::test]
async fn metadata_is_replaced_by_every_upload() {
    let fixture = Fixture::new().await;
    let target = fixture.target("file");
    let with = [RAW, ("X-Metadata-Author", "ada"), ("x-metadata-b", "2")];
    let answer = fixture.server.post(&target, &with, "x").await;
    let metadata = json!({ "author": "ada", "b": "2" });
    assert_eq!(answer.json()[0]["metadata"], metadata);
    assert_eq!(xattr(&fixture.path("file"), "user.e2b.author").as_deref(), Some("ada"));

    let answer = fixture.server.post(&target, &[RAW], "x").await;
    assert_eq!(answer.json()[0].get("metadata"), None);
    assert_eq!(xattr(&fixture.path("file"), "user.e2b.author"), None);

    let answer = fixture.server.post(&target, &[RAW, ("x-metadata-a", "b\tc")], "new").await;
    let (status, message) = answer.error();
    assert_eq!(status, 400);
    assert!(message.starts_with("invalid metadata: "), "{message}");
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"x", "nothing was written");
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(path, name, &mut value).ok()?;
    Some(String::from_utf8(value[..length].to_vec()).unwrap())
}

// Rules: PUT-18, TRAP-13
#[tokio::test]
async fn watchers_see_the_least_possible() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags as Seen, Reader, WatchFlags};

    let fixture = Fixture::new().await;
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    // Reading is nobody's business, and kernels differ in when an open shows.
    let interest = WatchFlags::ALL_EVENTS
        - (WatchFlags::ACCESS | WatchFlags::OPEN | WatchFlags::CLOSE_NOWRITE);
    inotify::add_watch(&inotify, fixture.dir.path(), interest).unwrap();
    let seen = || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&inotify, &mut buffer);
        std::iter::from_fn(|| reader.next().ok().map(|event| event.events())).collect::<Vec<_>>()
    };
    let created = [Seen::CREATE, Seen::ATTRIB, Seen::MODIFY, Seen::CLOSE_WRITE];

    fixture.upload("raw", "content").await;
    assert_eq!(seen(), created);
    fixture.upload_form(&fixture.target("form"), &[("name=\"file\"; filename=\"x\"", "c")]).await;
    assert_eq!(seen(), created);
    fixture.upload("raw", "new content").await;
    // Of two like events in a row, truncation and write, the kernel keeps one.
    assert_eq!(seen(), [Seen::ATTRIB, Seen::MODIFY, Seen::CLOSE_WRITE]);
    fixture.upload("empty", "").await;
    assert_eq!(seen(), [Seen::CREATE, Seen::ATTRIB, Seen::CLOSE_WRITE]);
}

// Rules: PUT-19, PUT-20, TRAP-44
#[tokio::test]
async fn a_full_disk_has_a_status_of_its_own() {
    let fixture = Fixture::new().await;
    let disk = SmallDisk::new("tmpfs", "size=64k");
    // Enough to still be under way when the disk is full.
    let content = "x".repeat(8 << 20);
    let (status, message) =
        fixture.server.post(&disk.target("file"), &[RAW], content).await.error();
    assert_eq!(status, 507);
    assert!(
        message.starts_with("attempted to write ")
            && message.ends_with(" bytes: not enough disk space available"),
        "{message}"
    );
    let disk = SmallDisk::new("tmpfs", "nr_inodes=2");
    assert_eq!(fixture.server.post(&disk.target("one"), &[RAW], "x").await.status, 200);
    let expected = (507, "not enough inodes available".to_owned());
    assert_eq!(fixture.server.post(&disk.target("two"), &[RAW], "x").await.error(), expected);
    assert_eq!(fixture.server.post(&disk.target("a/b"), &[RAW], "x").await.error(), expected);
}

// Rules: PUT-23
#[tokio::test]
async fn a_client_that_goes_away_leaves_what_it_sent_and_no_descriptor() {
    let fixture = Fixture::new().await;
    let path = fixture.path("file");
    let mut stream = TcpStream::connect(fixture.server.address).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000000\r\n\
         content-type: application/octet-stream\r\n\r\n",
        fixture.target("file")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; 4 << 20]).await.unwrap();
    until(|| fs::metadata(&path).is_ok_and(|found| found.len() > 0)).await;
    assert!(is_open(&path));
    drop(stream);
    until(|| !is_open(&path)).await;
    assert!(fs::metadata(&path).unwrap().len() > 0);
}

// Rules: PUT-13
#[tokio::test]
async fn metadata_is_forgotten_where_there_are_no_attributes() {
    let fixture = Fixture::new().await;
    let disk = SmallDisk::new("ramfs", "");
    let headers = [RAW, ("x-metadata-a", "b")];
    assert_eq!(fixture.server.post(&disk.target("file"), &headers, "x").await.status, 200);
    assert_eq!(fs::read(disk.path("file")).unwrap(), b"x");
    assert_eq!(xattr(&disk.path("file"), "user.e2b.a"), None);
}

// Rules: PUT-8
#[tokio::test]
async fn a_form_has_room_for_a_thousand_files() {
    let fixture = Fixture::new().await;
    let names: Vec<String> = (0..1000)
        .map(|n| format!("name=\"file\"; filename=\"{}\"", fixture.text(&format!("d/{n}"))))
        .collect();
    let parts: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "content")).collect();
    let answer = fixture.upload_form("/files", &parts).await;
    assert_eq!(answer.json().as_array().unwrap().len(), 1000);
    assert_eq!(answer.json()[999]["path"], fixture.text("d/999"));
    assert_eq!(fs::read_dir(fixture.path("d")).unwrap().count(), 1000);
}

// Rules: PUT-17
#[tokio::test]
async fn whoever_has_the_file_open_sees_the_new_content() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("file"), "old").unwrap();
    let mut open = fs::File::open(fixture.path("file")).unwrap();
    fixture.upload("file", "new content").await;
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "new content");
}

// Rules: PUT-27, GET-7
#[tokio::test]
async fn a_name_may_hold_anything_but_a_slash_and_a_nul() {
    let fixture = Fixture::new().await;
    let longest = "n".repeat(255);
    for name in [
        "-rf",
        "two\nlines",
        "tab\t",
        "\"quoted\"",
        "it's",
        "back\\slash",
        "%2F",
        "%22",
        "a+b&c=d;e",
        "\u{1}",
        "né 你好 🙂",
        " blanks ",
        "~",
        "..x",
        &longest,
    ] {
        let target = fixture.target(name);
        let answer = fixture.server.post(&target, &[RAW], name.to_owned()).await;
        assert_eq!(answer.json()[0]["name"], name);
        assert_eq!(fs::read_to_string(fixture.path(name)).unwrap(), name);
        let answer = fixture.server.get(&target, &[]).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, name.as_bytes()));
        assert!(answer.header("content-disposition").unwrap().starts_with("inline; filename"));
    }
    let too_long = fixture.server.post(&fixture.target(&"n".repeat(256)), &[RAW], "x").await;
    assert_eq!(too_long.error().0, 500);
    let nul = fixture.server.post(&fixture.target("a\0b"), &[RAW], "x").await;
    assert_eq!(nul.error().0, 400);
}

// Rules: PUT-26
#[tokio::test]
async fn nothing_is_written_for_nobody() {
    let fixture = Fixture::new().await;
    let target = fixture.target("file") + "&username=nosuchuser";
    assert_eq!(fixture.server.post(&target, &[RAW], "x").await.error().0, 401);
    assert!(!fixture.path("file").exists());
}

// Rules: PUT-23
#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_leaves_what_came() {
    let fixture = Fixture::new().await;
    let packed = gzip(&vec![b'x'; 4 << 20]);
    let headers = [RAW, ("content-encoding", "gzip")];
    let half = packed[..packed.len() - 9].to_vec();
    let answer = fixture.server.post(&fixture.target("file"), &headers, half).await;
    assert_eq!(answer.error().0, 400);
    let length = fs::metadata(fixture.path("file")).unwrap().len();
    assert!(length > 0 && length <= 4 << 20, "{length}");
    until(|| !is_open(&fixture.path("file"))).await;
}
