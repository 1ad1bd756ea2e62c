//! How many entries one call of a state machine gets.

use std::time::Duration;

/// The most entries in one call.
const CALL_ENTRIES_MAX: usize = 4_096;

/// The intended time of one call. The applied index moves, and other groups of the worker get their turn, once per call.
/// A machine whose fixed cost per call exceeds half of this gets calls of twice that cost.
const CALL_TIME_TARGET: Duration = Duration::from_millis(50);

/// The largest factor from one call to the next. A wrong estimate costs at most the target times this factor.
const GROWTH_MAX: usize = 4;

/// The distance between two probes, in calls that the time target limits. A probe is twice as large as the target allows:
/// it shows what a larger call costs.
const PROBE_CALLS: u32 = 8;

/// Weight of the past against one more call.
const PAST_WEIGHT: f64 = 0.85;

/// A call that deviates by this factor from the estimate shows that the machine has changed.
const CHANGE_MIN: f64 = 4.0;

/// Relative spread of the call sizes from which the cost of a call can be separated from the cost of its entries.
const SPREAD_MIN: f64 = 0.1;

/// Learns what a call costs (`fixed + each * entries`) and sizes the next one by [`CALL_TIME_TARGET`].
#[derive(Debug)]
pub(super) struct CallSize {
    entries_max: usize,
    /// Seconds.
    fixed: f64,
    each: f64,
    /// Calls since the last probe that were as large as allowed.
    limited: u32,
    sums: Sums,
}

/// Sums over the calls so far; older calls have less weight.
#[derive(Debug, Default)]
struct Sums {
    weight: f64,
    entries: f64,
    seconds: f64,
    entries_squared: f64,
    entries_seconds: f64,
}

impl CallSize {
    /// The first call has one entry, because the machine's speed is unknown.
    pub(super) fn new() -> Self {
        Self { entries_max: 1, fixed: 0.0, each: 0.0, limited: 0, sums: Sums::default() }
    }

    /// The most entries in the next call; at least one.
    pub(super) fn entries_max(&self) -> usize {
        let probe = if self.limited >= PROBE_CALLS { 2 } else { 1 };
        (self.entries_max * probe).min(CALL_ENTRIES_MAX)
    }

    /// Learns from a call: its entries and how long it took.
    pub(super) fn called(&mut self, entries: usize, took: Duration) {
        let is_probe = self.limited >= PROBE_CALLS;
        self.limited = match entries >= self.entries_max && !is_probe {
            true => self.limited + 1,
            false if is_probe && entries > self.entries_max => 0,
            false => self.limited,
        };
        let (entries, seconds) = (entries.max(1) as f64, took.as_secs_f64());
        let (target, expected) = (CALL_TIME_TARGET.as_secs_f64(), self.fixed + self.each * entries);
        // Short calls vary by chance, and would not make calls smaller.
        let matters = seconds.max(expected) > target / 2.0;
        if matters && !(expected / CHANGE_MIN..=expected * CHANGE_MIN).contains(&seconds) {
            self.sums = Sums::default();
        }
        self.sums.add(entries, seconds);
        match self.sums.line() {
            Some((fixed, each)) => (self.fixed, self.each) = (fixed, each),
            // All sizes are alike: keep the proportion of the two costs.
            None => {
                if expected > 0.0 {
                    let factor = seconds / expected;
                    self.fixed *= factor;
                    self.each *= factor;
                } else {
                    self.each = seconds / entries;
                }
            }
        }
        let room = (target - self.fixed).max(self.fixed);
        // Division by zero gives infinity, which `min` bounds.
        let fitting = (room / self.each).min(CALL_ENTRIES_MAX as f64) as usize;
        self.entries_max = fitting.min(self.entries_max * GROWTH_MAX).max(1);
    }
}

impl Sums {
    fn add(&mut self, entries: f64, seconds: f64) {
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.entries, entries),
            (&mut self.seconds, seconds),
            (&mut self.entries_squared, entries * entries),
            (&mut self.entries_seconds, entries * seconds),
        ] {
            *sum = *sum * PAST_WEIGHT + value;
        }
    }

    /// Fits a line: seconds per call, and per entry. `None` if the sizes are too much alike.
    fn line(&self) -> Option<(f64, f64)> {
        let (entries, seconds) = (self.entries / self.weight, self.seconds / self.weight);
        let variance = self.entries_squared / self.weight - entries * entries;
        if variance <= (entries * SPREAD_MIN).powi(2) {
            return None;
        }
        let each = ((self.entries_seconds / self.weight - entries * seconds) / variance).max(0.0);
        Some(((seconds - each * entries).max(0.0), each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a machine under full load. Returns sizes and seconds of its calls.
    fn run(calls: usize, fixed: f64, each: f64) -> Vec<(usize, f64)> {
        let mut size = CallSize::new();
        let call = |_| {
            let entries = size.entries_max();
            let seconds = fixed + each * entries as f64;
            size.called(entries, Duration::from_secs_f64(seconds));
            (entries, seconds)
        };
        (0..calls).map(call).collect()
    }

    #[test]
    fn calls_of_a_slow_machine_take_about_the_target() {
        for each in [0.000_1, 0.001, 0.01] {
            let calls = run(100, 0.0, each);
            let longest = calls.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
            assert!(longest <= 0.2, "{each}: {longest}: a step too far, or a probe");
            let mean = calls.iter().skip(10).map(|(_, seconds)| *seconds).sum::<f64>() / 90.0;
            assert!((0.04..0.07).contains(&mean), "{each}: {mean}");
        }
    }

    #[test]
    fn entries_slower_than_the_target_get_calls_of_one_except_probes() {
        let calls = run(100, 0.0, 0.2);
        assert!(calls.iter().skip(1).all(|(entries, _)| *entries <= 2), "{calls:?}");
    }

    #[test]
    fn a_fast_machine_soon_gets_the_largest_calls() {
        let calls = run(10, 0.000_01, 0.000_001);
        assert!(calls.iter().skip(6).all(|(entries, _)| *entries == CALL_ENTRIES_MAX), "{calls:?}");
    }

    /// For example one fsync per call: smaller calls would only slow it down.
    #[test]
    fn a_machine_with_a_high_cost_per_call_gets_large_calls() {
        for fixed in [0.03, 0.06, 0.5] {
            let calls = run(40, fixed, 0.000_001);
            assert!(
                calls.iter().skip(30).all(|(entries, _)| *entries == CALL_ENTRIES_MAX),
                "{fixed}: {calls:?}"
            );
        }
    }

    #[test]
    fn calls_shrink_at_once_when_the_machine_slows_down_and_grow_again() {
        let mut size = CallSize::new();
        let mut run = |calls, each: f64| {
            for _ in 0..calls {
                let entries = size.entries_max();
                size.called(entries, Duration::from_secs_f64(each * entries as f64));
            }
            size.entries_max()
        };
        assert_eq!(run(20, 0.000_001), CALL_ENTRIES_MAX);
        let slow = run(6, 0.001);
        assert!(slow <= 200, "{slow}");
        assert_eq!(run(30, 0.000_001), CALL_ENTRIES_MAX);
    }

    #[test]
    fn single_entries_do_not_make_later_calls_small() {
        let mut size = CallSize::new();
        (0..50).for_each(|_| size.called(1, Duration::from_micros(30)));
        assert!(size.entries_max() > 1_000, "{size:?}");
    }
}
