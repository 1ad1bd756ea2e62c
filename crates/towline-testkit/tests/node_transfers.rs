//! What becomes of a snapshot when something goes wrong on its way: one report, one line in each log, and a follower that
//! is served again. Each fault stands beside what the books of both sides say of it.

use std::time::{Duration, Instant};

use towline_engine::config::Config;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{AttemptOutcome, AttemptStatus};
use towline_engine::transport::TransferPhase;
use towline_testkit::cluster::{DEADLINE, node_id, quick};
use towline_testkit::fault::{Direction, SnapshotFaults};
use towline_testkit::snapshots::SnapshotOp;

use crate::common::bench::{Bench, TRANSFERS, config};

/// Chunks that one side has counted and the other has not: in the sender's hand, on the way, before the disk.
const BETWEEN_BYTES: u64 = 16 * (16 << 10);

/// Waits until a counter is there: the other side's books close at its own pace.
async fn counted(what: &str, mut holds: impl FnMut() -> bool) {
    towline_testkit::cluster::until(what, &mut holds).await;
}

/// On a busy machine a healthy transfer stands still for longer than that of the bench may.
fn patient() -> Config {
    Config { snapshot_offer_timeout_ms: 10_000, snapshot_progress_timeout_ms: 10_000, ..config() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_faults_has_equal_books_on_both_sides() {
    let mut bench = Bench::new(patient()).await;
    bench.cluster.restart(bench.behind).await;
    bench.heals().await;
    let sent = bench.bytes("sent", "finished");
    assert!(sent > 0);
    assert_eq!(sent, bench.bytes("received", "finished"));
}

/// Bytes of a chunk where each of them is cut: a transfer of the bench has a dozen.
const CHUNK: u64 = 64 << 10;

/// What became of a transfer whose sender ended once its receiver had so many chunks.
struct Cut {
    length: u64,
    /// Bytes that had arrived.
    had: u64,
    /// Bytes that were sent then.
    rest: u64,
}

/// Cuts the first transfer behind its first `chunks` chunks, all of which have arrived, and heals it. Before the second
/// attempt the receiver is left with what `between` leaves.
async fn cut_behind(chunks: u64, between: impl FnOnce(&Bench)) -> Cut {
    let mut bench = Bench::new(Config { snapshot_chunk_bytes: CHUNK as usize, ..patient() }).await;
    let length = bench.latest(bench.leader).length;
    let had = length.min(chunks * CHUNK);
    let at = SnapshotFaults { stall_at_chunk: Some(chunks), ..Default::default() };
    bench.fault(bench.leader, Direction::Out, at);
    bench.cluster.restart(bench.behind).await;
    let end = Instant::now() + DEADLINE;
    let arrived = |a: &AttemptStatus| (a.phase, a.acked) == (Some(TransferPhase::Receiving), had);
    while !bench.peer().await.attempt.as_ref().is_some_and(arrived) {
        assert!(Instant::now() < end, "{chunks} chunks do not arrive: {:?}", bench.peer().await);
        tokio::task::yield_now().await;
    }
    // So that the second attempt does not begin before this one's faults are gone.
    let gate = bench.store(bench.behind).hold(SnapshotOp::Receive);
    // Where no chunk is left it is cut before its trailer.
    let cut =
        SnapshotFaults { cut_at_chunk: Some(chunks), drop_trailer: had == length, ..Default::default() };
    bench.fault(bench.leader, Direction::Out, cut);
    let first = bench.next_end(0).await;
    let failed = AttemptOutcome::Failed(SnapshotFailure::Transfer);
    assert_eq!((first.number, first.outcome), (1, failed), "behind {chunks} chunks");
    let closed = || bench.counts.sum(TRANSFERS, &["direction=received", "outcome=cancelled"]) == 1;
    counted("both books are closed", closed).await;
    assert_eq!(bench.bytes("sent", "failed"), had, "behind {chunks} chunks");
    assert_eq!(bench.bytes("received", "cancelled"), had, "behind {chunks} chunks");
    bench.clear();
    between(&bench);
    drop(gate);
    bench.heals().await;
    let ended = |outcome| bench.counts.sum(TRANSFERS, &["direction=sent", outcome]);
    let reported = bench.counts.sum("towline_reports_total", &["kind=snapshot_failure"]);
    assert_eq!((ended("outcome=failed"), reported), (1, 1), "behind {chunks} chunks");
    let rest = bench.bytes("sent", "finished");
    assert_eq!(bench.bytes("received", "finished"), rest, "behind {chunks} chunks");
    Cut { length, had, rest }
}

/// Case 14: whatever was received before the cut is not sent again, wherever that was.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_cut_at_any_chunk_fails_once_and_only_the_rest_is_sent_again() {
    for chunks in 0.. {
        let Cut { length, had, rest } = cut_behind(chunks, |_| {}).await;
        assert_eq!(rest, length - had, "behind {chunks} chunks");
        if had == length {
            assert!(chunks >= 10, "{chunks} chunks of {length} bytes");
            break;
        }
    }
}

/// The control: a receiver that has forgotten what had arrived is sent all of it, which the books show.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_forgets_what_had_arrived_is_found() {
    let forgets = |bench: &Bench| {
        let meta = bench.latest(bench.leader);
        assert!(bench.cluster.disks[&bench.behind].snapshots.damage(&meta, 0));
    };
    let Cut { length, had, rest } = cut_behind(7, forgets).await;
    assert_eq!((had, rest), (7 * CHUNK, length));
}

/// Case 16: a flipped byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_flipped_byte_is_refused_and_nothing_of_it_is_restored() {
    let mut bench = Bench::new(patient()).await;
    bench.fault(
        bench.leader,
        Direction::Out,
        SnapshotFaults { corrupt_chunk: Some(10), ..Default::default() },
    );
    bench.cluster.restart(bench.behind).await;
    let last = bench.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Corrupt));
    assert!(bench.cluster.commands(bench.behind, 1).await.len() < 45);
    bench.heals().await;
    // Case 25: of a failed one too. The chunk came, whatever it was worth.
    let (sent, received) = (bench.bytes("sent", "failed"), bench.bytes("received", "failed"));
    assert_eq!(received, 11 * (16 << 10));
    assert!(sent > 0 && sent.abs_diff(received) <= BETWEEN_BYTES, "{received} of {sent} arrived");
}

/// Case 16: the trailer is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_its_trailer_is_no_snapshot() {
    let mut bench = Bench::new(patient()).await;
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
    let mut bench = Bench::new(patient()).await;
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
    for direction in ["direction=sent", "direction=received"] {
        assert_eq!(bench.counts.sum(TRANSFERS, &[direction, "outcome=refused"]), 1, "{direction}");
    }
}

/// Case 3: the node that sends goes down in order; its obligations end with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_midway_leaves_a_follower_to_the_next_leader() {
    let mut bench = Bench::new(Config { snapshot_bytes_per_second: 400_000, ..config() }).await;
    bench.cluster.restart(bench.behind).await;
    bench.midway().await;
    bench.cluster.stop(bench.leader, Duration::from_secs(2)).await;
    // Case 25: both sides have a cancelled one in their books, with what had moved.
    counted("both books are closed", || bench.bytes("received", "cancelled") > 0).await;
    let (sent, received) = (bench.bytes("sent", "cancelled"), bench.bytes("received", "cancelled"));
    assert!(sent > 0 && sent.abs_diff(received) <= BETWEEN_BYTES, "{received} of {sent} arrived");
    let commands = bench.cluster.settled(1).await;
    assert!(commands.len() >= 45, "the next leader serves it");
    bench.cluster.restart(bench.leader).await;
    assert_eq!(bench.cluster.settled(1).await, commands);
    assert_eq!(bench.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
}
