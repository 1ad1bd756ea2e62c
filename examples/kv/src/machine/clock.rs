//! The time that the replicas agree on, in milliseconds since the cluster was founded.
//!
//! Only time that passes moves it: the clock of the day is never read, so its steps change nothing. Each node adds the
//! time that passes on it to the latest time it applied. The leader stamps commands with its own time, and the log makes
//! the stamp the time of all nodes.
//!
//! No exchange of times makes a clock fast: a follower applies a stamp after the leader made it, so the follower learns at
//! most the leader's time. A node that was down starts from the time in its log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NANOS_PER_MS: u64 = 1_000_000;

/// The time on this node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Clock {
    /// Time that passed since any moment. Never goes back.
    passed: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// The time when nothing had passed, in nanoseconds. Only rises.
    origin: Arc<AtomicU64>,
}

impl Clock {
    /// Follows the monotonic clock of the system. On Linux it stands still while the machine is suspended.
    pub(crate) fn monotonic() -> Self {
        let start = Instant::now();
        Self::new(move || start.elapsed())
    }

    pub(crate) fn new(passed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { passed: Arc::new(passed), origin: Arc::default() }
    }

    fn passed(&self) -> u64 {
        u64::try_from((self.passed)().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.origin.load(Ordering::Relaxed).saturating_add(self.passed()) / NANOS_PER_MS
    }

    /// The log says that it is `now_ms` at least.
    pub(super) fn observe(&self, now_ms: u64) {
        let origin = now_ms.saturating_mul(NANOS_PER_MS).saturating_sub(self.passed());
        self.origin.fetch_max(origin, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A clock, and the time that passed on its node.
    fn manual(passed: u64) -> (Clock, Arc<AtomicU64>) {
        let nanos = Arc::new(AtomicU64::new(passed));
        let source = Arc::clone(&nanos);
        (Clock::new(move || Duration::from_nanos(source.load(Ordering::Relaxed))), nanos)
    }

    #[test]
    fn a_restarted_clock_goes_on_from_the_time_in_the_log() {
        let (clock, passed) = manual(0);
        clock.observe(5_000);
        assert_eq!(clock.now_ms(), 5_000);
        passed.fetch_add(2_500_000, Ordering::Relaxed);
        assert_eq!(clock.now_ms(), 5_002);
        clock.observe(4_000);
        assert_eq!(clock.now_ms(), 5_002, "it never goes back");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(u64),
        /// The first stamps, and all but the last see it after a while.
        Stamp {
            leader: usize,
            delay: u64,
            misses: usize,
        },
        Restart(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5_000_000_u64).prop_map(Step::Pass),
            (0..3_usize, 0..3_000_000_u64, 0..3_usize).prop_map(|(leader, delay, misses)| Step::Stamp {
                leader,
                delay,
                misses
            }),
            (0..3_usize).prop_map(Step::Restart),
        ]
    }

    proptest! {
        /// With a clock of the day, each change of leader could add what the clocks differed by.
        #[test]
        fn no_exchange_of_times_makes_a_clock_faster_than_time(steps in prop::collection::vec(step(), 1..200)) {
            let mut nodes = [manual(0), manual(7_000_000_123), manual(3)];
            // Raft's log: the latest time that was agreed.
            let (mut agreed, mut real) = (0, 0_u64);
            nodes[1].0.observe(0);
            let start = nodes.iter().map(|(clock, _)| clock.now_ms()).max().unwrap_or(0);
            let mut latest = [0; 3];
            for step in steps {
                let mut pass = |nanos: u64, nodes: &[(Clock, Arc<AtomicU64>); 3]| {
                    real += nanos;
                    nodes.iter().for_each(|(_, passed)| { passed.fetch_add(nanos, Ordering::Relaxed); });
                };
                match step {
                    Step::Pass(nanos) => pass(nanos, &nodes),
                    Step::Stamp { leader, delay, misses } => {
                        agreed = nodes[leader].0.now_ms().max(agreed);
                        pass(delay, &nodes);
                        for (at, (clock, _)) in nodes.iter().enumerate() {
                            if at != misses {
                                clock.observe(agreed);
                            }
                        }
                    }
                    Step::Restart(at) => {
                        nodes[at] = manual(0);
                        nodes[at].0.observe(agreed);
                        latest[at] = agreed;
                    }
                }
                for (at, (clock, _)) in nodes.iter().enumerate() {
                    let now = clock.now_ms();
                    prop_assert!(now <= start + real.div_ceil(NANOS_PER_MS), "{now} after {real} ns");
                    prop_assert!(now >= latest[at], "node {at} went back from {} to {now}", latest[at]);
                    latest[at] = now;
                }
            }
        }
    }
}
