//! Attempts that end in odd ways, each in exactly one report: transports that panic or say nothing, phases that take long,
//! a sender that has no end of patience, more offers than a node takes, a receipt that is lost.

use std::time::{Duration, Instant};

use crate::common::Counts;
use crate::common::bench::{BYTES, Bench, TRANSFERS, config};
use crate::common::offers::Oddity;
use towline_engine::config::Config;
use towline_engine::message::Lane;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::AttemptOutcome;
use towline_engine::transport::TransferPhase;
use towline_testkit::cluster::{DEADLINE, Plan, node_id, until};
use towline_testkit::fault::{Direction, LaneFaults, SnapshotFaults};
use towline_testkit::snapshots::SnapshotOp;

/// Much longer than a transfer may stand still while chunks are due.
const SLOW: Duration = Duration::from_millis(1_200);

fn reports(counts: &Counts, kind: &str) -> u64 {
    counts.sum("towline_reports_total", &[&format!("kind={kind}")])
}

/// Cases 3 and 18. The only slot is free again, or nobody would be served after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_panics_or_never_answers_costs_one_attempt_and_one_report() {
    for (oddity, failure) in [
        (Oddity::OfferPanics, SnapshotFailure::Abandoned),
        (Oddity::SendPanics, SnapshotFailure::Abandoned),
        (Oddity::OfferPends, SnapshotFailure::Timeout),
    ] {
        let mut bench = Bench::new(Config { snapshot_sends_max: 1, ..config() }).await;
        bench.offers.next(oddity.clone());
        bench.cluster.restart(bench.behind).await;
        let first = bench.next_end(0).await;
        assert_eq!(first.outcome, AttemptOutcome::Failed(failure), "{oddity:?}");
        bench.heals().await;
        assert_eq!(reports(&bench.counts, "snapshot_failure"), 1, "{oddity:?}");
        assert_eq!(reports(&bench.counts, "snapshot_finish"), 1, "{oddity:?}");
        assert_eq!(bench.counts.sum(TRANSFERS, &["direction=sent", "outcome=failed"]), 1, "{oddity:?}");
    }
}

/// Case 54: the receiver has it, and neither its receipt nor Raft's own acknowledgement came through.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_acknowledgement_was_lost_is_not_sent_again_to_an_idle_cluster() {
    let mut bench = Bench::new(Config { snapshot_bytes_per_second: 1_000_000, ..config() }).await;
    bench.offers.next(Oddity::ReceiptIsLost);
    bench.cluster.restart(bench.behind).await;
    bench.midway().await;
    let mute = LaneFaults { drop: 1.0, ..LaneFaults::default() };
    let faults = bench.faults.lock().unwrap()[&node_id(bench.behind)].clone();
    faults.lane(Lane::Append, Direction::Out, mute);
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    // Raft acknowledges only once the snapshot is written down, which is after the receipt.
    until("the acknowledgement is lost", || faults.counts().dropped > 0).await;
    faults.clear();
    let second = bench.next_end(first.number).await;
    assert_eq!(second.outcome, AttemptOutcome::Finished);
    let of = |name, direction: &str, outcome: &str| {
        let labels = [format!("direction={direction}"), format!("outcome={outcome}")];
        bench.counts.sum(name, &[&labels[0], &labels[1]])
    };
    for direction in ["sent", "received"] {
        assert_eq!(of(TRANSFERS, direction, "already_had"), 1, "{direction}");
        assert_eq!(of(BYTES, direction, "already_had"), 0, "{direction}");
    }
    assert_eq!((of(TRANSFERS, "received", "finished"), of(TRANSFERS, "sent", "finished")), (1, 0));
    assert!(bench.cluster.settled(1).await.len() >= 45);
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=sent"]), 2, "and there is no third");
    assert_eq!(
        (reports(&bench.counts, "snapshot_failure"), reports(&bench.counts, "snapshot_finish")),
        (1, 1)
    );
}

/// Case 67.
#[tokio::test(flavor = "multi_thread")]
async fn phases_that_take_longer_than_the_progress_timeout_are_no_failure() {
    for op in [SnapshotOp::Verify, SnapshotOp::Commit] {
        let slow = Config { snapshot_bytes_per_second: 2_000_000, ..config() };
        let mut bench = Bench::new(slow).await;
        bench.cluster.restart(bench.behind).await;
        let gate = bench.store(bench.behind).hold(op);
        until("the receiver is in the phase", || gate.wait_held(Duration::ZERO)).await;
        tokio::time::sleep(SLOW).await; // not synchronisation: nothing is to happen in this time
        let attempt = bench.peer().await.attempt.expect("it is waited for");
        assert_eq!(attempt.acked, attempt.bytes);
        let phase = if op == SnapshotOp::Verify { TransferPhase::Verifying } else { TransferPhase::Syncing };
        assert_eq!((attempt.number, attempt.phase), (1, Some(phase)));
        drop(gate);
        bench.heals().await;
        assert_eq!(bench.counts.sum(TRANSFERS, &["direction=sent"]), 1, "{op:?}");
    }
}

/// The control.
#[tokio::test(flavor = "multi_thread")]
async fn a_phase_that_takes_longer_than_its_own_timeout_is_a_failure() {
    let slow = Config { snapshot_bytes_per_second: 2_000_000, snapshot_phase_timeout_ms: 300, ..config() };
    let mut bench = Bench::new(slow).await;
    bench.cluster.restart(bench.behind).await;
    let gate = bench.store(bench.behind).hold(SnapshotOp::Commit);
    until("the receiver is in the phase", || gate.wait_held(Duration::ZERO)).await;
    assert_eq!(bench.next_end(0).await.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
    drop(gate);
    assert!(bench.cluster.settled(1).await.len() >= 45);
}

/// Case 18, from the other side: the sender would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_to_which_nothing_comes_gives_up_by_itself_and_frees_its_seat() {
    let patient = Config { snapshot_progress_timeout_ms: 600_000, snapshot_receives_max: 1, ..config() };
    let hasty = Config { snapshot_progress_timeout_ms: 300, ..patient.clone() };
    let mut bench = Bench::new(patient).await;
    bench.config_from_start(bench.behind, hasty);
    let stall = SnapshotFaults { stall_at_chunk: Some(5), ..Default::default() };
    bench.fault(bench.leader, Direction::Out, stall);
    bench.cluster.restart(bench.behind).await;
    until("the receiver gives up", || {
        bench.counts.sum(TRANSFERS, &["direction=received", "outcome=failed"]) == 1
    })
    .await;
    // What the sender was told waits in the stream until it sends again.
    bench.fault(bench.leader, Direction::Out, SnapshotFaults::default());
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
    bench.heals().await;
}

/// Case 19: of two groups that both need a snapshot one has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn more_offers_than_a_node_receives_at_a_time_are_refused_as_busy_and_served_later() {
    let counts = Counts::default();
    let config = Config { snapshot_receives_max: 1, snapshot_bytes_per_second: 500_000, ..config() };
    let mut cluster = Plan::new(3, 2).config(config).customise(counts.on()).start().await;
    let leaders = [cluster.leader(1).await, cluster.leader(2).await];
    let behind = (1..=3).find(|node| !leaders.contains(node)).unwrap();
    cluster.crash(behind);
    for group in [1, 2] {
        for _ in 0..45 {
            cluster.acked(group, vec![b'.'; 10_000]).await;
        }
        let end = Instant::now() + DEADLINE;
        loop {
            let leader = cluster.leader(group).await;
            if cluster.group(leader, group).status().await.is_ok_and(|status| status.first_index > 10) {
                break;
            }
            assert!(Instant::now() < end, "the log of group {group} is not compacted");
            cluster.acked(group, "more").await;
        }
    }
    cluster.restart(behind).await;
    for group in [1, 2] {
        assert!(cluster.settled(group).await.len() >= 45);
    }
    let received = |outcome: &str| {
        counts
            .sum(TRANSFERS, &["direction=received", &format!("node={behind}"), &format!("outcome={outcome}")])
    };
    assert!(received("refused") >= 1, "one had to wait");
    assert_eq!((received("finished"), received("failed")), (2, 0));
    assert_eq!(
        counts.sum(TRANSFERS, &["direction=sent", "outcome=refused"]),
        received("refused"),
        "both sides have it in their books"
    );
}
