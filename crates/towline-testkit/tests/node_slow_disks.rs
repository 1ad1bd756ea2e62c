//! A receiver whose disk blocks one write reports `Storing`, and gets the longer phase timeout. A receiver that stands
//! still does not.

use crate::common::*;

const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);

/// Much longer than a transfer may stand still while chunks are due.
const SLOW: Duration = Duration::from_millis(2_500);

/// Slow enough to be caught midway.
fn slow() -> Config {
    Config {
        snapshot_progress_timeout: PROGRESS_TIMEOUT,
        // Longer than an offer waits for the slot of an attempt that is ending.
        snapshot_offer_timeout: Duration::from_secs(3),
        snapshot_bytes_per_second: ByteSize::bytes(300_000),
        snapshot_sends_max: 1,
        ..config()
    }
}

/// Starts the follower and holds it in a write of the first attempt.
async fn held(setup: &mut LaggingCluster) -> SnapshotGate {
    setup.restart_follower().await;
    let gate = setup.store(setup.behind).hold(SnapshotOp::Write);
    until("a receiver writes", || gate.wait_held(Duration::ZERO)).await;
    gate
}

async fn storing(setup: &LaggingCluster) -> AttemptStatus {
    setup.attempt("the receiver stores", |attempt| attempt.phase == Some(TransferPhase::Storing)).await
}

/// A receiver waits for a sync once 96 MiB are queued behind it. On a disk whose sync took longer than the progress timeout,
/// each attempt failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_takes_longer_than_the_progress_timeout_is_no_failure() {
    for (over, plan) in [("mem", Plan::new(3, 1)), ("grpc", over_grpc(Plan::new(3, 1)))] {
        let mut setup = LaggingCluster::with(plan.config(slow())).await;
        let gate = held(&mut setup).await;
        let first = storing(&setup).await;
        assert!(first.number == 1 && first.acked < first.bytes, "{over}: {first:?}");
        tokio::time::sleep(SLOW).await; // not synchronisation: nothing may happen in this time
        let still = setup.peer().await.attempt.expect("an attempt under way");
        assert_eq!((still.number, still.phase, still.acked), (1, first.phase, first.acked), "{over}");
        drop(gate);
        setup.assert_heals().await;
        let sent = |label: &str| setup.counts.sum(TRANSFERS, &format!("direction=sent {label}"));
        assert_eq!((sent("direction=sent"), sent(&format!("transport={over}"))), (1, 1), "{over}");
    }
}

/// The control: a receiver that reports `Storing` for ever fails at the phase timeout, even if that is as short as the progress
/// timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_never_ends_fails_at_the_phase_timeout_and_frees_the_slot() {
    for phase_timeout in [PROGRESS_TIMEOUT, 3 * PROGRESS_TIMEOUT] {
        let config = Config { snapshot_phase_timeout: phase_timeout, ..slow() };
        let mut setup = LaggingCluster::new(config).await;
        let begun = Instant::now();
        let gate = held(&mut setup).await;
        let first = setup.next_end(0).await;
        assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
        assert!(begun.elapsed() >= phase_timeout, "{:?} of {phase_timeout:?}", begun.elapsed());
        // The blocked write still holds the only receive slot, so the next offer is refused.
        let second = setup.next_end(first.number).await;
        assert_eq!(second.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
        drop(gate);
        setup.assert_heals().await;
    }
}

/// The phase timeout applies only while the receiver stores.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_stored_and_then_stands_still_is_found_by_the_progress_timeout() {
    let mut setup =
        LaggingCluster::new(Config { snapshot_phase_timeout: Duration::from_secs(600), ..slow() }).await;
    let stall = SnapshotFaults { stall_at_chunk: Some(30), ..Default::default() };
    setup.break_received(stall);
    let gate = held(&mut setup).await;
    storing(&setup).await;
    drop(gate);
    let first = setup.next_end(0).await;
    assert_eq!((first.number, first.outcome), (1, AttemptOutcome::Failed(SnapshotFailure::Timeout)));
    setup.assert_heals().await;
}
