//! Shutdown of a node whose peers do not take over leadership.

use std::time::{Duration, Instant};

use super::common::{DEADLINE, EmptyMachine, TestNode, id, steady};
use super::fixture::{GROUPS_MAX, LeaderFixture};
use crate::config::Config;
use crate::errors::TransferLeaderError;
use crate::ids::GroupId;
use crate::node::{SHUTDOWN_MARGIN, Start};
use crate::status::Role;

#[tokio::test(flavor = "multi_thread")]
async fn stalled_leadership_transfers_share_half_the_deadline_and_leave_time_to_flush() {
    let config = Config {
        election_timeout_min: Duration::from_secs(3),
        election_timeout_max: Duration::from_secs(4),
        ..Config::default()
    };
    let mut fixture = LeaderFixture::new(config).await;
    fixture.lead(GROUPS_MAX).await;
    let LeaderFixture { test, groups, played: _played, .. } = fixture;
    let (began, deadline) = (Instant::now(), Duration::from_secs(2));
    let shutdown = tokio::time::timeout(DEADLINE, test.node.shutdown(deadline)).await.expect("it goes down");
    let took = began.elapsed();
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert!(took >= deadline / 2, "nothing stalled: {took:?}");
    assert!(took < deadline + SHUTDOWN_MARGIN, "{took:?}");
    assert!(groups.iter().all(|group| group.state().down.is_some()));
}

/// Raft gives up a leadership transfer after an election timeout. The shutdown still waited for half of its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_goes_on_once_raft_has_given_up_the_transfers() {
    let mut fixture = LeaderFixture::new(Config::default()).await;
    fixture.lead(GROUPS_MAX).await;
    let LeaderFixture { test, played: _played, .. } = fixture;
    let shutdown = test.node.shutdown(40 * DEADLINE);
    let shutdown =
        tokio::time::timeout(5 * DEADLINE, shutdown).await.expect("it does not wait for the deadline");
    assert!(shutdown.is_complete(), "{shutdown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_transfer_that_raft_gives_up_fails_with_its_target() {
    let mut fixture = LeaderFixture::new(steady()).await;
    fixture.lead(1).await;
    let target = id(2);
    let transfer =
        tokio::time::timeout(DEADLINE, fixture.groups[0].transfer(target)).await.expect("an answer");
    assert_eq!(transfer, Err(TransferLeaderError::Timeout { target }));
    assert_eq!(fixture.groups[0].state().role, Role::Leader);
}

/// `explain` named a stopped group as down, and the metric showed that it waits for nothing.
#[tokio::test]
async fn the_metric_shows_a_stopped_group_as_down_until_it_starts_again() {
    let test = TestNode::start(steady()).await;
    let group = test.lead(1, EmptyMachine::default()).await;
    let down = || test.counter("towline_group_waiting", "cause=\"down\"");
    assert_eq!(down(), 0);
    group.stop().await.unwrap();
    assert_eq!(down(), 1);
    let again = test.node.group(GroupId::new(1), EmptyMachine::default());
    let _again = again.start(Start::Restart).await.unwrap();
    assert_eq!(down(), 0);
}
