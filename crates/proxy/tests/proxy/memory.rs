//! Large bodies pass in constant memory.

use axum::{Router, body::Body, extract::Request, routing::any};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::stack::*;

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 800;

/// A line of `/proc/self/status`, in bytes.
fn memory(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn chunks() -> impl futures::Stream<Item = Bytes> + Send + Sync {
    futures::stream::iter(0..CHUNKS).map(|_| Bytes::from(vec![1; CHUNK]))
}

async fn size<B: http_body::Body<Data = Bytes> + Unpin>(mut body: B) -> usize
where
    B::Error: std::fmt::Debug,
{
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    size
}

// Rules: PROXY-39
#[tokio::test]
async fn two_hundred_megabytes_each_way() {
    let guest = Guest::new();
    let app = Router::new()
        .route("/down", any(async || Body::from_stream(chunks().map(Ok::<_, std::io::Error>))))
        .route("/up", any(async |request: Request| size(request.into_body()).await.to_string()));
    guest.serve(ENVD, app).await;
    // From now on the peak is that of what runs now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    for stack in both(&guest).await {
        let response = Client::http1(stack.address).await.send(ENVD, get("/down")).await.unwrap();
        assert_eq!(size(response.into_body()).await, CHUNK * CHUNKS, "{}", stack.name);
        let body =
            BodyExt::boxed_unsync(StreamBody::new(chunks().map(|chunk| Ok(Frame::data(chunk)))));
        let answer = fetch(stack.address, ENVD, post("/up", body)).await;
        assert_eq!(answer.body, (CHUNK * CHUNKS).to_string(), "{}", stack.name);
    }
    let peak = memory("VmHWM");
    assert!(peak < before + (128 << 20), "memory grew from {before} to {peak} bytes");
}
