//! Whether a connection is alive, judged by what comes from its peer.
//!
//! The keep-alive of HTTP/2 wants an answer in time, but its question waits behind the bytes that this side still has to
//! send. Over a slow link it would give up a peer that takes every byte. So HTTP/2 only asks, and the socket judges: a
//! connection is dead when no byte came from its peer for `keepalive_interval + keepalive_timeout`. A listener that only
//! receives sends an empty message each `keepalive_interval`, see [`Outgoing`](crate::stream::Outgoing).

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

/// How long the library waits for an answer to its own keep-alive: so long that it never decides.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(3600);

/// What a dead connection fails with.
pub(crate) const KEEPALIVE_GAVE_UP: &str = "keep-alive: the peer did not answer in time";

/// Bytes that are read before the library asks for them. It stops reading while it writes a long frame, and a peer that
/// only receives sends some forty bytes each keep-alive interval.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// A socket that fails once its peer was silent for too long, or once its [`Watch`] says so.
pub(crate) struct Alive {
    socket: TcpStream,
    /// Of an accepted connection.
    watch: Option<Watch>,
    silence_max: Duration,
    /// When the last byte came. `None`: any silence passes.
    heard: Option<Instant>,
    due: Pin<Box<Sleep>>,
    dead: bool,
    /// What was read before the library asked for it.
    ahead: Vec<u8>,
}

impl Alive {
    /// Lets any silence pass until [`judge`](Self::judge), or until `watch` has admitted the peer.
    pub(crate) fn new(socket: TcpStream, watch: Option<Watch>, config: &GrpcConfig) -> Self {
        let silence_max = config.keepalive_interval.saturating_add(config.keepalive_timeout);
        let due = Box::pin(sleep_until(Instant::now()));
        Self { socket, watch, silence_max, heard: None, due, dead: false, ahead: Vec::new() }
    }

    /// From now on the peer must send something in time.
    pub(crate) fn judge(&mut self) {
        self.heard.get_or_insert_with(Instant::now);
    }

    /// Fails once the watch has cut the connection.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watch) = &mut self.watch
            && watch.admits(cx)?
        {
            self.judge();
        }
        Ok(())
    }

    /// Fails once the connection is cut or the peer was silent for too long, and wakes the task then.
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

    /// Reads ahead, and says whether anything has come.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; AHEAD_BYTES_MAX];
        let room = AHEAD_BYTES_MAX.saturating_sub(self.ahead.len());
        let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else { return false };
        match self.socket.try_read(bytes) {
            Ok(read) => self.ahead.extend_from_slice(bytes.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // The library finds it with its next read.
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
        // Before the check: bytes that wait in the socket are a sign of life, however late they are read.
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
        // The check may have read ahead just now; then it wakes no task.
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
