//! The commands of one client, and the replies in the same order.
//!
//! The connection submits writes as they come, without waiting, and keeps their replies in a bounded queue. A read starts
//! its barrier after every earlier write of the connection is answered, so it sees them. A write behind a read is held until
//! the read is answered, so the read does not see it. One barrier serves all reads that waited when it started.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use towline::{GroupState, ReadError, Role};

use crate::machine::View;
use crate::replica::Replica;

use super::cluster::slot;
use super::commands::{self, Keyed, Many, Read, ReadAnswer, find, keyed};
use super::decode::Decoder;
use super::outgoing::{LARGE_BYTES_MIN, Outgoing};
use super::pool::{Claim, Pool, Room};
use super::reply::Reply;
use super::session::Session;
use super::shared::Shared;
use super::table::Spec;

/// Replies that one connection waits for. At the bound it does not read its socket.
pub(super) const PENDING_MAX: usize = 1_024;
/// Bytes of finished replies that wait behind others.
const READY_BYTES_MAX: usize = 32 << 10;
/// Bytes of commands since the first waiting read. Their arguments keep the input buffers.
const READ_BACKLOG_BYTES_MAX: usize = 64 << 10;
/// Bytes of a command that need no room in a pool.
const INPUT_BYTES_FREE: usize = 32 << 10;
/// Bytes of values, and keys, that one connection handles before others get their turn.
pub(super) const TURN_BYTES: usize = 1 << 20;
const TURN_KEYS: usize = 256;

type Barrier = Pin<Box<dyn Future<Output = Result<View, ReadError>> + Send>>;

struct Waiting<P> {
    kind: Kind<P>,
    resp3: bool,
    /// Its part of [`READY_BYTES_MAX`].
    ready_bytes: usize,
    /// Its arguments occupy the first room in `long_waiting`.
    is_long: bool,
}

enum Kind<P> {
    Ready(Reply),
    Write {
        pending: P,
        slot: u16,
    },
    Read(Read),
    /// A read whose reply is being sent.
    Many(Box<Streamed>),
}

struct Streamed {
    many: Many,
    since: Instant,
    kept: Option<Room>,
}

/// A connection without its socket and deadlines.
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
    /// How many commands at the head of `waiting` the barrier covers.
    covered: usize,
    passed: Option<Result<View, ReadError>>,
    /// A write that cannot be submitted yet, and its bytes.
    held: Option<(Vec<Bytes>, usize)>,
    /// The claim for the next reply.
    claim: Claim,
    /// Room for the answer of the write at the head.
    write_room: Option<Room>,
    /// The claim of the command that is being received, and its room.
    long_claim: Claim,
    long_receiving: Option<Room>,
    /// Rooms of long commands that wait for their replies, in order.
    long_waiting: VecDeque<Room>,
    effort: Effort,
    pub(super) needs_input: bool,
    pub(super) ended: bool,
    /// The connection takes no more commands, and answers the waiting ones.
    closing: bool,
}

impl<R: Replica> Pipeline<R> {
    pub(super) fn new(shared: Arc<Shared<R>>, id: u64) -> Self {
        Self {
            decoder: Decoder::new(shared.command_bytes_max),
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

    /// Since when the connection answers a read of many keys. Such a reply may take long without sending a byte, so the
    /// caller checks the client and the deadlines meanwhile.
    pub(super) fn streaming_since(&self) -> Option<Instant> {
        match self.waiting.front() {
            Some(Waiting { kind: Kind::Many(streamed), .. }) => Some(streamed.since),
            _ => None,
        }
    }

    /// All rooms that this connection keeps until its client goes on.
    pub(super) fn rooms(&mut self) -> impl Iterator<Item = &mut Room> {
        let kept = match self.waiting.front_mut() {
            Some(Waiting { kind: Kind::Many(streamed), .. }) => streamed.kept.as_mut(),
            _ => None,
        };
        let long = self.long_waiting.iter_mut().chain(&mut self.long_receiving);
        long.chain(kept).chain(self.out.large_room())
    }

    pub(super) fn receiving_room(&mut self) -> Option<&mut Room> {
        self.long_receiving.as_mut()
    }

    pub(super) fn is_done(&self) -> bool {
        let no_more = self.closing || self.ended && self.needs_input;
        no_more && self.waiting.is_empty() && self.out.is_empty()
    }

    /// Whether another command may start.
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

    /// Takes whole commands from the input while they may start. Returns whether it took one.
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

    /// Starts a command of `bytes` bytes and returns true, or holds it and returns false.
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
            // A copy, so that the rest does not keep the buffer of the long command.
            self.input = BytesMut::from(&self.input[..]);
        }
        self.closing |= self.session.quit;
        true
    }

    /// False if a write must wait for earlier reads, or for the room of its answer.
    fn may_write(&mut self, spec: &Spec, args: &[Bytes]) -> bool {
        if self.reads_wait() {
            return false;
        }
        let old = match args {
            [_, key, _, options @ ..] if spec.name == "set" => {
                let answers_old = options.iter().any(|option| option.eq_ignore_ascii_case(b"get"));
                // An estimate: another write may come first.
                if answers_old {
                    self.shared.replica.local().map_or(0, |view| view.value_bytes(key))
                } else {
                    0
                }
            }
            _ => 0,
        };
        if old < LARGE_BYTES_MIN {
            return true;
        }
        // The command at the head may need room first.
        if !self.waiting.is_empty() {
            return false;
        }
        let values = &self.shared.pools.values;
        self.write_room = self.claim.take(values, old);
        self.write_room.is_some()
    }

    /// Whether reads wait. No write stands behind a read, so only the last command that is not ready matters.
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
        // HELLO and RESET answer in the protocol that they switch to.
        let (resp3, is_long) = (self.session.resp3, self.long_receiving.is_some());
        self.waiting.push_back(Waiting { kind, resp3, ready_bytes, is_long });
    }

    fn start(&mut self, spec: &Spec, args: &[Bytes]) -> Kind<R::Pending> {
        let Shared { replica, members, command_bytes_max, .. } = &*self.shared;
        match keyed(spec, args, || replica.now_ms(), *command_bytes_max) {
            Err(reply) => Kind::Ready(reply),
            Ok(Some(Keyed::Write { key, command })) => {
                let slot = slot(&key);
                match replica.submit(command) {
                    Ok(pending) => Kind::Write { pending, slot },
                    Err(error) => Kind::Ready(members.write_error(&error, slot)),
                }
            }
            Ok(Some(Keyed::Untimed { key })) => {
                let state = replica.state();
                Kind::Ready(match state.role {
                    Role::Leader => Reply::error("TRYAGAIN the leader is new, the write was not taken"),
                    _ => self.elsewhere(slot(&key), &state),
                })
            }
            Ok(Some(Keyed::Read { key: Some(key), read })) => {
                let state = replica.state();
                if state.role == Role::Leader || self.session.reads_here {
                    Kind::Read(read)
                } else {
                    Kind::Ready(self.elsewhere(slot(&key), &state))
                }
            }
            Ok(Some(Keyed::Read { key: None, read })) => Kind::Read(read),
            Ok(None) => Kind::Ready(self.session.command(spec, args, members, &replica.state())),
        }
    }

    /// Sends a client to the leader. A node whose group does not run knows none.
    fn elsewhere(&self, slot: u16, state: &GroupState) -> Reply {
        let Shared { replica, members, .. } = &*self.shared;
        match replica.refusal() {
            Some(error) => members.write_error(&error, slot),
            None => members.moved(slot, state.leader),
        }
    }

    /// Sends all available answers, and returns whether there was one. An applied batch resolves its writes one by one, so
    /// later ones get one more turn before the next system call.
    pub(super) async fn answer_now(&mut self) -> bool {
        let answered = poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        if answered && !self.waiting.is_empty() {
            tokio::task::yield_now().await;
            poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        }
        answered
    }

    /// Ready after an answer, or after a pool granted room.
    pub(super) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.needs_long_room() {
            let bytes = self.shared.command_bytes_max;
            if let Poll::Ready(room) = self.long_claim.poll_for(&self.shared.pools.commands, bytes, cx) {
                self.long_receiving = Some(room);
                return Poll::Ready(());
            }
        }
        if self.answer_some(cx) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns whether there was progress.
    fn answer_some(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(mut progress) = self.claim.poll(cx) else { return false };
        self.effort = Effort::default();
        while self.out.has_room() && self.effort.is_fair() {
            match self.step(cx) {
                Progress::Wait => break,
                Progress::Part => progress = true,
                Progress::Done => {
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

    /// Answers the command at the head, or a part of it.
    fn step(&mut self, cx: &mut Context<'_>) -> Progress {
        let Some(head) = self.waiting.front_mut() else { return Progress::Wait };
        let resp3 = head.resp3;
        match &mut head.kind {
            Kind::Ready(reply) => {
                let is_long = std::mem::take(&mut head.is_long);
                let room = if is_long { self.long_waiting.pop_front() } else { None };
                self.out.reply(std::mem::replace(reply, Reply::Nil), resp3, room);
                Progress::Done
            }
            Kind::Write { pending, slot } => {
                let reply = match Pin::new(pending).poll(cx) {
                    Poll::Pending => return Progress::Wait,
                    Poll::Ready(Ok(answer)) => Reply::of_answer(answer),
                    Poll::Ready(Err(error)) => self.shared.members.write_error(&error, *slot),
                };
                self.out.reply(reply, resp3, self.write_room.take());
                Progress::Done
            }
            Kind::Read(read) => {
                let found = match &self.passed {
                    Some(Ok(view)) if self.covered > 0 => read.answer(view),
                    Some(Err(error)) if self.covered > 0 => ReadAnswer::Reply(Reply::of_read_error(error)),
                    _ => return self.poll_barrier(cx),
                };
                match found {
                    ReadAnswer::Reply(reply) => {
                        let values = &self.shared.pools.values;
                        let Poll::Ready(room) = room_for(&mut self.claim, values, reply.bulk_bytes(), cx)
                        else {
                            return Progress::Wait;
                        };
                        self.out.reply(reply, resp3, room);
                        Progress::Done
                    }
                    ReadAnswer::Many(many) => {
                        let (pool, bytes) = (&self.shared.pools.kept, many.gathered.recent_bytes());
                        let Poll::Ready(kept) = room_for(&mut self.claim, pool, bytes, cx) else {
                            return Progress::Wait;
                        };
                        if many.count.is_none() {
                            self.out.array_header(many.gathered.len());
                        }
                        let streamed = Streamed { many, since: Instant::now(), kept };
                        head.kind = Kind::Many(Box::new(streamed));
                        Progress::Part
                    }
                }
            }
            Kind::Many(streamed) => {
                let Many { gathered, count } = &mut streamed.many;
                let (reply, is_kept) = match (gathered.read(), count) {
                    (Ok(None), None) => return Progress::Done,
                    (Ok(None), Some(count)) => {
                        self.out.reply(Reply::integer(*count), resp3, None);
                        return Progress::Done;
                    }
                    (Ok(Some(item)), Some(count)) => {
                        self.effort.add(item.value.as_ref().map_or(0, |stored| stored.value.len()));
                        *count += u64::from(item.value.is_some());
                        gathered.advance();
                        return Progress::Part;
                    }
                    (Ok(Some(item)), None) => (commands::value(item.value), item.is_kept),
                    (Err(error), None) => (commands::failed(&error), true),
                    (Err(error), Some(_)) => {
                        self.out.reply(commands::failed(&error), resp3, None);
                        return Progress::Done;
                    }
                };
                let bytes = if is_kept { 0 } else { reply.bulk_bytes() };
                let values = &self.shared.pools.values;
                let Poll::Ready(room) = room_for(&mut self.claim, values, bytes, cx) else {
                    return Progress::Wait;
                };
                self.effort.add(reply.bulk_bytes());
                self.out.reply(reply, resp3, room);
                gathered.advance();
                Progress::Part
            }
        }
    }

    /// Polls the barrier of the read at the head. A barrier does not cover later reads: another client's write may have been
    /// acknowledged since it started.
    fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Progress {
        if self.barrier.is_none() {
            self.covered = self.waiting.iter().take_while(|w| !matches!(w.kind, Kind::Write { .. })).count();
            self.passed = None;
        }
        let barrier = self.barrier.get_or_insert_with(|| Box::pin(self.shared.replica.read()));
        match barrier.as_mut().poll(cx) {
            Poll::Pending => Progress::Wait,
            Poll::Ready(result) => {
                self.barrier = None;
                self.passed = Some(result);
                Progress::Part
            }
        }
    }
}

/// How far the command at the head came.
enum Progress {
    Wait,
    Part,
    Done,
}

/// The work since other connections had their turn.
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

/// Room for a part of the reply at the head. Small parts need none. While the connection waits for room, it drops the part
/// and reads it again later.
fn room_for(claim: &mut Claim, pool: &Pool, bytes: usize, cx: &mut Context<'_>) -> Poll<Option<Room>> {
    if bytes < LARGE_BYTES_MIN { Poll::Ready(None) } else { claim.poll_for(pool, bytes, cx).map(Some) }
}
