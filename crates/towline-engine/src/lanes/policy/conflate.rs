//! A queue with one slot per key.

use std::collections::{BTreeMap, VecDeque};

/// A queue with one slot for each key. A newer value takes the slot of the older one and keeps its position, so that a key
/// that is renewed often still has its turn. The number of keys bounds the queue.
#[derive(Debug)]
pub(crate) struct ConflatingQueue<K, T> {
    slots: VecDeque<(K, T)>,
    /// The position of each key's slot, counted from the first slot ever.
    places: BTreeMap<K, u64>,
    /// The number of slots taken from the front. Position minus this is the index.
    taken: u64,
}

impl<K, T> Default for ConflatingQueue<K, T> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), places: BTreeMap::new(), taken: 0 }
    }
}

impl<K: Ord + Copy, T> ConflatingQueue<K, T> {
    /// Adds a value. Returns the value that it supersedes. `merge(older, newer)` may keep a part of that.
    pub(crate) fn push(&mut self, key: K, mut value: T, merge: impl FnOnce(&T, &mut T)) -> Option<T> {
        let slot = self.places.get(&key).and_then(|place| {
            let index = usize::try_from(place - self.taken).ok()?;
            self.slots.get_mut(index)
        });
        match slot {
            Some((_, older)) => {
                merge(older, &mut value);
                Some(std::mem::replace(older, value))
            }
            None => {
                self.places.insert(key, self.taken + self.slots.len() as u64);
                self.slots.push_back((key, value));
                None
            }
        }
    }

    /// The next value.
    pub(crate) fn front(&self) -> Option<&T> {
        self.slots.front().map(|(_, value)| value)
    }

    /// Takes the next value.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (key, value) = self.slots.pop_front()?;
        self.places.remove(&key);
        self.taken += 1;
        Some(value)
    }

    /// Moves everything to the end of `out`, in order.
    pub(crate) fn drain(&mut self, out: &mut Vec<T>) {
        out.extend(self.slots.drain(..).map(|(_, value)| value));
        self.places.clear();
        self.taken = 0;
    }

    /// Keeps only the values that `keep` accepts. Returns the number of removed ones.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let before = self.slots.len();
        self.slots.retain(|(_, value)| keep(value));
        self.taken = 0;
        self.places = self.slots.iter().zip(0..).map(|((key, _), place)| (*key, place)).collect();
        before - self.slots.len()
    }

    /// All values, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map(|(_, value)| value)
    }

    /// The number of keys with a value.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
