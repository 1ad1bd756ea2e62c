//! Bounds how many connections and streams one peer may have open: the newest wins.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The open connections of each peer, or the open streams of each peer and lane. At the bound the oldest loses its slot:
/// a peer that reconnects must not be refused because of connections whose end this side has not seen yet.
///
/// Each slot owns a `T`, such as the sending half of a channel. It is dropped when the slot is lost or released, which
/// notifies the task that must end.
#[derive(Debug)]
pub(super) struct Slots<K, T> {
    per_key_max: usize,
    table: Mutex<Table<K, T>>,
}

#[derive(Debug)]
struct Table<K, T> {
    taken: u64,
    slots: HashMap<K, VecDeque<(u64, T)>>,
}

/// One slot. Dropping it releases the slot.
#[derive(Debug)]
pub(super) struct Slot<K: Eq + Hash, T> {
    slots: Arc<Slots<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash + Clone, T> Slots<K, T> {
    /// At most `per_key_max` slots for each key, and at least one.
    pub(super) fn new(per_key_max: usize) -> Arc<Self> {
        let table = Table { taken: 0, slots: HashMap::new() };
        Arc::new(Self { per_key_max: per_key_max.max(1), table: Mutex::new(table) })
    }

    /// Takes a slot. Above the bound the oldest slots of the same key are lost.
    pub(super) fn take(self: &Arc<Self>, key: K, keeps: T) -> Slot<K, T> {
        let mut table = self.lock();
        table.taken += 1;
        let number = table.taken;
        let slots = table.slots.entry(key.clone()).or_default();
        slots.push_back((number, keeps));
        let lost: Vec<T> =
            slots.drain(..slots.len().saturating_sub(self.per_key_max)).map(|(_, keeps)| keeps).collect();
        drop(table);
        // Dropped after the lock: the drop of a `T` may call into this table.
        drop(lost);
        Slot { slots: Arc::clone(self), key, number }
    }

    #[cfg(test)]
    fn count(&self, key: &K) -> usize {
        self.lock().slots.get(key).map_or(0, VecDeque::len)
    }
}

impl<K, T> Slots<K, T> {
    fn lock(&self) -> MutexGuard<'_, Table<K, T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection that holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// No hello of it was accepted yet.
    Pending,
    /// A hello of it was accepted.
    Admitted,
}

pub(super) type ConnectionSlots<K, T> = Slots<(K, Standing), Arc<T>>;

/// The slot of one connection: first among the pending ones of its peer, then among the admitted ones. Pending connections
/// never displace an admitted one, however many of them show the same certificate.
#[derive(Debug)]
pub(super) struct ConnectionSlot<K: Eq + Hash, T>(Mutex<Held<K, T>>);

#[derive(Debug)]
struct Held<K: Eq + Hash, T> {
    /// Owned here until the peer is known.
    own: Option<Arc<T>>,
    keeps: Weak<T>,
    slot: Option<Slot<(K, Standing), Arc<T>>>,
}

impl<K: Eq + Hash + Clone, T> ConnectionSlot<K, T> {
    /// `keeps` is dropped when the slot is lost or released, but not when it moves.
    pub(super) fn new(keeps: T) -> Self {
        let own = Arc::new(keeps);
        Self(Mutex::new(Held { keeps: Arc::downgrade(&own), own: Some(own), slot: None }))
    }

    /// Takes a slot, or moves to another one. A connection that lost its slot gets no new one.
    pub(super) fn take(&self, slots: &Arc<ConnectionSlots<K, T>>, key: K, standing: Standing) {
        let mut held = self.lock();
        let Some(keeps) = held.keeps.upgrade() else { return };
        // The new slot first: dropping the old one first would drop `keeps`.
        let before = held.slot.replace(slots.take((key, standing), keeps));
        held.own = None;
        drop(held);
        drop(before);
    }

    pub(super) fn release(&self) {
        let mut held = self.lock();
        let released = (held.own.take(), held.slot.take());
        drop(held);
        drop(released);
    }

    fn lock(&self) -> MutexGuard<'_, Held<K, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Drop for Slot<K, T> {
    fn drop(&mut self) {
        let mut table = self.slots.lock();
        let Some(slots) = table.slots.get_mut(&self.key) else { return };
        let slot = slots.iter().position(|(number, _)| *number == self.number);
        let released = slot.and_then(|slot| slots.remove(slot));
        if slots.is_empty() {
            table.slots.remove(&self.key);
        }
        drop(table);
        drop(released);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_slot_is_lost_and_other_keys_keep_theirs() {
        let slots = Slots::new(2);
        let keeps: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
        let open = |n: usize| Arc::strong_count(&keeps[n]) == 2;
        let first = slots.take("a", Arc::clone(&keeps[0]));
        let second = slots.take("a", Arc::clone(&keeps[1]));
        let _other = slots.take("b", Arc::clone(&keeps[2]));
        let third = slots.take("a", Arc::clone(&keeps[3]));
        assert_eq!([0, 1, 2, 3].map(open), [false, true, true, true]);
        // Dropping a lost slot frees no slot of another holder.
        drop(first);
        assert_eq!(slots.count(&"a"), 2);
        drop(second);
        assert_eq!([0, 1, 2, 3].map(open), [false, false, true, true]);
        drop(third);
        assert_eq!((slots.count(&"a"), slots.lock().slots.len()), (0, 1));
    }

    #[test]
    fn pending_connections_displace_pending_ones_and_no_admitted_one() {
        let slots = Slots::new(1);
        let keeps: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
        let open = |n: usize| Arc::strong_count(&keeps[n]) == 2;
        let slot = |n: usize| ConnectionSlot::new(Arc::clone(&keeps[n]));
        let (first, second, third) = (slot(0), slot(1), slot(2));
        first.take(&slots, 'a', Standing::Pending);
        first.take(&slots, 'a', Standing::Admitted);
        second.take(&slots, 'a', Standing::Pending);
        assert_eq!([0, 1, 2].map(open), [true; 3]);
        third.take(&slots, 'a', Standing::Pending);
        assert_eq!([0, 1, 2].map(open), [true, false, true]);
        // A connection that lost its slot gets no new one.
        second.take(&slots, 'a', Standing::Admitted);
        assert_eq!([0, 1, 2].map(open), [true, false, true]);
        third.take(&slots, 'a', Standing::Admitted);
        assert_eq!([0, 1, 2].map(open), [false, false, true]);
        third.release();
        first.release();
        assert_eq!((open(2), slots.lock().slots.len()), (false, 0));
    }
}
