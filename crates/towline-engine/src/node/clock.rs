//! The shard's ticks.

use std::time::{Duration, Instant};

/// Ticks at equal intervals. A late tick does not move later ones, and missed ticks are not replayed.
pub(super) struct Ticks {
    every: Duration,
    due: Instant,
}

impl Ticks {
    /// The first tick is due after `every`, which must not be zero.
    pub(super) fn start(every: Duration, now: Instant) -> Self {
        Self { every, due: now + every }
    }

    /// The time until the next tick.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Takes the tick that is due, and returns how many were missed before it. `None` if no tick is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        let late = now.checked_duration_since(self.due)?.as_nanos();
        let every = self.every.as_nanos().max(1);
        self.due = now + self.every - Duration::from_nanos((late % every) as u64);
        Some(u64::try_from(late / every).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_does_not_move_later_ones() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut ticks = Ticks::start(Duration::from_millis(10), start);
        for (now, missed, next) in [
            (9_999, None, 10_000),
            (10_000, Some(0), 20_000),
            (10_001, None, 20_000),
            (29_999, Some(0), 30_000),
            (46_000, Some(1), 50_000),
            (50_000, Some(0), 60_000),
            (5_070_001, Some(501), 5_080_000),
            (5_079_999, None, 5_080_000),
        ] {
            assert_eq!(ticks.take(at(now)), missed, "after {now} us");
            assert_eq!(ticks.wait(start), Duration::from_micros(next), "after {now} us");
            assert_eq!(ticks.wait(at(next + 1)), Duration::ZERO);
        }
    }
}
