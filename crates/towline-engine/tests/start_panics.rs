//! Starts whose state machine panics, and waits outside of a runtime.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::common::{DEADLINE, EmptyMachine, TestNode, id, steady};
use tokio::runtime::Builder;
use towline_engine::config::Config;
use towline_engine::errors::{TransferLeaderError, WaitLeaderError};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::node::{Group, Start, StartError};

#[tokio::test(flavor = "multi_thread")]
async fn a_start_names_the_state_machine_call_that_panicked_and_may_be_retried() {
    let test = TestNode::start(steady()).await;
    for call in ["view", "durable"] {
        let error = test.found(1, EmptyMachine { panics_in: call }).await.unwrap_err();
        assert!(matches!(error, StartError::StateMachine { group: GroupId::DEFAULT, .. }), "{error:?}");
        let cause = format!("state machine panicked in `{call}`: no such index");
        assert_eq!(error.source().unwrap().to_string(), cause);
    }
    let group = test.node.group(GroupId::DEFAULT, EmptyMachine::default());
    let group = group.start(Start::Restart).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group.propose("x").await.unwrap();
}

async fn waits_of(
    group: &Group<EmptyMachine>,
) -> (Result<NodeId, WaitLeaderError>, Result<(), TransferLeaderError>) {
    (group.wait_leader(DEADLINE).await, group.transfer(id(2)).await)
}

/// Any executor may poll a group's futures, but these two need the clock of a runtime.
#[tokio::test(flavor = "multi_thread")]
async fn waits_without_a_runtime_or_without_timers_are_errors() {
    let test = TestNode::start(Config::default()).await;
    let group = test.found(1, EmptyMachine::default()).await.unwrap();
    let waits = move || {
        let group = group.clone();
        async move { waits_of(&group).await }
    };
    let expected = (Err(WaitLeaderError::NoRuntime), Err(TransferLeaderError::NoRuntime));
    let (polled, elsewhere) = (waits.clone(), expected.clone());
    let polling = std::thread::spawn(move || {
        let mut waits = pin!(polled());
        let outside = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(outside, Poll::Ready(elsewhere));
    });
    polling.join().unwrap();
    let timeless = Builder::new_current_thread().build().unwrap();
    assert_eq!(std::thread::spawn(move || timeless.block_on(waits())).join().unwrap(), expected);
}
