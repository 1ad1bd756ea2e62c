//! Places of the log that the log store could not read.

use std::collections::BTreeMap;

/// Failed reads in a row at one index, after which the log counts as compacted there: peers get a snapshot instead.
/// A peer that needs the entries asks about once a heartbeat interval.
const FAILURES_MAX: u32 = 5;

/// Ticks for which such a place is not read again. Then one more read shows whether it has become readable.
pub(crate) const PAUSE_TICKS: u64 = 6_000;

/// Places remembered. At the bound the one whose last failure is the oldest is forgotten.
const PLACES_MAX: usize = 64;

/// First indices of reads that failed. Time is a number of ticks.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    places: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    failures: u32,
    failed_tick: u64,
}

impl Place {
    fn is_given_up(&self, now: u64) -> bool {
        self.failures >= FAILURES_MAX && now < self.failed_tick.saturating_add(PAUSE_TICKS)
    }
}

impl Unreadable {
    /// A read from `low` on failed. `true`: it was given up with this failure, for the first time.
    pub(super) fn failed(&mut self, low: u64, now: u64) -> bool {
        if self.places.len() >= PLACES_MAX
            && !self.places.contains_key(&low)
            && let Some((&oldest, _)) = self.places.iter().min_by_key(|(_, place)| place.failed_tick)
        {
            self.places.remove(&oldest);
        }
        let place = self.places.entry(low).or_insert(Place { failures: 0, failed_tick: now });
        place.failures = place.failures.saturating_add(1);
        place.failed_tick = now;
        place.failures == FAILURES_MAX
    }

    /// A read from `low` on succeeded.
    pub(super) fn succeeded(&mut self, low: u64) {
        self.places.remove(&low);
    }

    /// Whether the log counts as compacted at `low`.
    pub(super) fn is_given_up(&self, low: u64, now: u64) -> bool {
        self.places.get(&low).is_some_and(|place| place.is_given_up(now))
    }

    /// The last index at which the log counts as compacted: a snapshot that ends before it does not lead past it.
    pub(super) fn last_given_up(&self, now: u64) -> Option<u64> {
        self.places.iter().rev().find(|(_, place)| place.is_given_up(now)).map(|(&low, _)| low)
    }

    /// The entries up to `through` are gone.
    pub(super) fn compacted(&mut self, through: u64) {
        self.places.retain(|&low, _| low > through);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_up_after_so_many_failures_in_a_row_and_tried_again_after_a_pause() {
        let mut places = Unreadable::default();
        for tick in 1..u64::from(FAILURES_MAX) {
            assert!(!places.failed(7, tick) && !places.is_given_up(7, tick));
        }
        places.succeeded(7);
        let reported: Vec<_> = (1..=10).filter(|&tick| places.failed(7, tick)).collect();
        assert_eq!(reported, [u64::from(FAILURES_MAX)], "it is reported once");
        assert_eq!((places.is_given_up(7, 10), places.is_given_up(8, 10)), (true, false));
        assert_eq!(places.last_given_up(10), Some(7));
        let later = 10 + PAUSE_TICKS;
        assert!(!places.is_given_up(7, later));
        assert_eq!(places.last_given_up(later), None);
        assert!(!places.failed(7, later) && places.is_given_up(7, later), "one failure is enough now");
        places.compacted(7);
        assert!(!places.is_given_up(7, later));
    }

    #[test]
    fn the_places_remembered_are_bounded() {
        let mut places = Unreadable::default();
        for low in 0..1_000 {
            places.failed(low, low);
        }
        assert_eq!(places.places.len(), PLACES_MAX);
        assert!(places.places.contains_key(&999) && !places.places.contains_key(&0));
    }
}
