//! Attempts that need longer than usual, or wait for a slot: each gets exactly one report.

use crate::common::*;

/// Much longer than a transfer may stand still while chunks are due.
const SLOW: Duration = Duration::from_millis(1_200);

#[tokio::test(flavor = "multi_thread")]
async fn phases_that_take_longer_than_the_progress_timeout_are_no_failure() {
    for op in [SnapshotOp::Verify, SnapshotOp::Commit] {
        let slow = Config { snapshot_bytes_per_second: ByteSize::bytes(2_000_000), ..config() };
        let mut setup = LaggingCluster::new(slow).await;
        setup.restart_follower().await;
        let gate = setup.store(setup.behind).hold(op);
        until("the receiver is in the phase", || gate.wait_held(Duration::ZERO)).await;
        tokio::time::sleep(SLOW).await; // not synchronisation: nothing may happen in this time
        let attempt = setup.peer().await.attempt.expect("an attempt under way");
        assert_eq!(attempt.acked, attempt.bytes);
        let phase = if op == SnapshotOp::Verify { TransferPhase::Verifying } else { TransferPhase::Syncing };
        assert_eq!((attempt.number, attempt.phase), (1, Some(phase)));
        let waits = within(setup.cluster.group(setup.leader, 1).explain()).await.unwrap();
        let of_peer = waits.into_iter().find(|wait| wait.peer == Some(node_id(setup.behind)));
        assert_eq!(of_peer.map(|wait| wait.cause), Some(WaitCause::Snapshot { attempt }));
        drop(gate);
        setup.assert_heals().await;
        assert_eq!(setup.counts.sum(TRANSFERS, "direction=sent"), 1, "{op:?}");
    }
}

/// The control: the timeout of a phase ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_phase_that_takes_longer_than_its_own_timeout_is_a_failure() {
    let slow = Config {
        snapshot_bytes_per_second: ByteSize::bytes(2_000_000),
        snapshot_phase_timeout: Duration::from_millis(300),
        ..config()
    };
    let mut setup = LaggingCluster::new(slow).await;
    setup.restart_follower().await;
    let gate = setup.store(setup.behind).hold(SnapshotOp::Commit);
    until("the receiver is in the phase", || gate.wait_held(Duration::ZERO)).await;
    assert_eq!(setup.next_end(0).await.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    drop(gate);
    assert!(setup.cluster.settled(1).await.len() >= 45);
}

/// At the receiver: the sender would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_without_progress_gives_up_by_itself_and_frees_its_slot() {
    let patient =
        Config { snapshot_progress_timeout: Duration::from_secs(600), snapshot_receives_max: 1, ..config() };
    let hasty = Config { snapshot_progress_timeout: Duration::from_millis(300), ..patient.clone() };
    let mut setup = LaggingCluster::new(patient).await;
    setup.config_from_start(setup.behind, hasty);
    let stall = SnapshotFaults { stall_at_chunk: Some(5), ..Default::default() };
    setup.break_sent(stall);
    setup.restart_follower().await;
    until("the receiver gives up", || setup.counts.sum(TRANSFERS, "direction=received outcome=failed") == 1)
        .await;
    // The sender reads the refusal only when it sends again.
    setup.break_sent(SnapshotFaults::default());
    let first = setup.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
    setup.assert_heals().await;
}

/// Two groups need a snapshot, and the receiver has one slot.
#[tokio::test(flavor = "multi_thread")]
async fn more_offers_than_a_node_receives_at_a_time_are_refused_as_busy_and_served_later() {
    let counts = Counts::default();
    let config =
        Config { snapshot_receives_max: 1, snapshot_bytes_per_second: ByteSize::bytes(500_000), ..config() };
    let mut cluster = Plan::new(3, 2).config(config).customise(counts.on()).start().await;
    let leaders = [cluster.leader(1).await, cluster.leader(2).await];
    let behind = (1..=3).find(|node| !leaders.contains(node)).unwrap();
    cluster.crash(behind);
    for group in [1, 2] {
        for _ in 0..45 {
            cluster.acked(group, vec![b'.'; 10_000]).await;
        }
        compact_past(&cluster, group, 9).await;
    }
    cluster.restart(behind).await;
    for group in [1, 2] {
        assert!(cluster.settled(group).await.len() >= 45);
    }
    let received =
        |outcome: &str| counts.sum(TRANSFERS, &format!("direction=received node={behind} outcome={outcome}"));
    assert!(received("refused") >= 1, "one waited");
    assert_eq!((received("finished"), received("failed")), (2, 0));
    assert_eq!(
        counts.sum(TRANSFERS, "direction=sent outcome=refused"),
        received("refused"),
        "both sides counted it"
    );
}
