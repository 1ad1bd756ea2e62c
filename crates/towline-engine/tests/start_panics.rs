//! Code of a user that panics while a group starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::common::{Alone, DEADLINE, Machine, address, id};
use tokio::runtime::Builder;
use towline_engine::config::Config;
use towline_engine::errors::{TransferLeaderError, WaitLeaderError};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::node::{Group, Start, StartError};

/// It must not look like a node that has stopped; and the group can be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_names_the_call_of_the_state_machine_that_panicked_and_may_be_tried_again() {
    let config = Config {
        election_timeout_min: Duration::from_millis(500),
        election_timeout_max: Duration::from_millis(800),
        ..Config::default()
    };
    let alone = Alone::start(config).await;
    let group = |machine| alone.node.group(GroupId::DEFAULT, machine);
    let members = vec![(id(1), address(1))];
    for (call, how) in [("view", Start::Bootstrap(members.clone())), ("durable", Start::Bootstrap(members))] {
        let error = group(Machine { panics_in: call }).start(how).await.unwrap_err();
        assert!(matches!(error, StartError::StateMachine { group: GroupId::DEFAULT, .. }), "{error:?}");
        let said = format!("state machine panicked in `{call}`: no such index");
        assert_eq!(error.source().unwrap().to_string(), said);
    }
    let group = group(Machine::default()).start(Start::Restart).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group.propose("x").await.unwrap();
}

async fn waits_of(
    group: &Group<Machine>,
) -> (Result<NodeId, WaitLeaderError>, Result<(), TransferLeaderError>) {
    (group.wait_leader(DEADLINE).await, group.transfer(id(2)).await)
}

/// Futures of a group may be polled by any executor; these two need a clock, which only a runtime has.
#[tokio::test(flavor = "multi_thread")]
async fn waits_without_a_runtime_or_without_timers_are_errors() {
    let alone = Alone::start(Config::default()).await;
    let start = Start::Bootstrap(vec![(id(1), address(1))]);
    let group = alone.node.group(GroupId::DEFAULT, Machine::default()).start(start).await.unwrap();
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
