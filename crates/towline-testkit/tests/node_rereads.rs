//! A receiver reads again what it has of a snapshot: its sender hears of every piece, and a node that stops does not read on.

use std::time::Duration;

use crate::common::bench::{Bench, TRANSFERS, config};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::snapshot_store::{SnapshotMeta, SnapshotStore, Trailer};
use towline_engine::status::AttemptOutcome;
use towline_testkit::cluster::until;
use towline_testkit::fault::{Direction, SnapshotFaults};
use towline_testkit::snapshots::{FaultySnapshots, MemSnapshots, SnapshotOp};

/// Only what these tests are about is to take too long.
fn patient() -> Config {
    Config { snapshot_offer_timeout_ms: 4_000, snapshot_progress_timeout_ms: 4_000, ..config() }
}

/// A transfer was cut late, and what came of it is about to be read again, each piece of it as slowly as that.
async fn cut_late(bench: &mut Bench, piece: Duration) -> FaultySnapshots {
    let late = SnapshotFaults { cut_at_chunk: Some(45), ..Default::default() };
    bench.fault(bench.leader, Direction::Out, late);
    bench.cluster.restart(bench.behind).await;
    let store = bench.store(bench.behind);
    store.slow(SnapshotOp::Reread, piece);
    let cut = bench.next_end(0).await;
    assert_eq!(cut.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    bench.fault(bench.leader, Direction::Out, SnapshotFaults::default());
    store
}

/// Nothing was heard of it while it went on: a part that took longer to read than a phase may take was read again for ever,
/// though it was read a piece further all the time.
#[tokio::test(flavor = "multi_thread")]
async fn to_read_again_may_take_longer_than_a_phase_as_long_as_it_goes_on() {
    let mut bench = Bench::new(Config { snapshot_phase_timeout_ms: 2_500, ..patient() }).await;
    let store = cut_late(&mut bench, Duration::from_millis(400)).await;
    bench.heals().await;
    assert!(store.count(SnapshotOp::Reread) >= 10, "it took no longer than a phase");
    let failed = bench.counts.sum(TRANSFERS, &["direction=sent", "outcome=failed"]);
    assert_eq!(failed, 1, "only the one that was cut");
}

fn disk(bench: &Bench) -> &MemSnapshots {
    &bench.cluster.disks[&bench.behind].snapshots
}

/// What the leader offers just now, which need not be the newest that it has.
async fn offered(bench: &Bench) -> SnapshotMeta {
    let attempt = bench.peer().await.attempt.expect("it is waited for");
    let all = bench.cluster.disks[&bench.leader].snapshots.complete(GroupId::DEFAULT).unwrap();
    all.into_iter().find(|meta| meta.head.at.index == attempt.index).expect("it is kept")
}

/// A thread that reads knows of no runtime that ends: it went on for as long as there was something to read, and the
/// directory stayed locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_reads_no_further() {
    let mut bench = Bench::new(patient()).await;
    let store = cut_late(&mut bench, Duration::from_millis(700)).await;
    until("it reads again", || store.count(SnapshotOp::Reread) > 0).await;
    let meta = offered(&bench).await;
    bench.cluster.stop(bench.behind, Duration::ZERO).await;
    let left = disk(&bench).receive(&meta).expect("nobody has the file any more");
    assert!(left.verified() > 0, "and it is as it was");
}

/// The same of a file that is here whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_reads_a_whole_file_no_further() {
    let mut bench = Bench::new(patient()).await;
    whole(&bench);
    bench.cluster.restart(bench.behind).await;
    let store = bench.store(bench.behind);
    store.slow(SnapshotOp::Read, Duration::from_millis(1_200));
    until("it reads", || store.count(SnapshotOp::Read) > 0).await;
    bench.cluster.stop(bench.behind, Duration::ZERO).await;
    // A file that somebody reads would stay.
    disk(&bench).retain(GroupId::DEFAULT, &[]).unwrap();
    assert_eq!(disk(&bench).files(), 0, "somebody reads on");
}

/// Gives the node that is behind the file that the leader is about to offer.
fn whole(bench: &Bench) -> SnapshotMeta {
    let meta = bench.latest(bench.leader);
    let mut body = bench.cluster.disks[&bench.leader].snapshots.open(&meta, 0).unwrap();
    let mut writer = disk(bench).receive(&meta).unwrap();
    while let Some(part) = body.next_part(1 << 20).unwrap() {
        writer.write_part(&part.bytes, part.crc32c).unwrap();
    }
    writer.verify(Some(&Trailer { length: meta.length, content: meta.content })).unwrap();
    writer.commit().unwrap()
}
