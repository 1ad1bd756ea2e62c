//! Chooses the next key to call. A key gets a bounded number of calls, which bounds the search in its history.

use super::history::{Call, Key, Kind};

/// Calls of one key before a fresh key replaces it.
const CALLS_PER_KEY: u32 = 300;
/// Each uncertain write doubles the orders that the search considers.
const UNCERTAIN_PER_KEY: u32 = 6;
const ACTIVE_KEYS: usize = 12;

struct Active {
    key: Key,
    calls: u32,
    uncertain: u32,
    /// The next value or element; each is unique.
    next: u32,
}

pub(super) struct Keys {
    active: Vec<Active>,
    made: u32,
}

impl Keys {
    pub(super) fn new() -> Self {
        let mut keys = Self { active: Vec::new(), made: 0 };
        for _ in 0..ACTIVE_KEYS {
            let fresh = keys.fresh();
            keys.active.push(fresh);
        }
        keys
    }

    /// A key of each kind in turn.
    fn fresh(&mut self) -> Active {
        let index = self.made;
        self.made += 1;
        let kind = match index % 3 {
            0 => Kind::Register,
            1 => Kind::Log,
            _ => Kind::Counter,
        };
        Active { key: Key { index, kind }, calls: 0, uncertain: 0, next: 1 }
    }

    /// The next call; half of the calls are reads.
    pub(super) fn next(&mut self, random: &mut fastrand::Rng) -> Option<(Key, Call)> {
        let slot = random.usize(..self.active.len().max(1));
        let full = |active: &Active| active.calls >= CALLS_PER_KEY || active.uncertain >= UNCERTAIN_PER_KEY;
        if self.active.get(slot).is_some_and(full) {
            let fresh = self.fresh();
            if let Some(place) = self.active.get_mut(slot) {
                *place = fresh;
            }
        }
        let active = self.active.get_mut(slot)?;
        active.calls += 1;
        if random.bool() {
            return Some((active.key, Call::Read));
        }
        let value = active.next;
        active.next += 1;
        let call = match active.key.kind {
            Kind::Register => Call::Set(value),
            Kind::Log => Call::Append(value),
            Kind::Counter => Call::Increment,
        };
        Some((active.key, call))
    }

    pub(super) fn uncertain(&mut self, key: Key) {
        if let Some(active) = self.active.iter_mut().find(|active| active.key == key) {
            active.uncertain += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_key_gets_a_bounded_number_of_calls() {
        let (mut keys, mut random) = (Keys::new(), fastrand::Rng::with_seed(1));
        let mut calls: HashMap<Key, u32> = HashMap::new();
        for _ in 0..30_000 {
            let (key, _) = keys.next(&mut random).unwrap();
            *calls.entry(key).or_default() += 1;
        }
        assert_eq!(calls.values().max(), Some(&CALLS_PER_KEY));
        assert!(calls.len() > 3 * ACTIVE_KEYS);
    }

    #[test]
    fn a_key_with_many_uncertain_writes_is_called_no_more() {
        let (mut keys, mut random) = (Keys::new(), fastrand::Rng::with_seed(1));
        let (retired, _) = keys.next(&mut random).unwrap();
        for _ in 0..UNCERTAIN_PER_KEY {
            keys.uncertain(retired);
        }
        assert!((0..1_000).all(|_| keys.next(&mut random).unwrap().0 != retired));
    }
}
