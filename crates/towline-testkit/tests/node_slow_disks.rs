//! Case 67, while bytes still come: a receiver whose disk keeps it waiting in one write says so, and is not taken for one
//! that stands still; and one that does stand still is.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::bench::{Bench, TRANSFERS, config};
use towline_engine::config::Config;
use towline_engine::ids::PeerAddr;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{AttemptOutcome, AttemptStatus};
use towline_engine::transport::TransferPhase;
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_testkit::cluster::{DEADLINE, Plan, node_id, until};
use towline_testkit::fault::{Direction, SnapshotFaults};
use towline_testkit::snapshots::{SnapshotGate, SnapshotOp};

const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);

/// Much longer than a transfer may stand still while chunks are due.
const SLOW: Duration = Duration::from_millis(2_500);

/// Slow enough to be caught midway.
fn slow() -> Config {
    Config {
        snapshot_progress_timeout_ms: PROGRESS_TIMEOUT.as_millis() as u64,
        // Longer than an offer waits for the seat of an attempt that is being ended.
        snapshot_offer_timeout_ms: 3_000,
        snapshot_bytes_per_second: 300_000,
        snapshot_sends_max: 1,
        ..config()
    }
}

/// The same nodes, which reach each other over gRPC.
fn over_grpc(plan: Plan) -> Plan {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = held
        .each_ref()
        .map(|listener| format!("grpc://{}", listener.local_addr().unwrap()).parse::<PeerAddr>().unwrap());
    drop(held);
    plan.customise(move |id, mut builder| {
        for (other, address) in (1..).zip(&addresses) {
            builder = builder.peer_address(node_id(other), address.clone());
        }
        let transport = Arc::new(GrpcTransport::new(GrpcConfig::default()));
        builder.transport(transport, addresses[id.as_u64() as usize - 1].clone())
    })
}

/// The node that is behind is held in a write of the first attempt.
async fn held(bench: &mut Bench) -> SnapshotGate {
    bench.cluster.restart(bench.behind).await;
    let gate = bench.store(bench.behind).hold(SnapshotOp::Write);
    until("a receiver writes", || gate.wait_held(Duration::ZERO)).await;
    gate
}

async fn storing(bench: &Bench) -> AttemptStatus {
    let end = Instant::now() + DEADLINE;
    loop {
        let attempt = bench.peer().await.attempt;
        if let Some(attempt) = attempt.filter(|attempt| attempt.phase == Some(TransferPhase::Storing)) {
            return attempt;
        }
        assert!(Instant::now() < end, "the receiver does not say that it stores: {attempt:?}");
        tokio::task::yield_now().await;
    }
}

/// A receiver waits for a sync that is under way once 96 MiB stand behind it. On a disk that needed longer for that than
/// the progress timeout each attempt failed, though nothing was wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_takes_longer_than_the_progress_timeout_is_no_failure() {
    for (over, plan) in [("mem", Plan::new(3, 1)), ("grpc", over_grpc(Plan::new(3, 1)))] {
        let mut bench = Bench::with(plan.config(slow())).await;
        let gate = held(&mut bench).await;
        let first = storing(&bench).await;
        assert!(first.number == 1 && first.acked < first.bytes, "{over}: {first:?}");
        tokio::time::sleep(SLOW).await; // not synchronisation: nothing is to happen in this time
        let still = bench.peer().await.attempt.expect("it is waited for");
        assert_eq!((still.number, still.phase, still.acked), (1, first.phase, first.acked), "{over}");
        drop(gate);
        bench.heals().await;
        let sent = |label: &str| bench.counts.sum(TRANSFERS, &["direction=sent", label]);
        assert_eq!((sent("direction=sent"), sent(&format!("transport={over}"))), (1, 1), "{over}");
    }
}

/// The control, and the bound: a receiver that never says more than that it stores is given up once a phase has lasted
/// for as long as one may. With a phase timeout no longer than the progress timeout that is as it was before receivers
/// said anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_never_ends_fails_at_the_phase_timeout_and_frees_the_slot() {
    for phase_timeout in [PROGRESS_TIMEOUT, 3 * PROGRESS_TIMEOUT] {
        let config = Config { snapshot_phase_timeout_ms: phase_timeout.as_millis() as u64, ..slow() };
        let mut bench = Bench::new(config).await;
        let begun = Instant::now();
        let gate = held(&mut bench).await;
        let first = bench.next_end(0).await;
        assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Timeout));
        assert!(begun.elapsed() >= phase_timeout, "{:?} of {phase_timeout:?}", begun.elapsed());
        // Nobody can end the write. Who comes meanwhile is told so, in the only slot there is.
        let second = bench.next_end(first.number).await;
        assert_eq!(second.outcome, AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false }));
        drop(gate);
        bench.heals().await;
    }
}

/// A receiver that has said that it stores has the time of a phase, but only for as long as it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_stored_and_then_stands_still_is_found_by_the_progress_timeout() {
    let mut bench = Bench::new(Config { snapshot_phase_timeout_ms: 600_000, ..slow() }).await;
    let stall = SnapshotFaults { stall_at_chunk: Some(30), ..Default::default() };
    bench.later.lock().unwrap().insert(node_id(bench.behind), (Direction::In, stall));
    let gate = held(&mut bench).await;
    storing(&bench).await;
    drop(gate);
    let first = bench.next_end(0).await;
    assert_eq!((first.number, first.outcome), (1, AttemptOutcome::Failed(SnapshotFailure::Timeout)));
    bench.heals().await;
}
