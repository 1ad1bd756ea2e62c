//! The socket of one client, and its deadlines.
//!
//! A loop does all possible work, then waits for an event that allows more. In every state it notices a reset of the
//! connection. A client that ends only its side may still read, so it gets its answers first. Everything that depends on the
//! client alone has a deadline.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut as _;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::time::Instant;

use crate::replica::Replica;

use super::pipeline::{Pipeline, TURN_BYTES};
use super::pool::Room;
use super::shared::{CloseCause, Shared};

const READ_BYTES: usize = 16 << 10;
/// The buffer of commands grows if it has less room than this.
const READ_BYTES_MIN: usize = 2 << 10;
/// Bytes read at once of a long argument.
const LONG_READ_BYTES: usize = 256 << 10;
/// Bytes that a client must take in each `write_timeout` while replies wait for it.
const WRITE_BYTES_MIN: usize = 64 << 10;
/// How often a connection checks whether others wait for the room that it keeps.
const WANTED_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn serve<R: Replica>(
    mut stream: TcpStream,
    id: u64,
    shared: Arc<Shared<R>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.split();
    let socket = writer.as_ref();
    let mut connection = Connection::new(Pipeline::new(shared, id));
    loop {
        connection.take_commands();
        let answered = connection.line.answer_now().await;
        let flushed = connection.flush(socket)?;
        if connection.line.is_done() {
            return Ok(());
        }
        let is_streaming = connection.line.streaming_since().is_some();
        if (answered || flushed > 0) && !connection.line.needs_input && !is_streaming {
            // Replies made room for further commands.
            if flushed >= TURN_BYTES {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let deadline = connection.deadline();
        let reads = connection.line.may_read();
        let writes = !connection.line.out.is_empty();
        tokio::select! {
            biased; // deadlines first: there may be progress for ever
            cause = due(deadline), if deadline.is_some() => {
                let Some(cause) = cause else { continue };
                connection.line.shared.counters.closed(cause).increment(1);
                return Err(io::Error::new(io::ErrorKind::TimedOut, cause.as_str()));
            }
            // A read would notice a reset too, but now the connection does not read.
            ready = socket.ready(Interest::ERROR), if !reads => {
                ready?;
                return Err(socket.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
            }
            progress = poll_fn(|cx| connection.poll(&mut reader, reads, cx)) => progress?,
            ready = poll_fn(|cx| socket.poll_write_ready(cx)), if writes => ready?,
        }
    }
}

/// Waits for the deadline, for ever without one. `None`: check again.
async fn due(deadline: Option<(Instant, Option<CloseCause>)>) -> Option<CloseCause> {
    match deadline {
        None => std::future::pending().await,
        Some((at, cause)) => {
            tokio::time::sleep_until(at).await;
            cause
        }
    }
}

struct Connection<R: Replica> {
    line: Pipeline<R>,
    /// Since when the input holds a part of a command.
    partial_since: Option<Instant>,
    /// Since when replies wait for the client, and the bytes that it has taken since.
    unread_since: Option<Instant>,
    taken_bytes: usize,
}

impl<R: Replica> Connection<R> {
    fn new(line: Pipeline<R>) -> Self {
        Self { line, partial_since: None, unread_since: None, taken_bytes: 0 }
    }

    fn take_commands(&mut self) {
        if self.line.take_commands() {
            self.partial_since = None;
        }
    }

    /// Ready after an answer, room in a pool, or input.
    fn poll(&mut self, reader: &mut ReadHalf<'_>, reads: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.poll_progress(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if reads { self.poll_read(reader, cx) } else { Poll::Pending }
    }

    fn poll_read(&mut self, reader: &mut ReadHalf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Pipeline { decoder, input, .. } = &mut self.line;
        let missing = decoder.missing().clamp(READ_BYTES_MIN, LONG_READ_BYTES);
        let most = missing.max(READ_BYTES);
        if !input.try_reclaim(most) && input.capacity() - input.len() < missing {
            input.reserve(most);
        }
        let mut room = input.limit(most);
        let bytes = ready!(pin!(reader.read_buf(&mut room)).poll(cx))?;
        self.line.ended = bytes == 0;
        self.moved(bytes);
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let flushed = self.line.out.flush(socket)?;
        self.moved(flushed);
        if self.line.out.is_empty() {
            self.unread_since = None;
            return Ok(flushed);
        }
        let now = Instant::now();
        self.taken_bytes += flushed;
        if self.unread_since.is_none() {
            self.line.rooms().for_each(|room| room.renew(now));
        }
        if self.unread_since.is_none() || self.taken_bytes >= WRITE_BYTES_MIN {
            (self.unread_since, self.taken_bytes) = (Some(now), 0);
        }
        Ok(flushed)
    }

    fn moved(&mut self, bytes: usize) {
        let mut rooms = self.line.rooms().peekable();
        if rooms.peek().is_some() {
            let now = Instant::now();
            rooms.for_each(|room| room.moved(bytes, now));
        }
    }

    /// The next deadline of the client, or when to check again whether others wait for the room that it keeps.
    fn deadline(&mut self) -> Option<(Instant, Option<CloseCause>)> {
        let is_partial = self.line.may_read() && !self.line.input.is_empty();
        let streaming_since = self.line.streaming_since();
        if !is_partial {
            self.partial_since = None;
            if self.unread_since.is_none() && streaming_since.is_none() {
                return None;
            }
        }
        let now = Instant::now();
        if is_partial && self.partial_since.is_none() {
            self.partial_since = Some(now);
            if let Some(room) = self.line.receiving_room() {
                room.renew(now);
            }
        }
        // A whole command waits for the cluster, not for its client, unless replies wait for the client.
        let wanted = match self.unread_since {
            Some(_) => {
                let wanted = self.line.rooms().map(|room| wanted(room, CloseCause::Reply, now));
                wanted.min_by_key(|(at, _)| *at)
            }
            None if is_partial => {
                self.line.receiving_room().map(|room| wanted(room, CloseCause::Command, now))
            }
            None => None,
        };
        let limits = &self.line.shared.limits;
        let after = |since: Option<Instant>, timeout: Duration, cause| Some((since? + timeout, Some(cause)));
        [
            wanted,
            after(self.partial_since, limits.command_timeout, CloseCause::Command),
            after(self.unread_since, limits.write_timeout, CloseCause::Write),
            after(streaming_since.or(self.line.out.large_since()), limits.reply_timeout, CloseCause::Reply),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }
}

/// When the client must give `room` back if others wait for it, or when to check again.
fn wanted(room: &Room, cause: CloseCause, now: Instant) -> (Instant, Option<CloseCause>) {
    match room.due() {
        at if at > now => (at, None),
        at if room.is_wanted() => (at, Some(cause)),
        _ => (now + WANTED_INTERVAL, None),
    }
}
