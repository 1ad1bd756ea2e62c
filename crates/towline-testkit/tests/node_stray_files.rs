//! Snapshot files that a node received and never installed.
//!
//! A received file is durable before the log refers to it. If the process dies in between, or the group refuses the snapshot,
//! the file stays. Its index may be past the end of the log, or its term may differ from the log's. A start used to look only
//! at the file with the highest index. A node with a volatile state machine then refused to start, although its own file was
//! there. If it started, it took the stray file for its newest snapshot and removed its own newer ones.

use crate::common::*;

const GROUP: GroupId = GroupId::DEFAULT;

fn config() -> Config {
    Config { snapshot_entries: 20, snapshot_trailing_entries: 3, ..quick() }
}

/// Nodes with volatile state machines: a restart needs the log and a snapshot file.
struct VolatileCluster {
    cluster: Cluster,
    counts: Counts,
    /// The node whose commits of snapshot files are held from its next start on, and their gate.
    hold: Arc<Mutex<Option<NodeId>>>,
    gate: Arc<Mutex<Option<SnapshotGate>>>,
    loaded: usize,
}

impl VolatileCluster {
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

    /// The log of a node after a power loss.
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
        eventually(what, async || {
            if holds(self) {
                return Ok(());
            }
            self.loaded += 1;
            self.cluster.acked(1, format!("{}", self.loaded)).await;
            Err(self.loaded)
        })
        .await;
    }

    /// Writes until the node has a snapshot and a compacted log.
    async fn compact(&mut self, node: u64) {
        self.load_until("the log is compacted", |b| b.log(node).truncated.index > 0).await;
    }

    /// Writes until the logs of all running nodes begin after `last_index`.
    async fn leave_behind(&mut self, last_index: u64) {
        self.load_until("the others compact their logs", |b| {
            b.cluster.up.keys().all(|&node| b.log(node).truncated.index > last_index)
        })
        .await;
    }

    /// Starts the node and holds it before it commits a received snapshot.
    async fn receives(&mut self, behind: u64) {
        *self.hold.lock().unwrap() = Some(node_id(behind));
        self.cluster.restart(behind).await;
        *self.hold.lock().unwrap() = None;
        let gate = self.gate.clone();
        let held = move || gate.lock().unwrap().as_ref().unwrap().wait_held(DEADLINE);
        assert!(tokio::task::spawn_blocking(held).await.unwrap(), "no snapshot is received");
    }

    fn release(&self) {
        drop(self.gate.lock().unwrap().take());
    }

    /// Cuts the power once the file is durable and the record of its installation is not. Returns the file.
    async fn killed_before_the_record(&mut self, behind: u64) -> SnapshotMeta {
        let (disk, own) = (self.cluster.disks[&behind].clone(), self.index(behind));
        let syncs = disk.log.hold_syncs();
        self.release();
        until("the file is durable", || self.index(behind) > own).await;
        self.cluster.net.kill(node_id(behind));
        let left: Disk = disk.crash();
        drop(syncs);
        self.cluster.crash(behind);
        assert_eq!(left.log.recover(GROUP).unwrap().installing, None);
        self.cluster.disks.insert(behind, left);
        self.newest(behind).unwrap()
    }

    /// Starts the node from its own snapshot, and waits until it has caught up.
    async fn restarts_from(&mut self, behind: u64, own: &SnapshotMeta) {
        self.cluster.restart(behind).await;
        let found = self.cluster.commands(behind, 1).await;
        assert!(!found.is_empty(), "it was restored from {own:?}");
        let settled = self.cluster.settled(1).await;
        assert!(settled.starts_with(&found));
        assert_eq!(settled.len(), self.loaded);
    }
}

/// A follower that needs a snapshot, with its own snapshot and the last index of its log.
async fn left_behind() -> (VolatileCluster, u64, SnapshotMeta, u64) {
    let mut setup = VolatileCluster::new(3).await;
    let behind = setup.cluster.leader(1).await % 3 + 1;
    setup.compact(behind).await;
    setup.cluster.crash(behind);
    let (own, last) = (setup.newest(behind).unwrap(), setup.log(behind).last_index);
    setup.leave_behind(last).await;
    (setup, behind, own, last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_between_the_file_and_its_record_starts_from_its_own_snapshot() {
    let (mut setup, behind, own, last) = left_behind().await;
    setup.receives(behind).await;
    let stray = setup.killed_before_the_record(behind).await;
    assert!(stray.head.at.index > last, "{stray:?} is past the end of the log at {last}");
    setup.restarts_from(behind, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_although_it_refused_a_snapshot_that_is_durable() {
    let (mut setup, behind, own, last) = left_behind().await;
    setup.receives(behind).await;
    // A new leader makes the snapshot of the old one stale.
    let old = setup.cluster.leader(1).await;
    let next = (1..=3).find(|node| ![old, behind].contains(node)).unwrap();
    within(setup.cluster.group(old, 1).transfer(node_id(next))).await.unwrap();
    let term = setup.cluster.group(next, 1).state().term;
    until("the receiver learns the new term", || setup.cluster.group(behind, 1).state().term >= term).await;
    setup.cluster.net.kill(node_id(behind));
    setup.release();
    let failed = "direction=received outcome=failed";
    until("it is refused", || setup.counts.sum(TRANSFERS, failed) > 0).await;
    setup.cluster.crash(behind);
    assert!(setup.index(behind) > last, "the file is past the end of the log");
    setup.restarts_from(behind, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_term_differs_from_the_log_is_not_restored() {
    let mut setup = VolatileCluster::new(3).await;
    let old = setup.cluster.leader(1).await;
    setup.compact(old).await;
    let base = setup.log(old).last_index;
    // Isolated, it writes entries that are never committed.
    for peer in setup.cluster.nodes().into_iter().map(node_id) {
        setup.cluster.net.cut(node_id(old), peer);
        setup.cluster.net.cut(peer, node_id(old));
    }
    let group = setup.cluster.group(old, 1);
    for number in 0..200 {
        let group = group.clone();
        tokio::spawn(async move { group.propose(Bytes::from(format!("lost {number}"))).await });
    }
    until("the tail is written", || setup.log(old).last_index >= base + 200).await;
    setup.cluster.crash(old);
    setup.cluster.net.heal_all();
    let (own, last) = (setup.newest(old).unwrap(), setup.log(old).last_index);
    setup.leave_behind(base).await;

    setup.receives(old).await;
    let stray = setup.killed_before_the_record(old).await;
    assert!((base..last).contains(&stray.head.at.index), "{stray:?} for a log from {base} to {last}");
    setup.restarts_from(old, &own).await;
}

/// A node restarts from its own snapshots, even if a useless file has a higher index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stray_file_does_not_replace_the_nodes_own_snapshot() {
    let mut setup = VolatileCluster::new(1).await;
    setup.compact(1).await;
    setup.cluster.crash(1);
    let (own, snapshots) = (setup.newest(1).unwrap(), setup.cluster.disks[&1].snapshots.clone());
    let beyond = SnapshotHead { at: LogId { index: 10_000, term: 99 }, ..own.head.clone() };
    let mut stray = snapshots.create(&beyond).unwrap();
    stray.verify(None).unwrap();
    let stray = stray.commit().unwrap();
    setup.cluster.restart(1).await;
    setup.load_until("a newer snapshot", |b| b.log(1).truncated.index > own.head.at.index).await;
    until("the stray file goes", || snapshots.find(GROUP, stray.content).unwrap().is_none()).await;
    setup.cluster.crash(1);
    setup.cluster.restart(1).await;
    assert_eq!(setup.cluster.settled(1).await.len(), setup.loaded);
}
