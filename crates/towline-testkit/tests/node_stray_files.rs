//! Snapshot files that were received and never installed.
//!
//! A received file is durable before the log knows of it. If the process is killed between the two, or the group refuses
//! the snapshot after all, the file stays. It may lie beyond the end of the log, or beside a tail of the log that belongs
//! to another history. A start used to look at the file with the highest index only: a node whose state machine is
//! volatile then refused to start although the file of its own, which the log goes on from, was there. And where it did
//! start, the stray file stood for the newest snapshot: the node's own next ones were removed in its favour.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::common::Counts;
use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::{LogStore, Recovered};
use towline_engine::message::LogId;
use towline_engine::snapshot_store::{SnapshotHead, SnapshotMeta, SnapshotStore};
use towline_engine::storage::Storage;
use towline_testkit::cluster::{Cluster, DEADLINE, Disk, Plan, node_id, quick, until, within};
use towline_testkit::snapshots::{FaultySnapshots, SnapshotGate, SnapshotOp};

const GROUP: GroupId = GroupId::DEFAULT;

fn config() -> Config {
    Config { snapshot_entries: 20, snapshot_trailing_entries: 3, ..quick() }
}

/// Nodes whose state machines are volatile: what a restart of them needs is in the log and the snapshot files.
struct Bench {
    cluster: Cluster,
    counts: Counts,
    /// The node whose commits of snapshot files are held from its next start on, and what holds them.
    hold: Arc<Mutex<Option<NodeId>>>,
    gate: Arc<Mutex<Option<SnapshotGate>>>,
    loaded: usize,
}

impl Bench {
    async fn new(nodes: u64) -> Self {
        let (hold, gate, counts) =
            (Arc::<Mutex<Option<NodeId>>>::default(), Arc::default(), Counts::default());
        let (wanted, made): (_, Arc<Mutex<Option<SnapshotGate>>>) = (hold.clone(), Arc::clone(&gate));
        let plan = Plan::new(nodes, 1).config(config()).customise(counts.on()).storage(move |id, storage| {
            let store = FaultySnapshots::new(storage.snapshots);
            if *wanted.lock().unwrap() == Some(id) {
                *made.lock().unwrap() = Some(store.hold(SnapshotOp::Commit));
            }
            Storage { snapshots: Arc::new(store), ..storage }
        });
        let cluster = plan.start().await;
        cluster.leader(1).await;
        Self { cluster, counts, hold, gate, loaded: 0 }
    }

    /// What a power loss would leave of a node's log.
    fn log(&self, node: u64) -> Recovered {
        self.cluster.disks[&node].log.crash().recover(GROUP).unwrap()
    }

    fn newest(&self, node: u64) -> Option<SnapshotMeta> {
        self.cluster.disks[&node].snapshots.latest(GROUP).unwrap()
    }

    fn index(&self, node: u64) -> u64 {
        self.newest(node).map_or(0, |meta| meta.head.at.index)
    }

    async fn load_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < end, "still not so: {what}");
            self.loaded += 1;
            self.cluster.acked(1, format!("{}", self.loaded)).await;
        }
    }

    /// Until the node has a snapshot of its own and has forgotten the log before it.
    async fn forgets(&mut self, node: u64) {
        self.load_until("the log is compacted", |b| b.log(node).truncated.index > 0).await;
    }

    /// Others forget what a node that is down lacks; its own snapshot is all it can be restarted from.
    async fn leave_behind(&mut self, last_index: u64) {
        self.load_until("the others forget", |b| {
            b.cluster.up.keys().all(|&node| b.log(node).truncated.index > last_index)
        })
        .await;
    }

    /// Starts the node, and waits until all of a snapshot has come and is to be made durable.
    async fn receives(&mut self, behind: u64) {
        *self.hold.lock().unwrap() = Some(node_id(behind));
        self.cluster.restart(behind).await;
        *self.hold.lock().unwrap() = None;
        let gate = self.gate.clone();
        let held = move || gate.lock().unwrap().as_ref().unwrap().wait_held(DEADLINE);
        assert!(tokio::task::spawn_blocking(held).await.unwrap(), "no snapshot is received");
    }

    fn let_go(&self) {
        drop(self.gate.lock().unwrap().take());
    }

    /// The power goes when the file is durable and the record of its installation is not. Gives the file.
    async fn killed_before_the_record(&mut self, behind: u64) -> SnapshotMeta {
        let (disk, own) = (self.cluster.disks[&behind].clone(), self.index(behind));
        let syncs = disk.log.hold_syncs();
        self.let_go();
        until("the file is durable", || self.index(behind) > own).await;
        self.cluster.net.kill(node_id(behind));
        let left: Disk = disk.crash();
        drop(syncs);
        self.cluster.crash(behind);
        assert_eq!(left.log.recover(GROUP).unwrap().installing, None);
        self.cluster.disks.insert(behind, left);
        self.newest(behind).unwrap()
    }

    /// Starts, from what was its own, and catches up.
    async fn comes_back(&mut self, behind: u64, own: &SnapshotMeta) {
        self.cluster.restart(behind).await;
        let found = self.cluster.commands(behind, 1).await;
        assert!(!found.is_empty(), "it was restored from {own:?}");
        let settled = self.cluster.settled(1).await;
        assert!(settled.starts_with(&found));
        assert_eq!(settled.len(), self.loaded);
    }
}

/// A follower that was left behind, its own snapshot, and the last index of its log.
async fn left_behind() -> (Bench, u64, SnapshotMeta, u64) {
    let mut bench = Bench::new(3).await;
    let behind = bench.cluster.leader(1).await % 3 + 1;
    bench.forgets(behind).await;
    bench.cluster.crash(behind);
    let (own, last) = (bench.newest(behind).unwrap(), bench.log(behind).last_index);
    bench.leave_behind(last).await;
    (bench, behind, own, last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_between_the_file_and_its_record_starts_from_its_own_snapshot() {
    let (mut bench, behind, own, last) = left_behind().await;
    bench.receives(behind).await;
    let stray = bench.killed_before_the_record(behind).await;
    assert!(stray.head.at.index > last, "{stray:?} is beyond the log, which ends at {last}");
    bench.comes_back(behind, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_refused_once_it_is_durable_keeps_nobody_from_starting() {
    let (mut bench, behind, own, last) = left_behind().await;
    bench.receives(behind).await;
    // Another leader: what the old one sent is stale.
    let old = bench.cluster.leader(1).await;
    let next = (1..=3).find(|node| ![old, behind].contains(node)).unwrap();
    within(bench.cluster.group(old, 1).transfer(node_id(next))).await.unwrap();
    let term = bench.cluster.group(next, 1).state().term;
    until("the receiver hears of the new term", || bench.cluster.group(behind, 1).state().term >= term).await;
    bench.cluster.net.kill(node_id(behind));
    bench.let_go();
    let failed = ["direction=received", "outcome=failed"];
    until("it is refused", || bench.counts.sum("towline_snapshot_transfers_total", &failed) > 0).await;
    bench.cluster.crash(behind);
    assert!(bench.index(behind) > last, "the file is there, and beyond the log");
    bench.comes_back(behind, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_beside_a_tail_of_another_history_is_not_restored() {
    let mut bench = Bench::new(3).await;
    let old = bench.cluster.leader(1).await;
    bench.forgets(old).await;
    let base = bench.log(old).last_index;
    // Cut off, it goes on writing what will never be committed.
    for peer in bench.cluster.nodes().into_iter().map(node_id) {
        bench.cluster.net.cut(node_id(old), peer);
        bench.cluster.net.cut(peer, node_id(old));
    }
    let group = bench.cluster.group(old, 1);
    for number in 0..200 {
        let group = group.clone();
        tokio::spawn(async move { group.propose(Bytes::from(format!("lost {number}"))).await });
    }
    until("the tail is written", || bench.log(old).last_index >= base + 200).await;
    bench.cluster.crash(old);
    bench.cluster.net.heal_all();
    let (own, last) = (bench.newest(old).unwrap(), bench.log(old).last_index);
    bench.leave_behind(base).await;

    bench.receives(old).await;
    let stray = bench.killed_before_the_record(old).await;
    assert!((base..last).contains(&stray.head.at.index), "{stray:?} beside a log from {base} to {last}");
    bench.comes_back(old, &own).await;
}

/// Its own snapshots are what it is restarted from, however high the index of a file that is of no use to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_the_log_does_not_know_does_not_take_the_place_of_the_nodes_own() {
    let mut bench = Bench::new(1).await;
    bench.forgets(1).await;
    bench.cluster.crash(1);
    let (own, snapshots) = (bench.newest(1).unwrap(), bench.cluster.disks[&1].snapshots.clone());
    let beyond = SnapshotHead { at: LogId { index: 10_000, term: 99 }, ..own.head.clone() };
    let mut stray = snapshots.create(&beyond).unwrap();
    stray.verify(None).unwrap();
    let stray = stray.commit().unwrap();
    bench.cluster.restart(1).await;
    bench.load_until("it forgets more", |b| b.log(1).truncated.index > own.head.at.index).await;
    until("the stray file goes", || snapshots.find(GROUP, stray.content).unwrap().is_none()).await;
    bench.cluster.crash(1);
    bench.cluster.restart(1).await;
    assert_eq!(bench.cluster.settled(1).await.len(), bench.loaded);
}
