//! Tests over real sockets, with a fake replica on one node.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use towline::engine::message::Entry;
use towline::{
    ApplyBatch, ByteSize, GroupState, GroupStatus, LogId, NodeId, ProposeError, ReadError, Replies, Role,
    StateMachine as _, UncertainCause, Wait,
};

use super::*;
use crate::config::KvConfig;
use crate::machine::{Answer, KvMachine, StoreConfig, StoreRoom, View, pack};
use crate::replica::Replica;

const COMMAND_BYTES_MAX: usize = 4_096;

#[derive(Clone)]
struct Fake {
    queue: mpsc::UnboundedSender<(Bytes, oneshot::Sender<Answer>)>,
    view: View,
    state: Arc<Mutex<GroupState>>,
    submit_error: Arc<Mutex<Option<ProposeError>>>,
    barriers: Arc<AtomicUsize>,
}

struct FakePending(oneshot::Receiver<Answer>);

impl Future for FakePending {
    type Output = Result<Answer, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| Ok(answer.unwrap()))
    }
}

impl Replica for Fake {
    type Pending = FakePending;

    fn submit(&self, command: Bytes) -> Result<FakePending, ProposeError> {
        if let Some(error) = self.submit_error.lock().unwrap().clone() {
            return Err(error);
        }
        let (answer, pending) = oneshot::channel();
        let _ = self.queue.send((command, answer));
        Ok(FakePending(pending))
    }

    fn read(&self) -> impl Future<Output = Result<View, ReadError>> + Send + 'static {
        self.barriers.fetch_add(1, Ordering::Relaxed);
        let view = self.view.clone();
        async move { Ok(view) }
    }

    fn now_ms(&self) -> Option<u64> {
        Some(self.view.local_ms())
    }

    fn local(&self) -> Option<View> {
        Some(self.view.clone())
    }

    fn state(&self) -> GroupState {
        self.state.lock().unwrap().clone()
    }

    async fn status(&self) -> Option<GroupStatus> {
        None
    }

    async fn explain(&self) -> Vec<Wait> {
        Vec::new()
    }
}

struct TestServer {
    at: SocketAddr,
    fake: Fake,
    reply_timeouts: Arc<AtomicU64>,
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

async fn start() -> TestServer {
    start_with(limits(), COMMAND_BYTES_MAX).await
}

fn limits() -> KvConfig {
    KvConfig { reply_bytes_max: ByteSize::mib(1), ..KvConfig::default() }
}

async fn start_with(limits: KvConfig, command_bytes_max: usize) -> TestServer {
    let dir = tempfile::tempdir().unwrap();
    let mut machine =
        KvMachine::open(&dir.path().join("kv"), &StoreConfig::default(), &StoreRoom::new(|| None)).unwrap();
    let (queue, mut commands) = mpsc::unbounded_channel::<(Bytes, oneshot::Sender<Answer>)>();
    let view = machine.view();
    std::thread::spawn(move || {
        let mut index = 0;
        while let Some((command, answer)) = commands.blocking_recv() {
            index += 1;
            let mut data = Vec::new();
            pack(&mut data, &command);
            let entry = Entry { term: 1, index, data: data.into(), ..Entry::default() };
            let mut replies = Replies::with_capacity(1);
            machine.apply(ApplyBatch::new(&[entry], LogId { index, term: 1 }), &mut replies).unwrap();
            let _ = answer.send(replies.into_vec().concat().pop().unwrap());
        }
    });
    let (role, leader) = (Role::Leader, NodeId::new(1));
    let state = GroupState { role, leader, term: 1, commit: 0, applied: 0, down: None, refused: None };
    let fake = Fake {
        queue,
        view,
        state: Arc::new(Mutex::new(state)),
        submit_error: Arc::default(),
        barriers: Arc::default(),
    };
    let id = |id| NodeId::new(id).unwrap();
    let member = |number, port| Member { id: id(number), host: "127.0.0.1".into(), port };
    let members = Members::new(id(1), vec![member(1, 6_001), member(2, 6_002)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let reply_timeouts = Arc::new(AtomicU64::new(0));
    let counters = Counters {
        refused: Counter::noop(),
        accept_failures: Counter::noop(),
        command_waits: Counter::noop(),
        reply_waits: Counter::noop(),
        command_timeouts: Counter::noop(),
        write_timeouts: Counter::noop(),
        reply_timeouts: Counter::from_arc(Arc::clone(&reply_timeouts)),
    };
    let shared = Shared::new(fake.clone(), members, limits, command_bytes_max, counters);
    tokio::spawn(serve(listener, shared, stopped));
    TestServer { at, fake, reply_timeouts, _stop: stop, _dir: dir }
}

impl TestServer {
    /// Sends `input`, ends it, and returns all replies.
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
    let h = start().await;
    let mut input = String::new();
    let mut expected = String::new();
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
    let h = start().await;
    h.talk("GET k\r\n".repeat(500).as_bytes()).await;
    let barriers = h.fake.barriers.load(Ordering::Relaxed);
    assert!(barriers <= 20, "{barriers} barriers for 500 reads that came together");
}

#[tokio::test]
async fn errors_have_the_texts_of_redis() {
    let h = start().await;
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
async fn a_protocol_error_is_answered_and_closes_the_connection() {
    let h = start().await;
    let said = h.talk(b"PING\r\n*1\r\n:1\r\nPING\r\n").await;
    assert_eq!(said, "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n");
    let said = h.talk(format!("*1\r\n${}\r\n", COMMAND_BYTES_MAX + 1).as_bytes()).await;
    assert_eq!(said, "-ERR Protocol error: invalid bulk length\r\n");
}

#[tokio::test]
async fn an_uncertain_write_has_another_reply_than_a_refused_one() {
    let h = start().await;
    let uncertain = ProposeError::Uncertain { cause: UncertainCause::Down("disk\r\nlost".into()) };
    for (error, text) in [
        (ProposeError::NotLeader { hint: NodeId::new(2).map(Into::into) }, "MOVED 12182 127.0.0.1:6002"),
        (ProposeError::NotLeader { hint: None }, "CLUSTERDOWN no leader is known"),
        (
            ProposeError::DiskFull { low: [NodeId::new(2).unwrap()].into() },
            "DISKFULL the disk is full: too little room on node 2; the command was not appended",
        ),
        (ProposeError::Busy, "TRYAGAIN too much is under way, the write was not taken"),
        (uncertain, "UNCERTAIN the outcome is not known: the group went down: disk  lost"),
    ] {
        *h.fake.submit_error.lock().unwrap() = Some(error);
        assert_eq!(h.talk(b"SET foo 1\r\n").await, format!("-{text}\r\n"));
    }
    {
        let mut state = h.fake.state.lock().unwrap();
        (state.role, state.leader) = (Role::Follower, NodeId::new(2));
    }
    assert_eq!(h.talk(b"GET foo\r\n").await, "-MOVED 12182 127.0.0.1:6002\r\n");
    let said =
        h.talk(b"READONLY\r\nGET foo\r\nREADWRITE\r\nGET foo\r\nREADONLY\r\nRESET\r\nGET foo\r\n").await;
    let moved = "-MOVED 12182 127.0.0.1:6002\r\n";
    assert_eq!(
        said,
        format!("+OK\r\n$-1\r\n+OK\r\n{moved}+OK\r\n+RESET\r\n{moved}"),
        "READONLY allows reads"
    );
    assert!(h.talk(b"CLUSTER SLOTS\r\n").await.contains(":6002\r\n"));
}

#[tokio::test]
async fn hello_switches_the_protocol_of_later_replies() {
    let h = start().await;
    let said = h.talk(b"GET none\r\nHELLO 3\r\nGET none\r\nCONFIG GET save\r\nRESET\r\nGET none\r\n").await;
    assert!(said.starts_with("$-1\r\n%7\r\n"), "{said}");
    assert!(said.ends_with("_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n+RESET\r\n$-1\r\n"), "{said}");
}

#[tokio::test]
async fn any_number_of_commands_behind_a_long_reply_is_answered() {
    let h = start().await;
    let value = "v".repeat(4_000);
    assert_eq!(h.talk(format!("SET v {value}\r\n").as_bytes()).await, "+OK\r\n");
    // Its reply is larger than any socket buffer.
    let long = format!("MGET {}\r\n", "v ".repeat(2_000));
    let (mut input, mut expected) = (Vec::new(), 0);
    for _ in 0..20 {
        input.extend_from_slice(long.as_bytes());
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
fn a_pool_grants_room_in_turn() {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let waits = Arc::new(AtomicU64::new(0));
    let pool = pool::Pool::new(10 << 10, metrics::Counter::from_arc(Arc::clone(&waits)));
    let Ok(most) = pool.ask(9 << 10) else { panic!("there is room") };
    assert!(pool.is_enough(&most, 9 << 10) && !pool.is_enough(&most, 10 << 10));
    let Err(mut first) = pool.ask(2 << 10) else { panic!("the pool has too little") };
    assert!(first.poll(&mut cx).is_pending());
    let Err(mut second) = pool.ask(1 << 10) else { panic!("another claim is first") };
    assert!(second.poll(&mut cx).is_pending());
    assert_eq!(waits.load(Ordering::Relaxed), 2);
    drop(most);
    assert!(first.poll(&mut cx).is_ready() && second.poll(&mut cx).is_ready());
    // A claim over the size of the pool gets the whole pool.
    let Ok(all) = pool.ask(1 << 40) else { panic!("both returned theirs") };
    assert!(pool.is_enough(&all, 1 << 40));
}

#[test]
fn a_client_is_too_slow_after_two_seconds_below_the_least_rate() {
    let Ok(mut room) = pool::Pool::new(1 << 10, metrics::Counter::noop()).ask(1) else {
        panic!("there is room")
    };
    let start = tokio::time::Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    room.renew(start);
    assert_eq!(room.due(), after(2));
    for second in 1..10 {
        room.moved(8 << 20, after(second));
        assert_eq!(room.due(), after(second + 2));
    }
    // A faster client earns no time beyond two seconds.
    room.moved(1 << 30, after(10));
    assert_eq!(room.due(), after(12));
    room.moved(4 << 20, after(11));
    room.moved(4 << 20, after(12));
    assert_eq!(room.due(), after(13));
}

/// A count sends nothing until its end. With a write held behind it, the server checked neither the deadline nor the client.
#[tokio::test]
async fn a_long_count_with_a_write_behind_it_ends_at_its_deadline() {
    let limits = KvConfig { reply_timeout: Duration::from_millis(1), ..limits() };
    let h = start_with(limits, 2 << 20).await;
    let names = 200_000;
    let mut input = format!("*{}\r\n$6\r\nEXISTS\r\n", names + 1);
    input.push_str(&"$1\r\nk\r\n".repeat(names));
    input.push_str("SET a b\r\n");
    let said = h.talk(input.as_bytes()).await;
    assert_eq!((said.as_str(), h.reply_timeouts.load(Ordering::Relaxed)), ("", 1));
}

/// A few slow clients kept the room of all large values. Other clients waited up to the write timeout for 20 KB.
#[tokio::test]
async fn a_slow_client_loses_the_room_that_another_waits_for() {
    let h = start_with(limits(), 32 << 20).await;
    let large = 16 << 20;
    let mut input = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${large}\r\n").into_bytes();
    input.resize(input.len() + large, b'v');
    input.extend_from_slice(b"\r\n*3\r\n$3\r\nSET\r\n$5\r\nother\r\n$20000\r\n");
    input.resize(input.len() + 20_000, b'v');
    input.extend_from_slice(b"\r\n");
    let said = h.talk(&input).await;
    assert_eq!(said, "+OK\r\n+OK\r\n");
    let mut slow = TcpStream::connect(h.at).await.unwrap();
    slow.write_all(b"GET large\r\n").await.unwrap();
    slow.readable().await.unwrap();
    let asked = tokio::time::Instant::now();
    let said = h.talk(b"GET other\r\n").await;
    assert_eq!(said.len(), "$20000\r\n\r\n".len() + 20_000);
    assert!(asked.elapsed() < limits().write_timeout / 2, "{:?}", asked.elapsed());
    assert_eq!(h.reply_timeouts.load(Ordering::Relaxed), 1);
}
