//! An accepted connection, watched until its peer has passed the handshake.
//!
//! The library under us has no bound on how long a connection may stay without a request, nor on what it may send
//! before one, and tells nobody why a connection failed. So the socket itself is wrapped.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tonic::transport::server::Connected;
use towline_engine::ids::NodeId;
use towline_engine::transport::{CertIdentity, Refusal};
use towline_wire::{Place, Standing};

use crate::lane::FAREWELL;
use crate::listener::{Phase, Shared};

/// Bytes a connection may send before its peer is admitted: TLS with a chain of certificates, preface, settings, headers
/// and a hello.
const HANDSHAKE_BYTES_MAX: usize = 32 << 10;

/// What is known of one connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// Whether it is beyond the bound and only waits for its refusal.
    pub(crate) surplus: bool,
    /// Who its certificate says it is. Before TLS has ended, and without TLS, nobody.
    identity: OnceLock<CertIdentity>,
    admitted: AtomicBool,
    answered: AtomicBool,
    place: Place<NodeId, watch::Sender<()>>,
    kept: watch::Receiver<()>,
    /// The listener's shutdown waits until all of these are gone.
    _alive: mpsc::Sender<Infallible>,
}

impl Connection {
    pub(crate) fn identify(&self, identity: Option<CertIdentity>) {
        if let Some(identity) = identity {
            self.place.take(&self.shared.peers, identity.node, Standing::Calling);
            let _ = self.identity.set(identity);
        }
    }

    pub(crate) fn identity(&self) -> Option<&CertIdentity> {
        self.identity.get()
    }

    /// A peer passed the handshake on it: the bounds for strangers no longer apply.
    pub(crate) fn admit(&self, peer: NodeId) {
        self.place.take(&self.shared.peers, peer, Standing::Admitted);
        self.admitted.store(true, Ordering::Release);
        self.answered.store(true, Ordering::Release);
    }

    /// The engine itself refused; it knows.
    pub(crate) fn refused_by_engine(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// The transport refused: the engine is told, once a connection.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            tracing::debug!(%refusal, "connection refused");
            self.shared.inbound.refused(refusal);
        }
    }

    /// Ends when newer connections of the same peer took its place.
    pub(crate) async fn replaced(&self) {
        let mut kept = self.kept.clone();
        // Nothing is ever sent: it ends when the sender is dropped.
        while kept.changed().await.is_ok() {}
    }

    fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }
}

/// Why a connection is cut from our side.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Closed,
    Late,
    Flood,
    Replaced,
}

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Closed => io::Error::new(io::ErrorKind::ConnectionAborted, "the listener is closed"),
            Cut::Late => io::Error::new(io::ErrorKind::TimedOut, "no hello within the handshake timeout"),
            Cut::Flood => io::Error::new(io::ErrorKind::InvalidData, "too many bytes before the handshake"),
            Cut::Replaced => io::Error::new(io::ErrorKind::ConnectionAborted, "a newer one took the place"),
        }
    }
}

/// The socket.
pub(crate) struct Watched {
    socket: TcpStream,
    connection: Arc<Connection>,
    end: Pin<Box<dyn Future<Output = Cut> + Send>>,
    cut: Option<Cut>,
    bytes: usize,
}

impl Watched {
    pub(crate) fn new(
        socket: TcpStream,
        surplus: bool,
        shared: Arc<Shared>,
        alive: mpsc::Sender<Infallible>,
    ) -> Self {
        let phase = shared.phase.subscribe();
        let deadline = tokio::time::sleep(shared.config.handshake_timeout * 2);
        let (keeps, kept) = watch::channel(());
        let connection = Arc::new(Connection {
            shared,
            surplus,
            identity: OnceLock::new(),
            admitted: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            place: Place::new(keeps),
            kept,
            _alive: alive,
        });
        let end = Box::pin(end(Arc::clone(&connection), phase, deadline));
        Self { socket, connection, end, cut: None, bytes: 0 }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.is_none()
            && let Poll::Ready(cut) = self.end.as_mut().poll(cx)
        {
            self.cut = Some(cut);
        }
        self.cut.map_or(Ok(()), |cut| Err(cut.into()))
    }
}

async fn end(
    connection: Arc<Connection>,
    mut phase: watch::Receiver<Phase>,
    deadline: tokio::time::Sleep,
) -> Cut {
    let late = async {
        deadline.await;
        if connection.is_admitted() { std::future::pending().await } else { Cut::Late }
    };
    let replaced = async {
        connection.replaced().await;
        // Counted whether or not it ever got as far as a hello: a bound was hit.
        connection.answered.store(true, Ordering::Release);
        tracing::debug!("a connection made room for newer ones of the same peer");
        connection.shared.inbound.refused(&Refusal::TooManyConnections);
        // Its streams are told first.
        tokio::time::sleep(FAREWELL).await;
        Cut::Replaced
    };
    tokio::select! {
        _ = phase.wait_for(|phase| *phase == Phase::Closed) => Cut::Closed,
        cut = late => cut,
        cut = replaced => cut,
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let malformed = |detail: &str| Refusal::Malformed { detail: detail.into() };
        self.connection.refuse(&match self.cut {
            Some(Cut::Late) => Refusal::HandshakeTimeout,
            Some(Cut::Closed) => Refusal::ShuttingDown,
            Some(Cut::Flood) => malformed("too many bytes before a hello"),
            Some(Cut::Replaced) => Refusal::TooManyConnections,
            None => malformed("the connection ended, or spoke something else, before a hello"),
        });
        self.connection.shared.connections.fetch_sub(1, Ordering::AcqRel);
        // Its streams may live a moment longer; the place is free now.
        self.connection.place.give_up();
    }
}

impl Connected for Watched {
    type ConnectInfo = Arc<Connection>;

    fn connect_info(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        if !self.connection.is_admitted() {
            self.bytes = self.bytes.saturating_add(buf.filled().len().saturating_sub(before));
            if self.bytes > HANDSHAKE_BYTES_MAX {
                self.cut = Some(Cut::Flood);
                return Poll::Ready(Err(Cut::Flood.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
