//! Keeps the agreed time moving while no client writes.
//!
//! Whether a key has expired is decided by the time in the log: a key that one node has shown as gone is gone on every
//! node. A write brings the leader's time along. If a key is due and there is no write, the leader proposes its time alone.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::replica::{Replica, Role};

/// How often the leader looks. A key outlives its time by at most this, and by what a commit takes.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Never ends.
pub(crate) async fn run<R: Replica>(replica: R) {
    let mut every = interval(CHECK_INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let state = replica.state();
        if state.role != Role::Leader {
            continue;
        }
        if let Some(command) = replica.local().tick(state.term)
            && let Ok(pending) = replica.submit(command)
        {
            // A lost tick needs no retry: the next one carries a later time.
            let _ = pending.await;
        }
    }
}
