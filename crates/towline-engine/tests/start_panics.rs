//! Code of a user that panics while a group starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use crate::common::{Alone, DEADLINE, Machine, address, id};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::node::{Start, StartError};

/// It must not look like a node that has stopped; and the group can be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_panics_says_what_the_panic_said_and_may_be_tried_again() {
    let config = Config { election_ticks_min: 50, election_ticks_max: 80, ..Config::default() };
    let alone = Alone::start(config).await;
    let group = |machine| alone.node.group(GroupId::DEFAULT, machine);
    let members = vec![(id(1), address(1))];
    let error = group(Machine { panics: true }).start(Start::Bootstrap(members)).await.unwrap_err();
    assert!(matches!(&error, StartError::Panicked { cause } if cause == "no such index"), "{error:?}");
    let group = group(Machine::default()).start(Start::Restart).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group.propose("x").await.unwrap();
}
