//! A node that is shut down while it leads groups whose peers do not take over.

use std::time::{Duration, Instant};

use super::common::DEADLINE;
use super::stage::{GROUPS_MAX, Stage};
use crate::config::Config;
use crate::node::SHUTDOWN_MARGIN;

/// The groups share the deadline: their hand-overs stall together, and every state machine is flushed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn hand_overs_that_stall_take_half_the_deadline_together_and_leave_time_to_flush() {
    let config = Config { election_ticks_min: 300, election_ticks_max: 400, ..Config::default() };
    let mut stage = Stage::node(config).await;
    stage.lead(GROUPS_MAX).await;
    let Stage { alone, groups, script: _script } = stage;
    let (began, deadline) = (Instant::now(), Duration::from_secs(2));
    let shutdown = tokio::time::timeout(DEADLINE, alone.node.shutdown(deadline)).await.expect("it goes down");
    let took = began.elapsed();
    assert!(shutdown.is_complete(), "{shutdown:?}");
    assert!(took >= deadline / 2, "nothing stalled: {took:?}");
    assert!(took < deadline + SHUTDOWN_MARGIN, "{took:?}");
    assert!(groups.iter().all(|group| group.state().down.is_some()));
}
