//! A snapshot of each awkward length is made, stored in a file, offered, sent in chunks, received into a file and
//! restored. Both ends have the same bytes and count the same totals.

use std::io;
use std::sync::LazyLock;

use crate::common::*;
use tempfile::TempDir;
use towline_storage::SnapshotFiles;

const CHUNK: usize = 64 << 10;
const LARGE: usize = 64 << 20;
const SNAPSHOT_ENTRIES: u64 = 40;

/// Random bytes, so that a misplaced chunk is found. Every state is a prefix of them.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut noise = vec![0; LARGE];
    fastrand::Rng::with_seed(13).fill(&mut noise);
    noise.into()
});

fn noise(length: usize) -> Bytes {
    NOISE.slice(..length)
}

/// The state before any command, which no snapshot has.
const UNFILLED: Bytes = Bytes::from_static(b"nothing was applied or restored");

/// The command that fills a machine with noise. Other commands change nothing.
const FILL: &str = "fill";

/// A machine whose snapshot is exactly its state.
struct Noise {
    length: usize,
    state: View,
}

/// The bytes, and the snapshots that they were restored from.
type View = Arc<Mutex<(Bytes, Vec<SnapshotMeta>)>>;

impl Noise {
    fn of(length: usize) -> Self {
        Self { length, state: Arc::new(Mutex::new((UNFILLED, Vec::new()))) }
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

/// Three nodes with snapshot files in data directories.
struct FileCluster {
    cluster: Cluster<Noise>,
    counts: Counts,
    files: Vec<Arc<SnapshotFiles>>,
    _dirs: Vec<(TempDir, DataDir)>,
}

impl FileCluster {
    async fn start(over: Over, length: usize) -> Self {
        let config = Config {
            snapshot_entries: SNAPSHOT_ENTRIES,
            snapshot_trailing_entries: 3,
            snapshot_chunk_bytes: ByteSize::bytes(CHUNK as u64),
            // On a busy machine a healthy transfer may stand still for a while.
            snapshot_offer_timeout: Duration::from_secs(10),
            snapshot_progress_timeout: Duration::from_secs(10),
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
            .storage(move |id, storage| Storage {
                snapshots: stores[position(id.as_u64())].clone(),
                ..storage
            });
        if over == Over::Grpc {
            plan = over_grpc(plan);
        }
        Self { cluster: plan.start().await, counts, files, _dirs: dirs }
    }

    /// Stops a follower, fills the others and compacts their logs. Returns leader and follower.
    async fn left_behind(&mut self) -> (u64, u64) {
        let leader = self.cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = self.cluster.group(behind, 1).state().applied;
        self.cluster.stop(behind, Duration::from_secs(2)).await;
        self.cluster.acked(1, FILL).await;
        // Enough entries for one snapshot, and too few for a second.
        for _ in 0..SNAPSHOT_ENTRIES {
            self.cluster.acked(1, "nothing new").await;
        }
        compacted_past(&self.cluster, applied).await;
        (leader, behind)
    }

    async fn state(&self, node: u64) -> (Bytes, Vec<SnapshotMeta>) {
        let view = self.cluster.group(node, 1).read(Consistency::Local).await.unwrap();
        view.lock().unwrap().clone()
    }

    fn reports(&self, labels: &str) -> u64 {
        self.counts.sum(REPORTS, labels)
    }
}

fn position(node: u64) -> usize {
    node as usize - 1
}

async fn arrives(over: Over, length: usize) {
    let mut setup = FileCluster::start(over, length).await;
    let (leader, behind) = setup.left_behind().await;
    setup.cluster.restart(behind).await;
    setup.cluster.acked(1, "for all").await;
    let last = setup.cluster.attempt_ended(leader, 1, behind).await;
    assert_eq!((last.number, last.outcome), (1, AttemptOutcome::Finished));
    let applied = |node| setup.cluster.group(node, 1).state().applied;
    until("the follower has what the leader has", || applied(behind) >= applied(leader)).await;
    until("the attempt is reported", || setup.reports("kind=snapshot_finish outcome=applied") > 0).await;

    // Compare the bytes by a digest that the test computes itself.
    let (bytes, restored) = setup.state(behind).await;
    assert!(bytes == noise(length), "{} bytes, not the {length} expected", bytes.len());
    let [meta] = &*restored else { panic!("{restored:?}") };
    let mut hasher = ContentHasher::new(&meta.head);
    hasher.update(&noise(length));
    let expected = Trailer { length: length as u64, content: hasher.finish().content };
    for node in [leader, behind] {
        let found = setup.files[position(node)].find(GroupId::DEFAULT, meta.content).unwrap();
        let found = found.map(|found| Trailer { length: found.length, content: found.content });
        assert_eq!(found, Some(expected), "of node {node}");
    }

    // Both sides count one attempt with one report.
    for direction in ["direction=sent", "direction=received"] {
        let finished = setup.counts.sum(BYTES, &format!("{direction} outcome=finished"));
        assert_eq!(finished, length as u64, "{direction}");
        assert_eq!(setup.counts.sum(BYTES, direction), finished, "{direction}");
        assert_eq!(setup.counts.sum(TRANSFERS, &format!("{direction} outcome=finished")), 1, "{direction}");
        assert_eq!(setup.counts.sum(TRANSFERS, direction), 1, "{direction}");
    }
    assert_eq!(setup.reports("kind=snapshot_finish"), 1);
    assert_eq!(setup.reports("kind=snapshot_failure"), 0);
}

/// One test a line: name, transport, length.
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
