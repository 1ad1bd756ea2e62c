//! One client: commands in, replies out in the order of the commands.
//!
//! Writes are submitted as they are read, without waiting for each other; their replies stand in a bounded queue. A read
//! starts its barrier once every earlier write of its connection is answered, so that it sees them, and a write behind a
//! read is held back until the read is answered, so that it does not. One barrier serves the run of reads that waited
//! when it started. Nothing is spawned for a command.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::machine::View;
use crate::replica::{ReadError, Replica, Role};

use super::cluster::slot;
use super::commands::{Keyed, Read, find, keyed};
use super::decode::Decoder;
use super::reply::Reply;
use super::server::Shared;
use super::session::Session;
use super::table::Spec;

/// Replies one connection may wait for. At the bound its socket is not read.
pub(super) const PENDING_MAX: usize = 1_024;
/// Bytes of replies a client may leave unread. At the bound its commands are neither read nor answered.
const OUT_BYTES_HIGH: usize = 1 << 20;
const READ_BYTES: usize = 16 << 10;
/// A buffer that grew past this for one burst is given back.
const OUT_BYTES_KEPT: usize = 64 << 10;

type Barrier = Pin<Box<dyn Future<Output = Result<View, ReadError>> + Send>>;

struct Waiting<P> {
    kind: Kind<P>,
    resp3: bool,
}

enum Kind<P> {
    Ready(Reply),
    Write { pending: P, slot: u16 },
    Read(Read),
}

/// Everything of a connection but its socket.
struct Pipeline<R: Replica> {
    shared: Arc<Shared<R>>,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    out: BytesMut,
    waiting: VecDeque<Waiting<R::Pending>>,
    barrier: Option<Barrier>,
    /// How many at the head of `waiting` the barrier covers, and once it is through, with what.
    covered: usize,
    passed: Option<Result<View, ReadError>>,
    /// A write behind reads that are not answered yet.
    held: Option<Vec<Bytes>>,
    /// No more bytes come.
    ended: bool,
    /// No more commands are taken; what waits is answered.
    closing: bool,
}

/// Why no more commands were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The next command is not there as a whole.
    NeedsInput,
    /// It must wait for replies to go out.
    NeedsAnswers,
    Closing,
}

pub(super) async fn serve<R: Replica>(
    stream: TcpStream,
    id: u64,
    shared: Arc<Shared<R>>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut line = Pipeline {
        decoder: Decoder::new(shared.limits.command_bytes_max),
        shared,
        session: Session::new(id),
        input: BytesMut::with_capacity(READ_BYTES),
        out: BytesMut::new(),
        waiting: VecDeque::new(),
        barrier: None,
        covered: 0,
        passed: None,
        held: None,
        ended: false,
        closing: false,
    };
    loop {
        let stopped = line.take_commands();
        let answered = line.answer_now().await;
        flush(&stream, &mut line.out)?;
        if stopped == Stopped::NeedsAnswers && answered && line.has_room() {
            continue;
        }
        let done = line.closing || line.ended && stopped == Stopped::NeedsInput;
        if done && line.waiting.is_empty() && line.out.is_empty() {
            return Ok(());
        }
        let may_read = stopped == Stopped::NeedsInput && !line.ended && line.has_room();
        let may_answer = line.may_answer();
        tokio::select! {
            ready = stream.readable(), if may_read => {
                ready?;
                line.input.reserve(READ_BYTES);
                match stream.try_read_buf(&mut line.input) {
                    Ok(0) => line.ended = true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            ready = stream.writable(), if !line.out.is_empty() => ready?,
            () = poll_fn(|cx| line.poll_answer(cx)), if may_answer => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// Gives the system what it takes.
fn flush(stream: &TcpStream, out: &mut BytesMut) -> io::Result<()> {
    while !out.is_empty() {
        match stream.try_write(out) {
            Ok(written) => out.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    if out.capacity() > OUT_BYTES_KEPT {
        *out = BytesMut::new();
    }
    Ok(())
}

impl<R: Replica> Pipeline<R> {
    fn has_room(&self) -> bool {
        self.waiting.len() < PENDING_MAX && self.out.len() < OUT_BYTES_HIGH
    }

    fn may_answer(&self) -> bool {
        !self.waiting.is_empty() && self.out.len() < OUT_BYTES_HIGH
    }

    /// Takes whole commands out of the input, as long as they may be started.
    fn take_commands(&mut self) -> Stopped {
        while !self.closing {
            if !self.has_room() {
                return Stopped::NeedsAnswers;
            }
            let next = match self.held.take() {
                Some(args) => Ok(Some(args)),
                None => self.decoder.next(&mut self.input),
            };
            match next {
                Ok(Some(args)) => {
                    let found = find(&args);
                    if found.as_ref().is_ok_and(|spec| spec.flag == "write") && self.reads_wait() {
                        self.held = Some(args);
                        return Stopped::NeedsAnswers;
                    }
                    let kind = match found {
                        Ok(spec) => self.start(spec, &args),
                        Err(reply) => Kind::Ready(reply),
                    };
                    // HELLO and RESET already answer in the protocol they switch to.
                    self.waiting.push_back(Waiting { kind, resp3: self.session.resp3 });
                    self.closing |= self.session.quit;
                }
                Ok(None) => return Stopped::NeedsInput,
                Err(error) => {
                    self.push(Reply::error(format!("ERR {error}")));
                    self.closing = true;
                }
            }
        }
        Stopped::Closing
    }

    /// Reads stand behind writes, never before one: so it is enough to look at the end, past what is ready.
    fn reads_wait(&self) -> bool {
        let last = self.waiting.iter().rev().find(|w| !matches!(w.kind, Kind::Ready(_)));
        matches!(last, Some(Waiting { kind: Kind::Read(_), .. }))
    }

    fn push(&mut self, reply: Reply) {
        self.waiting.push_back(Waiting { kind: Kind::Ready(reply), resp3: self.session.resp3 });
    }

    fn start(&mut self, spec: &Spec, args: &[Bytes]) -> Kind<R::Pending> {
        let Shared { replica, members, limits } = &*self.shared;
        match keyed(spec, args, || replica.now_ms(), limits.command_bytes_max) {
            Err(reply) => Kind::Ready(reply),
            Ok(Some(Keyed::Write { key, command })) => {
                let slot = slot(&key);
                match replica.submit(command) {
                    Ok(pending) => Kind::Write { pending, slot },
                    Err(error) => Kind::Ready(Reply::of_write_error(&error, slot, members)),
                }
            }
            Ok(Some(Keyed::Read { key: Some(key), read })) => {
                let state = replica.state();
                if state.role == Role::Leader || self.session.reads_here {
                    Kind::Read(read)
                } else {
                    Kind::Ready(members.moved(slot(&key), state.leader))
                }
            }
            Ok(Some(Keyed::Read { key: None, read })) => Kind::Read(read),
            Ok(None) => Kind::Ready(self.session.command(spec, args, members, &replica.state())),
        }
    }

    /// Answers all that can be answered. A batch that is applied resolves its writes one by one, so those that follow are
    /// given one more turn before the system is called. Whether there were any.
    async fn answer_now(&mut self) -> bool {
        let before = self.waiting.len();
        poll_fn(|cx| {
            self.answer_some(cx);
            Poll::Ready(())
        })
        .await;
        let answered = self.waiting.len() < before;
        if answered && !self.waiting.is_empty() {
            tokio::task::yield_now().await;
            poll_fn(|cx| {
                self.answer_some(cx);
                Poll::Ready(())
            })
            .await;
        }
        answered
    }

    /// Ready once something was answered.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let before = self.waiting.len();
        self.answer_some(cx);
        if self.waiting.len() < before { Poll::Ready(()) } else { Poll::Pending }
    }

    fn answer_some(&mut self, cx: &mut Context<'_>) {
        while self.out.len() < OUT_BYTES_HIGH {
            let Some(head) = self.waiting.front_mut() else { return };
            let reply = match &mut head.kind {
                Kind::Ready(reply) => std::mem::replace(reply, Reply::Nil),
                Kind::Write { pending, slot } => match Pin::new(pending).poll(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(answer)) => Reply::of_answer(answer),
                    Poll::Ready(Err(error)) => Reply::of_write_error(&error, *slot, &self.shared.members),
                },
                Kind::Read(read) => match &self.passed {
                    Some(Ok(view)) if self.covered > 0 => read.answer(view),
                    Some(Err(error)) if self.covered > 0 => Reply::of_read_error(error),
                    _ => match self.poll_barrier(cx) {
                        Poll::Pending => return,
                        Poll::Ready(()) => continue,
                    },
                },
            };
            let resp3 = head.resp3;
            reply.encode(resp3, &mut self.out);
            self.waiting.pop_front();
            self.covered = self.covered.saturating_sub(1);
        }
    }

    /// A read is at the head. A read that came after a barrier was started is not covered by it: a write may have been
    /// acknowledged to another client in between.
    fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.barrier.is_none() {
            self.covered = self.waiting.iter().take_while(|w| !matches!(w.kind, Kind::Write { .. })).count();
            self.passed = None;
        }
        let barrier = self.barrier.get_or_insert_with(|| Box::pin(self.shared.replica.read()));
        match barrier.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                self.barrier = None;
                self.passed = Some(result);
                Poll::Ready(())
            }
        }
    }
}
