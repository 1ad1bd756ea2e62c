//! The commands of one client, and the replies in their order.
//!
//! Writes are submitted as they are read, without waiting for each other; their replies stand in a bounded queue. A read
//! starts its barrier once every earlier write of its connection is answered, so that it sees them, and a write behind a
//! read is held back until the read is answered, so that it does not. One barrier serves the run of reads that waited
//! when it started. Nothing is spawned for a command.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::machine::View;
use crate::replica::{ReadError, Replica, Role};

use super::cluster::slot;
use super::commands::{self, Found, Keyed, Many, Read, find, keyed};
use super::decode::Decoder;
use super::outgoing::{LARGE_BYTES_MIN, Outgoing};
use super::pool::{Claim, Pool, Room};
use super::reply::Reply;
use super::server::Shared;
use super::session::Session;
use super::table::Spec;

/// Replies one connection may wait for. At the bound its socket is not read.
pub(super) const PENDING_MAX: usize = 1_024;
/// Bytes of replies that are made and wait behind others.
const READY_BYTES_MAX: usize = 32 << 10;
/// Bytes of commands since the first read that waits: their arguments keep what they came in.
const READ_BACKLOG_BYTES_MAX: usize = 64 << 10;
/// Bytes of a command that came before it needs room in a pool.
const INPUT_BYTES_FREE: usize = 32 << 10;
/// Bytes of values, and keys, that are looked at before others get their turn.
pub(super) const TURN_BYTES: usize = 1 << 20;
const TURN_KEYS: usize = 256;

type Barrier = Pin<Box<dyn Future<Output = Result<View, ReadError>> + Send>>;

struct Waiting<P> {
    kind: Kind<P>,
    resp3: bool,
    /// Of [`READY_BYTES_MAX`].
    ready_bytes: usize,
    /// Its arguments take the first of the rooms in `long_waiting`.
    is_long: bool,
}

enum Kind<P> {
    Ready(Reply),
    Write {
        pending: P,
        slot: u16,
    },
    Read(Read),
    /// A read whose reply is under way.
    Many(Box<Streamed>),
}

struct Streamed {
    many: Many,
    since: Instant,
    kept: Option<Room>,
}

/// Everything of a connection but its socket and its deadlines.
pub(super) struct Pipeline<R: Replica> {
    pub(super) shared: Arc<Shared<R>>,
    session: Session,
    pub(super) decoder: Decoder,
    pub(super) input: BytesMut,
    pub(super) out: Outgoing,
    waiting: VecDeque<Waiting<R::Pending>>,
    ready_bytes: usize,
    read_backlog_bytes: usize,
    barrier: Option<Barrier>,
    /// How many at the head of `waiting` the barrier covers, and once it is through, with what.
    covered: usize,
    passed: Option<Result<View, ReadError>>,
    /// A write that cannot be submitted yet, and how many bytes it came in.
    held: Option<(Vec<Bytes>, usize)>,
    /// For the next reply.
    claim: Claim,
    /// Of the write at the head, for its answer.
    write_room: Option<Room>,
    /// For the command that is being received, and the room it got.
    long_claim: Claim,
    long_receiving: Option<Room>,
    /// Of long commands that wait for their replies, in order.
    long_waiting: VecDeque<Room>,
    effort: Effort,
    /// The next command is not there as a whole.
    pub(super) needs_input: bool,
    /// No more bytes come.
    pub(super) ended: bool,
    /// No more commands are taken; what waits is answered.
    closing: bool,
}

impl<R: Replica> Pipeline<R> {
    pub(super) fn new(shared: Arc<Shared<R>>, id: u64) -> Self {
        Self {
            decoder: Decoder::new(shared.limits.command_bytes_max),
            shared,
            session: Session::new(id),
            input: BytesMut::new(),
            out: Outgoing::default(),
            waiting: VecDeque::new(),
            ready_bytes: 0,
            read_backlog_bytes: 0,
            barrier: None,
            covered: 0,
            passed: None,
            held: None,
            claim: Claim::default(),
            write_room: None,
            long_claim: Claim::default(),
            long_receiving: None,
            long_waiting: VecDeque::new(),
            effort: Effort::default(),
            needs_input: false,
            ended: false,
            closing: false,
        }
    }

    /// Since when a reply to a read of many keys is under way. It may take long without sending a byte, so the end of the
    /// client and its deadlines are looked at in between.
    pub(super) fn streaming_since(&self) -> Option<Instant> {
        match self.waiting.front() {
            Some(Waiting { kind: Kind::Many(streamed), .. }) => Some(streamed.since),
            _ => None,
        }
    }

    /// What this connection takes of the pools and keeps until its client goes on.
    pub(super) fn rooms(&mut self) -> impl Iterator<Item = &mut Room> {
        let kept = match self.waiting.front_mut() {
            Some(Waiting { kind: Kind::Many(streamed), .. }) => streamed.kept.as_mut(),
            _ => None,
        };
        let long = self.long_waiting.iter_mut().chain(&mut self.long_receiving);
        long.chain(kept).chain(self.out.large_room())
    }

    /// The room of the command that is being received.
    pub(super) fn receiving_room(&mut self) -> Option<&mut Room> {
        self.long_receiving.as_mut()
    }

    pub(super) fn is_done(&self) -> bool {
        let no_more = self.closing || self.ended && self.needs_input;
        no_more && self.waiting.is_empty() && self.out.is_empty()
    }

    /// For another command.
    fn has_room(&self) -> bool {
        self.waiting.len() < PENDING_MAX
            && self.ready_bytes < READY_BYTES_MAX
            && self.read_backlog_bytes < READ_BACKLOG_BYTES_MAX
            && self.out.has_room()
    }

    fn needs_long_room(&self) -> bool {
        self.needs_input
            && !self.ended
            && self.input.len() >= INPUT_BYTES_FREE
            && self.long_receiving.is_none()
    }

    pub(super) fn may_read(&self) -> bool {
        self.needs_input && !self.ended && !self.closing && !self.needs_long_room()
    }

    /// Takes whole commands out of the input, as long as they may be started. Whether there were any.
    pub(super) fn take_commands(&mut self) -> bool {
        let mut taken = false;
        self.needs_input = false;
        while !self.closing && self.has_room() {
            let next = match self.held.take() {
                Some(held) => Ok(Some(held)),
                None => {
                    let before = self.input.len();
                    let next = self.decoder.next(&mut self.input);
                    next.map(|args| args.map(|args| (args, before - self.input.len())))
                }
            };
            match next {
                Ok(Some((args, bytes))) => {
                    taken = true;
                    if !self.take(args, bytes) {
                        break;
                    }
                }
                Ok(None) => {
                    self.needs_input = true;
                    break;
                }
                Err(error) => {
                    self.push(Kind::Ready(Reply::error(format!("ERR {error}"))), 0);
                    self.closing = true;
                }
            }
        }
        taken
    }

    /// Starts a command of `bytes` bytes. Otherwise it is held, and true is returned once it is started.
    fn take(&mut self, args: Vec<Bytes>, bytes: usize) -> bool {
        let found = find(&args);
        if let Ok(spec) = &found
            && spec.flag == "write"
            && !self.may_write(spec, &args)
        {
            self.held = Some((args, bytes));
            return false;
        }
        let kind = match found {
            Ok(spec) => self.start(spec, &args),
            Err(reply) => Kind::Ready(reply),
        };
        if self.waiting.is_empty() && !matches!(kind, Kind::Write { .. }) {
            self.write_room = None;
        }
        self.push(kind, bytes);
        if self.long_receiving.is_some() {
            self.long_waiting.extend(self.long_receiving.take());
            // The rest no longer keeps the buffer of the long command.
            self.input = BytesMut::from(&self.input[..]);
        }
        self.closing |= self.session.quit;
        true
    }

    /// False if a write must wait: for earlier reads, or for the room that its answer needs beforehand.
    fn may_write(&mut self, spec: &Spec, args: &[Bytes]) -> bool {
        if self.reads_wait() {
            return false;
        }
        let old = match args {
            [_, key, _, options @ ..] if spec.name == "set" => {
                let answers_old = options.iter().any(|option| option.eq_ignore_ascii_case(b"get"));
                // What it will find may differ, but not for many at once.
                if answers_old { self.shared.replica.local().value_bytes(key) } else { 0 }
            }
            _ => 0,
        };
        if old < LARGE_BYTES_MIN {
            return true;
        }
        // The head of the queue may need room itself.
        if !self.waiting.is_empty() {
            return false;
        }
        let values = &self.shared.pools.values;
        self.write_room = self.claim.take(values, old);
        self.write_room.is_some()
    }

    /// Reads stand behind writes, never before one: so it is enough to look at the end, past what is ready.
    fn reads_wait(&self) -> bool {
        let last = self.waiting.iter().rev().find(|w| !matches!(w.kind, Kind::Ready(_)));
        matches!(last, Some(Waiting { kind: Kind::Read(_) | Kind::Many(_), .. }))
    }

    fn push(&mut self, kind: Kind<R::Pending>, bytes: usize) {
        let ready_bytes = if let Kind::Ready(reply) = &kind { reply.size() } else { 0 };
        self.ready_bytes += ready_bytes;
        if self.read_backlog_bytes > 0 || matches!(kind, Kind::Read(_)) {
            self.read_backlog_bytes += bytes;
        }
        // HELLO and RESET already answer in the protocol they switch to.
        let (resp3, is_long) = (self.session.resp3, self.long_receiving.is_some());
        self.waiting.push_back(Waiting { kind, resp3, ready_bytes, is_long });
    }

    fn start(&mut self, spec: &Spec, args: &[Bytes]) -> Kind<R::Pending> {
        let Shared { replica, members, limits, .. } = &*self.shared;
        match keyed(spec, args, || replica.now_ms(), limits.command_bytes_max) {
            Err(reply) => Kind::Ready(reply),
            Ok(Some(Keyed::Write { key, command })) => {
                let slot = slot(&key);
                match replica.submit(command) {
                    Ok(pending) => Kind::Write { pending, slot },
                    Err(error) => Kind::Ready(Reply::of_write_error(&error, slot, members)),
                }
            }
            Ok(Some(Keyed::Untimed { key })) => {
                let state = replica.state();
                Kind::Ready(match state.role {
                    Role::Leader => Reply::error("TRYAGAIN the leader is new, the write was not taken"),
                    _ => members.moved(slot(&key), state.leader),
                })
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
    pub(super) async fn answer_now(&mut self) -> bool {
        let answered = poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        if answered && !self.waiting.is_empty() {
            tokio::task::yield_now().await;
            poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        }
        answered
    }

    /// Ready once something was answered, or there is room that there was not.
    pub(super) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.needs_long_room() {
            let bytes = self.shared.limits.command_bytes_max;
            if let Poll::Ready(room) = self.long_claim.poll_for(&self.shared.pools.commands, bytes, cx) {
                self.long_receiving = Some(room);
                return Poll::Ready(());
            }
        }
        if self.answer_some(cx) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether anything came of it.
    fn answer_some(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(mut progress) = self.claim.poll(cx) else { return false };
        self.effort = Effort::default();
        while self.out.has_room() && self.effort.is_fair() {
            match self.step(cx) {
                Step::Wait => break,
                Step::Part => progress = true,
                Step::Done => {
                    progress = true;
                    self.claim = Claim::default();
                    self.covered = self.covered.saturating_sub(1);
                    if let Some(head) = self.waiting.pop_front() {
                        self.ready_bytes -= head.ready_bytes;
                        if head.is_long {
                            self.long_waiting.pop_front();
                        }
                    }
                    if self.read_backlog_bytes > 0 && !self.reads_wait() {
                        self.read_backlog_bytes = 0;
                    }
                }
            }
        }
        progress
    }

    /// Answers the head of the queue, or a part of it.
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(head) = self.waiting.front_mut() else { return Step::Wait };
        let resp3 = head.resp3;
        match &mut head.kind {
            Kind::Ready(reply) => {
                let is_long = std::mem::take(&mut head.is_long);
                let room = if is_long { self.long_waiting.pop_front() } else { None };
                self.out.reply(std::mem::replace(reply, Reply::Nil), resp3, room);
                Step::Done
            }
            Kind::Write { pending, slot } => {
                let reply = match Pin::new(pending).poll(cx) {
                    Poll::Pending => return Step::Wait,
                    Poll::Ready(Ok(answer)) => Reply::of_answer(answer),
                    Poll::Ready(Err(error)) => Reply::of_write_error(&error, *slot, &self.shared.members),
                };
                self.out.reply(reply, resp3, self.write_room.take());
                Step::Done
            }
            Kind::Read(read) => {
                let found = match &self.passed {
                    Some(Ok(view)) if self.covered > 0 => read.answer(view),
                    Some(Err(error)) if self.covered > 0 => Found::Reply(Reply::of_read_error(error)),
                    _ => return self.poll_barrier(cx),
                };
                match found {
                    Found::Reply(reply) => {
                        let values = &self.shared.pools.values;
                        let Poll::Ready(room) = room_for(&mut self.claim, values, reply.bulk_bytes(), cx)
                        else {
                            return Step::Wait;
                        };
                        self.out.reply(reply, resp3, room);
                        Step::Done
                    }
                    Found::Many(many) => {
                        let (pool, bytes) = (&self.shared.pools.kept, many.gathered.recent_bytes());
                        let Poll::Ready(kept) = room_for(&mut self.claim, pool, bytes, cx) else {
                            return Step::Wait;
                        };
                        if many.count.is_none() {
                            self.out.array_header(many.gathered.len());
                        }
                        let streamed = Streamed { many, since: Instant::now(), kept };
                        head.kind = Kind::Many(Box::new(streamed));
                        Step::Part
                    }
                }
            }
            Kind::Many(streamed) => {
                let Many { gathered, count } = &mut streamed.many;
                let (reply, is_kept) = match (gathered.read(), count) {
                    (Ok(None), None) => return Step::Done,
                    (Ok(None), Some(count)) => {
                        self.out.reply(Reply::integer(*count), resp3, None);
                        return Step::Done;
                    }
                    (Ok(Some(item)), Some(count)) => {
                        self.effort.add(item.value.as_ref().map_or(0, |stored| stored.value.len()));
                        *count += u64::from(item.value.is_some());
                        gathered.advance();
                        return Step::Part;
                    }
                    (Ok(Some(item)), None) => (commands::value(item.value), item.is_kept),
                    (Err(error), None) => (commands::failed(&error), true),
                    (Err(error), Some(_)) => {
                        self.out.reply(commands::failed(&error), resp3, None);
                        return Step::Done;
                    }
                };
                // What is kept has its room already.
                let bytes = if is_kept { 0 } else { reply.bulk_bytes() };
                let values = &self.shared.pools.values;
                let Poll::Ready(room) = room_for(&mut self.claim, values, bytes, cx) else {
                    return Step::Wait;
                };
                self.effort.add(reply.bulk_bytes());
                self.out.reply(reply, resp3, room);
                gathered.advance();
                Step::Part
            }
        }
    }

    /// A read is at the head. A read that came after a barrier was started is not covered by it: a write may have been
    /// acknowledged to another client in between.
    fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Step {
        if self.barrier.is_none() {
            self.covered = self.waiting.iter().take_while(|w| !matches!(w.kind, Kind::Write { .. })).count();
            self.passed = None;
        }
        let barrier = self.barrier.get_or_insert_with(|| Box::pin(self.shared.replica.read()));
        match barrier.as_mut().poll(cx) {
            Poll::Pending => Step::Wait,
            Poll::Ready(result) => {
                self.barrier = None;
                self.passed = Some(result);
                Step::Part
            }
        }
    }
}

/// What became of the head of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Wait,
    Part,
    Done,
}

/// What was looked at since others had their turn.
#[derive(Debug, Clone, Copy, Default)]
struct Effort {
    bytes: usize,
    keys: usize,
}

impl Effort {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.keys += 1;
    }

    fn is_fair(self) -> bool {
        self.bytes < TURN_BYTES && self.keys < TURN_KEYS
    }
}

/// Room for a part of the reply at the head of the queue, unless it is small. While that must be waited for, what the
/// room is for is dropped, and read again later.
fn room_for(claim: &mut Claim, pool: &Pool, bytes: usize, cx: &mut Context<'_>) -> Poll<Option<Room>> {
    if bytes < LARGE_BYTES_MIN { Poll::Ready(None) } else { claim.poll_for(pool, bytes, cx).map(Some) }
}
