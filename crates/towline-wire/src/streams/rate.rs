//! Bounds how often unknown peers can cause expensive work.

use std::time::{Duration, Instant};

/// Admits a number of events a second, and as many at once after a pause. Time is an argument.
#[derive(Debug)]
pub struct Rate {
    every: Duration,
    burst: Duration,
    /// When the budget covers everything admitted so far.
    paid: Option<Instant>,
}

impl Rate {
    /// Admits at most `per_second` events a second, and at least one.
    pub fn new(per_second: u32) -> Self {
        let every = Duration::from_secs(1) / per_second.max(1);
        Self { every, burst: Duration::from_secs(1).saturating_sub(every), paid: None }
    }

    /// Whether one more is within the bound at `now`.
    pub fn admit(&mut self, now: Instant) -> bool {
        let paid = self.paid.map_or(now, |paid| paid.max(now));
        if paid.saturating_duration_since(now) > self.burst {
            return false;
        }
        self.paid = paid.checked_add(self.every);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_bounded_and_the_rest_comes_at_its_pace() {
        let (mut rate, start) = (Rate::new(10), Instant::now());
        let mut admitted = |at_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            (0..100).filter(|_| rate.admit(now)).count()
        };
        assert_eq!(admitted(0), 10);
        assert_eq!(admitted(50), 0);
        assert_eq!(admitted(100), 1);
        assert_eq!(admitted(350), 2);
        assert_eq!(admitted(60_000), 10);
    }
}
