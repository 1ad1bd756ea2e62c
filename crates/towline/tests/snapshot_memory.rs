//! A snapshot of any length moves through memory in pieces. The test runs alone, because it measures the whole process.
#![cfg(all(target_os = "linux", feature = "grpc", feature = "storage"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../examples/snapshot/machine.rs"]
mod machine;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline::*;

use self::machine::{Large, noise};

const MIB: u64 = 96;
/// The limit for sender and receiver together, which are one process here.
const GROWTH_MIB_MAX: u64 = 64;
const HOARDED: GroupId = GroupId::new(2);
const DEADLINE: Duration = Duration::from_secs(60);

/// The control: holds its whole state during a restore.
struct Hoard(Large);

impl StateMachine for Hoard {
    type Response = ();
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> LogId {
        self.0.durable()
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        self.0.apply(batch, replies)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        self.0.snapshot()
    }

    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        let mut state = Vec::new();
        body.read_to_end(&mut state)?;
        assert!(state.starts_with(&noise()));
        Ok(())
    }
}

/// Anonymous memory of this process, without the page cache.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The largest growth of memory until the follower has applied the leader's snapshot.
async fn growth<S, T>(leader: &Group<S>, follower: Group<T>, before: u64) -> u64
where
    S: StateMachine,
    T: StateMachine,
{
    let (mut most, end) = (0, Instant::now() + DEADLINE);
    let index = leader.status().await.unwrap().snapshot_index;
    while follower.status().await.unwrap().state.applied < index {
        assert!(Instant::now() < end, "the follower gets no snapshot");
        most = most.max(resident_mib());
        tokio::task::yield_now().await;
    }
    most.max(resident_mib()).saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_memory_for_a_few_pieces_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        snapshot_entries: 200,
        snapshot_trailing_entries: 0,
        // The first leaders wait four of these for the third founder.
        election_timeout_max: Duration::from_millis(1_200),
        ..Config::default()
    };
    let peers = machine::members().unwrap();
    let start = async |id: usize| {
        let (node, address) = peers[id - 1].clone();
        Node::builder(node, ClusterId::new("memory").unwrap())
            .config(config.clone())
            .storage(DataDir::open(&dir.path().join(id.to_string())).unwrap())
            .transport(Arc::new(GrpcTransport::default()), address)
            .start()
            .await
            .unwrap()
    };
    let founders = || Start::Bootstrap(peers.clone());
    let nodes = [start(1).await, start(2).await];
    let (mut founded, mut leaders) = (Vec::new(), Vec::new());
    for id in [GroupId::DEFAULT, HOARDED] {
        let first = nodes[0].group(id, Large(MIB)).start(founders()).await.unwrap();
        founded.push((first, nodes[1].group(id, Large(MIB)).start(founders()).await.unwrap()));
    }
    for (first, second) in founded {
        let leader = first.wait_leader(DEADLINE).await.unwrap();
        let leader = if leader.as_u64() == 1 { first } else { second };
        let end = Instant::now() + DEADLINE;
        while leader.status().await.unwrap().first_index < 3 {
            assert!(Instant::now() < end, "no snapshot is made");
            leader.propose("x").await.unwrap();
        }
        leaders.push(leader);
    }
    let joined = start(3).await;
    let before = resident_mib();
    let follower = joined.group(GroupId::DEFAULT, Large(MIB)).start(founders()).await.unwrap();
    let pieces = growth(&leaders[0], follower, before).await;
    let follower = joined.group(HOARDED, Hoard(Large(MIB))).start(founders()).await.unwrap();
    let whole = growth(&leaders[1], follower, before).await;
    assert!(pieces < GROWTH_MIB_MAX, "{pieces} MiB for a snapshot of {MIB} MiB");
    assert!(whole >= MIB, "control: {whole} MiB though the state machine held {MIB}");
    for node in nodes.into_iter().chain([joined]) {
        node.shutdown(Duration::from_secs(5)).await;
    }
}
