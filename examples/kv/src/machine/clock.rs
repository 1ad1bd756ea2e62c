//! The cluster's time, in milliseconds since the cluster was founded.
//!
//! The clock of the day is never read, so its steps change nothing. Each node adds the time that passes on it to the last
//! time it applied. The leader stamps commands with its own time, and the log makes the stamp the time of all nodes.
//!
//! A key must never expire early. So no clock may be ahead of the last stamp plus the time since then:
//!
//! * A follower takes over each stamp, even if its own clock is ahead. It may have run for hours before there was a leader.
//! * A leader keeps its own clock while it leads. Otherwise each commit would set it back.
//! * A leader stamps nothing until it has applied all entries of earlier leaders, which may hold later stamps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NANOS_PER_MS: u64 = 1_000_000;

/// The time on this node. All clones share it.
#[derive(Clone)]
pub(crate) struct Clock {
    /// Time since any fixed moment. Never goes back.
    passed: Arc<dyn Fn() -> Duration + Send + Sync>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The cluster's time at that moment, in nanoseconds; wraps below zero.
    origin: AtomicU64,
    /// The term of the last applied entry.
    applied_term: AtomicU64,
    /// The last term in which this node stamped commands.
    led_term: AtomicU64,
}

impl Clock {
    /// Follows the monotonic clock of the system. On Linux it stops while the machine is suspended.
    pub(crate) fn monotonic() -> Self {
        let start = Instant::now();
        Self::new(move || start.elapsed())
    }

    pub(crate) fn new(passed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { passed: Arc::new(passed), state: Arc::default() }
    }

    fn passed(&self) -> u64 {
        u64::try_from((self.passed)().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.state.origin.load(Ordering::Acquire).wrapping_add(self.passed()) / NANOS_PER_MS
    }

    /// The time with which the leader of `term` stamps a command. `None` until it has applied an entry of its own term, and
    /// so all entries before.
    pub(super) fn stamp_ms(&self, term: u64) -> Option<u64> {
        if self.state.applied_term.load(Ordering::Acquire) != term {
            return None;
        }
        self.state.led_term.store(term, Ordering::Release);
        Some(self.now_ms())
    }

    /// Takes over `now_ms`, the time in the log after a command that was applied in `term`.
    pub(super) fn observe(&self, now_ms: u64, term: u64) {
        if self.state.led_term.load(Ordering::Acquire) != term || self.now_ms() < now_ms {
            let origin = now_ms.saturating_mul(NANOS_PER_MS).wrapping_sub(self.passed());
            self.state.origin.store(origin, Ordering::Release);
        }
    }

    /// Notes that all entries up to one of `term` were applied and observed.
    pub(super) fn applied(&self, term: u64) {
        self.state.applied_term.store(term, Ordering::Release);
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

    /// A node waited an hour for the others. When it led, its clock was an hour ahead, and keys expired early.
    #[test]
    fn a_clock_that_is_ahead_follows_the_leader_and_only_a_leader_keeps_its_own() {
        let (clock, passed) = manual(3_600_000_000_000);
        assert_eq!(clock.stamp_ms(2), None, "entries of earlier leaders may be missing");
        clock.observe(5_000, 1);
        clock.applied(2);
        assert_eq!(clock.stamp_ms(2), Some(5_000));
        passed.fetch_add(3_000_000, Ordering::Relaxed);
        clock.observe(5_000, 2);
        assert_eq!(clock.stamp_ms(2), Some(5_003), "a commit takes time");
        clock.observe(4_000, 3);
        assert_eq!((clock.now_ms(), clock.stamp_ms(3)), (4_000, None));
    }

    #[derive(Debug, Clone)]
    enum ClockStep {
        Pass(u64),
        Elect(usize),
        /// The leader proposes a command, which is committed.
        Stamp,
        Apply {
            node: usize,
            entries: usize,
        },
        Restart(usize),
    }

    fn step() -> impl Strategy<Value = ClockStep> {
        prop_oneof![
            (0..5_000_000_u64).prop_map(ClockStep::Pass),
            (0..3_usize).prop_map(ClockStep::Elect),
            Just(ClockStep::Stamp),
            (0..3_usize, 1..4_usize).prop_map(|(node, entries)| ClockStep::Apply { node, entries }),
            (0..3_usize).prop_map(ClockStep::Restart),
        ]
    }

    proptest! {
        /// Between two entries, the time in the log advances by no more than the time that passed.
        #[test]
        fn the_time_in_the_log_is_never_faster_than_real_time(
            steps in prop::collection::vec(step(), 1..200),
            uptimes in prop::array::uniform3(0..10_000_000_000_000_u64),
        ) {
            let mut nodes = uptimes.map(manual);
            let mut applied = [0_usize; 3];
            let (mut real, mut term, mut leader) = (0_u64, 1, 0);
            // Term; the stamp of a command; the time in the log after the entry; when it was proposed.
            let mut log: Vec<(u64, Option<u64>, u64, u64)> = vec![(1, None, 0, 0)];
            for step in steps {
                match step {
                    ClockStep::Pass(nanos) => {
                        real += nanos;
                        nodes.iter().for_each(|(_, passed)| { passed.fetch_add(nanos, Ordering::Relaxed); });
                    }
                    ClockStep::Elect(node) => {
                        (term, leader) = (term + 1, node);
                        let agreed = log.last().map_or(0, |entry| entry.2);
                        log.push((term, None, agreed, real));
                    }
                    ClockStep::Stamp => {
                        let Some(stamp) = nodes[leader].0.stamp_ms(term) else { continue };
                        let before = log.iter().rfind(|entry| entry.1.is_some()).map(|entry| (entry.2, entry.3));
                        let agreed = before.map_or(0, |before| before.0).max(stamp);
                        if let Some((then, at)) = before {
                            prop_assert!(agreed - then <= (real - at).div_ceil(NANOS_PER_MS), "{then} to {agreed}");
                        }
                        log.push((term, Some(stamp), agreed, real));
                    }
                    ClockStep::Apply { node, entries } => {
                        for (term, stamp, agreed, _) in log.iter().skip(applied[node]).take(entries) {
                            if stamp.is_some() {
                                nodes[node].0.observe(*agreed, *term);
                            }
                            nodes[node].0.applied(*term);
                        }
                        applied[node] = (applied[node] + entries).min(log.len());
                    }
                    ClockStep::Restart(node) => {
                        // Another node leads in a new term.
                        (term, leader) = (term + 1, (node + 1) % 3);
                        nodes[node] = manual(0);
                        if let Some((last, _, agreed, _)) = applied[node].checked_sub(1).and_then(|at| log.get(at)) {
                            nodes[node].0.observe(*agreed, *last);
                            nodes[node].0.applied(*last);
                        }
                        log.push((term, None, log.last().map_or(0, |entry| entry.2), real));
                    }
                }
            }
        }
    }
}
