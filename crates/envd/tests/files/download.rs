//! `GET /files`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use ::http::{Method, Request};
use atoll_wire::guest::InitRequest;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};

use crate::fixture::{Fixture, is_open};
use crate::http::until;

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut content).unwrap();
    content
}

// Rules: GET-7, GET-10
#[tokio::test]
async fn a_download_tells_what_it_is() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("a b.json"), "{}").unwrap();
    let answer = fixture.server.get(&fixture.target("a b.json"), &[]).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"{}"[..]));
    for (name, value) in [
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("accept-ranges", "bytes"),
        ("vary", "Accept-Encoding"),
        ("content-disposition", "inline; filename=\"a b.json\""),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert!(answer.header("last-modified").unwrap().ends_with(" GMT"));
    assert_eq!(answer.header("content-encoding"), None);

    fs::write(fixture.path("page"), "<html><body>").unwrap();
    let answer = fixture.server.get(&fixture.target("page"), &[]).await;
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    let answer = fixture.server.send(Method::HEAD, &fixture.target("page"), &[], "").await;
    assert_eq!((answer.header("content-length"), answer.body.len()), (Some("12"), 0));
}

// Rules: GET-6, GET-7, GET-8, GET-9, TRAP-14
#[tokio::test]
async fn clients_that_take_gzip_get_it() {
    let fixture = Fixture::new().await;
    let content: Vec<u8> = (0..2_000_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
    fs::write(fixture.path("page"), &content).unwrap();
    let target = fixture.target("page");
    let default = ("accept-encoding", "gzip, deflate");
    let answer = fixture.server.get(&target, &[default]).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    assert!(gunzip(&answer.body) == content);

    let answer = fixture.server.get(&target, &[default, ("range", "bytes=0-3")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (206, None));
    let picky = ("accept-encoding", "gzip, identity;q=0");
    let answer = fixture.server.get(&target, &[picky, ("range", "bytes=0-3")]).await;
    assert_eq!(
        answer.error(),
        (
            406,
            "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]"
                .to_owned()
        )
    );
    assert_eq!(fixture.server.get(&target, &[picky]).await.status, 200);
}

// Rules: GET-15, TRAP-14
#[tokio::test]
async fn an_empty_file_has_a_length_whatever_the_encoding() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("empty"), "").unwrap();
    for headers in [&[][..], &[("accept-encoding", "gzip, deflate")], &[("range", "bytes=0-9")]] {
        let answer = fixture.server.get(&fixture.target("empty"), headers).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-length"), Some("0"));
        assert_eq!(answer.header("content-encoding"), None);
    }
}

// Rules: GET-11, GET-12, GET-13
#[tokio::test]
async fn ranges_are_served() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("a.txt"), "0123456789").unwrap();
    let range =
        async |value: &str| fixture.server.get(&fixture.target("a.txt"), &[("range", value)]).await;
    let answer = range("bytes=2-4").await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (206, &b"234"[..]));
    assert_eq!(answer.header("content-range"), Some("bytes 2-4/10"));
    assert_eq!(answer.header("content-length"), Some("3"));
    assert_eq!(range("bytes=-2").await.body, "89");

    let answer = range("bytes=0-1,-1").await;
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, content: &str| {
        format!(
            "\r\n--{boundary}\r\nContent-Range: bytes {range}/10\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\r\n{content}"
        )
    };
    let expected = format!("{}{}\r\n--{boundary}--\r\n", part("0-1", "01"), part("9-9", "9"));
    assert_eq!(answer.body, expected);

    let answer = range("bytes=10-").await;
    assert_eq!(answer.error().0, 416);
    assert_eq!(answer.header("content-range"), Some("bytes */10"));
}

// Rules: GET-14
#[tokio::test]
async fn a_client_that_has_the_file_is_told_so() {
    let fixture = Fixture::new().await;
    fs::write(fixture.path("a.txt"), "0123456789").unwrap();
    let target = fixture.target("a.txt");
    let modified = fixture.server.get(&target, &[]).await;
    let modified = modified.header("last-modified").unwrap();
    let answer = fixture.server.get(&target, &[("if-modified-since", modified)]).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (304, 0));
    let answer = fixture.server.get(&target, &[("if-match", "\"tag\"")]).await;
    assert_eq!(answer.error().0, 412);
    let resume = [("range", "bytes=8-"), ("if-range", modified)];
    assert_eq!(fixture.server.get(&target, &resume).await.body, "89");
}

// Rules: GET-17
#[tokio::test]
async fn files_that_the_kernel_makes_up_are_read() {
    let fixture = Fixture::new().await;
    let version = fs::read_to_string("/proc/version").unwrap();
    let answer = fixture.server.get("/files?path=/proc/version", &[]).await;
    assert_eq!(answer.body, version);
    assert_eq!(answer.header("content-length"), Some(version.len().to_string().as_str()));
    let gzip = [("accept-encoding", "gzip")];
    let answer = fixture.server.get("/files?path=/proc/version", &gzip).await;
    assert_eq!(gunzip(&answer.body), version.as_bytes());

    let symbols = fs::read("/proc/kallsyms").unwrap();
    let answer = fixture.server.get("/files?path=/proc/kallsyms", &[]).await;
    // The rest may change at any time.
    let (same, all) = (1 << 20, answer.body.as_ref());
    assert!(symbols.len() > same && all.len() > same && all[..same] == symbols[..same]);
}

// Rules: BOOT-3
#[tokio::test]
async fn sparse_gigabytes_stream() {
    let fixture = Fixture::new().await;
    let file = fs::File::create(fixture.path("big")).unwrap();
    file.set_len(3 << 30).unwrap();
    let last = ("range", "bytes=3221225470-");
    assert_eq!(fixture.server.get(&fixture.target("big"), &[last]).await.body, "\0\0");
    let answer = fixture.server.send(Method::HEAD, &fixture.target("big"), &[], "").await;
    assert_eq!(answer.header("content-length"), Some("3221225472"));
}

#[tokio::test]
async fn a_file_that_shrinks_breaks_the_answer_off() {
    let fixture = Fixture::new().await;
    let file = fs::File::create(fixture.path("file")).unwrap();
    file.set_len(64 << 20).unwrap();
    let request =
        Request::get(fixture.target("file")).header("host", "test").body(Full::default()).unwrap();
    let response = fixture.server.open(request).await;
    assert_eq!(response.headers()["content-length"], "67108864");
    file.set_len(1).unwrap();
    assert!(response.into_body().collect().await.is_err());
}

// Rules: GET-1
#[tokio::test]
async fn the_first_thing_that_is_wrong_is_the_answer() {
    let fixture = Fixture::new().await;
    let access_token = Some("tok".to_owned());
    fixture.guest.apply(InitRequest { access_token, ..InitRequest::default() }, None);
    let wrong = [("accept-encoding", "*;q=0")];
    let token = [("x-access-token", "tok"), wrong[0]];
    let get = async |target: &str, headers: &[(&str, &str)]| {
        fixture.server.get(target, headers).await.error().0
    };
    let everything = "/files?path=~bob&username=nosuchuser&signature=v1_x";
    assert_eq!(get(everything, &wrong).await, 401);
    let (_, message) = fixture.server.get(everything, &wrong).await.error();
    assert_eq!(message, "invalid signature");
    let (_, message) = fixture.server.get(everything, &token).await.error();
    assert!(message.starts_with("error looking up user"), "{message}");
    assert_eq!(get("/files?path=~bob", &token).await, 400);
    assert_eq!(get(&fixture.target("missing"), &token).await, 404);
    fs::write(fixture.path("file"), "x").unwrap();
    assert_eq!(get(&fixture.target("file"), &token).await, 406);
}

// Rules: GET-16, PATH-7
#[tokio::test]
async fn links_and_rights_are_nobodys_obstacle() {
    let fixture = Fixture::new().await;
    fs::create_dir(fixture.path("private")).unwrap();
    fs::write(fixture.path("private/file"), "content").unwrap();
    for path in ["private/file", "private"] {
        fs::set_permissions(fixture.path(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    symlink("private/file", fixture.path("link")).unwrap();
    symlink("nowhere", fixture.path("broken")).unwrap();
    assert_eq!(fixture.server.get(&fixture.target("link"), &[]).await.body, "content");
    let answer = fixture.server.get(&fixture.target("broken"), &[]).await;
    let expected = format!("path '{}' does not exist", fixture.text("broken"));
    assert_eq!(answer.error(), (404, expected));
}

// Rules: GET-20
#[tokio::test]
async fn a_reader_that_goes_away_leaves_nothing_open() {
    let fixture = Fixture::new().await;
    let path = fixture.path("big");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    for headers in [&[][..], &[("accept-encoding", "gzip")]] {
        let mut request = Request::get(fixture.target("big")).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = fixture.server.open(request.body(Full::default()).unwrap()).await;
        response.body_mut().frame().await.unwrap().unwrap();
        assert!(is_open(&path));
        drop(response);
        until(|| !is_open(&path)).await;
    }
}
