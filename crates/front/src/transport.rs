//! TLS and cleartext on one port, told apart by the first byte.
//!
//! A TLS connection begins with a handshake record, whose type is 22; HTTP begins with a letter.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use atoll_core::{Error, Result, error::codes};
use atoll_proxy::{HEAD_TIMEOUT, Opened, Transport};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::identity::Identity;

/// The first byte of a TLS connection (RFC 8446, 5.1: content type `handshake`).
const HANDSHAKE: u8 = 22;

/// What HTTP is spoken over TLS, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Opens connections of either kind.
pub(crate) struct Sniffing {
    acceptor: TlsAcceptor,
}

impl Sniffing {
    /// With the certificate that `identity` has at the time of each connection.
    pub(crate) fn new(identity: Arc<Identity>) -> Result<Self> {
        let unusable = |error: rustls::Error| {
            Error::new(codes::INTERNAL, format!("TLS cannot be set up: {error}."))
        };
        let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(identity);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    async fn negotiate(&self, stream: TcpStream) -> io::Result<Opened<Stream>> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] != HANDSHAKE {
            return Ok(Opened { stream: Stream::Cleartext(stream), secure: false });
        }
        let stream = self.acceptor.accept(stream).await?;
        Ok(Opened { stream: Stream::Tls(Box::new(stream)), secure: true })
    }
}

impl Transport for Sniffing {
    type Stream = Stream;

    /// Who connects has something to say, and says it within the time that a head may take.
    async fn open(&self, stream: TcpStream) -> io::Result<Opened<Stream>> {
        timeout(HEAD_TIMEOUT, self.negotiate(stream)).await?
    }
}

/// A connection of either kind.
pub(crate) enum Stream {
    Cleartext(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Cleartext(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Cleartext(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Cleartext(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Cleartext(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Cleartext(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Cleartext(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
