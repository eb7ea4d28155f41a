//! gRPC keeps HTTP/2 all the way: streams in both directions and the status in trailers.

use http_body_util::BodyExt;
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::stack::*;

/// A server that speaks nothing but HTTP/2 and sends back each message, then a status.
async fn serve(guest: &Guest, port: u16) {
    let listener = guest.listen(port).await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(async |request: http::Request<Incoming>| {
                assert_eq!(request.headers()["te"], "trailers");
                assert_eq!(request.uri().authority().unwrap().as_str(), host(8080));
                let (sender, body) = channel();
                let mut messages = request.into_body();
                tokio::spawn(async move {
                    while let Some(Ok(frame)) = messages.frame().await {
                        let _ = sender.send(frame);
                    }
                    let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                    let _ = sender.send(Frame::trailers(status.into_iter().collect()));
                });
                http::Response::builder().header("content-type", "application/grpc").body(body)
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

fn call(body: TestBody) -> http::Request<TestBody> {
    let mut request = post("/pkg.Service/Method", body);
    request.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request
}

// Rules: PROXY-40
#[tokio::test]
async fn calls_stream_both_ways_and_end_with_a_status() {
    let guest = Guest::new();
    serve(&guest, 8080).await;
    for stack in both(&guest).await {
        let mut client = Client::http2(stack.address).await;
        let (sender, body) = channel();
        let mut body = client.send(8080, call(body)).await.unwrap().into_body();
        for message in ["one", "two"] {
            sender.send(data(message)).unwrap();
            assert_eq!(next(&mut body).await, message, "{}", stack.name);
        }
        drop(sender);
        let trailers = soon(body.frame()).await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0", "{}", stack.name);
        ends(&mut body).await;
    }
}

#[tokio::test]
async fn the_end_of_the_sandbox_resets_the_call() {
    let guest = Guest::new();
    serve(&guest, 8080).await;
    let stacks = both(&guest).await;
    let mut calls = Vec::new();
    for stack in &stacks {
        let mut client = Client::http2(stack.address).await;
        let (sender, body) = channel();
        sender.send(data("one")).unwrap();
        let mut body = client.send(8080, call(body)).await.unwrap().into_body();
        assert_eq!(next(&mut body).await, "one");
        calls.push((client, sender, body));
    }
    guest.ended.cancel();
    for (_client, _sender, mut body) in calls {
        assert!(matches!(soon(body.frame()).await, Some(Err(_))));
    }
}
