//! One client: commands in, replies out in the order of the commands.
//!
//! Writes are submitted as they are read, without waiting for each other; their replies stand in a bounded queue. A read
//! starts its barrier once every earlier write of its connection is answered, so that it sees them, and a write behind a
//! read is held back until the read is answered, so that it does not. One barrier serves the run of reads that waited
//! when it started. Nothing is spawned for a command.
//!
//! A loop does what can be done, then waits for whatever allows more. In every state it hears that the client reset the
//! connection. A client that only ends its side may still read, so it gets its answers first. Whatever depends on the
//! client alone has a deadline.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::machine::View;
use crate::replica::{ReadError, Replica, Role};

use super::cluster::slot;
use super::commands::{self, Found, Keyed, Many, Read, find, keyed};
use super::decode::Decoder;
use super::outgoing::{LARGE_BYTES_MIN, Outgoing};
use super::pool::{Pool, Queued, Room};
use super::reply::Reply;
use super::server::{CloseCause, Pools, Shared};
use super::session::Session;
use super::table::Spec;

/// Replies one connection may wait for. At the bound its socket is not read.
pub(super) const PENDING_MAX: usize = 1_024;
/// Bytes of replies that are made and wait behind others.
const READY_BYTES_MAX: usize = 32 << 10;
/// Bytes of commands since the first read that waits: their arguments keep what they came in.
const READ_BACKLOG_BYTES_MAX: usize = 64 << 10;
const READ_BYTES: usize = 16 << 10;
/// What is read at once of an argument that is known to be long.
const LONG_READ_BYTES: usize = 256 << 10;
/// Bytes of a command that came before it needs room in a pool.
const INPUT_BYTES_FREE: usize = 32 << 10;
/// Bytes of values, and keys, that are looked at before others get their turn.
const TURN_BYTES: usize = 1 << 20;
const TURN_KEYS: usize = 256;
/// Bytes that a client must take in each `write_timeout` while replies wait for it.
const WRITE_BYTES_MIN: usize = 64 << 10;
/// How often a client that keeps room for long is compared with those that wait for it.
const WANTED_INTERVAL: Duration = Duration::from_secs(1);

type Barrier = Pin<Box<dyn Future<Output = Result<View, ReadError>> + Send>>;

struct Waiting<P> {
    kind: Kind<P>,
    resp3: bool,
    /// Of [`READY_BYTES_MAX`].
    ready_bytes: usize,
    /// What its arguments take of the pool for long commands.
    long: Option<Room>,
}

enum Kind<P> {
    Ready(Reply),
    Write {
        pending: P,
        slot: u16,
        room: Option<Room>,
    },
    Read(Read),
    /// A read whose reply is under way.
    Many(Box<Streamed>),
}

struct Streamed {
    many: Many,
    since: Instant,
    _kept: Option<Room>,
}

/// Everything of a connection but its socket.
struct Pipeline<R: Replica> {
    shared: Arc<Shared<R>>,
    session: Session,
    decoder: Decoder,
    input: BytesMut,
    out: Outgoing,
    waiting: VecDeque<Waiting<R::Pending>>,
    ready_bytes: usize,
    read_backlog_bytes: usize,
    barrier: Option<Barrier>,
    /// How many at the head of `waiting` the barrier covers, and once it is through, with what.
    covered: usize,
    passed: Option<Result<View, ReadError>>,
    /// A write that cannot be submitted yet, and how many bytes it came in.
    held: Option<(Vec<Bytes>, usize)>,
    /// The place in the queue for room that the next reply needs, then that room.
    reply_queue: Option<Queued>,
    reply_room: Option<Room>,
    /// The same for the command that is being received.
    long_queue: Option<Queued>,
    long: Option<Room>,
    effort: Effort,
    /// Since when a part of a command is there.
    partial_since: Option<Instant>,
    /// Since when replies wait for the client, and how many bytes it has taken since.
    unread_since: Option<Instant>,
    taken_bytes: usize,
    /// The next command is not there as a whole.
    needs_input: bool,
    /// No more bytes come.
    ended: bool,
    /// No more commands are taken; what waits is answered.
    closing: bool,
}

pub(super) async fn serve<R: Replica>(
    stream: TcpStream,
    id: u64,
    shared: Arc<Shared<R>>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut line = Pipeline::new(shared, id);
    loop {
        line.take_commands();
        let answered = line.answer_now().await;
        let flushed = line.flush(&stream)?;
        if line.is_done() {
            return Ok(());
        }
        if (answered || flushed > 0) && !line.needs_input && !line.is_streaming() {
            // Replies went out, so that commands may be taken again.
            if flushed >= TURN_BYTES {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let deadline = line.deadline();
        let reads = line.may_read();
        tokio::select! {
            ready = stream.readable(), if reads => {
                ready?;
                line.read(&stream)?;
            }
            ready = stream.writable(), if !line.out.is_empty() => ready?,
            () = poll_fn(|cx| line.poll_progress(cx)) => {}
            // Reading would tell, too, but it waits for replies or room.
            ready = stream.ready(Interest::ERROR), if !reads => {
                ready?;
                return Err(stream.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
            }
            cause = due(deadline) => {
                let Some(cause) = cause else { continue };
                line.shared.counters.closed(cause).increment(1);
                return Err(io::Error::new(io::ErrorKind::TimedOut, cause.as_str()));
            }
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// Never, if there is no deadline. None: it is time to look again.
async fn due(deadline: Option<(Instant, Option<CloseCause>)>) -> Option<CloseCause> {
    match deadline {
        None => std::future::pending().await,
        Some((at, cause)) => {
            tokio::time::sleep_until(at).await;
            cause
        }
    }
}

impl<R: Replica> Pipeline<R> {
    fn new(shared: Arc<Shared<R>>, id: u64) -> Self {
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
            reply_queue: None,
            reply_room: None,
            long_queue: None,
            long: None,
            effort: Effort::default(),
            partial_since: None,
            unread_since: None,
            taken_bytes: 0,
            needs_input: false,
            ended: false,
            closing: false,
        }
    }

    /// A read of many keys is under way. It may take long without sending a byte, so the end of the client and its
    /// deadlines are looked at in between.
    fn is_streaming(&self) -> bool {
        matches!(self.waiting.front(), Some(Waiting { kind: Kind::Many(_), .. }))
    }

    fn is_done(&self) -> bool {
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
        self.needs_input && !self.ended && self.input.len() >= INPUT_BYTES_FREE && self.long.is_none()
    }

    fn may_read(&self) -> bool {
        self.needs_input && !self.ended && !self.closing && !self.needs_long_room()
    }

    fn read(&mut self, stream: &TcpStream) -> io::Result<()> {
        let most = self.decoder.missing().clamp(READ_BYTES, LONG_READ_BYTES);
        self.input.reserve(most);
        match stream.try_read_buf(&mut (&mut self.input).limit(most)) {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn flush(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let flushed = self.out.flush(stream)?;
        if self.out.is_empty() {
            self.unread_since = None;
        } else if self.unread_since.is_none() {
            (self.unread_since, self.taken_bytes) = (Some(Instant::now()), 0);
        } else {
            self.taken_bytes += flushed;
            if self.taken_bytes >= WRITE_BYTES_MIN {
                (self.unread_since, self.taken_bytes) = (Some(Instant::now()), 0);
            }
        }
        Ok(flushed)
    }

    /// When the client has had enough time for what only it can do, or when to look again whether others wait for what
    /// this one keeps.
    fn deadline(&mut self) -> Option<(Instant, Option<CloseCause>)> {
        let limits = &self.shared.limits;
        let is_partial = self.may_read() && !self.input.is_empty();
        self.partial_since = is_partial.then(|| self.partial_since.unwrap_or_else(Instant::now));
        let streamed = match self.waiting.front() {
            Some(Waiting { kind: Kind::Many(streamed), .. }) => Some(streamed.since),
            _ => None,
        };
        let after = |since: Option<Instant>, timeout: Duration, cause| Some((since? + timeout, Some(cause)));
        let wanted = |room: Option<&Room>, cause| {
            let (room, now) = (room?, Instant::now());
            match room.due() {
                at if at > now => Some((at, None)),
                at if room.is_wanted() => Some((at, Some(cause))),
                _ => Some((now + WANTED_INTERVAL, None)),
            }
        };
        // A command that is whole waits for the cluster, not for its client.
        let receiving = if is_partial { self.long.as_ref() } else { None };
        [
            wanted(self.out.large_room(), CloseCause::Reply),
            wanted(receiving, CloseCause::Command),
            after(self.partial_since, limits.command_timeout, CloseCause::Command),
            after(self.unread_since, limits.write_timeout, CloseCause::Write),
            after(streamed.or(self.out.large_since()), limits.reply_timeout, CloseCause::Reply),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Takes whole commands out of the input, as long as they may be started.
    fn take_commands(&mut self) {
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
                    self.partial_since = None;
                    if !self.take(args, bytes) {
                        return;
                    }
                }
                Ok(None) => {
                    self.needs_input = true;
                    return;
                }
                Err(error) => {
                    self.push(Kind::Ready(Reply::error(format!("ERR {error}"))), 0, None);
                    self.closing = true;
                }
            }
        }
    }

    /// Starts a command of `bytes` bytes. Otherwise it is held, and true is returned once it is started.
    fn take(&mut self, args: Vec<Bytes>, bytes: usize) -> bool {
        let found = find(&args);
        let mut room = None;
        if let Ok(spec) = &found
            && spec.flag == "write"
        {
            let Ok(found) = self.room_for_write(spec, &args) else {
                self.held = Some((args, bytes));
                return false;
            };
            room = found;
        }
        let kind = match found {
            Ok(spec) => self.start(spec, &args, room),
            Err(reply) => Kind::Ready(reply),
        };
        let long = self.long.take();
        self.long_queue = None;
        if long.is_some() {
            // The rest no longer keeps the buffer of the long command.
            self.input = BytesMut::from(&self.input[..]);
        }
        drop(args);
        self.push(kind, bytes, long);
        self.closing |= self.session.quit;
        true
    }

    /// The room that the answer of a write needs beforehand. An error if the write must wait.
    fn room_for_write(&mut self, spec: &Spec, args: &[Bytes]) -> Result<Option<Room>, ()> {
        if self.reads_wait() {
            return Err(());
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
            return Ok(None);
        }
        // The head of the queue may need room itself.
        if !self.waiting.is_empty() {
            return Err(());
        }
        let values = &self.shared.pools.values;
        if let Some(room) = self.reply_room.take()
            && values.is_enough(&room, old)
        {
            return Ok(Some(room));
        }
        if self.reply_queue.is_none() {
            match values.ask(old) {
                Ok(room) => return Ok(Some(room)),
                Err(queued) => self.reply_queue = Some(queued),
            }
        }
        Err(())
    }

    /// Reads stand behind writes, never before one: so it is enough to look at the end, past what is ready.
    fn reads_wait(&self) -> bool {
        let last = self.waiting.iter().rev().find(|w| !matches!(w.kind, Kind::Ready(_)));
        matches!(last, Some(Waiting { kind: Kind::Read(_) | Kind::Many(_), .. }))
    }

    fn push(&mut self, kind: Kind<R::Pending>, bytes: usize, long: Option<Room>) {
        let ready_bytes = if let Kind::Ready(reply) = &kind { reply.size() } else { 0 };
        self.ready_bytes += ready_bytes;
        if self.read_backlog_bytes > 0 || matches!(kind, Kind::Read(_)) {
            self.read_backlog_bytes += bytes;
        }
        // HELLO and RESET already answer in the protocol they switch to.
        self.waiting.push_back(Waiting { kind, resp3: self.session.resp3, ready_bytes, long });
    }

    fn start(&mut self, spec: &Spec, args: &[Bytes], room: Option<Room>) -> Kind<R::Pending> {
        let Shared { replica, members, limits, .. } = &*self.shared;
        match keyed(spec, args, || replica.now_ms(), limits.command_bytes_max) {
            Err(reply) => Kind::Ready(reply),
            Ok(Some(Keyed::Write { key, command })) => {
                let slot = slot(&key);
                match replica.submit(command) {
                    Ok(pending) => Kind::Write { pending, slot, room },
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
    async fn answer_now(&mut self) -> bool {
        let answered = poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        if answered && !self.waiting.is_empty() {
            tokio::task::yield_now().await;
            poll_fn(|cx| Poll::Ready(self.answer_some(cx))).await;
        }
        answered
    }

    /// Ready once something was answered, or there is room that there was not.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.needs_long_room() {
            let bytes = self.shared.limits.command_bytes_max;
            match poll_room(&self.shared.pools.commands, &mut self.long_queue, cx, bytes) {
                Poll::Pending => {}
                Poll::Ready(room) => {
                    self.long = room;
                    return Poll::Ready(());
                }
            }
        }
        if self.answer_some(cx) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether anything came of it.
    fn answer_some(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        if let Some(queued) = &mut self.reply_queue {
            match queued.poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(room) => {
                    (self.reply_queue, self.reply_room) = (None, room);
                    progress = true;
                }
            }
        }
        self.effort = Effort::default();
        while self.out.has_room() && self.effort.is_fair() {
            let Some(mut head) = self.waiting.pop_front() else { break };
            let (step, ready_bytes) = (self.step(&mut head, cx), head.ready_bytes);
            progress |= step != Step::Wait;
            if step != Step::Done {
                self.waiting.push_front(head);
            }
            match step {
                Step::Wait => break,
                Step::Part => {}
                Step::Done => {
                    self.reply_room = None;
                    self.covered = self.covered.saturating_sub(1);
                    self.ready_bytes -= ready_bytes;
                    if !self.reads_wait() {
                        self.read_backlog_bytes = 0;
                    }
                }
            }
        }
        progress
    }

    /// Answers the head of the queue, or a part of it.
    fn step(&mut self, head: &mut Waiting<R::Pending>, cx: &mut Context<'_>) -> Step {
        let resp3 = head.resp3;
        match &mut head.kind {
            Kind::Ready(reply) => {
                self.out.reply(std::mem::replace(reply, Reply::Nil), resp3, head.long.take());
                Step::Done
            }
            Kind::Write { pending, slot, room } => {
                let reply = match Pin::new(pending).poll(cx) {
                    Poll::Pending => return Step::Wait,
                    Poll::Ready(Ok(answer)) => Reply::of_answer(answer),
                    Poll::Ready(Err(error)) => Reply::of_write_error(&error, *slot, &self.shared.members),
                };
                self.out.reply(reply, resp3, room.take());
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
                        let Ok(room) = self.room_for(|pools| &pools.values, reply.bulk_bytes(), cx) else {
                            return Step::Wait;
                        };
                        self.out.reply(reply, resp3, room);
                        Step::Done
                    }
                    Found::Many(many) => {
                        let kept = many.gathered.recent_bytes();
                        let Ok(room) = self.room_for(|pools| &pools.kept, kept, cx) else {
                            return Step::Wait;
                        };
                        if many.count.is_none() {
                            self.out.array_header(many.gathered.len());
                        }
                        let streamed = Streamed { many, since: Instant::now(), _kept: room };
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
                let Ok(room) = self.room_for(|pools| &pools.values, bytes, cx) else { return Step::Wait };
                self.effort.add(reply.bulk_bytes());
                self.out.reply(reply, resp3, room);
                gathered.advance();
                Step::Part
            }
        }
    }

    /// Room for a part of the reply at the head of the queue. An error while it must be waited for: what it is for is
    /// dropped, and read again later.
    fn room_for(
        &mut self,
        pool: impl FnOnce(&Pools) -> &Pool,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Result<Option<Room>, ()> {
        let had = self.reply_room.take();
        if bytes < LARGE_BYTES_MIN {
            return Ok(None);
        }
        let pool = pool(&self.shared.pools);
        if let Some(room) = had
            && pool.is_enough(&room, bytes)
        {
            return Ok(Some(room));
        }
        match poll_room(pool, &mut self.reply_queue, cx, bytes) {
            Poll::Ready(room) => Ok(room),
            Poll::Pending => Err(()),
        }
    }

    /// A read is at the head. A read that came after a barrier was started is not covered by it: a write may have been
    /// acknowledged to another client in between.
    fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Step {
        if self.barrier.is_none() {
            // The head itself was taken off.
            let behind = self.waiting.iter().take_while(|w| !matches!(w.kind, Kind::Write { .. })).count();
            self.covered = 1 + behind;
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

/// Asks a pool for room, once, and then waits in its queue.
fn poll_room(
    pool: &Pool,
    queue: &mut Option<Queued>,
    cx: &mut Context<'_>,
    bytes: usize,
) -> Poll<Option<Room>> {
    if queue.is_none() {
        match pool.ask(bytes) {
            Ok(room) => return Poll::Ready(Some(room)),
            Err(queued) => *queue = Some(queued),
        }
    }
    let Some(queued) = queue else { return Poll::Pending };
    let room = std::task::ready!(queued.poll(cx));
    *queue = None;
    Poll::Ready(room)
}
