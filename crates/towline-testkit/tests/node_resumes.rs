//! A receiver reads its partial or whole file again before it answers an offer. The read may take long, its sender hears of
//! each piece, and a node that stops does not read on.

use crate::common::*;

/// Much longer than the sender waits for an answer to its offer, or for a chunk to be taken.
const SLOW: Duration = Duration::from_millis(1_500);

/// Short timeouts, except for chunks that stand still.
fn impatient(snapshot_phase_timeout: Duration) -> Config {
    Config { snapshot_phase_timeout, snapshot_progress_timeout: Duration::from_secs(10), ..config() }
}

/// Cuts a transfer midway and holds the receiver while it reads its partial file again.
async fn held(setup: &mut LaggingCluster) -> SnapshotGate {
    let gate = setup.stall_after(20, 16 << 10).await;
    setup.break_sent(SnapshotFaults { cut_at_chunk: Some(20), ..Default::default() });
    let first = setup.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    setup.break_sent(SnapshotFaults::default());
    until("the receiver reads its file again", || gate.wait_held(Duration::ZERO)).await;
    gate
}

/// Waits for an attempt after `number` whose receiver reports that it verifies.
async fn reading_after(setup: &LaggingCluster, number: u64) -> AttemptStatus {
    let reads = |attempt: &AttemptStatus| {
        attempt.number > number && (attempt.phase, attempt.acked) == (Some(TransferPhase::Verifying), 0)
    };
    setup.attempt("the receiver of a later attempt verifies", reads).await
}

/// An offer timed out after five seconds. A receiver with a large partial file needed longer to read it, so the attempt
/// failed, and the next one was refused as busy, again and again. A large transfer that was cut late never resumed.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_waits_while_the_receiver_verifies_a_large_partial_file() {
    let mut setup = LaggingCluster::new(impatient(Duration::from_secs(60))).await;
    let gate = held(&mut setup).await;
    let attempt = reading_after(&setup, 1).await;
    tokio::time::sleep(SLOW).await; // not synchronisation: nothing may happen in this time
    let seen = setup.peer().await;
    assert_eq!(seen.attempt.map(|a| a.number), Some(attempt.number), "{seen:?}");
    drop(gate);
    setup.assert_heals().await;
    let ended = |outcome| setup.counts.sum(TRANSFERS, &format!("direction=sent {outcome}"));
    assert_eq!((ended("outcome=failed"), ended("outcome=finished")), (1, 1), "only the cut one failed");
    assert!(setup.bytes("received", "cancelled") > 0 && setup.bytes("sent", "finished") < 900_000);
}

/// The control: a read ends at the phase timeout. The next attempt continues with what the receiver has read, and does not
/// start the read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_longer_than_the_phase_timeout_ends_its_attempt_and_serves_the_next() {
    let mut setup = LaggingCluster::new(impatient(Duration::from_millis(800))).await;
    let gate = held(&mut setup).await;
    let attempt = reading_after(&setup, 1).await;
    let given_up = setup.next_end(attempt.number - 1).await;
    assert_eq!(given_up.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    reading_after(&setup, given_up.number).await;
    let store = setup.store(setup.behind);
    let read = store.count(SnapshotOp::Receive);
    drop(gate);
    setup.assert_heals().await;
    assert_eq!(store.count(SnapshotOp::Receive), read, "it was not read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_the_whole_file_reads_it_and_gets_no_byte() {
    let mut setup = LaggingCluster::new(config()).await;
    setup.copy_latest();
    setup.restart_follower().await;
    let store = setup.store(setup.behind);
    setup.assert_heals().await;
    assert_eq!(setup.bytes("sent", "finished"), 0);
    assert_eq!(store.count(SnapshotOp::Receive), 0);
}

/// A receiver took a whole file as sound and read it only after the log was gone. A rotten byte then took the group down for
/// good.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_that_has_rotted_is_received_anew_in_its_place() {
    let mut setup = LaggingCluster::new(config()).await;
    let meta = setup.copy_latest();
    assert!(setup.cluster.disks[&setup.behind].snapshots.damage(&meta, meta.length as usize - 1));
    setup.restart_follower().await;
    setup.assert_heals().await;
    assert_eq!(setup.bytes("sent", "finished"), meta.length);
    assert_eq!(setup.cluster.group(setup.behind, 1).state().down, None);
}

/// Long timeouts: only the phase timeout may expire.
fn patient() -> Config {
    Config {
        snapshot_offer_timeout: Duration::from_secs(4),
        snapshot_progress_timeout: Duration::from_secs(4),
        ..config()
    }
}

/// Cuts a transfer late. The receiver then reads each piece of its partial file in `piece`.
async fn cut_late(setup: &mut LaggingCluster, piece: Duration) -> FaultySnapshots {
    let late = SnapshotFaults { cut_at_chunk: Some(45), ..Default::default() };
    setup.break_sent(late);
    setup.restart_follower().await;
    let store = setup.store(setup.behind);
    store.slow(SnapshotOp::Reread, piece);
    let cut = setup.next_end(0).await;
    assert_eq!(cut.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    setup.break_sent(SnapshotFaults::default());
    store
}

/// A receiver reported no progress while it read. A read longer than a phase failed at each attempt, although it advanced.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_advances_may_take_longer_than_a_phase() {
    let mut setup =
        LaggingCluster::new(Config { snapshot_phase_timeout: Duration::from_millis(2_500), ..patient() })
            .await;
    let store = cut_late(&mut setup, Duration::from_millis(400)).await;
    setup.assert_heals().await;
    assert!(store.count(SnapshotOp::Reread) >= 10, "it took no longer than a phase");
    let failed = setup.counts.sum(TRANSFERS, "direction=sent outcome=failed");
    assert_eq!(failed, 1, "only the one that was cut");
}

fn disk(setup: &LaggingCluster) -> &MemSnapshots {
    &setup.cluster.disks[&setup.behind].snapshots
}

/// The snapshot of the current attempt, which need not be the leader's newest.
async fn offered(setup: &LaggingCluster) -> SnapshotMeta {
    let attempt = setup.peer().await.attempt.expect("an attempt under way");
    let all = setup.cluster.disks[&setup.leader].snapshots.complete(GroupId::DEFAULT).unwrap();
    all.into_iter().find(|meta| meta.head.at.index == attempt.index).expect("the leader keeps it")
}

/// The reading thread went on after the runtime had ended, and the directory stayed locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_reads_no_further() {
    let mut setup = LaggingCluster::new(patient()).await;
    let store = cut_late(&mut setup, Duration::from_millis(700)).await;
    until("it reads again", || store.count(SnapshotOp::Reread) > 0).await;
    let meta = offered(&setup).await;
    setup.cluster.stop(setup.behind, Duration::ZERO).await;
    let left = disk(&setup).receive(&meta).expect("the file is not busy");
    assert!(left.verified() > 0, "the partial file is unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_reads_a_whole_file_no_further() {
    let mut setup = LaggingCluster::new(patient()).await;
    setup.copy_latest();
    setup.restart_follower().await;
    let store = setup.store(setup.behind);
    store.slow(SnapshotOp::Read, Duration::from_millis(1_200));
    until("it reads", || store.count(SnapshotOp::Read) > 0).await;
    setup.cluster.stop(setup.behind, Duration::ZERO).await;
    // A file with a reader would stay.
    disk(&setup).retain(GroupId::DEFAULT, &[]).unwrap();
    assert_eq!(disk(&setup).files(), 0, "a reader is left");
}

/// The follower began again at the first byte, because the leader offered a newer snapshot with other content.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_transfer_is_resumed_although_the_leader_has_a_newer_snapshot() {
    let slow = Config {
        snapshot_bytes_per_second: ByteSize::bytes(1_000_000),
        snapshot_backoff_max: Duration::from_secs(5),
        ..config()
    };
    let mut setup = LaggingCluster::new(slow).await;
    setup.restart_follower().await;
    let first = setup.midway().await;
    let (leader, behind) = (node_id(setup.leader), node_id(setup.behind));
    setup.cluster.net.cut(leader, behind);
    let last = setup.next_end(first.number - 1).await;
    assert!(matches!(last.outcome, AttemptOutcome::Failed(_)), "{last:?}");
    let group = setup.cluster.group(setup.leader, 1);
    let sent = group.status().await.unwrap().snapshot_index;
    load(&setup.cluster, 45, 10).await;
    eventually("a newer snapshot", async || {
        let status = group.status().await.unwrap();
        if status.snapshot_index == sent { Err(status) } else { Ok(()) }
    })
    .await;
    setup.cluster.net.heal(leader, behind);
    let offset = setup.attempt("an attempt is resumed", |attempt| attempt.offset > 0).await.offset;
    assert!(offset >= first.acked, "it begins at {offset}, after {} were acknowledged", first.acked);
    setup.assert_heals().await;
}
