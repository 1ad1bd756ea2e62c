//! Bounds what one peer may have open at once: the newest wins.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What is open, by whom: connections of a peer, streams of a peer and lane. A peer that reconnects must not be locked
/// out by what it had before and whose end nobody here has seen yet, so at the bound the oldest goes.
///
/// `T` is what keeps a place; it is dropped when the place is lost or given up, and whoever must end then hears it from
/// that drop, such as the sending half of a channel.
#[derive(Debug)]
pub(super) struct Seats<K, T> {
    per_key_max: usize,
    table: Mutex<Table<K, T>>,
}

#[derive(Debug)]
struct Table<K, T> {
    taken: u64,
    seats: HashMap<K, VecDeque<(u64, T)>>,
}

/// A place. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Seat<K: Eq + Hash, T> {
    seats: Arc<Seats<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash + Clone, T> Seats<K, T> {
    /// At most `per_key_max` places for each key, and at least one.
    pub(super) fn new(per_key_max: usize) -> Arc<Self> {
        let table = Table { taken: 0, seats: HashMap::new() };
        Arc::new(Self { per_key_max: per_key_max.max(1), table: Mutex::new(table) })
    }

    /// Takes a place; the oldest of the same key lose theirs if there are too many.
    pub(super) fn take(self: &Arc<Self>, key: K, keeps: T) -> Seat<K, T> {
        let mut table = self.lock();
        table.taken += 1;
        let number = table.taken;
        let seats = table.seats.entry(key.clone()).or_default();
        seats.push_back((number, keeps));
        let lost: Vec<T> =
            seats.drain(..seats.len().saturating_sub(self.per_key_max)).map(|(_, keeps)| keeps).collect();
        drop(table);
        // Outside of the lock: whatever it does when it is dropped, it may come back here.
        drop(lost);
        Seat { seats: Arc::clone(self), key, number }
    }

    #[cfg(test)]
    fn count(&self, key: &K) -> usize {
        self.lock().seats.get(key).map_or(0, VecDeque::len)
    }
}

impl<K, T> Seats<K, T> {
    fn lock(&self) -> MutexGuard<'_, Table<K, T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far somebody who holds a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// It has not been let in (yet).
    Calling,
    /// A hello of it was accepted.
    Admitted,
}

/// The places of connections.
pub(super) type Places<K, T> = Seats<(K, Standing), Arc<T>>;

/// The place of one connection among those of its peer: first among those that call, then among those that were let in. So
/// callers that are refused, however many and whoever holds the same certificate, take no place of one that was let in.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash, T>(Mutex<Held<K, T>>);

/// Whether and where a place is held.
#[derive(Debug)]
struct Held<K: Eq + Hash, T> {
    /// Until it is known whose it is.
    own: Option<Arc<T>>,
    keeps: Weak<T>,
    seat: Option<Seat<(K, Standing), Arc<T>>>,
}

impl<K: Eq + Hash + Clone, T> Place<K, T> {
    /// `keeps` is dropped when the place is lost or given up, and not when it moves.
    pub(super) fn new(keeps: T) -> Self {
        let own = Arc::new(keeps);
        Self(Mutex::new(Held { keeps: Arc::downgrade(&own), own: Some(own), seat: None }))
    }

    /// Takes a place, or moves. A place that was lost stays lost.
    pub(super) fn take(&self, seats: &Arc<Places<K, T>>, key: K, standing: Standing) {
        let mut held = self.lock();
        let Some(keeps) = held.keeps.upgrade() else { return };
        // The new one first: nobody thinks in between that it was lost.
        let before = held.seat.replace(seats.take((key, standing), keeps));
        held.own = None;
        drop(held);
        drop(before);
    }

    /// Gives it up.
    pub(super) fn give_up(&self) {
        let mut held = self.lock();
        let given_up = (held.own.take(), held.seat.take());
        drop(held);
        drop(given_up);
    }

    fn lock(&self) -> MutexGuard<'_, Held<K, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        let Some(seats) = table.seats.get_mut(&self.key) else { return };
        let place = seats.iter().position(|(number, _)| *number == self.number);
        let given_up = place.and_then(|place| seats.remove(place));
        if seats.is_empty() {
            table.seats.remove(&self.key);
        }
        drop(table);
        drop(given_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_others_are_not_concerned() {
        let seats = Seats::new(2);
        let keeps: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
        let open = |n: usize| Arc::strong_count(&keeps[n]) == 2;
        let first = seats.take("a", Arc::clone(&keeps[0]));
        let second = seats.take("a", Arc::clone(&keeps[1]));
        let _other = seats.take("b", Arc::clone(&keeps[2]));
        let third = seats.take("a", Arc::clone(&keeps[3]));
        assert_eq!([0, 1, 2, 3].map(open), [false, true, true, true]);
        // A place that was lost is nobody else's to give up.
        drop(first);
        assert_eq!(seats.count(&"a"), 2);
        drop(second);
        assert_eq!([0, 1, 2, 3].map(open), [false, false, true, true]);
        drop(third);
        assert_eq!((seats.count(&"a"), seats.lock().seats.len()), (0, 1));
    }

    #[test]
    fn callers_displace_callers_and_nobody_who_was_let_in() {
        let seats = Seats::new(1);
        let keeps: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
        let open = |n: usize| Arc::strong_count(&keeps[n]) == 2;
        let place = |n: usize| Place::new(Arc::clone(&keeps[n]));
        let (first, second, third) = (place(0), place(1), place(2));
        first.take(&seats, 'a', Standing::Calling);
        first.take(&seats, 'a', Standing::Admitted);
        second.take(&seats, 'a', Standing::Calling);
        assert_eq!([0, 1, 2].map(open), [true; 3]);
        third.take(&seats, 'a', Standing::Calling);
        assert_eq!([0, 1, 2].map(open), [true, false, true]);
        // A place that was lost is not taken again.
        second.take(&seats, 'a', Standing::Admitted);
        assert_eq!([0, 1, 2].map(open), [true, false, true]);
        third.take(&seats, 'a', Standing::Admitted);
        assert_eq!([0, 1, 2].map(open), [false, false, true]);
        third.give_up();
        first.give_up();
        assert_eq!((open(2), seats.lock().seats.len()), (false, 0));
    }
}
