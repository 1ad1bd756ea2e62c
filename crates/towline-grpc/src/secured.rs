//! The bytes of a connection, with or without mutual TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::server::FallibleAccept;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::server::Connected;
use towline_engine::ids::NodeId;
use towline_engine::transport::BoxError;
use towline_tls::rustls_config::{SERVER_NAME, Verdict, accepting, dialling};
use towline_tls::{TlsConfig, TlsError};
use towline_wire::streams::Caller;

use crate::alive::Alive;
use crate::config::GrpcConfig;

/// The application protocol of gRPC inside TLS.
const ALPN: &[u8] = b"h2";
/// Bytes of a refused dialler that are read and dropped at once.
const DRAINED_BYTES: usize = 4 << 10;

/// A stream of bytes, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An accepted connection. Its TLS handshake runs in the task that serves the connection, at the first read, so a slow
/// handshake delays no other connection.
pub(crate) struct Accepted {
    caller: Arc<Caller>,
    state: State,
}

enum State {
    Open(Box<dyn Stream>),
    Shaking(Box<FallibleAccept<Alive>>, Verdict),
    /// The handshake failed. Bytes of the dialler are read until it closes: closing a socket with unread bytes would reset
    /// the connection, and the dialler would not see the reason. The bounds of unknown peers apply.
    Refused(Alive),
    Gone,
}

impl Accepted {
    pub(crate) fn new(socket: Alive, caller: Arc<Caller>, tls: Option<&TlsConfig>) -> Result<Self, TlsError> {
        let state = match tls {
            None => State::Open(Box::new(socket)),
            Some(tls) => {
                let (config, verdict) = accepting(tls, ALPN)?;
                let shaking = TlsAcceptor::from(config).accept(socket).into_fallible();
                State::Shaking(Box::new(shaking), verdict)
            }
        };
        Ok(Self { caller, state })
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Box<dyn Stream>>> {
        if let State::Shaking(shaking, verdict) = &mut self.state {
            let shaken: Result<server::TlsStream<Alive>, _> = ready!(pin!(shaking).poll(cx));
            match shaken {
                Ok(stream) => {
                    if let Some(identity) = verdict.identity() {
                        self.caller.identify(identity);
                    }
                    self.state = State::Open(Box::new(stream));
                }
                Err((error, socket)) => {
                    verdict.learn(&error);
                    tracing::debug!(%error, "TLS handshake failed");
                    // Without a verdict it was cut, or it is no TLS: the watch reports that in its drop.
                    if let Some(refusal) = verdict.listener_refusal() {
                        self.caller.refuse(&refusal);
                    }
                    self.state = State::Refused(socket);
                }
            }
        }
        if let State::Refused(socket) = &mut self.state {
            let mut bytes = [0; DRAINED_BYTES];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                match ready!(Pin::new(&mut *socket).poll_read(cx, &mut buffer)) {
                    Ok(()) if !buffer.filled().is_empty() => {}
                    _ => break,
                }
            }
            self.state = State::Gone;
        }
        Poll::Ready(match &mut self.state {
            State::Open(stream) => Ok(stream),
            _ => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "TLS refused the connection")),
        })
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_open(cx))?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(ready!(self.poll_open(cx))?).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(ready!(self.poll_open(cx))?).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.state {
            State::Open(stream) => stream.is_write_vectored(),
            _ => true,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_open(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(stream) => Pin::new(stream).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// A dialled connection. It notices the peer's refusal of this node's certificate. With TLS 1.3 the refusal arrives after the
/// handshake, and HTTP/2 would hide it.
pub(crate) struct Dialled {
    stream: Box<dyn Stream>,
    verdict: Option<Verdict>,
    end: WireEnd,
}

/// How a dialled connection ended. HTTP/2 reports the same error for an end by the peer and by its own keep-alive.
#[derive(Clone, Default)]
pub(crate) struct WireEnd(Arc<OnceLock<String>>);

impl WireEnd {
    pub(crate) fn seen(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn note(&self, end: impl Into<String>) {
        self.0.get_or_init(|| end.into());
    }
}

/// Why a connection failed. The verdict has the reason if a certificate was refused.
pub(crate) struct NotDialled {
    pub(crate) error: BoxError,
    pub(crate) verdict: Option<Verdict>,
}

/// Connects. With `tls`, certificates prove the node ids of both ends.
pub(crate) async fn dial(
    config: &GrpcConfig,
    socket: SocketAddr,
    tls: Option<&TlsConfig>,
    to: NodeId,
) -> Result<(Dialled, Option<Verdict>, WireEnd), NotDialled> {
    let failed = |error: io::Error| NotDialled { error: error.into(), verdict: None };
    let stream = TcpStream::connect(socket).await.map_err(failed)?;
    // On failure the connection works, but with longer waits.
    let _ = stream.set_nodelay(true);
    let mut stream = Alive::new(stream, None, config);
    let end = WireEnd::default();
    let Some(tls) = tls else {
        stream.judge();
        return Ok((Dialled { stream: Box::new(stream), verdict: None, end: end.clone() }, None, end));
    };
    let failed = |error: BoxError| NotDialled { error, verdict: None };
    let (config, verdict) = dialling(tls, to, ALPN).map_err(|error| failed(error.into()))?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| failed(error.into()))?;
    let shaken: io::Result<client::TlsStream<Alive>> = TlsConnector::from(config).connect(name, stream).await;
    match shaken {
        Ok(mut stream) => {
            stream.get_mut().0.judge();
            let stream = Box::new(stream);
            let dialled = Dialled { stream, verdict: Some(verdict.clone()), end: end.clone() };
            Ok((dialled, Some(verdict), end))
        }
        Err(error) => {
            verdict.learn(&error);
            Err(NotDialled { error: error.into(), verdict: Some(verdict) })
        }
    }
}

impl Dialled {
    /// Returns `polled`, and notes its error.
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.end.note(error.to_string());
        }
        polled
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (room, before) = (buf.remaining(), buf.filled().len());
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = ready!(self.noted(polled));
        match (&read, &self.verdict) {
            (Ok(()), _) if room > 0 && buf.filled().len() == before => {
                self.end.note("the peer closed the connection");
            }
            (Err(error), Some(verdict)) => verdict.learn(error),
            _ => {}
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.noted(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
