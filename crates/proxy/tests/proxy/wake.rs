//! Sandboxes that are asleep: a request that may wakes one, once, and is answered by it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Code, Error, Result, SandboxId, error::codes};
use atoll_proxy::{Asleep, Directory, Location};
use axum::{Router, body::Body, extract::Request, routing::any};
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    refusals::{assert_page, page},
    stack::*,
};

/// A directory with one sandbox, [`ID`], which sleeps.
struct Bed {
    guest: Mutex<Arc<Guest>>,
    asleep: Mutex<Option<Asleep>>,
    /// It says so often that it will run soon.
    soon: AtomicUsize,
    /// Each wake takes a permit.
    permits: Semaphore,
    /// What the next wake fails with.
    error: Mutex<Option<Code>>,
    /// Woken as often as this, it sleeps again at once.
    restless: AtomicUsize,
    wakes: watch::Sender<usize>,
}

impl Bed {
    fn new(asleep: Asleep, permits: usize) -> Arc<Self> {
        Arc::new(Self {
            guest: Mutex::new(Guest::new()),
            asleep: Mutex::new(Some(asleep)),
            soon: AtomicUsize::new(0),
            permits: Semaphore::new(permits),
            error: Mutex::default(),
            restless: AtomicUsize::new(0),
            wakes: watch::Sender::new(0),
        })
    }

    fn guest(&self) -> Arc<Guest> {
        Arc::clone(&self.guest.lock().unwrap())
    }

    /// Pauses it: its next run is another one.
    fn pause(&self) -> Arc<Guest> {
        *self.asleep.lock().unwrap() = Some(Asleep::default());
        self.guest().ended.cancel();
        *self.guest.lock().unwrap() = Guest::new();
        self.guest()
    }

    fn wakes(&self) -> usize {
        *self.wakes.borrow()
    }

    /// Waits until it is being woken.
    async fn stirs(&self) {
        soon(self.wakes.subscribe().wait_for(|wakes| *wakes > 0)).await.unwrap();
    }
}

#[async_trait]
impl Directory for Bed {
    async fn locate(&self, id: &SandboxId) -> Result<Option<Location>> {
        let soon = self.soon.load(Ordering::SeqCst);
        if soon > 0 {
            self.soon.store(soon - 1, Ordering::SeqCst);
            return Ok(Some(Location::Soon));
        }
        let location = match &*self.asleep.lock().unwrap() {
            Some(asleep) => Location::Asleep(asleep.clone()),
            None => Location::Here(self.guest() as _),
        };
        Ok((id.as_str() == ID).then_some(location))
    }

    async fn wake(&self, _: &SandboxId) -> Result<()> {
        self.wakes.send_modify(|wakes| *wakes += 1);
        self.permits.acquire().await.unwrap().forget();
        if let Some(code) = self.error.lock().unwrap().take() {
            return Err(Error::new(code, "this is why."));
        }
        let restless = self.restless.load(Ordering::SeqCst);
        if restless == 0 {
            *self.asleep.lock().unwrap() = None;
        } else {
            self.restless.store(restless - 1, Ordering::SeqCst);
        }
        Ok(())
    }
}

async fn over(bed: &Arc<Bed>) -> Stack {
    edge(Arc::clone(bed) as _, Duration::ZERO).await
}

/// Answers with what it was sent.
fn mirror() -> Router {
    Router::new().fallback(any(async |request: Request| {
        Body::from_stream(request.into_body().into_data_stream())
    }))
}

// Rules: PROXY-22, TRAP-31
#[tokio::test]
async fn one_wake_serves_all_who_wait() {
    let bed = Bed::new(Asleep::default(), 0);
    bed.guest().serve(8080, Router::new().fallback(any(async || "reached"))).await;
    let stack = over(&bed).await;
    let address = stack.address;
    let mut waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { fetch(address, 8080, get("/")).await }))
        .collect();
    bed.stirs().await;
    // One that leaves takes nobody with it, not even if it was the first.
    waiting.remove(0).abort();
    bed.permits.add_permits(1);
    for answer in waiting {
        let answer = soon(answer).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "reached"));
    }
    assert_eq!(bed.wakes(), 1);
}

// Rules: PROXY-22
#[tokio::test]
async fn a_body_is_held_with_its_request() {
    for http2 in [false, true] {
        let bed = Bed::new(Asleep::default(), 0);
        bed.guest().serve(8080, mirror()).await;
        let stack = over(&bed).await;
        let mut client = if http2 {
            Client::http2(stack.address).await
        } else {
            Client::http1(stack.address).await
        };
        let sent: Vec<u8> = (0..8u32 << 20).map(|index| (index % 251) as u8).collect();
        let upload = {
            let sent = sent.clone();
            tokio::spawn(async move {
                let response = client.send(8080, post("/", full(sent))).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            })
        };
        bed.stirs().await;
        bed.permits.add_permits(1);
        assert!(soon(upload).await.unwrap() == sent, "http2={http2}");
    }
}

#[tokio::test]
async fn a_body_that_is_still_being_sent_goes_on() {
    let bed = Bed::new(Asleep::default(), 0);
    bed.guest().serve(8080, mirror()).await;
    let stack = over(&bed).await;
    let mut client = Client::http1(stack.address).await;
    let (sender, body) = channel();
    sender.send(data("before")).unwrap();
    let response = tokio::spawn(async move { (client.send(8080, post("/", body)).await, client) });
    bed.stirs().await;
    bed.permits.add_permits(1);
    let (response, _client) = soon(response).await.unwrap();
    let mut body = response.unwrap().into_body();
    assert_eq!(next(&mut body).await, "before");
    sender.send(data("after")).unwrap();
    assert_eq!(next(&mut body).await, "after");
    drop(sender);
    ends(&mut body).await;
}

// Rules: PROXY-22, PROXY-29
#[tokio::test]
async fn a_websocket_wakes_it_too() {
    let bed = Bed::new(Asleep::default(), 0);
    let listener = bed.guest().listen(8080).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let message = socket.next().await.unwrap().unwrap();
        socket.send(message).await.unwrap();
        closed(socket.get_mut()).await;
    });
    let stack = over(&bed).await;
    let stream = TcpStream::connect(stack.address).await.unwrap();
    let request = format!("ws://{}/", host(8080)).into_client_request().unwrap();
    let opening = tokio::spawn(client_async(request, stream));
    bed.stirs().await;
    bed.permits.add_permits(1);
    let (mut socket, _) = soon(opening).await.unwrap().unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("hello"));
}

// Rules: PROXY-22, PROXY-24
#[tokio::test]
async fn a_server_that_listens_a_moment_after_the_wake_is_reached() {
    let bed = Bed::new(Asleep::default(), 1);
    let stack = over(&bed).await;
    let address = stack.address;
    let answer = tokio::spawn(async move { fetch(address, 8080, get("/")).await });
    while bed.guest().dials() == 0 {
        tokio::task::yield_now().await;
    }
    bed.guest().serve(8080, Router::new().fallback(any(async || "reached"))).await;
    assert_eq!(soon(answer).await.unwrap().body, "reached");
}

// Rules: PROXY-22
#[tokio::test]
async fn without_the_right_token_it_sleeps_on() {
    let token = |text: &str| Some(text.to_owned());
    let bed = Bed::new(Asleep { envd_token: token("envd"), traffic_token: token("traffic") }, 1);
    bed.guest().serve(8080, mirror()).await;
    let stack = over(&bed).await;
    let with = |name: &'static str, value: &str| {
        let mut request = get("/health");
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let message = "This sandbox can't be resumed with the credentials provided. \
                   Check your access token and try again.";
    for (port, request) in [
        (ENVD, get("/health")),
        (ENVD, with("x-access-token", "wrong")),
        (ENVD, with("e2b-traffic-access-token", "traffic")),
        (8080, get("/")),
        (8080, with("e2b-traffic-access-token", "wrong")),
        (8080, with("x-access-token", "envd")),
    ] {
        let answer = fetch(stack.address, port, request).await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer.json(), json!({"sandboxId": ID, "message": message, "code": 403}));
    }
    assert_page(&fetch(stack.address, 8080, page("/")).await, "Sandbox Paused");
    assert_eq!(fetch(stack.address, ENVD, with("x-access-token", "envd")).await.status, 502);
    assert_eq!(bed.wakes(), 1, "the last one, whose port is closed");
}

#[tokio::test]
async fn a_control_route_wakes_nobody() {
    let bed = Bed::new(Asleep::default(), 0);
    let stack = over(&bed).await;
    assert_eq!(fetch(stack.address, ENVD, post("/freeze", empty())).await.status, 404);
    assert_eq!(bed.wakes(), 0);
}

// Rules: PROXY-22
#[tokio::test]
async fn a_wake_that_fails_is_told_as_the_contract_has_it_and_the_next_is_new() {
    let bed = Bed::new(Asleep::default(), 100);
    bed.guest().serve(8080, mirror()).await;
    let stack = over(&bed).await;
    for (code, status, expected) in [
        (
            codes::CONCURRENCY_LIMIT,
            429,
            json!({"sandboxId": ID, "message": "this is why.", "code": 429}),
        ),
        (
            codes::NOT_FOUND,
            502,
            json!({"sandboxId": ID, "message": "The sandbox was not found", "code": 502}),
        ),
        (
            codes::CHECKPOINT_FAILED,
            500,
            json!({"message": "this is why.", "code": 500, "error_code": "ATL-3010"}),
        ),
    ] {
        *bed.error.lock().unwrap() = Some(code);
        let answer = fetch(stack.address, 8080, get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, expected));
    }
    assert_eq!(fetch(stack.address, 8080, post("/", full("at last"))).await.body, "at last");
}

// Rules: PROXY-22
#[tokio::test]
async fn one_that_is_busy_is_asked_again_but_not_for_ever() {
    let bed = Bed::new(Asleep::default(), 100);
    bed.guest().serve(8080, mirror()).await;
    let stack = over(&bed).await;
    bed.restless.store(3, Ordering::SeqCst);
    let answer = fetch(stack.address, 8080, get("/")).await;
    assert_eq!(answer.status, 409);
    let message = "The sandbox is still transitioning. Try again in a moment.";
    assert_eq!(answer.json(), json!({"sandboxId": ID, "message": message, "code": 409}));
    assert_eq!(bed.wakes(), 3);
    *bed.error.lock().unwrap() = Some(codes::SANDBOX_BUSY);
    bed.restless.store(1, Ordering::SeqCst);
    assert_eq!(fetch(stack.address, 8080, get("/")).await.status, 200);
}

// Rules: PROXY-22
#[tokio::test]
async fn a_request_is_held_for_a_minute() {
    let bed = Bed::new(Asleep::default(), 0);
    bed.guest().serve(8080, mirror()).await;
    let stack = over(&bed).await;
    let mut client = Client::http1(stack.address).await;
    let held = tokio::spawn(async move { client.send(8080, get("/")).await.unwrap().status() });
    bed.stirs().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(soon(held).await.unwrap(), 409);
    // It is being woken still, and the next joins that.
    bed.permits.add_permits(1);
    assert_eq!(fetch(stack.address, 8080, get("/")).await.status, 200);
    assert_eq!(bed.wakes(), 1);
}

#[tokio::test]
async fn one_that_is_being_copied_is_waited_for_and_not_woken() {
    let bed = Bed::new(Asleep::default(), 0);
    bed.guest().serve(8080, mirror()).await;
    *bed.asleep.lock().unwrap() = None;
    bed.soon.store(10, Ordering::SeqCst);
    let stack = over(&bed).await;
    assert_eq!(fetch(stack.address, 8080, post("/", full("copied"))).await.body, "copied");
    assert_eq!((bed.soon.load(Ordering::SeqCst), bed.wakes()), (0, 0));
}

#[tokio::test]
async fn a_sandbox_that_is_paused_under_a_connection_fails_its_response_and_wakes_for_the_next() {
    let bed = Bed::new(Asleep::default(), 2);
    let listener = bed.guest().listen(8080).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart").await;
                closed(&mut stream).await;
            });
        }
    });
    let stack = over(&bed).await;
    let mut client = Client::http2(stack.address).await;
    let mut body = client.send(8080, get("/")).await.unwrap().into_body();
    assert_eq!(next(&mut body).await, "part");
    bed.pause().serve(8080, mirror()).await;
    let end = soon(body.frame()).await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    let mut body = client.send(8080, post("/", full("again"))).await.unwrap().into_body();
    assert_eq!(next(&mut body).await, "again");
    assert_eq!(bed.wakes(), 2);
}
