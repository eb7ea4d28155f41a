//! What the tests share: a front over an API and one sandbox, and clients of every kind.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use atoll_core::{Result, SandboxId};
use atoll_front::{Authority, Certificates, Domain, Identity, Options, Service};
use atoll_proxy::{Access, Directory, Location, Target, client};
use axum::{Router, extract::ConnectInfo, routing::any};
use bytes::Bytes;
use http::{Request, Response, StatusCode, uri::Scheme};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub(crate) const ID: &str = "iabcdefghij0123456789";
pub(crate) const DOMAIN: &str = "sbx.localhost";

/// A sandbox whose every port is one listener on loopback.
struct Guest {
    address: SocketAddr,
    ended: CancellationToken,
}

#[async_trait]
impl Target for Guest {
    async fn dial(&self, _: u16) -> io::Result<TcpStream> {
        TcpStream::connect(self.address).await
    }

    fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    fn access(&self) -> Access {
        Access::default()
    }
}

struct Only(Arc<Guest>);

#[async_trait]
impl Directory for Only {
    async fn locate(&self, id: &SandboxId) -> Result<Option<Location>> {
        Ok((id.as_str() == ID).then(|| Location::Here(Arc::clone(&self.0) as _)))
    }
}

/// A running front.
pub(crate) struct Stack {
    pub(crate) address: SocketAddr,
    /// What clients trust, PEM.
    pub(crate) authority: String,
    /// Cancelled to end the sandbox.
    pub(crate) ended: CancellationToken,
    /// Where the sandbox's server listens.
    pub(crate) guest: Option<TcpListener>,
    _front: Service,
    _proxy: client::Service,
}

pub(crate) async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

pub(crate) fn domain() -> Domain {
    DOMAIN.parse().unwrap()
}

/// A front with a local authority.
pub(crate) async fn local() -> Stack {
    let authority = Authority::generate(&domain()).unwrap();
    let pem = authority.certificate_pem().to_owned();
    stack(Certificates::Local(authority.into()), pem).await
}

/// A front with these certificates, whose root is `authority`.
pub(crate) async fn stack(certificates: Certificates, authority: String) -> Stack {
    try_stack(certificates, authority).await.unwrap()
}

/// The same, which may fail to start.
pub(crate) async fn try_stack(certificates: Certificates, authority: String) -> Result<Stack> {
    let listener = loopback().await;
    let ended = CancellationToken::new();
    let guest = Guest { address: listener.local_addr().unwrap(), ended: ended.clone() };
    let options =
        client::Options { directory: Arc::new(Only(Arc::new(guest))), grace: Duration::ZERO };
    let proxy = client::Service::start(options, loopback().await, loopback().await).unwrap();
    let api = Router::new().route(
        "/who",
        any(async |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: axum::extract::Request| {
            let host = request.headers()["host"].to_str().unwrap();
            let scheme = request.extensions().get().unwrap_or(&Scheme::HTTP);
            format!("api {peer} {host} {scheme}")
        }),
    );
    let front = Service::start(Options {
        listener: loopback().await,
        identity: Identity::load(certificates, &domain())?,
        api,
        edge: proxy.edge(),
        grace: Duration::ZERO,
    })?;
    let address = front.handle().address();
    Ok(Stack { address, authority, ended, guest: Some(listener), _front: front, _proxy: proxy })
}

impl Stack {
    /// Serves `router` in the sandbox.
    pub(crate) fn serve(&mut self, router: Router) {
        let listener = self.guest.take().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    /// A server in the sandbox that says what of the request concerns the way it came.
    pub(crate) fn serve_echo(&mut self) {
        let echo = async |request: axum::extract::Request| {
            let header = |name| request.headers()[name].to_str().unwrap().to_owned();
            format!("guest {} {}", header("host"), header("x-forwarded-proto"))
        };
        self.serve(Router::new().fallback(any(echo)));
    }

    /// A TLS connection to `name`.
    pub(crate) async fn tls(&self, name: &str, protocols: &[&str]) -> io::Result<impl Io + use<>> {
        tls(self.address, &self.authority, name, protocols).await
    }

    /// Clients of every kind, connected.
    pub(crate) async fn clients(&self) -> Vec<(&'static str, Client)> {
        let name = format!("api.{DOMAIN}");
        vec![
            ("http", Client::http1(TcpStream::connect(self.address).await.unwrap()).await),
            ("http", Client::http2(TcpStream::connect(self.address).await.unwrap()).await),
            ("https", Client::http1(self.tls(&name, &["http/1.1"]).await.unwrap()).await),
            ("https", Client::http2(self.tls(&name, &["h2"]).await.unwrap()).await),
        ]
    }
}

/// What TLS and TCP have in common.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A TLS connection to `name` at `address`, by a client that trusts `authority`; it speaks the first
/// of `protocols`.
pub(crate) async fn tls(
    address: SocketAddr,
    authority: &str,
    name: &str,
    protocols: &[&str],
) -> io::Result<impl Io + use<>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let agreed = stream.get_ref().1.alpn_protocol();
    assert_eq!(agreed, protocols.first().map(|name| name.as_bytes()));
    Ok(stream)
}

/// A connection over which requests can be sent, one after another.
pub(crate) enum Client {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub(crate) async fn http1(stream: impl Io) -> Self {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver.with_upgrades());
        Self::Http1(sender)
    }

    pub(crate) async fn http2(stream: impl Io) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, driver) = handshake.await.unwrap();
        tokio::spawn(driver);
        Self::Http2(sender)
    }

    /// Asks `host` for `path`.
    pub(crate) async fn get(
        &mut self,
        host: &str,
        path: &str,
    ) -> hyper::Result<Response<Incoming>> {
        let request = Request::builder();
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                let request = request.uri(path).header("host", host);
                sender.send_request(request.body(Empty::new()).unwrap()).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                let request = request.uri(format!("https://{host}{path}"));
                sender.send_request(request.body(Empty::new()).unwrap()).await
            }
        }
    }

    /// The whole answer of `host` to a GET of `path`.
    pub(crate) async fn fetch(&mut self, host: &str, path: &str) -> (StatusCode, String) {
        let response = soon(self.get(host, path)).await.unwrap();
        let status = response.status();
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// What has to happen without further ado: a test that waits for nothing fails rather than hangs.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), event).await.expect("nothing happens")
}

/// A body that ends when `parts` does.
pub(crate) fn stream_of(
    parts: tokio::sync::mpsc::UnboundedReceiver<&'static str>,
) -> axum::body::Body {
    let stream = futures::stream::unfold(parts, async |mut parts| {
        parts.recv().await.map(|part| (Ok::<_, Infallible>(part), parts))
    });
    axum::body::Body::from_stream(stream)
}
