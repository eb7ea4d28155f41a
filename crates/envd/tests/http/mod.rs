//! A server on a loopback port, and a client that shows all of an answer.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Waits until a condition holds, and fails if it never does.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), holds).await.expect("it should hold by now");
}

/// A running server. It ends with the test.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer that has been read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status, and the sentence of an error body, whose form is checked.
    pub fn error(&self) -> (u16, String) {
        let body = self.json();
        let message = body["message"].as_str().unwrap().to_owned();
        let expected = serde_json::json!({ "code": self.status.as_u16(), "message": message });
        assert_eq!(body, expected);
        assert_eq!(self.header("content-type"), Some("application/json; charset=utf-8"));
        (self.status.as_u16(), message)
    }
}

impl Server {
    pub async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }

    /// Sends a request on a connection of its own; the answer's body is still to be read.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client.send_request(request).await.unwrap()
    }

    pub async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(target).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.open(request.body(Full::new(body.into())).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, target, headers, "").await
    }

    pub async fn post(
        &self,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(Method::POST, target, headers, body).await
    }
}

/// An answer that is a stream of Connect envelopes.
pub struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

impl Frames {
    /// Calls a streaming method with one message.
    pub async fn open(
        server: &Server,
        target: &str,
        headers: &[(&str, &str)],
        message: Value,
    ) -> Self {
        let message = message.to_string();
        let mut envelope = vec![0];
        envelope.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        envelope.extend(message.as_bytes());
        let mut request = Request::post(target)
            .header("host", "test")
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = server.open(request.body(Full::new(envelope.into())).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/connect+json");
        Self { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Flags and message of the next frame.
    pub async fn next(&mut self) -> (u8, Value) {
        loop {
            if self.buffer.len() >= 5 {
                let length = (&self.buffer[1..5]).get_u32() as usize;
                if self.buffer.len() >= 5 + length {
                    let frame = self.buffer.split_to(5 + length);
                    return (frame[0], serde_json::from_slice(&frame[5..]).unwrap());
                }
            }
            let next = tokio::time::timeout(Duration::from_secs(60), self.body.frame()).await;
            let frame = next.expect("there should be a frame by now").expect("no end yet").unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}
