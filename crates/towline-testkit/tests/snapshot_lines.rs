//! The log line that each side writes for a transfer. The two lines distinguish lost bytes from wrong content. Alone in its
//! binary, because it reads every log line of the process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod common;

use std::fmt::Debug;
use std::net::TcpListener;
use std::sync::OnceLock;

use crate::common::*;
use common::{LaggingCluster, config, load};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The subscriber is global, so one test at a time reads it.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn listen() -> (tokio::sync::MutexGuard<'static, ()>, Lines) {
    static LINES: OnceLock<Lines> = OnceLock::new();
    let alone = ALONE.lock().await;
    let lines = LINES.get_or_init(|| {
        let lines = Lines::default();
        tracing::subscriber::set_global_default(lines.clone()).unwrap();
        lines
    });
    lines.lines.lock().unwrap().clear();
    (alone, lines.clone())
}

/// Records the log lines of transfers.
#[derive(Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<Line>>>,
}

/// The fields of one log line.
#[derive(Clone, Debug, Default)]
struct Line(BTreeMap<&'static str, String>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }
}

impl Line {
    fn text(&self, field: &str) -> &str {
        self.0.get(field).unwrap_or_else(|| panic!("no field `{field}` in {self:?}"))
    }

    fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_else(|_| panic!("`{field}` is no number in {self:?}"))
    }
}

impl Subscriber for Lines {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.is_event() && of.target() == "towline_engine::snapshots::transfer_record"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.lines.lock().unwrap().push(line);
    }
}

impl Lines {
    /// The first line of one side with this outcome.
    async fn ended(&self, direction: &str, outcome: &str) -> Line {
        self.ended_for(direction, outcome, "").await
    }

    /// The first such line whose cause contains `cause`. On a busy machine an attempt may first fail for another cause.
    async fn ended_for(&self, direction: &str, outcome: &str, cause: &str) -> Line {
        let is = |line: &&Line| {
            (line.text("direction"), line.text("outcome")) == (direction, outcome)
                && (cause.is_empty() || line.text("cause").contains(cause))
        };
        eventually("a line", async || {
            let lines = self.lines.lock().unwrap();
            lines.iter().find(is).cloned().ok_or_else(|| (outcome.to_owned(), lines.clone()))
        })
        .await
    }

    /// The lines of both sides for the first attempt: the sender's, then the receiver's.
    async fn of_first_attempt(&self, leader: u64, behind: u64) -> (Line, Line) {
        let find = |direction: &str, peer: u64| {
            let lines = self.lines.lock().unwrap();
            let of = |line: &&Line| {
                line.text("direction") == direction
                    && line.number("peer") == peer
                    && line.number("attempt") == 1
            };
            let found: Vec<Line> = lines.iter().filter(of).cloned().collect();
            assert!(found.len() <= 1, "one line a side and attempt: {found:?}");
            found.into_iter().next()
        };
        eventually("a line of each side", async || match (find("sent", behind), find("received", leader)) {
            (Some(sent), Some(received)) => Ok((sent, received)),
            found => Err(found),
        })
        .await
    }
}

/// What an operator concludes from the two lines alone.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Bytes were lost: look at the network.
    BytesLost(u64),
    /// All bytes arrived with the wrong content: look at the files and the format.
    WrongContent,
    Sound,
}

fn verdict(sent: &Line, received: &Line) -> Verdict {
    for field in ["group", "index", "attempt", "total", "offset"] {
        assert_eq!(sent.text(field), received.text(field), "the same transfer: `{field}`");
    }
    let (out, came) = (sent.number("payload_bytes"), received.number("payload_bytes"));
    match (out - came, received.text("outcome")) {
        (0, "finished") => Verdict::Sound,
        (0, _) => {
            assert_eq!(came, received.number("total"), "all bytes");
            Verdict::WrongContent
        }
        (bytes, _) => Verdict::BytesLost(bytes),
    }
}

/// Uses gRPC, whose connections can break.
async fn wired() -> LaggingCluster {
    LaggingCluster::grpc(
        Plan::new(3, 1).config(Config { snapshot_progress_timeout: Duration::from_secs(10), ..config() }),
    )
    .await
}

/// Starts the follower and ends the faults after its first attempt.
async fn first_attempt(setup: &mut LaggingCluster, lines: &Lines) -> (Line, Line) {
    lines.lines.lock().unwrap().clear();
    setup.restart_follower().await;
    let found = lines.of_first_attempt(setup.leader, setup.behind).await;
    setup.proxies.iter().for_each(TcpProxy::clear);
    assert!(setup.cluster.settled(1).await.len() >= 45);
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_two_lines_of_a_transfer_distinguish_lost_bytes_from_wrong_content() {
    let (_alone, lines) = listen().await;
    let mut sound = wired().await;
    let (sent, received) = first_attempt(&mut sound, &lines).await;
    assert_eq!(verdict(&sent, &received), Verdict::Sound, "{sent:?}\n{received:?}");
    for line in [&sent, &received] {
        assert_eq!((line.text("outcome"), line.text("cause")), ("finished", ""));
        assert_eq!(line.number("group"), 1);
        assert!(line.number("index") >= 40, "{line:?}");
        assert!(line.text("seconds").parse::<f64>().unwrap() > 0.0, "{line:?}");
        assert_eq!(line.number("payload_bytes"), line.number("total"));
    }
    drop(sound);

    // The connection breaks in the middle of the stream.
    let mut cut = wired().await;
    let flow = Flow { cut_after: Some(300_000), ..Flow::default() };
    cut.proxies[cut.behind as usize - 1].set(ProxyDirection::Forth, flow);
    let (sent, received) = first_attempt(&mut cut, &lines).await;
    let Verdict::BytesLost(bytes) = verdict(&sent, &received) else { panic!("{sent:?}\n{received:?}") };
    assert!(bytes > 0 && received.number("payload_bytes") <= 300_000, "{sent:?}\n{received:?}");
    assert_eq!(sent.text("outcome"), "failed");
    assert!(!sent.text("cause").contains("corrupt"), "{sent:?}");
    let ended = (received.text("outcome"), received.text("cause"));
    assert_eq!(ended, ("cancelled", "the stream of the sender ended"), "{received:?}");
    drop(cut);

    // Every byte arrives, and the digest does not match.
    let mut corrupt = wired().await;
    let length = corrupt.latest(corrupt.leader).length;
    let damage = move |store: &FaultySnapshots| store.flip_at(length / 2);
    corrupt.store_from_start(corrupt.behind, damage);
    let (sent, received) = first_attempt(&mut corrupt, &lines).await;
    assert_eq!(verdict(&sent, &received), Verdict::WrongContent, "{sent:?}\n{received:?}");
    assert_eq!((sent.text("outcome"), received.text("outcome")), ("failed", "failed"));
    for line in [&sent, &received] {
        assert!(line.text("cause").contains("corrupt"), "{line:?}");
        assert_eq!(line.number("payload_bytes"), length);
    }
}

/// Every byte arrives intact, but the state machine cannot read the format.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_lines_and_a_group_that_is_down_show_an_unreadable_format() {
    let (_alone, lines) = listen().await;
    let disks: Arc<Mutex<BTreeMap<NodeId, ListDisk>>> = Arc::default();
    let of = disks.clone();
    let plan = Plan::new(3, 1).config(config()).machine(move |node, _| {
        let mut disks = of.lock().unwrap();
        ListMachine::new().stored_in(disks.entry(node).or_insert_with(|| ListDisk::new(Replacing::Aside)))
    });
    let mut setup = LaggingCluster::grpc(plan).await;
    disks.lock().unwrap()[&node_id(setup.behind)].cut_restore(1, RestoreCut::Fatal);
    lines.lines.lock().unwrap().clear();
    setup.restart_follower().await;
    let (sent, received) = lines.of_first_attempt(setup.leader, setup.behind).await;
    assert_eq!(verdict(&sent, &received), Verdict::Sound, "{sent:?}\n{received:?}");
    for line in [&sent, &received] {
        assert_eq!((line.text("outcome"), line.text("cause")), ("finished", ""));
    }
    let down = || setup.cluster.group(setup.behind, 1).state().down;
    until("the group is down", || down().is_some()).await;
    assert!(down().unwrap().contains("told to fail"), "{:?}", down());
}

/// The line of a cancelled transfer had no cause, and a transfer cancelled before its start had no line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_line_of_a_cancelled_transfer_has_its_cause() {
    let (_alone, lines) = listen().await;
    let slow = Config { snapshot_bytes_per_second: ByteSize::bytes(400_000), ..config() };

    let mut stops = LaggingCluster::new(slow.clone()).await;
    stops.cluster.restart(stops.behind).await;
    stops.midway().await;
    stops.cluster.stop(stops.leader, Duration::ZERO).await;
    let line = lines.ended("sent", "cancelled").await;
    // In a stop without a deadline, either the transfer or its runtime ends first.
    assert!(["the node was shut down", "the runtime has ended"].contains(&line.text("cause")), "{line:?}");
    drop(stops);

    lines.lines.lock().unwrap().clear();
    let mut steps_down = LaggingCluster::new(slow.clone()).await;
    steps_down.cluster.restart(steps_down.behind).await;
    steps_down.midway().await;
    steps_down.transfer_leadership(steps_down.third()).await;
    let line = lines.ended("sent", "cancelled").await;
    assert!(line.text("cause").starts_with("the leadership it belonged to is over"), "{line:?}");
    drop(steps_down);

    lines.lines.lock().unwrap().clear();
    let mut grows =
        LaggingCluster::new(Config { snapshot_pin_bytes_max: ByteSize::bytes(10_000), ..slow }).await;
    grows.cluster.restart(grows.behind).await;
    grows.midway().await;
    load(&grows.cluster, 2, 20_000).await;
    let line = lines.ended("sent", "cancelled").await;
    assert!(line.text("cause").contains("snapshot_pin_bytes_max"), "{line:?}");
}

/// The line said "cannot offer the snapshot" or "write failed" without the error of the system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_line_of_a_failed_transfer_has_the_error_of_the_system() {
    let (_alone, lines) = listen().await;
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere: PeerAddr = format!("grpc://{}", held.local_addr().unwrap()).parse().unwrap();
    drop(held);
    let mut lost = LaggingCluster::new(config()).await;
    lost.offers.elsewhere(Arc::new(GrpcTransport::new(GrpcConfig::default())), nowhere);
    lost.cluster.restart(lost.behind).await;
    lines.ended_for("sent", "failed", "Connection refused").await;
    drop(lost);

    lines.lines.lock().unwrap().clear();
    let mut full = LaggingCluster::new(config()).await;
    full.full_from_start(full.behind, 1);
    full.cluster.restart(full.behind).await;
    for side in ["sent", "received"] {
        lines.ended_for(side, "failed", "No space left on device").await;
    }
    drop(full);

    lines.lines.lock().unwrap().clear();
    let mut unread = LaggingCluster::new(config()).await;
    unread.store(unread.leader).fail_open();
    unread.cluster.restart(unread.behind).await;
    lines.ended_for("sent", "failed", "Input/output error").await;
}
