//! A queue with one slot per key.

use std::collections::{BTreeMap, VecDeque};

/// One slot per key: a newer value takes the older one's slot, and with it its place in the order, so that a key that
/// is renewed again and again still has its turn. Bounded by the number of keys.
#[derive(Debug)]
pub(crate) struct ConflatingQueue<K, T> {
    slots: VecDeque<(K, T)>,
    /// The place of each key's slot, counted from the first slot there ever was.
    places: BTreeMap<K, u64>,
    /// Slots that were taken from the front: what turns a place into an index.
    taken: u64,
}

impl<K, T> Default for ConflatingQueue<K, T> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), places: BTreeMap::new(), taken: 0 }
    }
}

impl<K: Ord + Copy, T> ConflatingQueue<K, T> {
    /// Puts a value in; gives back the one it supersedes.
    #[cfg(test)]
    pub(crate) fn push(&mut self, key: K, value: T) -> Option<T> {
        self.push_with(key, value, |_, _| {})
    }

    /// Like [`push`](Self::push); `merge(older, newer)` may save something of a value that is superseded.
    pub(crate) fn push_with(&mut self, key: K, mut value: T, merge: impl FnOnce(&T, &mut T)) -> Option<T> {
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

    /// The value that is next.
    pub(crate) fn front(&self) -> Option<&T> {
        self.slots.front().map(|(_, value)| value)
    }

    /// Takes the value that is next.
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

    /// Keeps only what `keep` accepts; gives back how many went.
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

    /// How many keys have a value.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
