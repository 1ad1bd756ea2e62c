//! Over real sockets, against a fake replica of one node.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use towline::engine::message::{Entry, EntryKind};
use towline::{ApplyBatch, LogId, Replies, StateMachine as _};

use super::*;
use crate::machine::{Answer, KvMachine, StoreConfig, View, pack};
use crate::replica::{Detail, ReadError, Replica, ReplicaState, Role, WriteError};

const COMMAND_BYTES_MAX: usize = 4_096;

#[derive(Clone)]
struct Fake {
    queue: mpsc::UnboundedSender<(Bytes, oneshot::Sender<Answer>)>,
    view: View,
    state: Arc<Mutex<ReplicaState>>,
    submit_error: Arc<Mutex<Option<WriteError>>>,
    barriers: Arc<std::sync::atomic::AtomicUsize>,
}

struct Pending(oneshot::Receiver<Answer>);

impl Future for Pending {
    type Output = Result<Answer, WriteError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.map_err(|_| WriteError::Uncertain { cause: "lost".into() }))
    }
}

impl Replica for Fake {
    type Pending = Pending;

    fn submit(&self, command: Bytes) -> Result<Pending, WriteError> {
        if let Some(error) = self.submit_error.lock().unwrap().clone() {
            return Err(error);
        }
        let (answer, pending) = oneshot::channel();
        let _ = self.queue.send((command, answer));
        Ok(Pending(pending))
    }

    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static {
        self.barriers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let view = self.view.clone();
        async move { Ok(view) }
    }

    fn now_ms(&self) -> Option<u64> {
        Some(self.view.local_ms())
    }

    fn local(&self) -> &View {
        &self.view
    }

    fn state(&self) -> ReplicaState {
        self.state.lock().unwrap().clone()
    }

    async fn detail(&self) -> Detail {
        Detail::default()
    }
}

struct Harness {
    at: SocketAddr,
    fake: Fake,
    refused: Arc<AtomicU64>,
    closed: [Arc<AtomicU64>; 3],
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

/// Enough for any test that does not set its own.
const LIMITS: Limits = Limits {
    command_bytes_max: COMMAND_BYTES_MAX,
    connections_max: 10,
    long_commands_max: 4,
    reply_bytes_max: 1 << 20,
    command_timeout: Duration::from_secs(60),
    write_timeout: Duration::from_secs(60),
    reply_timeout: Duration::from_secs(60),
};

async fn start(connections_max: usize) -> Harness {
    start_with(Limits { connections_max, ..LIMITS }).await
}

async fn start_with(limits: Limits) -> Harness {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = KvMachine::open(&dir.path().join("kv"), &StoreConfig::default()).unwrap();
    let (queue, mut commands) = mpsc::unbounded_channel::<(Bytes, oneshot::Sender<Answer>)>();
    let view = machine.view();
    std::thread::spawn(move || {
        let mut index = 0;
        while let Some((command, answer)) = commands.blocking_recv() {
            index += 1;
            let mut data = Vec::new();
            pack(&mut data, &command);
            let data = data.into();
            let entry = Entry { kind: EntryKind::Normal, term: 1, index, data, context: Bytes::new() };
            let mut replies = Replies::with_capacity(1);
            machine.apply(ApplyBatch::new(&[entry], LogId { index, term: 1 }), &mut replies).unwrap();
            let _ = answer.send(replies.into_vec().concat().pop().unwrap());
        }
    });
    let state =
        ReplicaState { role: Role::Leader, leader: Some(1), term: 1, commit: 0, applied: 0, down: None };
    let fake = Fake {
        queue,
        view,
        state: Arc::new(Mutex::new(state)),
        submit_error: Arc::default(),
        barriers: Arc::default(),
    };
    let member = |id, port| Member { id, host: "127.0.0.1".into(), port };
    let members = Members::new(1, vec![member(1, 6_001), member(2, 6_002)]);
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let at = server.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let refused = Arc::new(AtomicU64::new(0));
    let closed: [Arc<AtomicU64>; 3] = Default::default();
    let counter = |counted: &Arc<AtomicU64>| metrics::Counter::from_arc(Arc::clone(counted));
    let counters = Counters {
        refused: counter(&refused),
        accept_failures: metrics::Counter::noop(),
        command_waits: metrics::Counter::noop(),
        reply_waits: metrics::Counter::noop(),
        command_timeouts: counter(&closed[0]),
        write_timeouts: counter(&closed[1]),
        reply_timeouts: counter(&closed[2]),
    };
    tokio::spawn(server.run(fake.clone(), members, limits, counters, stopped));
    Harness { at, fake, refused, closed, _stop: stop, _dir: dir }
}

impl Harness {
    /// Everything the server says to `input` until it closes, which the end of the input makes it do.
    async fn talk(&self, input: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        stream.write_all(input).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        String::from_utf8(said).unwrap()
    }
}

#[tokio::test]
async fn replies_come_in_order_and_reads_see_the_writes_before_them() {
    let h = start(10).await;
    let mut input = String::new();
    let mut expected = String::new();
    // More than may wait at once.
    for i in 0..pipeline::PENDING_MAX {
        input += &format!("SET k {i}\r\nGET k\r\nPING\r\nSTRLEN k\r\n");
        let value = i.to_string();
        expected += &format!("+OK\r\n${}\r\n{value}\r\n+PONG\r\n:{}\r\n", value.len(), value.len());
    }
    let said = h.talk(input.as_bytes()).await;
    let differ = said.lines().zip(expected.lines()).position(|(said, expected)| said != expected);
    assert_eq!((differ, said.len()), (None, expected.len()));
}

#[tokio::test]
async fn one_barrier_serves_a_run_of_reads() {
    let h = start(10).await;
    h.talk("GET k\r\n".repeat(500).as_bytes()).await;
    let barriers = h.fake.barriers.load(std::sync::atomic::Ordering::Relaxed);
    assert!(barriers <= 20, "{barriers} barriers for 500 reads that came together");
}

#[tokio::test]
async fn errors_have_the_texts_of_redis() {
    let h = start(10).await;
    for (input, text) in [
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("SET a", "ERR wrong number of arguments for 'set' command"),
        ("MSET a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("foo a b", "ERR unknown command 'foo', with args beginning with: 'a' 'b' "),
        ("SET a b EX", "ERR syntax error"),
        ("SET a b NX XX", "ERR syntax error"),
        ("SET a b EX x", "ERR value is not an integer or out of range"),
        ("SET a b EX 0", "ERR invalid expire time in 'set' command"),
        ("SET a b EX 9223372036854775807", "ERR invalid expire time in 'set' command"),
        ("INCRBY a 1.5", "ERR value is not an integer or out of range"),
        ("DECRBY a -9223372036854775808", "ERR decrement would overflow"),
        ("SELECT 1", "ERR DB index is out of range"),
        ("CLIENT frob", "ERR unknown subcommand 'frob'. Try CLIENT HELP."),
        ("CLUSTER", "ERR wrong number of arguments for 'cluster' command"),
        ("HELLO 9", "NOPROTO unsupported protocol version"),
    ] {
        assert_eq!(h.talk(format!("{input}\r\n").as_bytes()).await, format!("-{text}\r\n"), "{input}");
    }
    let said = h.talk(b"SET t abc\r\nINCR t\r\nSET n 9223372036854775807\r\nINCR n\r\n").await;
    let expected = "+OK\r\n-ERR value is not an integer or out of range\r\n\
                    +OK\r\n-ERR increment or decrement would overflow\r\n";
    assert_eq!(said, expected);
}

#[tokio::test]
async fn what_is_no_command_is_answered_and_closed() {
    let h = start(10).await;
    let said = h.talk(b"PING\r\n*1\r\n:1\r\nPING\r\n").await;
    assert_eq!(said, "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n");
    let said = h.talk(format!("*1\r\n${}\r\n", COMMAND_BYTES_MAX + 1).as_bytes()).await;
    assert_eq!(said, "-ERR Protocol error: invalid bulk length\r\n");
}

#[tokio::test]
async fn what_is_not_known_is_told_apart_from_what_never_happened() {
    let h = start(10).await;
    let uncertain = WriteError::Uncertain { cause: "leader\r\nlost".into() };
    for (error, text) in [
        (WriteError::NotLeader { hint: Some(2) }, "MOVED 12182 127.0.0.1:6002"),
        (WriteError::NotLeader { hint: None }, "CLUSTERDOWN no leader is known"),
        (WriteError::Busy, "TRYAGAIN too much is under way, the write was not taken"),
        (uncertain, "UNCERTAIN the outcome is not known: leader  lost"),
    ] {
        *h.fake.submit_error.lock().unwrap() = Some(error);
        assert_eq!(h.talk(b"SET foo 1\r\n").await, format!("-{text}\r\n"));
    }
    {
        let mut state = h.fake.state.lock().unwrap();
        (state.role, state.leader) = (Role::Follower, Some(2));
    }
    assert_eq!(h.talk(b"GET foo\r\n").await, "-MOVED 12182 127.0.0.1:6002\r\n");
    let said =
        h.talk(b"READONLY\r\nGET foo\r\nREADWRITE\r\nGET foo\r\nREADONLY\r\nRESET\r\nGET foo\r\n").await;
    let moved = "-MOVED 12182 127.0.0.1:6002\r\n";
    assert_eq!(said, format!("+OK\r\n$-1\r\n+OK\r\n{moved}+OK\r\n+RESET\r\n{moved}"), "READONLY reads here");
    assert!(h.talk(b"CLUSTER SLOTS\r\n").await.contains(":6002\r\n"));
}

#[tokio::test]
async fn hello_switches_the_protocol_of_later_replies() {
    let h = start(10).await;
    let said = h.talk(b"GET none\r\nHELLO 3\r\nGET none\r\nCONFIG GET save\r\nRESET\r\nGET none\r\n").await;
    assert!(said.starts_with("$-1\r\n%7\r\n"), "{said}");
    assert!(said.ends_with("_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n+RESET\r\n$-1\r\n"), "{said}");
}

#[tokio::test]
async fn connections_past_the_bound_are_told_so_and_counted() {
    let h = start(1).await;
    let mut first = TcpStream::connect(h.at).await.unwrap();
    first.write_all(b"PING\r\n").await.unwrap();
    first.read_exact(&mut [0; 7]).await.unwrap();
    let mut said = String::new();
    TcpStream::connect(h.at).await.unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "-ERR max number of clients reached\r\n");
    assert_eq!(h.refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_client_crate_gets_what_it_expects() {
    let h = start(10).await;
    for protocol in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://{}/{protocol}", h.at)).unwrap();
        let mut c = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("FLUSHDB").query_async(&mut c).await.unwrap();
        let (a, b, n): (String, Option<String>, i64) = redis::pipe()
            .cmd("MSET")
            .arg("a")
            .arg("1")
            .arg("b")
            .arg("x")
            .ignore()
            .cmd("APPEND")
            .arg("a")
            .arg("2")
            .ignore()
            .cmd("GET")
            .arg("a")
            .cmd("GET")
            .arg("none")
            .cmd("INCR")
            .arg("a")
            .query_async(&mut c)
            .await
            .unwrap();
        assert_eq!((a.as_str(), b, n), ("12", None, 13));
        let many: Vec<Option<String>> =
            redis::cmd("MGET").arg("a").arg("c").arg("b").query_async(&mut c).await.unwrap();
        assert_eq!(many, [Some("13".into()), None, Some("x".into())]);
        let () = redis::cmd("SET").arg("a").arg("v").arg("EX").arg(100).query_async(&mut c).await.unwrap();
        let (ttl, none, gone, size): (i64, i64, i64, i64) = redis::pipe()
            .cmd("TTL")
            .arg("a")
            .cmd("TTL")
            .arg("b")
            .cmd("DEL")
            .arg("b")
            .arg("c")
            .cmd("DBSIZE")
            .query_async(&mut c)
            .await
            .unwrap();
        assert!((99..=100).contains(&ttl), "{ttl}");
        assert_eq!((none, gone, size), (-1, 1, 1));
    }
}

/// Sets `v` to 4,000 bytes, and makes an MGET of it whose reply has more than any socket takes.
async fn much(h: &Harness) -> Vec<u8> {
    let value = "v".repeat(4_000);
    assert_eq!(h.talk(format!("SET v {value}\r\n").as_bytes()).await, "+OK\r\n");
    format!("MGET {}\r\n", "v ".repeat(2_000)).into_bytes()
}

async fn end_of(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    let ended = async { while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the server closes the connection");
}

#[tokio::test]
async fn deadlines_end_what_depends_on_the_client_alone() {
    let soon = Duration::from_millis(100);
    let h = start_with(Limits { command_timeout: soon, write_timeout: soon, ..LIMITS }).await;
    let counts = |h: &Harness| h.closed.each_ref().map(|count| count.load(Ordering::Relaxed));
    let mut unfinished = TcpStream::connect(h.at).await.unwrap();
    unfinished.write_all(b"*1\r\n$4\r\nPI").await.unwrap();
    end_of(unfinished).await;
    assert_eq!(counts(&h), [1, 0, 0]);

    let much = much(&h).await;
    let mut unread = TcpStream::connect(h.at).await.unwrap();
    unread.write_all(&much).await.unwrap();
    let closed = async {
        while counts(&h)[1] == 0 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
    assert_eq!(counts(&h), [1, 1, 0]);
}

#[tokio::test]
async fn one_reply_may_not_take_for_ever() {
    let h = start_with(Limits { reply_timeout: Duration::from_millis(100), ..LIMITS }).await;
    let much = much(&h).await;
    let mut unread = TcpStream::connect(h.at).await.unwrap();
    unread.write_all(&much).await.unwrap();
    let closed = async {
        while h.closed[2].load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
}

#[tokio::test]
async fn commands_behind_a_long_reply_are_answered_whatever_their_number() {
    let h = start(10).await;
    let much = much(&h).await;
    let (mut input, mut expected) = (Vec::new(), 0);
    for _ in 0..20 {
        input.extend_from_slice(&much);
        expected += 7 + 2_000 * 4_009;
        for _ in 0..100 {
            input.extend_from_slice(b"PING\r\nGET v\r\nSET w 1\r\nSET w 2 NX GET\r\n");
            expected += 7 + 4_009 + 5 + 7;
        }
    }
    let mut stream = TcpStream::connect(h.at).await.unwrap();
    let (mut from, mut to) = stream.split();
    let said = async {
        let (mut said, mut buffer) = (0, vec![0; 1 << 20]);
        while let read @ 1.. = from.read(&mut buffer).await.unwrap() {
            said += read;
        }
        said
    };
    let sent = async {
        to.write_all(&input).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let (said, ()) = tokio::join!(said, sent);
    assert_eq!(said, expected);
}

#[test]
fn room_of_a_pool_is_given_in_turn_and_given_back() {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let waits = Arc::new(AtomicU64::new(0));
    let pool = pool::Pool::new(10 << 10, metrics::Counter::from_arc(Arc::clone(&waits)));
    let Ok(most) = pool.ask(9 << 10) else { panic!("there is room") };
    assert!(pool.is_enough(&most, 9 << 10) && !pool.is_enough(&most, 10 << 10));
    let Err(mut first) = pool.ask(2 << 10) else { panic!("there is none") };
    assert!(first.poll(&mut cx).is_pending());
    let Err(mut second) = pool.ask(1 << 10) else { panic!("it is not its turn") };
    assert!(second.poll(&mut cx).is_pending());
    assert_eq!(waits.load(Ordering::Relaxed), 2);
    drop(most);
    assert!(first.poll(&mut cx).is_ready() && second.poll(&mut cx).is_ready());
    // More than there is in all is the whole.
    let Ok(all) = pool.ask(1 << 40) else { panic!("both gave it back") };
    assert!(pool.is_enough(&all, 1 << 40));
}

#[test]
fn a_client_is_behind_once_it_moved_less_than_the_least_rate_for_two_seconds() {
    let Ok(mut room) = pool::Pool::new(1 << 10, metrics::Counter::noop()).ask(1) else {
        panic!("there is room")
    };
    let start = tokio::time::Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    room.renew(start);
    assert_eq!(room.due(), after(2));
    // 8 MiB a second keep it where it is.
    for second in 1..10 {
        room.moved(8 << 20, after(second));
        assert_eq!(room.due(), after(second + 2));
    }
    // Being faster earns nothing for later, and being slower loses what it had.
    room.moved(1 << 30, after(10));
    assert_eq!(room.due(), after(12));
    room.moved(4 << 20, after(11));
    room.moved(4 << 20, after(12));
    assert_eq!(room.due(), after(13));
}

/// A count sends nothing until it is done. With a write held behind it, the server counted on without a look at the
/// deadline, or at whether the client was still there.
#[tokio::test]
async fn a_long_count_is_given_up_at_its_deadline_although_a_write_is_held_behind_it() {
    let limits = Limits { command_bytes_max: 2 << 20, reply_timeout: Duration::from_millis(1), ..LIMITS };
    let harness = start_with(limits).await;
    let names = 200_000;
    let mut input = format!("*{}\r\n$6\r\nEXISTS\r\n", names + 1);
    input.push_str(&"$1\r\nk\r\n".repeat(names));
    input.push_str("SET a b\r\n");
    let said = harness.talk(input.as_bytes()).await;
    assert_eq!((said.as_str(), harness.closed[2].load(Ordering::Relaxed)), ("", 1));
}

/// A few clients that took a large value slowly kept the room of all large values: other clients waited for as long as the
/// write timeout for a value of 20 KB.
#[tokio::test]
async fn a_slow_client_may_not_keep_room_that_others_wait_for() {
    let harness = start_with(Limits { command_bytes_max: 32 << 20, ..LIMITS }).await;
    let large = 16 << 20;
    let mut input = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${large}\r\n").into_bytes();
    input.resize(input.len() + large, b'v');
    input.extend_from_slice(b"\r\n*3\r\n$3\r\nSET\r\n$5\r\nother\r\n$20000\r\n");
    input.resize(input.len() + 20_000, b'v');
    input.extend_from_slice(b"\r\n");
    let said = harness.talk(&input).await;
    assert_eq!(said, "+OK\r\n+OK\r\n");
    let mut slow = TcpStream::connect(harness.at).await.unwrap();
    slow.write_all(b"GET large\r\n").await.unwrap();
    slow.readable().await.unwrap();
    let asked = tokio::time::Instant::now();
    let said = harness.talk(b"GET other\r\n").await;
    assert_eq!(said.len(), "$20000\r\n\r\n".len() + 20_000);
    // A minute is the write timeout of this server.
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    assert_eq!(harness.closed[2].load(Ordering::Relaxed), 1);
}
