//! The wait before the next attempt to connect.

use std::time::Duration;

/// Jittered exponential backoff. Each wait is drawn from the upper half of a range whose end doubles up to a cap. Peers that
/// lost the same node therefore do not reconnect in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Creates a backoff from `min` up to `max`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, ceiling: min.saturating_mul(2) }
    }

    /// The next wait: never below `min` (unless `max` is) and never above `max`.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let ceiling = self.ceiling.min(self.max);
        self.ceiling = ceiling.saturating_mul(2);
        let floor = (ceiling / 2).max(self.min).min(ceiling);
        floor + (ceiling - floor).mul_f64(rng.f64())
    }

    /// Resets the backoff: the next wait is the shortest.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.min.saturating_mul(2);
    }
}
