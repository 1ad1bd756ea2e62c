//! A node that is shut down while it leads groups whose peers do not take over.

use std::time::{Duration, Instant};

use super::common::{DEADLINE, id};
use super::stage::{GROUPS_MAX, Stage};
use crate::config::Config;
use crate::errors::TransferLeaderError;
use crate::node::SHUTDOWN_MARGIN;
use crate::status::Role;

/// The groups share the deadline: their hand-overs stall together, and every state machine is flushed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn hand_overs_that_stall_take_half_the_deadline_together_and_leave_time_to_flush() {
    let config = Config {
        election_timeout_min: Duration::from_secs(3),
        election_timeout_max: Duration::from_secs(4),
        ..Config::default()
    };
    let mut stage = Stage::node(config).await;
    stage.lead(GROUPS_MAX).await;
    let Stage { alone, groups, script: _script, .. } = stage;
    let (began, deadline) = (Instant::now(), Duration::from_secs(2));
    let shutdown = tokio::time::timeout(DEADLINE, alone.node.shutdown(deadline)).await.expect("it goes down");
    let took = began.elapsed();
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert!(took >= deadline / 2, "nothing stalled: {took:?}");
    assert!(took < deadline + SHUTDOWN_MARGIN, "{took:?}");
    assert!(groups.iter().all(|group| group.state().down.is_some()));
}

/// Raft gives a hand-over up after an election timeout. The shutdown waited for half of its deadline all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_goes_on_once_raft_has_given_up_its_hand_overs() {
    let mut stage = Stage::node(Config::default()).await;
    stage.lead(GROUPS_MAX).await;
    let Stage { alone, script: _script, .. } = stage;
    let shutdown = alone.node.shutdown(40 * DEADLINE);
    let shutdown =
        tokio::time::timeout(5 * DEADLINE, shutdown).await.expect("it does not wait for the deadline");
    assert!(shutdown.is_complete(), "{shutdown:?}");
}

/// The caller hears of it as soon as raft gives up, with the node that did not take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_raft_gives_up_fails_with_its_target() {
    let mut stage = Stage::node(Config::default()).await;
    stage.lead(1).await;
    let target = id(2);
    let transfer = tokio::time::timeout(DEADLINE, stage.groups[0].transfer(target)).await.expect("an answer");
    assert_eq!(transfer, Err(TransferLeaderError::Timeout { target }));
    assert_eq!(stage.groups[0].state().role, Role::Leader);
}
