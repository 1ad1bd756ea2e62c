//! What becomes of a snapshot when something goes wrong on its way: one report, one line in each log, and a follower that
//! is served again. Each fault stands beside what the books of both sides say of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::NodeId;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{AttemptOutcome, LastAttempt, PeerStatus};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick};
use towline_testkit::fault::{Direction, Faults, FaultyTransport, SnapshotFaults};

use common::Counts;

const BYTES: &str = "towline_snapshot_payload_bytes_total";
const TRANSFERS: &str = "towline_snapshot_transfers_total";

fn config() -> Config {
    Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: 16 << 10,
        snapshot_offer_timeout_ms: 500,
        snapshot_progress_timeout_ms: 300,
        snapshot_backoff_max_ms: 400,
        ..quick()
    }
}

struct Bench {
    cluster: Cluster,
    counts: Counts,
    faults: Arc<Mutex<BTreeMap<NodeId, Faults>>>,
    /// What goes wrong on a node from its next start on.
    later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>>,
    leader: u64,
    behind: u64,
}

impl Bench {
    /// A follower goes down and misses more than the log keeps: some 800 KB of state.
    async fn new(config: Config) -> Self {
        let counts = Counts::default();
        let faults: Arc<Mutex<BTreeMap<NodeId, Faults>>> = Arc::default();
        let later: Arc<Mutex<BTreeMap<NodeId, (Direction, SnapshotFaults)>>> = Arc::default();
        let (made, wanted) = (faults.clone(), later.clone());
        let plan = Plan::new(3, 1).config(config).customise(counts.on()).transport(move |id, inner| {
            let (transport, switch) = FaultyTransport::new(inner, id.as_u64());
            if let Some((direction, faults)) = wanted.lock().unwrap().get(&id) {
                switch.snapshots(*direction, *faults);
            }
            made.lock().unwrap().insert(id, switch);
            transport
        });
        let mut cluster = plan.start().await;
        let leader = cluster.leader(1).await;
        let behind = if leader == 1 { 2 } else { 1 };
        let applied = cluster.group(behind, 1).state().applied;
        cluster.crash(behind);
        load(&cluster, 45, 20_000).await;
        let group = cluster.group(leader, 1);
        let end = Instant::now() + Duration::from_secs(20);
        while group.status().await.unwrap().first_index <= applied + 1 {
            assert!(Instant::now() < end, "the log is not compacted");
            load(&cluster, 1, 10).await;
        }
        assert_eq!(cluster.leader(1).await, leader, "the leader changed under no fault at all");
        Self { cluster, counts, faults, later, leader, behind }
    }

    fn fault(&self, node: u64, direction: Direction, faults: SnapshotFaults) {
        self.faults.lock().unwrap()[&node_id(node)].snapshots(direction, faults);
    }

    async fn peer(&self) -> PeerStatus {
        let status = self.cluster.group(self.leader, 1).status().await.unwrap();
        status.peers.into_iter().find(|p| p.id == node_id(self.behind)).expect("a member")
    }

    /// Waits for an attempt after `number` to end.
    async fn next_end(&self, number: u64) -> LastAttempt {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(last) = self.peer().await.last_attempt.filter(|last| last.number > number) {
                return last;
            }
            assert!(Instant::now() < end, "no attempt ended");
            tokio::task::yield_now().await;
        }
    }

    /// Everything heals: the follower is brought back, and exactly one transfer finishes on both sides.
    async fn heals(&self) {
        self.faults.lock().unwrap().values().for_each(Faults::clear);
        assert!(self.cluster.settled(1).await.len() >= 45);
        for direction in ["direction=sent", "direction=received"] {
            assert_eq!(self.counts.sum(TRANSFERS, &[direction, "outcome=finished"]), 1, "{direction}");
        }
        let reported = |kind| self.counts.sum("towline_reports_total", &[kind, "outcome=applied"]);
        let ended = |outcome| self.counts.sum(TRANSFERS, &["direction=sent", outcome]);
        assert_eq!(
            reported("kind=snapshot_finish"),
            ended("outcome=finished") + ended("outcome=already_had")
        );
        assert_eq!(
            reported("kind=snapshot_failure"),
            ended("outcome=failed") + ended("outcome=refused") + ended("outcome=cancelled"),
            "a report for each attempt, and no more"
        );
        assert_eq!(self.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
    }

    fn bytes(&self, direction: &str, outcome: &str) -> u64 {
        self.counts.sum(BYTES, &[&format!("direction={direction}"), &format!("outcome={outcome}")])
    }
}

async fn load(cluster: &Cluster, count: usize, bytes: usize) {
    for n in 0..count {
        let mut command = format!("{n} ").into_bytes();
        command.resize(bytes, b'.');
        cluster.acked(1, Bytes::from(command)).await;
    }
}

/// Waits until a counter is there: the other side's books close at its own pace.
async fn counted(what: &str, mut holds: impl FnMut() -> bool) {
    towline_testkit::cluster::until(what, &mut holds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_faults_has_equal_books_on_both_sides() {
    let mut bench = Bench::new(config()).await;
    bench.cluster.restart(bench.behind).await;
    bench.heals().await;
    let sent = bench.bytes("sent", "finished");
    assert!(sent > 0);
    assert_eq!(sent, bench.bytes("received", "finished"));
}

/// Case 14: whatever was received before the cut is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_cut_at_a_chunk_fails_once_and_only_the_rest_is_sent_again() {
    let mut bench = Bench::new(config()).await;
    bench.fault(
        bench.leader,
        Direction::Out,
        SnapshotFaults { cut_at_chunk: Some(20), ..Default::default() },
    );
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    bench.heals().await;
    counted("both books are closed", || bench.bytes("received", "cancelled") > 0).await;
    let (first, rest) = (bench.bytes("received", "cancelled"), bench.bytes("received", "finished"));
    let failed = bench.bytes("sent", "failed");
    assert!(first <= failed && failed <= first + (64 << 10), "{first} of {failed} arrived");
    let whole = first + rest;
    assert!(whole > 700_000, "{whole}");
    assert_eq!(bench.bytes("sent", "finished"), rest, "what had arrived was not sent again");
}

/// Case 16: a flipped byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_flipped_byte_is_refused_and_nothing_of_it_is_restored() {
    let mut bench = Bench::new(config()).await;
    bench.fault(
        bench.leader,
        Direction::Out,
        SnapshotFaults { corrupt_chunk: Some(10), ..Default::default() },
    );
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
    assert!(bench.cluster.commands(bench.behind, 1).await.len() < 45);
    bench.heals().await;
    assert!(bench.bytes("received", "failed") > 0, "the receiver says that it failed");
}

/// Case 16: the trailer is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_its_trailer_is_no_snapshot() {
    let mut bench = Bench::new(config()).await;
    bench.fault(bench.leader, Direction::Out, SnapshotFaults { drop_trailer: true, ..Default::default() });
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert!(matches!(last.outcome, AttemptOutcome::Failed(_)), "{last:?}");
    assert!(bench.cluster.commands(bench.behind, 1).await.len() < 45);
    bench.heals().await;
}

/// Case 18: nothing moves any more, on either side, and both find out.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_transfer_ends_on_both_sides_and_frees_its_slots() {
    let mut bench = Bench::new(Config { snapshot_sends_max: 1, snapshot_receives_max: 1, ..config() }).await;
    bench.fault(
        bench.leader,
        Direction::Out,
        SnapshotFaults { stall_at_chunk: Some(5), ..Default::default() },
    );
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    bench.heals().await;
    let ended = || {
        let of = |outcome| bench.counts.sum(TRANSFERS, &["direction=received", outcome]);
        of("outcome=failed") + of("outcome=cancelled")
    };
    counted("the receiver has closed its books", || ended() >= 1).await;
}

/// Case 17.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_disk_is_full_fails_the_attempt_and_not_the_node() {
    let mut bench = Bench::new(config()).await;
    let full = SnapshotFaults { cut_at_chunk: Some(30), ..Default::default() };
    bench.later.lock().unwrap().insert(node_id(bench.behind), (Direction::In, full));
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
    bench.heals().await;
}

/// Case 19: a refusal that does not pass by itself is not asked for again at every heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_too_large_is_refused_before_a_byte_moves_and_backs_off() {
    let mut bench =
        Bench::new(Config { snapshot_bytes_max: 1_000, snapshot_backoff_max_ms: 60_000, ..config() }).await;
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: true }));
    let waits = bench.peer().await.backoff_ticks;
    let heartbeat = u64::from(quick().heartbeat_ticks);
    assert!(waits > 8 * heartbeat, "{waits} ticks at a heartbeat of {heartbeat}");
    assert_eq!(bench.bytes("sent", "refused") + bench.bytes("received", "refused"), 0);
    assert!(bench.counts.sum(TRANSFERS, &["direction=received", "outcome=refused"]) >= 1);
}

/// Case 3: the node that sends goes down in order; its obligations end with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_midway_leaves_a_follower_to_the_next_leader() {
    let mut bench = Bench::new(Config { snapshot_bytes_per_second: 400_000, ..config() }).await;
    bench.cluster.restart(bench.behind).await;
    let end = Instant::now() + Duration::from_secs(20);
    while bench.peer().await.attempt.is_none_or(|a| a.acked == 0) {
        assert!(Instant::now() < end, "no attempt begins");
        tokio::task::yield_now().await;
    }
    bench.cluster.stop(bench.leader, Duration::from_secs(2)).await;
    let commands = bench.cluster.settled(1).await;
    assert!(commands.len() >= 45, "the next leader serves it");
    bench.cluster.restart(bench.leader).await;
    assert_eq!(bench.cluster.settled(1).await, commands);
    assert_eq!(bench.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
}
