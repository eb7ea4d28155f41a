//! Clients that keep the front waiting. Time is the test's: nothing really waits.

use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stack::*;

/// Waits until the front has closed a connection; what it still sends is dropped.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// The first bytes that a TLS client sends.
fn client_hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "api.sbx.localhost".try_into().unwrap();
    let mut client = ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(start_paused = true)]
async fn clients_that_do_not_finish_what_they_begin_are_closed() {
    let stack = local().await;
    let hello = client_hello();
    for begin in [
        &b""[..],
        b"\x16",
        b"\x16\x03\x01\x40\x00",
        &hello[..hello.len() / 2],
        &hello,
        b"G",
        b"GET / HTTP/1.1\r\nHost: api.sbx",
        b"PRI * HTTP/2.0\r\n",
        b"\x80\x00\x00",
    ] {
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        soon(closed(&mut stream)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_closed_within_tls_too() {
    let stack = local().await;
    let mut stream = stack.tls("api.sbx.localhost", &["http/1.1"]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api.sbx").await.unwrap();
    soon(closed(&mut stream)).await;
}
