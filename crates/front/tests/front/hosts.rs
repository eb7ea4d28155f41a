//! Which host leads where, over every kind of connection.

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stack::*;

#[tokio::test]
async fn names_lead_to_their_parts_over_every_kind_of_connection() {
    let mut stack = local().await;
    stack.serve_echo();
    for (scheme, mut client) in stack.clients().await {
        for host in ["api.sbx.localhost", "API.SBX.localhost", "api.sbx.localhost.:9443"] {
            let (status, text) = client.fetch(host, "/who").await;
            assert_eq!(status, StatusCode::OK, "{scheme} {host}");
            assert!(text.starts_with("api 127.0.0.1:"), "the peer is the client's own: {text}");
            assert!(text.contains(" api.sbx.localhost"), "{text}");
            assert!(text.ends_with(&format!(" {scheme}")), "{text}");
        }
        let host = format!("8000-{ID}.sbx.localhost:8443");
        let (_, text) = client.fetch(&host.to_uppercase(), "/").await;
        assert_eq!(text, format!("guest {host} {scheme}"));

        let (status, text) = client.fetch("sbx.localhost", "/").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("https://api.sbx.localhost"), "{text}");
        let (status, text) = client.fetch("sbx.localhost", "/x").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(text.contains("The API is at api.sbx.localhost."), "{text}");

        for host in ["localhost", "127.0.0.1", "www.sbx.localhost", "example.com"] {
            let (status, text) = client.fetch(host, "/who").await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{host}");
            assert!(text.contains("\"error_code\":\"ATL-6002\""), "{text}");
        }
        let control = format!("49983-{ID}.sbx.localhost");
        let (status, text) = client.fetch(&control, "/x/../%69nit").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(text.contains("reserved"), "{text}");
    }
}

#[tokio::test]
async fn headers_choose_on_the_shared_host() {
    let mut stack = local().await;
    stack.serve_echo();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: sandbox.sbx.localhost\r\nE2b-Sandbox-Id: {ID}\r\n\
         E2b-Sandbox-Port: 8000\r\nConnection: close\r\n\r\n"
    );
    assert!(raw(&stack, &request).await.ends_with("guest sandbox.sbx.localhost http"));
}

/// The answer to a request as it is written, which no client would send.
async fn raw(stack: &Stack, request: &str) -> String {
    let mut stream = TcpStream::connect(stack.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let mut stack = local().await;
    stack.serve_echo();
    let sandbox = format!("8000-{ID}.sbx.localhost");
    let end = "Connection: close\r\n\r\n";
    for head in [
        format!("GET /who HTTP/1.1\r\nHost: {sandbox}\r\nHost: api.sbx.localhost\r\n"),
        format!("GET http://{sandbox}/who HTTP/1.1\r\nHost: api.sbx.localhost\r\n"),
        format!("GET http://api.sbx.localhost/who HTTP/1.1\r\nHost: {sandbox}\r\n"),
        format!("GET http://api.sbx.localhost@{sandbox}/who HTTP/1.1\r\nHost: {sandbox}\r\n"),
        "GET /who HTTP/1.1\r\n".to_owned(),
    ] {
        let answer = raw(&stack, &format!("{head}{end}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head}\n{answer}");
    }
    let absolute =
        format!("GET http://api.sbx.localhost/who HTTP/1.1\r\nHost: api.sbx.localhost\r\n{end}");
    assert!(raw(&stack, &absolute).await.contains("api 127.0.0.1:"));
    let tunnel =
        format!("CONNECT api.sbx.localhost:443 HTTP/1.1\r\nHost: api.sbx.localhost\r\n{end}");
    assert!(raw(&stack, &tunnel).await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn framing_that_could_hide_a_request_is_refused_or_ends_the_connection() {
    let mut stack = local().await;
    stack.serve_echo();
    let hidden = "GET /who HTTP/1.1\r\nHost: api.sbx.localhost\r\n\r\n";
    let sandbox = format!("8000-{ID}.sbx.localhost");
    for framing in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: +5\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: {sandbox}\r\n{framing}\r\n0\r\n\r\n{hidden}");
        let answer = raw(&stack, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{framing}\n{answer}");
        assert!(!answer.contains("api 127.0.0.1:"), "{framing}\n{answer}");
    }
}
