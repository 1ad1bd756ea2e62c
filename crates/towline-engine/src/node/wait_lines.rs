//! Log lines about waits. Their number is bounded: when a node dies, each of a thousand groups waits for it.

use std::time::{Duration, Instant};

use crate::core::WaitNotice;
use crate::explain::Wait;
use crate::ids::GroupId;

/// The most lines in one period. More go to level debug; the gauges show all groups.
const LINES_MAX: u32 = 20;

/// The lines of a node about waits.
pub(super) struct WaitLines {
    period: Duration,
    begun: Instant,
    count: u32,
}

impl WaitLines {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, begun: Instant::now(), count: 0 }
    }

    /// Whether one more line fits into the period of `now`.
    fn admit(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= self.period {
            (self.begun, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= LINES_MAX
    }

    /// Logs a notice. `wait` is what the group waits for, unless that has ended.
    pub(super) fn log(&mut self, group: GroupId, notice: WaitNotice, wait: Option<&Wait>, tick: Duration) {
        let WaitNotice { peer, kind, ticks, ended } = notice;
        let age = tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
        let peer = peer.map(|peer| peer.as_u64());
        let detail = wait.map(|wait| wait.cause.to_string()).unwrap_or_default();
        match (self.admit(Instant::now()), ended) {
            (true, false) => tracing::warn!(%group, peer, cause = %kind, ?age, detail, "the group waits"),
            (true, true) => tracing::info!(%group, peer, cause = %kind, ?age, "the group no longer waits"),
            (false, _) => tracing::debug!(%group, peer, cause = %kind, ?age, detail, ended, "a wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_groups_that_wait_for_one_dead_node_write_a_bounded_number_of_lines() {
        let period = Duration::from_secs(2);
        let mut lines = WaitLines::new(period);
        let begun = lines.begun;
        let mut admitted = |at| (0..1_024).filter(|_| lines.admit(at)).count();
        assert_eq!(admitted(begun), 20);
        assert_eq!(admitted(begun + period / 2), 0, "the same period");
        assert_eq!(admitted(begun + period), 20, "the next");
    }
}
