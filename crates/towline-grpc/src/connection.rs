//! Watches an accepted connection until its peer has passed the handshake.
//!
//! The library bounds neither the time nor the bytes of a connection before its first request, and does not tell why a
//! connection failed. The [socket](crate::alive::Alive) therefore asks a watch.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use towline_engine::transport::Refusal;
use towline_wire::streams::{Caller, Listening, Phase, Unwanted};

/// Bytes that a connection may send before its peer is admitted: TLS with a chain of certificates, preface, settings,
/// headers and a hello.
const HANDSHAKE_BYTES_MAX: usize = 32 << 10;

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

pub(crate) struct Watch {
    caller: Arc<Caller>,
    end: Pin<Box<dyn Future<Output = Cut> + Send>>,
    cut: Option<Cut>,
    /// Bytes received before the peer was admitted.
    bytes: usize,
    _counted: Arc<()>,
}

impl Watch {
    pub(crate) fn new(caller: &Arc<Caller>, listening: &Listening, counted: Arc<()>) -> Self {
        let (watched, closed) = (Arc::clone(caller), listening.reached(Phase::Closed));
        let end = Box::pin(async move {
            tokio::select! {
                () = closed => Cut::Closed,
                why = watched.unwanted() => Cut::Unwanted(why),
            }
        });
        Self { caller: Arc::clone(caller), end, cut: None, bytes: 0, _counted: counted }
    }

    /// Whether the peer is admitted. Fails when the connection is cut, and wakes the task at that time.
    pub(crate) fn admits(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.cut.is_none()
            && let Poll::Ready(cut) = self.end.as_mut().poll(cx)
        {
            self.cut = Some(cut);
        }
        self.cut.map_or(Ok(self.caller.is_admitted()), |cut| Err(cut.into()))
    }

    /// Counts received bytes. Fails above the bound before the peer is admitted.
    pub(crate) fn received(&mut self, bytes: usize) -> io::Result<()> {
        if self.caller.is_admitted() {
            return Ok(());
        }
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= HANDSHAKE_BYTES_MAX {
            return Ok(());
        }
        self.cut = Some(Cut::Flood);
        Err(Cut::Flood.into())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let malformed = |detail: &str| Refusal::Malformed { detail: detail.into() };
        self.caller.gone(&match self.cut {
            Some(Cut::Closed) => Refusal::ShuttingDown,
            Some(Cut::Flood) => malformed("too many bytes before a hello"),
            Some(Cut::Unwanted(why)) => why.refusal(),
            None => malformed("the connection ended, or spoke another protocol, before a hello"),
        });
    }
}
