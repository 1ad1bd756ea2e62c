//! A receiver that has a part of a snapshot, or all of it, reads it again before it answers an offer, however long that
//! takes.

use std::time::{Duration, Instant};

use crate::common::bench::{Bench, TRANSFERS, config};
use towline_engine::config::Config;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::snapshot_store::{SnapshotMeta, SnapshotStore, Trailer};
use towline_engine::status::{AttemptOutcome, AttemptStatus};
use towline_engine::transport::TransferPhase;
use towline_testkit::cluster::{DEADLINE, until};
use towline_testkit::fault::{Direction, SnapshotFaults};
use towline_testkit::snapshots::{SnapshotGate, SnapshotOp};

/// Much longer than the sender waits for an answer to its offer, or for a chunk to be taken.
const SLOW: Duration = Duration::from_millis(1_500);

/// A transfer was cut midway, and the receiver is held while it reads again what it has of it.
async fn held(bench: &mut Bench) -> SnapshotGate {
    bench.fault(
        bench.leader,
        Direction::Out,
        SnapshotFaults { cut_at_chunk: Some(20), ..Default::default() },
    );
    bench.cluster.restart(bench.behind).await;
    let store = bench.store(bench.behind);
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    let gate = store.hold(SnapshotOp::Receive);
    bench.fault(bench.leader, Direction::Out, SnapshotFaults::default());
    until("a receiver reads its file again", || gate.wait_held(Duration::ZERO)).await;
    gate
}

/// Waits for an attempt after `number` whose receiver says that it reads.
async fn reading_after(bench: &Bench, number: u64) -> AttemptStatus {
    let end = Instant::now() + DEADLINE;
    let reads = |attempt: &AttemptStatus| {
        attempt.number > number && (attempt.phase, attempt.acked) == (Some(TransferPhase::Verifying), 0)
    };
    loop {
        if let Some(attempt) = bench.peer().await.attempt.filter(reads) {
            return attempt;
        }
        assert!(Instant::now() < end, "nobody reads for an attempt after {number}");
        tokio::task::yield_now().await;
    }
}

/// A sender gave an offer five seconds, whatever became of it. A receiver that had some gigabytes of the snapshot already
/// took longer than that to read them again, so the attempt failed; the work was thrown away, the file was still held
/// when the next attempt came, which was told that the receiver is busy; and so on for ever. A large transfer that was
/// cut late was never resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_reads_a_large_part_again_is_waited_for() {
    let mut bench = Bench::new(config()).await;
    let gate = held(&mut bench).await;
    let attempt = reading_after(&bench, 1).await;
    tokio::time::sleep(SLOW).await; // not synchronisation: nothing is to happen in this time
    let seen = bench.peer().await;
    assert_eq!(seen.attempt.map(|a| a.number), Some(attempt.number), "{seen:?}");
    drop(gate);
    bench.heals().await;
    let ended = |outcome| bench.counts.sum(TRANSFERS, &["direction=sent", outcome]);
    assert_eq!((ended("outcome=failed"), ended("outcome=finished")), (1, 1), "only the cut one failed");
    assert!(bench.bytes("received", "cancelled") > 0 && bench.bytes("sent", "finished") < 900_000);
}

/// The control: past the time that a phase may take, a receiver that still reads is given up; and the next attempt of the
/// same snapshot gets what the receiver has read by then, instead of having it read once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_reads_longer_than_a_phase_may_take_is_given_up_and_its_work_is_not() {
    let mut bench = Bench::new(Config { snapshot_phase_timeout_ms: 800, ..config() }).await;
    let gate = held(&mut bench).await;
    let attempt = reading_after(&bench, 1).await;
    let given_up = bench.next_end(attempt.number - 1).await;
    assert_eq!(given_up.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    reading_after(&bench, given_up.number).await;
    let store = bench.store(bench.behind);
    let read = store.count(SnapshotOp::Receive);
    drop(gate);
    bench.heals().await;
    assert_eq!(store.count(SnapshotOp::Receive), read, "it was not read again");
}

/// Gives the node that is behind the whole file that the leader is about to offer: from an attempt that Raft did not take.
async fn whole(bench: &Bench) -> SnapshotMeta {
    let meta = bench.latest(bench.leader);
    let mut body = bench.cluster.disks[&bench.leader].snapshots.open(&meta, 0).unwrap();
    let mut writer = bench.cluster.disks[&bench.behind].snapshots.receive(&meta).unwrap();
    while let Some(part) = body.next_part(1 << 20).unwrap() {
        writer.write_part(&part.bytes, part.crc32c).unwrap();
    }
    writer.verify(Some(&Trailer { length: meta.length, content: meta.content })).unwrap();
    assert_eq!(writer.commit().unwrap(), meta);
    meta
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_that_is_here_is_read_through_and_not_sent_again() {
    let mut bench = Bench::new(config()).await;
    whole(&bench).await;
    bench.cluster.restart(bench.behind).await;
    let store = bench.store(bench.behind);
    bench.heals().await;
    assert_eq!(bench.bytes("sent", "finished"), 0);
    assert_eq!(store.count(SnapshotOp::Receive), 0);
}

/// A file that was whole was believed to be sound: nobody read it before Raft had written down that it installs it, and
/// had forgotten its log. If a byte of it had rotted meanwhile, the group went down, for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_that_has_rotted_is_received_anew_in_its_place() {
    let mut bench = Bench::new(config()).await;
    let meta = whole(&bench).await;
    assert!(bench.cluster.disks[&bench.behind].snapshots.damage(&meta, meta.length as usize - 1));
    bench.cluster.restart(bench.behind).await;
    bench.heals().await;
    assert_eq!(bench.bytes("sent", "finished"), meta.length);
    assert_eq!(bench.cluster.group(bench.behind, 1).state().down, None);
}
