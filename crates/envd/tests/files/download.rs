//! `GET /files`.

use std::fs;
use std::io::Read;

use ::http::{Method, Request};
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};

use crate::fixture::Fixture;

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut content).unwrap();
    content
}

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
    assert!(symbols.len() > 64 << 10 && answer.body == symbols);
}

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
