//! Moves the time in the log while no client writes.
//!
//! The time in the log decides whether a key has expired, so all nodes agree. Each write carries the leader's time. If a key
//! is due and no client writes, the leader proposes its time alone.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use towline::Role;

use crate::replica::Replica;

/// How often the leader checks. A key outlives its expiry by at most this interval and one commit.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) async fn run<R: Replica>(replica: R) {
    let mut every = interval(CHECK_INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let state = replica.state();
        if state.role != Role::Leader {
            continue;
        }
        if let Some(command) = replica.local().and_then(|view| view.tick(state.term))
            && let Ok(pending) = replica.submit(command)
        {
            let _ = pending.await; // the next tick carries a later time, so a lost one needs no retry
        }
    }
}
