//! Callers behind a call of the state machine that does not return.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::gated::{Gate, Gated, Opened};
use crate::common::{Alone, DEADLINE, address, id, wait};
use towline_engine::config::Config;
use towline_engine::errors::{Outcome, ProposeError, ReadError, UncertainCause};
use towline_engine::ids::GroupId;
use towline_engine::node::{Consistency, Group, SHUTDOWN_MARGIN, Start};

const TIMEOUT: Duration = Duration::from_millis(500);

fn config() -> Config {
    Config {
        election_timeout_min: Duration::from_millis(500),
        election_timeout_max: Duration::from_millis(800),
        apply_workers: 1,
        read_timeout: TIMEOUT,
        proposal_timeout: TIMEOUT,
        ..Config::default()
    }
}

async fn group(alone: &Alone, number: u64, gate: &Arc<Gate>) -> Group<Gated> {
    let members = Start::Bootstrap(vec![(id(1), address(1))]);
    let group = alone.node.group(GroupId::new(number), Gated::new(gate)).start(members).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group
}

/// A node whose state machine is in a call that does not return before the gate opens.
async fn stuck(config: Config) -> (Alone, Group<Gated>, Opened) {
    let (alone, gate) = (Alone::start(config).await, Arc::new(Gate::default()));
    let group = group(&alone, 1, &gate).await;
    gate.permit(0);
    drop(group.submit("stuck").unwrap());
    gate.wait_held();
    (alone, group, Opened(gate))
}

/// The answer of something that must not wait for the state machine.
async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let answer =
        tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| panic!("{what} does not return"));
    assert!(began.elapsed() >= TIMEOUT / 2, "{what} gave up early, after {:?}", began.elapsed());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_a_call_that_does_not_return_fails_at_its_deadline_and_says_why() {
    let (_alone, group, gate) = stuck(config()).await;
    let error = in_time("the read", group.read(Consistency::Linearizable)).await.unwrap_err();
    let ReadError::NotApplied { index, applied, call: Some(call) } = &error else { panic!("{error}") };
    assert!(*index > *applied && *applied == group.state().applied, "{error}");
    assert!(call.contains("group 1 has been in `apply` for"), "{error}");
    gate.0.open();
    wait("the end of the call", || (group.state().applied >= *index).then_some(())).await;
    group.read(Consistency::Linearizable).await.unwrap();
}

/// Their room is free again: what is late does not pile up behind the call.
#[tokio::test(flavor = "multi_thread")]
async fn reads_that_are_late_leave_their_queue() {
    let config = Config { read_queue_max: 10, ..config() };
    let (_alone, group, _gate) = stuck(config).await;
    for _ in 0..3 {
        let read = || {
            let group = group.clone();
            // Busy for a moment, until the shard has counted those that are gone.
            let read = async move {
                loop {
                    match group.read(Consistency::Linearizable).await {
                        Err(ReadError::Busy) => tokio::task::yield_now().await,
                        answer => break answer,
                    }
                }
            };
            tokio::spawn(in_time("a read", read))
        };
        let reads: Vec<_> = (0..10).map(|_| read()).collect();
        for read in reads {
            let error = read.await.unwrap().unwrap_err();
            assert!(matches!(error, ReadError::NotApplied { .. }), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_in_or_behind_a_call_that_does_not_return_is_answered_at_its_deadline_and_once() {
    let (alone, group, gate) = stuck(config()).await;
    let behind = group.submit("behind").unwrap();
    let error = in_time("the proposal", behind).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened);
    let ProposeError::Uncertain { cause: UncertainCause::Timeout { after_ms: 500, cause } } = &error else {
        panic!("{error}")
    };
    assert!(cause.contains("group 1 has been in `apply` for"), "{error}");
    let counted = |outcome: &str| alone.counter("towline_proposals_total", &format!("outcome=\"{outcome}\""));
    // With the one that is stuck: no caller waits for it.
    assert_eq!((counted("uncertain"), counted("committed")), (2, 0));
    gate.0.open();
    let after = group.propose("after").await.unwrap();
    assert_eq!(gate.0.calls().last().unwrap().through, after, "what was late is applied all the same");
    assert_eq!((counted("uncertain"), counted("committed")), (2, 1), "what was late is not answered again");
}

/// The call itself holds the waiter then, out of reach of everything but its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn the_proposal_that_a_call_is_about_is_answered_at_its_deadline() {
    let (alone, gate) = (Alone::start(config()).await, Opened(Arc::new(Gate::default())));
    let group = group(&alone, 1, &gate.0).await;
    gate.0.permit(0);
    let error = in_time("the proposal", group.propose("x")).await.unwrap_err();
    assert!(matches!(error, ProposeError::Uncertain { cause: UncertainCause::Timeout { .. } }), "{error}");
    gate.0.wait_held();
}

/// Another group of the worker that is stuck says which one holds it up.
#[tokio::test(flavor = "multi_thread")]
async fn callers_of_a_group_behind_another_ones_call_are_told_which() {
    let (alone, gate) = (Alone::start(config()).await, Opened(Arc::new(Gate::default())));
    let (one, other) = (group(&alone, 1, &gate.0).await, group(&alone, 2, &Arc::new(Gate::default())).await);
    gate.0.permit(0);
    drop(one.submit("stuck").unwrap());
    gate.0.wait_held();
    let error = in_time("the proposal", other.propose("x")).await.unwrap_err().to_string();
    assert!(error.contains("state machine of group 1 has been in `apply` for"), "{error}");
    let error = in_time("the read", other.read(Consistency::Linearizable)).await.unwrap_err().to_string();
    assert!(error.contains("state machine of group 1 has been in `apply` for"), "{error}");
}

/// The thread is left with its call; everything else ends, and everybody is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_returns_though_a_call_does_not_and_names_it() {
    for deadline in [Duration::from_millis(300), Duration::ZERO] {
        let config = Config { proposal_timeout: Duration::from_secs(60), ..config() };
        let (alone, group, gate) = stuck(config).await;
        let commit = group.state().commit;
        let behind = group.submit("behind").unwrap();
        wait("the commit", || (group.state().commit > commit).then_some(())).await;
        let began = Instant::now();
        let shutdown =
            tokio::time::timeout(DEADLINE, alone.node.shutdown(deadline)).await.expect("it returns");
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
        // What comes back late does no harm.
        gate.0.open();
        wait("the end of the call", || (gate.0.calls().iter().any(|call| call.commands > 0)).then_some(()))
            .await;
    }
}

/// Dropping a node waits for its threads, but not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_returns_though_a_call_does_not() {
    let (alone, _group, gate) = stuck(config()).await;
    let dropped = tokio::task::spawn_blocking(move || drop(alone));
    tokio::time::timeout(DEADLINE, dropped).await.expect("it returns").unwrap();
    assert!(gate.0.calls().iter().all(|call| call.commands == 0), "the call is still held");
}

/// More is committed than can be applied in time: the rest is given up while there is still time to flush.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_flushes_a_slow_state_machine_before_its_deadline() {
    let (alone, gate) = (Alone::start(config()).await, Arc::new(Gate::default()));
    let members = Start::Bootstrap(vec![(id(1), address(1))]);
    let slow = Gated { cost: Duration::from_millis(20), ..Gated::new(&gate) };
    let group = alone.node.group(GroupId::new(1), slow).start(members).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    for _ in 0..5_000 {
        drop(group.submit("x").unwrap());
    }
    wait("the commit", || (group.state().commit > 5_000).then_some(())).await;
    let deadline = Duration::from_secs(10);
    let shutdown = tokio::time::timeout(DEADLINE, alone.node.shutdown(deadline)).await.expect("it returns");
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert_eq!(gate.flushes(), 1);
    assert!(gate.calls().last().unwrap().through < 5_000, "it had time for everything");
}

/// Callers say "no deadline" with the largest duration.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_without_a_deadline_waits_for_what_there_is_to_wait_for() {
    let (alone, gate) = (Alone::start(config()).await, Arc::new(Gate::default()));
    let group = group(&alone, 1, &gate).await;
    group.propose("x").await.unwrap();
    let shutdown = alone.node.shutdown(Duration::MAX);
    let shutdown = tokio::time::timeout(DEADLINE, shutdown).await.expect("it returns");
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert_eq!(gate.flushes(), 1);
}
