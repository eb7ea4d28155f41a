//! What the tests share: sandboxes that are servers on loopback, and proxies in front of them.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_proxy::{Access, Directory, Handle, Location, Sandboxes, Target, client, node};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) const ID: &str = "iabcdefghij0123456789";
pub(crate) const ENVD: u16 = 49983;
pub(crate) const TOKEN: &str = "node-secret";

/// A sandbox: its ports are listeners on loopback.
#[derive(Default)]
pub(crate) struct Guest {
    ports: Mutex<HashMap<u16, SocketAddr>>,
    pub(crate) ended: CancellationToken,
    pub(crate) access: Access,
    pub(crate) dials: AtomicUsize,
}

impl Guest {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn with_access(access: Access) -> Arc<Self> {
        Arc::new(Self { access, ..Self::default() })
    }

    /// Makes `port` lead to `address`.
    pub(crate) fn map(&self, port: u16, address: SocketAddr) {
        self.ports.lock().unwrap().insert(port, address);
    }

    /// Listens on `port`.
    pub(crate) async fn listen(&self, port: u16) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.map(port, listener.local_addr().unwrap());
        listener
    }

    /// Serves `router` on `port`.
    pub(crate) async fn serve(&self, port: u16, router: axum::Router) {
        let listener = self.listen(port).await;
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Target for Guest {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let address = self.ports.lock().unwrap().get(&port).copied();
        TcpStream::connect(address.ok_or(io::ErrorKind::ConnectionRefused)?).await
    }

    fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    fn access(&self) -> Access {
        self.access.clone()
    }
}

/// The sandboxes of a node, and of the directory of a client proxy in the same process.
#[derive(Default)]
pub(crate) struct Node {
    guests: Mutex<HashMap<SandboxId, Arc<Guest>>>,
}

impl Node {
    pub(crate) fn set(&self, id: &str, guest: Option<Arc<Guest>>) {
        let mut guests = self.guests.lock().unwrap();
        match guest {
            Some(guest) => guests.insert(id.parse().unwrap(), guest),
            None => guests.remove(&id.parse().unwrap()),
        };
    }

    fn get(&self, id: &SandboxId) -> Option<Arc<dyn Target>> {
        let guest = self.guests.lock().unwrap().get(id).cloned()?;
        (!guest.ended.is_cancelled()).then_some(guest as _)
    }
}

#[async_trait]
impl Sandboxes for Node {
    async fn find(&self, id: &SandboxId) -> Option<Arc<dyn Target>> {
        self.get(id)
    }
}

#[async_trait]
impl Directory for Node {
    async fn locate(&self, id: &SandboxId) -> Result<Option<Location>> {
        Ok(self.get(id).map(Location::Here))
    }
}

/// A directory that says of every sandbox that it is on one node.
pub(crate) struct Elsewhere {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
}

#[async_trait]
impl Directory for Elsewhere {
    async fn locate(&self, _: &SandboxId) -> Result<Option<Location>> {
        Ok(Some(Location::Node { address: self.address, token: self.token.clone() }))
    }
}

/// Proxies in front of one node.
pub(crate) struct Stack {
    /// What a failing assertion is to say.
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) run: JoinHandle<()>,
    pub(crate) node: Arc<Node>,
    node_handle: Option<Handle>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(handle) = &self.node_handle {
            handle.shutdown();
        }
    }
}

pub(crate) async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// A running client proxy over `directory`.
pub(crate) async fn edge(directory: Arc<dyn Directory>, grace: Duration) -> Stack {
    let health = loopback().await;
    let health_address = health.local_addr().unwrap();
    let options = client::Options { directory, grace };
    let service = client::Service::start(options, loopback().await, health).unwrap();
    let handle = service.handle();
    Stack {
        name: "one hop",
        address: handle.address(),
        health: health_address,
        handle,
        run: tokio::spawn(finished(service)),
        node: Arc::default(),
        node_handle: None,
    }
}

/// Ends when the service has stopped, which the test asks for through its handle.
async fn finished(service: client::Service) {
    service.handle().stopping().await;
    service.shutdown().await;
}

/// A running node proxy over `node`.
pub(crate) async fn node_proxy(node: Arc<Node>, token: Option<&str>) -> Handle {
    let token = token.map(str::to_owned);
    let options = node::Options { sandboxes: node, token, grace: Duration::ZERO };
    let service = node::Service::start(options, loopback().await).unwrap();
    service.handle()
}

/// A client proxy that runs in the process of the node.
pub(crate) async fn one_hop() -> Stack {
    let node = Arc::<Node>::default();
    let stack = edge(Arc::clone(&node) as _, Duration::ZERO).await;
    stack.with(node, None)
}

/// A client proxy and a node proxy.
pub(crate) async fn two_hops() -> Stack {
    let node = Arc::<Node>::default();
    let handle = node_proxy(Arc::clone(&node), Some(TOKEN)).await;
    let directory = Elsewhere { address: handle.address(), token: TOKEN.into() };
    let mut stack = edge(Arc::new(directory), Duration::ZERO).await.with(node, Some(handle));
    stack.name = "two hops";
    stack
}

/// Both ways to a sandbox, with `guest` as [`ID`] at the end of each.
pub(crate) async fn both(guest: &Arc<Guest>) -> [Stack; 2] {
    let stacks = [one_hop().await, two_hops().await];
    for stack in &stacks {
        stack.node.set(ID, Some(Arc::clone(guest)));
    }
    stacks
}

impl Stack {
    fn with(mut self, node: Arc<Node>, node_handle: Option<Handle>) -> Self {
        self.node = node;
        self.node_handle = node_handle;
        self
    }
}

/// The host of `port` of [`ID`].
pub(crate) fn host(port: u16) -> String {
    format!("{port}-{ID}.sbx.localhost")
}

pub(crate) type TestBody = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) fn empty() -> TestBody {
    Empty::new().boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that sends what is sent on the channel, as it is sent.
pub(crate) fn channel() -> (mpsc::UnboundedSender<Frame<Bytes>>, TestBody) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|frame| (Ok(frame), receiver))
    });
    (sender, StreamBody::new(stream).boxed_unsync())
}

pub(crate) fn data(text: &str) -> Frame<Bytes> {
    Frame::data(Bytes::copy_from_slice(text.as_bytes()))
}

/// A connection over which requests can be sent, one after another.
pub(crate) enum Client {
    Http1(http1::SendRequest<TestBody>),
    Http2(http2::SendRequest<TestBody>),
}

impl Client {
    pub(crate) async fn http1(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver.with_upgrades());
        Self::Http1(sender)
    }

    pub(crate) async fn http2(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, driver) = handshake.await.unwrap();
        tokio::spawn(driver);
        Self::Http2(sender)
    }

    /// Sends a request to `port` of [`ID`].
    pub(crate) async fn send(
        &mut self,
        port: u16,
        mut request: Request<TestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", host(port).parse().unwrap());
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let path = request.uri().path_and_query().unwrap().as_str();
                *request.uri_mut() = format!("http://{}{path}", host(port)).parse().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

pub(crate) fn get(path: &str) -> Request<TestBody> {
    Request::builder().uri(path).body(empty()).unwrap()
}

pub(crate) fn post(path: &str, body: TestBody) -> Request<TestBody> {
    Request::builder().method("POST").uri(path).body(body).unwrap()
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/json; charset=utf-8");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Sends one request over a new HTTP/1.1 connection and reads the whole answer.
pub(crate) async fn fetch(address: SocketAddr, port: u16, request: Request<TestBody>) -> Answer {
    let mut client = Client::http1(address).await;
    let response = soon(client.send(port, request)).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// What has to happen without further ado: a test that waits for nothing fails rather than hangs.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), event).await.expect("nothing happens")
}

/// The next data frame of a body, as text.
pub(crate) async fn next(body: &mut Incoming) -> String {
    let frame = soon(body.frame()).await.expect("the body ended").expect("the body failed");
    String::from_utf8(frame.into_data().expect("not data").to_vec()).unwrap()
}

/// Asserts that a body ends here, and ends well. HTTP/2 may show its end as an empty frame.
pub(crate) async fn ends(body: &mut Incoming) {
    while let Some(frame) = soon(body.frame()).await {
        let data = frame.expect("the body failed").into_data().expect("not data");
        assert!(data.is_empty(), "more data: {data:?}");
    }
}

/// Reads the head of a request, up to its blank line.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Writes bytes to a connection.
pub(crate) async fn write(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Waits until the other side has closed a connection; what it still sends is dropped.
pub(crate) async fn closed(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}
