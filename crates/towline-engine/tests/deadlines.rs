//! Callers and shutdowns behind a state machine call that does not return.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::gated::{Gate, Gated, OpenOnDrop};
use crate::common::{DEADLINE, TestNode, steady, wait};
use towline_engine::config::Config;
use towline_engine::errors::{Outcome, ProposeError, ReadError, UncertainCause};
use towline_engine::ids::GroupId;
use towline_engine::node::{Consistency, Group, SHUTDOWN_MARGIN};

const TIMEOUT: Duration = Duration::from_millis(500);

fn config() -> Config {
    Config { read_timeout: TIMEOUT, proposal_timeout: TIMEOUT, ..steady() }
}

/// A node whose state machine is held in a call until the gate opens.
async fn stuck(config: Config) -> (TestNode, Group<Gated>, OpenOnDrop) {
    let (test, gate) = (TestNode::start(config).await, Arc::new(Gate::default()));
    let group = test.lead(1, Gated::new(&gate)).await;
    gate.permit(0);
    drop(group.submit("stuck").unwrap());
    gate.wait_held();
    (test, group, OpenOnDrop(gate))
}

/// Waits for an answer that must come at the deadline of its request.
async fn in_time<T>(answer: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let answer = tokio::time::timeout(DEADLINE, answer).await.expect("an answer");
    assert!(began.elapsed() >= TIMEOUT / 2, "early, after {:?}", began.elapsed());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_a_hanging_call_fails_at_its_deadline_and_names_the_call() {
    let (_alone, group, gate) = stuck(config()).await;
    let error = in_time(group.read(Consistency::Linearizable)).await.unwrap_err();
    let ReadError::NotApplied { index, applied, call: Some(call) } = &error else { panic!("{error}") };
    assert!(*index > *applied && *applied == group.state().applied, "{error}");
    assert!(call.contains("group 1 has been in `apply` for"), "{error}");
    gate.0.open();
    wait("the end of the call", || (group.state().applied >= *index).then_some(())).await;
    group.read(Consistency::Linearizable).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_reads_leave_their_queue() {
    let config = Config { read_queue_max: 10, ..config() };
    let (_alone, group, _gate) = stuck(config).await;
    for _ in 0..3 {
        let read = || {
            let group = group.clone();
            // Busy until the shard has counted the failed reads.
            let read = async move {
                loop {
                    match group.read(Consistency::Linearizable).await {
                        Err(ReadError::Busy) => tokio::task::yield_now().await,
                        answer => break answer,
                    }
                }
            };
            tokio::spawn(in_time(read))
        };
        let reads: Vec<_> = (0..10).map(|_| read()).collect();
        for read in reads {
            let error = read.await.unwrap().unwrap_err();
            assert!(matches!(error, ReadError::NotApplied { .. }), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_behind_a_hanging_call_is_answered_once_at_its_deadline() {
    let (test, group, gate) = stuck(config()).await;
    let behind = group.submit("behind").unwrap();
    let error = in_time(behind).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened);
    let ProposeError::Uncertain { cause: UncertainCause::Timeout { after_ms: 500, cause } } = &error else {
        panic!("{error}")
    };
    assert!(cause.contains("group 1 has been in `apply` for"), "{error}");
    let counted = |outcome: &str| test.counter("towline_proposals_total", &format!("outcome=\"{outcome}\""));
    // The second is the proposal in the call.
    assert_eq!((counted("uncertain"), counted("committed")), (2, 0));
    gate.0.open();
    let after = group.propose("after").await.unwrap();
    assert_eq!(gate.0.calls().last().unwrap().through, after, "a late command is still applied");
    assert_eq!((counted("uncertain"), counted("committed")), (2, 1), "a late command is not answered again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_in_a_hanging_call_is_answered_at_its_deadline() {
    let (test, gate) = (TestNode::start(config()).await, OpenOnDrop(Arc::new(Gate::default())));
    let group = test.lead(1, Gated::new(&gate.0)).await;
    gate.0.permit(0);
    let error = in_time(group.propose("x")).await.unwrap_err();
    assert!(matches!(error, ProposeError::Uncertain { cause: UncertainCause::Timeout { .. } }), "{error}");
    gate.0.wait_held();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_answers_of_another_group_name_the_group_of_the_hanging_call() {
    let (test, gate) = (TestNode::start(config()).await, OpenOnDrop(Arc::new(Gate::default())));
    let (one, other) = (test.lead(1, Gated::new(&gate.0)).await, test.lead(2, Gated::default()).await);
    gate.0.permit(0);
    drop(one.submit("stuck").unwrap());
    gate.0.wait_held();
    let error = in_time(other.propose("x")).await.unwrap_err().to_string();
    assert!(error.contains("state machine of group 1 has been in `apply` for"), "{error}");
    let error = in_time(other.read(Consistency::Linearizable)).await.unwrap_err().to_string();
    assert!(error.contains("state machine of group 1 has been in `apply` for"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_returns_despite_a_hanging_call_and_names_it() {
    for deadline in [Duration::from_millis(300), Duration::ZERO] {
        let config = Config { proposal_timeout: Duration::from_secs(60), ..config() };
        let (test, group, gate) = stuck(config).await;
        let commit = group.state().commit;
        let behind = group.submit("behind").unwrap();
        wait("the commit", || (group.state().commit > commit).then_some(())).await;
        let began = Instant::now();
        let shutdown =
            tokio::time::timeout(DEADLINE, test.node.shutdown(deadline)).await.expect("it returns");
        let took = began.elapsed();
        assert!(took < deadline + SHUTDOWN_MARGIN + Duration::from_secs(1), "{took:?}");
        let named = |text: &str| text.contains("the state machine of group 1 has been in `apply` for");
        assert!(shutdown.left.len() == 1 && named(&shutdown.left[0]), "{shutdown:?}");
        assert!(shutdown.left[0].starts_with("towline-apply-0: "), "{shutdown:?}");
        let unflushed: Vec<_> =
            shutdown.unflushed.iter().map(|(group, cause)| (*group, named(cause))).collect();
        match deadline.is_zero() {
            true => assert_eq!(unflushed, []),
            false => assert_eq!(unflushed, [(GroupId::new(1), true)]),
        }
        let error = tokio::time::timeout(DEADLINE, behind).await.expect("an answer").unwrap_err();
        assert!(matches!(&error, ProposeError::Uncertain { cause: UncertainCause::Down(_) }), "{error}");
        gate.0.open();
        wait("the end of the call", || (gate.0.calls().iter().any(|call| call.commands > 0)).then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_returns_despite_a_hanging_call() {
    let (test, _group, gate) = stuck(config()).await;
    let dropped = tokio::task::spawn_blocking(move || drop(test));
    tokio::time::timeout(DEADLINE, dropped).await.expect("it returns").unwrap();
    assert!(gate.0.calls().iter().all(|call| call.commands == 0), "the call is still held");
}

/// More is committed than the machine can apply in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_flushes_a_slow_state_machine_before_its_deadline() {
    let (test, gate) = (TestNode::start(config()).await, Arc::new(Gate::default()));
    let group = test.lead(1, Gated { cost: Duration::from_millis(20), ..Gated::new(&gate) }).await;
    for _ in 0..5_000 {
        drop(group.submit("x").unwrap());
    }
    wait("the commit", || (group.state().commit > 5_000).then_some(())).await;
    let deadline = Duration::from_secs(10);
    let shutdown = tokio::time::timeout(DEADLINE, test.node.shutdown(deadline)).await.expect("it returns");
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert_eq!(gate.flushes(), 1);
    assert!(gate.calls().last().unwrap().through < 5_000, "the machine applied everything in time");
}
