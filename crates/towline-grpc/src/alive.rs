//! Decides whether a connection is alive, by the bytes that arrive from its peer.
//!
//! HTTP/2's keep-alive expects the answer to its ping in time, but the ping waits behind bytes that this side still sends.
//! Over a slow link it would cut a peer that takes every byte. Therefore HTTP/2 only pings, and the socket decides: a
//! connection is dead when no byte arrived for `keepalive_interval + keepalive_timeout`. A listener that only receives sends
//! an empty message each `keepalive_interval`, see [`Outgoing`](crate::stream::Outgoing).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::GrpcConfig;
use crate::connection::Watch;

/// The library's own keep-alive timeout: so long that the library never cuts a connection.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(3600);

pub(crate) const KEEPALIVE_GAVE_UP: &str = "keep-alive: the peer did not answer in time";

/// Bytes read ahead of the library, which stops reading while it writes a long frame. A peer that only receives sends about
/// forty bytes each keep-alive interval.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// A socket that fails when its peer was silent for too long, or when its [`Watch`] cuts the connection.
pub(crate) struct Alive {
    socket: TcpStream,
    /// `None` for a dialled connection.
    watch: Option<Watch>,
    silence_max: Duration,
    /// When the last byte arrived. `None` allows any silence.
    heard: Option<Instant>,
    due: Pin<Box<Sleep>>,
    dead: bool,
    /// Bytes read ahead of the library.
    ahead: Vec<u8>,
}

impl Alive {
    /// Allows any silence until [`judge`](Self::judge), or until `watch` admits the peer.
    pub(crate) fn new(socket: TcpStream, watch: Option<Watch>, config: &GrpcConfig) -> Self {
        let silence_max = config.keepalive_interval.saturating_add(config.keepalive_timeout);
        let due = Box::pin(sleep_until(Instant::now()));
        Self { socket, watch, silence_max, heard: None, due, dead: false, ahead: Vec::new() }
    }

    /// Starts to limit the peer's silence.
    pub(crate) fn judge(&mut self) {
        self.heard.get_or_insert_with(Instant::now);
    }

    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watch) = &mut self.watch
            && watch.admits(cx)?
        {
            self.judge();
        }
        Ok(())
    }

    /// Fails when the connection is cut or the peer was silent for too long. Wakes the task at that time.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.watch(cx)?;
        while !self.dead
            && let Some(heard) = self.heard
            && self.due.as_mut().poll(cx).is_ready()
        {
            self.dead = heard.elapsed() >= self.silence_max && !self.hear();
            self.due.as_mut().reset(self.heard.unwrap_or(heard) + self.silence_max);
        }
        match self.dead {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, KEEPALIVE_GAVE_UP)),
            false => Ok(()),
        }
    }

    /// Reads ahead. Returns whether any byte arrived.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; AHEAD_BYTES_MAX];
        let room = AHEAD_BYTES_MAX.saturating_sub(self.ahead.len());
        let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else { return false };
        match self.socket.try_read(bytes) {
            Ok(read) => self.ahead.extend_from_slice(bytes.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // The library's next read returns it.
            Err(_) => {}
        }
        self.heard = Some(Instant::now());
        true
    }
}

impl AsyncRead for Alive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watch(cx)?;
        if !self.ahead.is_empty() {
            let given = self.ahead.len().min(buf.remaining());
            buf.put_slice(self.ahead.get(..given).unwrap_or_default());
            self.ahead.drain(..given);
            return Poll::Ready(Ok(()));
        }
        // Before the check: bytes in the socket are a sign of life, even if they are read late.
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.socket).poll_read(cx, buf) {
            let bytes = buf.filled().len().saturating_sub(before);
            if let Some(watch) = &mut self.watch {
                watch.received(bytes)?;
            }
            if bytes > 0 && self.heard.is_some() {
                self.heard = Some(Instant::now());
            }
            return Poll::Ready(read);
        }
        self.check(cx)?;
        // If the check has just read ahead, no task would be woken.
        if self.ahead.is_empty() { Poll::Pending } else { self.poll_read(cx, buf) }
    }
}

impl AsyncWrite for Alive {
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
