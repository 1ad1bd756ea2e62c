//! Case 13: a snapshot of each awkward length goes through everything a snapshot goes through: it is made, stored in a file,
//! offered, read in chunks, sent, received into a file, and restored. Both ends have the same bytes, and both books the same
//! totals.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::common::Counts;
use crate::common::bench::{BYTES, TRANSFERS};
use crate::common::ports::free_port;
use bytes::Bytes;
use tempfile::TempDir;
use towline_engine::config::Config;
use towline_engine::ids::{GroupId, PeerAddr};
use towline_engine::message::LogId;
use towline_engine::node::Consistency;
use towline_engine::snapshot_store::{ContentHasher, SnapshotMeta, SnapshotStore, Trailer};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::status::{AttemptOutcome, LastAttempt};
use towline_engine::storage::Storage;
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_storage::{DataDir, SnapshotFiles};
use towline_testkit::cluster::{Cluster, DEADLINE, Plan, node_id, quick, until};

const CHUNK: usize = 64 << 10;
const LARGE: usize = 64 << 20;
const SNAPSHOT_ENTRIES: u64 = 40;

/// What every state is the beginning of: in no two places the same, so that a chunk in a wrong place is seen.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut noise = vec![0; LARGE];
    fastrand::Rng::with_seed(13).fill(&mut noise);
    noise.into()
});

fn noise(length: usize) -> Bytes {
    NOISE.slice(..length)
}

/// Of a machine that was never told anything: no state that a snapshot can have, an empty one neither.
const UNTOLD: Bytes = Bytes::from_static(b"nothing was applied or restored");

/// The command after which a machine's state is so much noise; others change nothing.
const FILL: &str = "fill";

/// A machine whose snapshot is its state and nothing else.
struct Noise {
    length: usize,
    state: View,
}

/// The bytes, and what they were restored from.
type View = Arc<Mutex<(Bytes, Vec<SnapshotMeta>)>>;

impl Noise {
    fn of(length: usize) -> Self {
        Self { length, state: Arc::new(Mutex::new((UNTOLD, Vec::new()))) }
    }
}

impl StateMachine for Noise {
    type Response = ();
    type View = View;

    fn view(&self) -> View {
        self.state.clone()
    }

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        for command in batch.commands() {
            if command.data == FILL {
                self.state.lock().unwrap().0 = noise(self.length);
            }
            replies.push(());
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(self.state.lock().unwrap().0.to_vec()))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        let mut state = self.state.lock().unwrap();
        state.0 = bytes.into();
        state.1.push(meta.clone());
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Mem,
    Grpc,
}

/// Three nodes whose snapshots are in files of the store that ships.
struct Lengths {
    cluster: Cluster<Noise>,
    counts: Counts,
    files: Vec<Arc<SnapshotFiles>>,
    _dirs: Vec<(TempDir, DataDir)>,
}

impl Lengths {
    async fn start(over: Over, length: usize) -> Self {
        let config = Config {
            snapshot_entries: SNAPSHOT_ENTRIES,
            snapshot_trailing_entries: 3,
            snapshot_chunk_bytes: CHUNK,
            // On a busy machine a healthy transfer stands still for long.
            snapshot_offer_timeout_ms: 10_000,
            snapshot_progress_timeout_ms: 10_000,
            ..quick()
        };
        let counts = Counts::default();
        let open = || {
            let dir = tempfile::tempdir().unwrap();
            let data = DataDir::open(dir.path()).unwrap();
            (dir, data)
        };
        let dirs: Vec<_> = (0..3).map(|_| open()).collect();
        let files: Vec<_> = dirs.iter().map(|(_, data)| data.snapshots()).collect();
        let stores = files.clone();
        let mut plan = Plan::new(3, 1)
            .config(config)
            .customise(counts.on())
            .machine(move |_, _| Noise::of(length))
            .storage(move |id, storage| Storage { snapshots: stores[place(id.as_u64())].clone(), ..storage });
        if over == Over::Grpc {
            let addresses: Vec<PeerAddr> =
                (0..3).map(|_| format!("grpc://{}", free_port()).parse().unwrap()).collect();
            plan = plan.customise(move |id, mut builder| {
                for (other, address) in (1..).zip(&addresses) {
                    builder = builder.peer_address(node_id(other), address.clone());
                }
                let transport = Arc::new(GrpcTransport::new(GrpcConfig::default()));
                builder.transport(transport, addresses[place(id.as_u64())].clone())
            });
        }
        Self { cluster: plan.start().await, counts, files, _dirs: dirs }
    }

    /// A follower misses the command that fills the others, and the log forgets it. Gives leader and follower.
    async fn left_behind(&mut self) -> (u64, u64) {
        let leader = self.cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = self.cluster.group(behind, 1).state().applied;
        self.cluster.stop(behind, Duration::from_secs(2)).await;
        self.cluster.acked(1, FILL).await;
        // Enough for one snapshot, not for a second one that would take its place.
        for _ in 0..SNAPSHOT_ENTRIES {
            self.cluster.acked(1, "nothing new").await;
        }
        let end = Instant::now() + DEADLINE;
        while self.cluster.group(leader, 1).status().await.unwrap().first_index <= applied + 1 {
            assert!(Instant::now() < end, "the log is not compacted");
            tokio::task::yield_now().await;
        }
        (leader, behind)
    }

    /// Waits until the leader knows how an attempt to serve the follower ended.
    async fn first_end(&self, leader: u64, behind: u64) -> LastAttempt {
        let end = Instant::now() + DEADLINE;
        loop {
            let peers = self.cluster.group(leader, 1).status().await.unwrap().peers;
            let peer = peers.into_iter().find(|peer| peer.id == node_id(behind)).unwrap();
            if let Some(last) = peer.last_attempt {
                return last;
            }
            assert!(Instant::now() < end, "no attempt ended: {peer:?}");
            tokio::task::yield_now().await;
        }
    }

    async fn state(&self, node: u64) -> (Bytes, Vec<SnapshotMeta>) {
        let view = self.cluster.group(node, 1).read(Consistency::Local).await.unwrap();
        view.lock().unwrap().clone()
    }

    fn transfers(&self, labels: &[&str]) -> u64 {
        self.counts.sum(TRANSFERS, labels)
    }

    fn reports(&self, labels: &[&str]) -> u64 {
        self.counts.sum("towline_reports_total", labels)
    }
}

fn place(node: u64) -> usize {
    node as usize - 1
}

async fn arrives(over: Over, length: usize) {
    let mut bench = Lengths::start(over, length).await;
    let (leader, behind) = bench.left_behind().await;
    bench.cluster.restart(behind).await;
    bench.cluster.acked(1, "for all").await;
    let last = bench.first_end(leader, behind).await;
    assert_eq!((last.number, last.outcome), (1, AttemptOutcome::Finished));
    let applied = |node| bench.cluster.group(node, 1).state().applied;
    until("the follower has what the leader has", || applied(behind) >= applied(leader)).await;
    until("the attempt is reported", || bench.reports(&["kind=snapshot_finish", "outcome=applied"]) > 0)
        .await;

    // The same bytes, by a digest that nobody of those took who handled them.
    let (bytes, restored) = bench.state(behind).await;
    assert!(bytes == noise(length), "{} bytes of {length} or others", bytes.len());
    let [meta] = &*restored else { panic!("{restored:?}") };
    let mut hasher = ContentHasher::new(&meta.head);
    hasher.update(&noise(length));
    let expected = Trailer { length: length as u64, content: hasher.finish().content };
    for node in [leader, behind] {
        let found = bench.files[place(node)].find(GroupId::DEFAULT, meta.content).unwrap();
        let found = found.map(|found| Trailer { length: found.length, content: found.content });
        assert_eq!(found, Some(expected), "of node {node}");
    }

    // The same totals, of one attempt with one report.
    for direction in ["direction=sent", "direction=received"] {
        let finished = bench.counts.sum(BYTES, &[direction, "outcome=finished"]);
        assert_eq!(finished, length as u64, "{direction}");
        assert_eq!(bench.counts.sum(BYTES, &[direction]), finished, "{direction}");
        assert_eq!(bench.transfers(&[direction, "outcome=finished"]), 1, "{direction}");
        assert_eq!(bench.transfers(&[direction]), 1, "{direction}");
    }
    assert_eq!(bench.reports(&["kind=snapshot_finish"]), 1);
    assert_eq!(bench.reports(&["kind=snapshot_failure"]), 0);
}

/// One test a line: name, wire, length.
macro_rules! arrives {
    ($($name:ident: $over:ident, $length:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            arrives(Over::$over, $length).await;
        })*
    };
}

arrives! {
    no_byte: Mem, 0;
    one_byte: Mem, 1;
    a_byte_less_than_a_chunk: Mem, CHUNK - 1;
    a_chunk: Mem, CHUNK;
    a_byte_more_than_a_chunk: Mem, CHUNK + 1;
    three_chunks: Mem, 3 * CHUNK;
    many_chunks: Mem, LARGE;
    no_byte_over_grpc: Grpc, 0;
    a_byte_more_than_a_chunk_over_grpc: Grpc, CHUNK + 1;
    many_chunks_over_grpc: Grpc, LARGE;
}
