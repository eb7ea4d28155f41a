//! One connection to a guest (or to a node's proxy): dialling it, and sending one request at a time
//! over it.

use std::{io, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use tokio_util::task::AbortOnDropHandle;

use crate::{Target, body::RequestBody};

/// How often a refused connection is tried, and by how much longer each time the pause before the
/// next try is. A server that has just been started needs a moment until it listens.
const ATTEMPTS: u32 = 5;
const BACK_OFF: Duration = Duration::from_millis(100);

/// How long one try may take. Connections are local or to a neighbouring node.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What one connection may buffer in each direction, bytes. A guest that sends much, to a client
/// that reads nothing, costs the daemon no more than this.
const MAX_BUFFER: u32 = 64 << 10;

/// Which HTTP to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// Without TLS and without asking first.
    Http2,
}

/// An open connection. Dropping it closes it at once, whatever is under way.
pub(crate) struct Connection {
    sender: Sender,
    _driver: AbortOnDropHandle<()>,
    _place: Option<OwnedSemaphorePermit>,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Why a request got no response. With the request when nothing of it was sent.
pub(crate) type SendError = TrySendError<Request<RequestBody>>;

impl Connection {
    /// Dials `port` of `target`, again and again for about a second while it is refused.
    ///
    /// # Errors
    /// What the last try failed with.
    pub(crate) async fn dial(target: &dyn Target, port: u16) -> io::Result<TcpStream> {
        let mut attempt = 1;
        loop {
            let dial = tokio::time::timeout(DIAL_TIMEOUT, target.dial(port));
            match dial.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && attempt < ATTEMPTS =>
                {
                    tokio::time::sleep(BACK_OFF * attempt).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Speaks `protocol` over `stream`, which occupies `place` until it is closed.
    ///
    /// # Errors
    /// When HTTP/2's preface cannot be written.
    pub(crate) async fn open(
        stream: TcpStream,
        protocol: Protocol,
        place: Option<OwnedSemaphorePermit>,
    ) -> hyper::Result<Self> {
        let io = TokioIo::new(stream);
        let (sender, driver) = match protocol {
            Protocol::Http1 => {
                let mut builder = http1::Builder::new();
                builder.max_buf_size(MAX_BUFFER as usize);
                let (sender, driver) = builder.handshake(io).await?;
                let driver = tokio::spawn(async move {
                    if let Err(error) = driver.with_upgrades().await {
                        tracing::debug!(%error, "connection to a guest failed");
                    }
                });
                (Sender::Http1(sender), driver)
            }
            Protocol::Http2 => {
                // Each connection carries one stream.
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .initial_stream_window_size(MAX_BUFFER)
                    .initial_connection_window_size(MAX_BUFFER)
                    .max_send_buf_size(MAX_BUFFER as usize);
                let (sender, driver) = builder.handshake(io).await?;
                let driver = tokio::spawn(async move {
                    if let Err(error) = driver.await {
                        tracing::debug!(%error, "HTTP/2 connection to a guest failed");
                    }
                });
                (Sender::Http2(sender), driver)
            }
        };
        Ok(Self { sender, _driver: AbortOnDropHandle::new(driver), _place: place })
    }

    /// Sends a request and waits for the head of the response.
    ///
    /// # Errors
    /// When the connection fails before that head has come.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    /// Whether it can take a request now.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => sender.is_ready(),
        }
    }

    /// Whether it is of no more use.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }
}
