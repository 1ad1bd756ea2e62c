//! The socket of an accepted connection, watched until its peer has passed the handshake.
//!
//! The library under us has no bound on how long a connection may stay without a request, nor on what it may send
//! before one, and tells nobody why a connection failed. So the socket itself is wrapped.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use towline_engine::transport::Refusal;
use towline_wire::streams::{Caller, Listening, Phase, Unwanted};

use crate::alive::Alive;

/// Bytes a connection may send before its peer is admitted: TLS with a chain of certificates, preface, settings, headers
/// and a hello.
const HANDSHAKE_BYTES_MAX: usize = 32 << 10;

/// Why a connection is cut from our side.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Closed,
    Flood,
    Unwanted(Unwanted),
}

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Closed => io::Error::new(io::ErrorKind::ConnectionAborted, "the listener is closed"),
            Cut::Flood => io::Error::new(io::ErrorKind::InvalidData, "too many bytes before the handshake"),
            Cut::Unwanted(why) => io::Error::new(io::ErrorKind::ConnectionAborted, why.as_str()),
        }
    }
}

/// The socket.
pub(crate) struct Watched {
    socket: Alive,
    caller: Arc<Caller>,
    end: Pin<Box<dyn Future<Output = Cut> + Send>>,
    cut: Option<Cut>,
    /// Bytes that came so far, until the peer is admitted.
    bytes: usize,
    _counted: Arc<()>,
}

impl Watched {
    pub(crate) fn new(socket: Alive, listening: &Arc<Listening>, surplus: bool, counted: Arc<()>) -> Self {
        let caller = Caller::new(listening, surplus);
        let (watched, closed) = (Arc::clone(&caller), listening.reached(Phase::Closed));
        let end = Box::pin(async move {
            tokio::select! {
                () = closed => Cut::Closed,
                why = watched.unwanted() => Cut::Unwanted(why),
            }
        });
        Self { socket, caller, end, cut: None, bytes: 0, _counted: counted }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.is_none()
            && let Poll::Ready(cut) = self.end.as_mut().poll(cx)
        {
            self.cut = Some(cut);
        }
        // Before, other bounds hold.
        if self.caller.is_admitted() {
            self.socket.judge();
        }
        self.cut.map_or(Ok(()), |cut| Err(cut.into()))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let malformed = |detail: &str| Refusal::Malformed { detail: detail.into() };
        self.caller.gone(&match self.cut {
            Some(Cut::Closed) => Refusal::ShuttingDown,
            Some(Cut::Flood) => malformed("too many bytes before a hello"),
            Some(Cut::Unwanted(why)) => why.refusal(),
            None => malformed("the connection ended, or spoke something else, before a hello"),
        });
    }
}

impl Connected for Watched {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
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
        if !self.caller.is_admitted() {
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
