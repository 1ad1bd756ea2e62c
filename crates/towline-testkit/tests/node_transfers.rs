//! Faults of snapshot transfers, and the byte totals that both sides count for each of them.

use crate::common::*;

/// How far the totals may differ: one side has counted chunks that wait in a buffer of the other.
const BETWEEN_BYTES: u64 = 16 * (16 << 10);

/// The chunk of [`patient`]: a transfer has a dozen, and a test can break it after each.
const CHUNK: u64 = 64 << 10;

/// Long timeouts: on a busy machine a healthy transfer may stand still for a while.
fn patient() -> Config {
    Config {
        snapshot_chunk_bytes: ByteSize::bytes(CHUNK),
        snapshot_offer_timeout: Duration::from_secs(10),
        snapshot_progress_timeout: Duration::from_secs(10),
        ..config()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_faults_has_equal_totals_on_both_sides_and_appends_follow_it() {
    let mut setup = LaggingCluster::new(patient()).await;
    setup.restart_follower().await;
    setup.assert_heals().await;
    let sent = setup.bytes("sent", "finished");
    assert!(sent > 0);
    assert_eq!(sent, setup.bytes("received", "finished"));
    let group = setup.cluster.group(setup.behind, 1);
    assert!(group.status().await.unwrap().first_index > 1, "its log begins after the snapshot");
    let before = setup.cluster.settled(1).await.len();
    load(&setup.cluster, 3, 10).await;
    assert_eq!(setup.cluster.settled(1).await.len(), before + 3);
    assert_eq!(setup.peer().await.progress, PeerProgress::Replicate);
}

/// The byte counts of a transfer that was cut and resumed.
struct CutTransfer {
    length: u64,
    /// Bytes that arrived before the cut.
    had: u64,
    /// Bytes that the second attempt sent.
    rest: u64,
}

/// Cuts the first transfer after its first `chunks` chunks have arrived, runs `between`, and lets the second attempt finish.
async fn cut_after(chunks: u64, between: impl FnOnce(&LaggingCluster)) -> CutTransfer {
    let mut setup = LaggingCluster::new(patient()).await;
    let length = setup.latest(setup.leader).length;
    let had = length.min(chunks * CHUNK);
    let gate = setup.stall_after(chunks, CHUNK).await;
    // After the last chunk the cut drops the trailer.
    let cut =
        SnapshotFaults { cut_at_chunk: Some(chunks), drop_trailer: had == length, ..Default::default() };
    setup.break_sent(cut);
    let first = setup.next_end(0).await;
    let failed = AttemptOutcome::Failed(SnapshotFailure::Transfer);
    assert_eq!((first.number, first.outcome), (1, failed), "after {chunks} chunks");
    let closed = || setup.counts.sum(TRANSFERS, "direction=received outcome=cancelled") == 1;
    until("both sides count the end", closed).await;
    assert_eq!(setup.bytes("sent", "failed"), had, "after {chunks} chunks");
    assert_eq!(setup.bytes("received", "cancelled"), had, "after {chunks} chunks");
    setup.clear_faults();
    between(&setup);
    drop(gate);
    setup.assert_heals().await;
    let ended = |outcome| setup.counts.sum(TRANSFERS, &format!("direction=sent {outcome}"));
    let reported = setup.counts.sum(REPORTS, "kind=snapshot_failure");
    assert_eq!((ended("outcome=failed"), reported), (1, 1), "after {chunks} chunks");
    let rest = setup.bytes("sent", "finished");
    assert_eq!(setup.bytes("received", "finished"), rest, "after {chunks} chunks");
    CutTransfer { length, had, rest }
}

/// The second attempt does not send what arrived before the cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_cut_at_any_chunk_fails_once_and_only_the_rest_is_sent_again() {
    for chunks in 0.. {
        let CutTransfer { length, had, rest } = cut_after(chunks, |_| {}).await;
        assert_eq!(rest, length - had, "after {chunks} chunks");
        if had == length {
            assert!(chunks >= 10, "{chunks} chunks of {length} bytes");
            break;
        }
    }
}

/// The control: the totals show that a receiver that lost its partial file gets everything again.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_lost_its_partial_file_gets_every_byte_again() {
    let forgets = |setup: &LaggingCluster| {
        let meta = setup.latest(setup.leader);
        assert!(setup.cluster.disks[&setup.behind].snapshots.damage(&meta, 0));
    };
    let CutTransfer { length, had, rest } = cut_after(7, forgets).await;
    assert_eq!((had, rest), (7 * CHUNK, length));
}

/// A flipped byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_flipped_byte_is_refused_and_nothing_of_it_is_restored() {
    let mut setup = LaggingCluster::new(patient()).await;
    let gate = setup.stall_after(10, CHUNK).await;
    setup.break_sent(SnapshotFaults { corrupt_chunk: Some(10), ..Default::default() });
    let last = setup.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Corrupt));
    assert!(setup.cluster.commands(setup.behind, 1).await.len() < 45);
    setup.clear_faults();
    drop(gate);
    setup.assert_heals().await;
    // A failed transfer has totals too, and they include the damaged chunk.
    let (sent, received) = (setup.bytes("sent", "failed"), setup.bytes("received", "failed"));
    assert_eq!(received, 11 * CHUNK);
    assert!(sent > 0 && sent.abs_diff(received) <= BETWEEN_BYTES, "{received} of {sent} arrived");
}

/// The sender does not repeat an offer at every heartbeat after a lasting refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_too_large_is_refused_before_a_byte_moves_and_backs_off() {
    let mut setup = LaggingCluster::new(Config {
        snapshot_bytes_max: ByteSize::bytes(1_000),
        snapshot_backoff_max: Duration::from_secs(60),
        ..config()
    })
    .await;
    setup.restart_follower().await;
    let last = setup.next_end(0).await;
    assert_eq!(last.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: true }));
    let waits = setup.peer().await.backoff_ticks;
    let heartbeat = quick().validate().unwrap().ticks(quick().heartbeat_interval);
    assert!(waits > 8 * heartbeat, "{waits} ticks at a heartbeat of {heartbeat}");
    assert_eq!(setup.bytes("sent", "refused") + setup.bytes("received", "refused"), 0);
    for direction in ["direction=sent", "direction=received"] {
        assert_eq!(setup.counts.sum(TRANSFERS, &format!("{direction} outcome=refused")), 1, "{direction}");
    }
}
