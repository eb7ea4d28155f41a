//! Forwarding: one request to one thing that can be dialled, and its response back.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use atoll_wire::guest::ENVD_PORT;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
    uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::TokioIo;
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    Access, NODE_TOKEN_HEADER, Target,
    body::{Body, GuestBody, RequestBody},
    connection::{Connection, Protocol},
    control, headers,
    pool::{self, Home, Lease, Pools},
    reply::{self, Audience, Failure},
    route::{self, Destination, ID_HEADER, PORT_HEADER},
    server::{Lifecycle, Peer},
};

/// The header for the token of a private sandbox.
pub(crate) const TRAFFIC_TOKEN: &str = "e2b-traffic-access-token";

/// The engine of one proxy.
pub(crate) struct Engine {
    pools: Arc<Pools>,
    lifecycle: Lifecycle,
}

/// A request that is known to be for a sandbox, and what has to be remembered of it.
pub(crate) struct Visit {
    pub(crate) destination: Destination,
    host: HeaderValue,
    audience: Audience,
    /// Where it came from, unless a proxy of ours has recorded that already.
    peer: Option<Peer>,
}

impl Visit {
    /// Finds out what `request` is for. Answers requests that are for nothing, and those for envd's
    /// control routes, before anybody looks for the sandbox.
    ///
    /// # Errors
    /// With the answer.
    pub(crate) fn begin<B>(
        request: &Request<B>,
        peer: Option<Peer>,
    ) -> Result<Self, Box<Response<Body>>> {
        if request.method() == Method::CONNECT {
            let message = "CONNECT is not supported";
            return Err(reply::plain(StatusCode::METHOD_NOT_ALLOWED, message).into());
        }
        let value = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        let host = route::host_of(request);
        let destination =
            route::select(host, value(ID_HEADER), value(PORT_HEADER)).map_err(reply::misrouted)?;
        if let Some(route) = control::refused(destination.port, request.uri().path()) {
            return Err(reply::reserved(route).into());
        }
        let host = HeaderValue::from_str(host)
            .map_err(|_| reply::misrouted(route::Refusal::InvalidHost))?;
        Ok(Self { destination, host, audience: Audience::of(request.headers()), peer })
    }

    /// The answer when the request cannot be served.
    pub(crate) fn fail(&self, failure: Failure) -> Response<Body> {
        reply::failed(&failure, &self.destination.sandbox, self.destination.port, self.audience)
    }

    /// Checks the traffic token, which envd's port does not need: envd has a token of its own.
    fn check(&self, access: &Access, parts: &Parts) -> Result<(), Failure> {
        let Some(token) = &access.traffic_token else { return Ok(()) };
        if self.destination.port == ENVD_PORT {
            return Ok(());
        }
        let given = parts.headers.get(TRAFFIC_TOKEN).ok_or(Failure::TokenMissing)?;
        if given.is_empty() {
            return Err(Failure::TokenMissing);
        }
        let equal = bool::from(given.as_bytes().ct_eq(token.as_bytes()));
        equal.then_some(()).ok_or(Failure::TokenInvalid)
    }

    /// The Host that the server in the sandbox is to see, and whether it is a mask.
    fn guest_host(&self, access: &Access) -> (HeaderValue, bool) {
        let port = self.destination.port;
        let mask = access.mask_host.as_ref().filter(|_| port != ENVD_PORT);
        let Some(mask) = mask else { return (self.host.clone(), false) };
        match HeaderValue::from_str(&mask.replace("${PORT}", &port.to_string())) {
            Ok(host) => (host, true),
            Err(_) => {
                tracing::warn!(sandbox = %self.destination.sandbox, mask, "unusable host mask");
                (self.host.clone(), false)
            }
        }
    }
}

/// A node's proxy, as something to dial.
pub(crate) struct NodeHop {
    address: SocketAddr,
    never: CancellationToken,
}

impl NodeHop {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, never: CancellationToken::new() }
    }
}

#[async_trait]
impl Target for NodeHop {
    async fn dial(&self, _port: u16) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.address).await
    }

    fn ended(&self) -> CancellationToken {
        self.never.clone()
    }

    fn access(&self) -> Access {
        Access::default()
    }
}

/// What goes out, once the headers are right.
struct Outgoing {
    request: Request<RequestBody>,
    protocol: Protocol,
    /// The client's side of a connection that is to be switched to another protocol.
    upgrade: Option<OnUpgrade>,
    /// Whether a connection that served an earlier request will do, and may serve a later one.
    reuse: bool,
    /// Whether it counts against the sandbox's limit of connections.
    limited: bool,
}

impl Engine {
    pub(crate) fn new(lifecycle: Lifecycle) -> Self {
        Self { pools: Pools::new(lifecycle.abort.clone()), lifecycle }
    }

    /// Forwards a request to a sandbox of this node.
    pub(crate) async fn to_guest(
        &self,
        target: Arc<dyn Target>,
        visit: &Visit,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        let access = target.access();
        let (mut parts, body) = request.into_parts();
        if let Err(failure) = visit.check(&access, &parts) {
            return visit.fail(failure);
        }
        let envd = visit.destination.port == ENVD_PORT;
        // Nothing of envd's upgrades, and what passed after an upgrade would pass unchecked.
        let upgrade = headers::wanted_upgrade(&parts).filter(|_| !envd);
        headers::prepare(&mut parts, !body.is_end_stream(), visit.peer);
        let (host, masked) = visit.guest_host(&access);
        if masked {
            parts.headers.insert(headers::FORWARDED_HOST, visit.host.clone());
        }
        let out = Outgoing { limited: true, ..self.outgoing(parts, body, host, upgrade, envd) };
        let ended = target.ended();
        tokio::select! {
            biased;
            () = ended.cancelled() => visit.fail(Failure::NotFound),
            answer = self.exchange(&target, visit.destination.port, out) => match answer {
                Ok(response) => response,
                Err(_) if ended.is_cancelled() => visit.fail(Failure::NotFound),
                Err(Stage::Place) => visit.fail(Failure::TooManyConnections(pool::MAX_CONNECTIONS)),
                Err(Stage::Dial) => visit.fail(Failure::PortClosed),
                Err(Stage::Exchange) => visit.fail(Failure::NoAnswer),
            },
        }
    }

    /// Forwards a request to the node that runs its sandbox.
    pub(crate) async fn to_node(
        &self,
        node: Arc<dyn Target>,
        token: &HeaderValue,
        visit: &Visit,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let upgrade = headers::wanted_upgrade(&parts);
        headers::prepare(&mut parts, !body.is_end_stream(), visit.peer);
        let Destination { sandbox, port } = &visit.destination;
        let Ok(id) = HeaderValue::from_str(sandbox.as_str()) else {
            return visit.fail(Failure::NotFound);
        };
        parts.headers.insert(ID_HEADER, id);
        parts.headers.insert(PORT_HEADER, HeaderValue::from(*port));
        parts.headers.insert(NODE_TOKEN_HEADER, token.clone());
        let out = self.outgoing(parts, body, visit.host.clone(), upgrade, true);
        match self.exchange(&node, *port, out).await {
            Ok(response) => response,
            Err(_) => visit.fail(Failure::NodeUnreachable),
        }
    }

    /// Gives a request the form that the next hop's protocol wants.
    fn outgoing(
        &self,
        mut parts: Parts,
        body: RequestBody,
        host: HeaderValue,
        upgrade: Option<HeaderValue>,
        reuse: bool,
    ) -> Outgoing {
        let grpc = headers::is_grpc(&parts);
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        // In HTTP/2 the host is part of the target. One that cannot be is left to HTTP/1.1.
        let absolute = host.to_str().ok().filter(|_| grpc).and_then(|authority| {
            let uri = Uri::builder().scheme("http").authority(authority);
            uri.path_and_query(path.clone()).build().ok()
        });
        let protocol = if let Some(uri) = absolute {
            parts.uri = uri;
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::HOST);
            Protocol::Http2
        } else {
            parts.uri = Uri::from(path);
            parts.version = Version::HTTP_11;
            parts.headers.insert(header::HOST, host);
            Protocol::Http1
        };
        if let Some(upgrade) = &upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, upgrade.clone());
        }
        Outgoing {
            reuse: reuse && protocol == Protocol::Http1 && upgrade.is_none(),
            request: Request::from_parts(parts, body),
            protocol,
            upgrade: on_upgrade.filter(|_| upgrade.is_some()),
            limited: false,
        }
    }

    /// Sends a request, and makes the client's response of what comes back.
    async fn exchange(
        &self,
        target: &Arc<dyn Target>,
        port: u16,
        out: Outgoing,
    ) -> Result<Response<Body>, Stage> {
        let Outgoing { request, protocol, upgrade, reuse, limited } = out;
        let home = reuse.then(|| Home {
            pools: Arc::clone(&self.pools),
            target: Arc::clone(target),
            request_finished: request.body().finished(),
        });
        let (mut response, connection) =
            self.send(target, port, request, protocol, home.is_some(), limited).await?;
        let lease = Lease::new(connection, home);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = upgrade.ok_or(Stage::Exchange)?;
            let guest = upgrade::on(&mut response);
            self.tunnel(client, guest, lease, target.ended());
            return Ok(response.map(|_| Body::whole(bytes::Bytes::new())));
        }
        headers::strip_hop_by_hop(response.headers_mut());
        // Or the server would answer in the version that the guest speaks.
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| Body::guest(GuestBody::new(body, lease, target.ended()))))
    }

    /// Sends a request over an idle connection, if one will do, else over a new one. An idle
    /// connection can turn out to be dead; then the request goes out once more, provided that
    /// nothing of it was sent or that sending it twice does no harm.
    async fn send(
        &self,
        target: &Arc<dyn Target>,
        port: u16,
        mut request: Request<RequestBody>,
        protocol: Protocol,
        reuse: bool,
        limited: bool,
    ) -> Result<(Response<Incoming>, Connection), Stage> {
        if reuse && let Some(mut connection) = self.pools.take(target) {
            let spare = self.spare(&request);
            match connection.send(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => {
                    request = error.take_message().or(spare).ok_or_else(|| {
                        tracing::debug!(error = %error.error(), "an idle connection failed");
                        Stage::Exchange
                    })?;
                }
            }
        }
        let place = match limited {
            true => Some(self.pools.place(target).ok_or(Stage::Place)?),
            false => None,
        };
        let stream = Connection::dial(&**target, port).await.map_err(|error| {
            tracing::debug!(%error, port, "dial failed");
            Stage::Dial
        })?;
        let failed = |error: &hyper::Error| {
            tracing::debug!(%error, port, "no response");
            Stage::Exchange
        };
        let mut connection =
            Connection::open(stream, protocol, place).await.map_err(|error| failed(&error))?;
        match connection.send(request).await {
            Ok(response) => Ok((response, connection)),
            Err(error) => Err(failed(error.error())),
        }
    }

    /// A copy of a request that may be sent twice: one that only reads and has no body.
    fn spare(&self, request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
        let safe = request.method().is_safe() && request.body().is_end_stream();
        safe.then(|| {
            let mut copy = Request::new(RequestBody::empty(&self.lifecycle));
            *copy.method_mut() = request.method().clone();
            *copy.uri_mut() = request.uri().clone();
            *copy.headers_mut() = request.headers().clone();
            copy
        })
    }

    /// Passes bytes between a client and a guest that have agreed on another protocol, until both
    /// have finished or the sandbox ends.
    fn tunnel(&self, client: OnUpgrade, guest: OnUpgrade, lease: Lease, ended: CancellationToken) {
        let abort = self.lifecycle.abort.clone();
        self.lifecycle.tasks.spawn(async move {
            let _lease = lease;
            let pass = async {
                let (client, guest) = tokio::try_join!(client, guest)?;
                let (mut client, mut guest) = (TokioIo::new(client), TokioIo::new(guest));
                tokio::io::copy_bidirectional(&mut client, &mut guest).await?;
                Ok::<(), crate::body::BoxError>(())
            };
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = abort.cancelled() => {}
                result = pass => if let Err(error) = result {
                    tracing::debug!(%error, "tunnel failed");
                },
            }
        });
    }
}

/// How far a request came that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No more connections are allowed.
    Place,
    /// No connection.
    Dial,
    /// A connection, but no valid response over it.
    Exchange,
}
