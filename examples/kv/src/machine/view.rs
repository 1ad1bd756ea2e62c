//! The state as readers see it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use fjall::{Database, Keyspace, Readable as _};

use super::clock::Clock;
use super::command::{Command, KEY_BYTES_MAX};
use super::cut::Cut;
use super::error::StoreError;
use super::fnv::Fnv;
use super::layout::{alive, data_key};
use super::overlay::{Overlay, Value};

/// Values from this size on are counted once, by their address.
const SHARED_BYTES_MIN: usize = 1 << 10;
/// The most that the time in the log may be behind while keys expire.
const BEHIND_MS_MAX: u64 = 1_000;

/// A handle on everything applied so far. Clones are cheap.
///
/// The time in the log decides whether a key has expired, never the clock of this node. So a key that one node shows as
/// gone is gone for every later read on any node.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) db: Database,
    pub(super) store: Keyspace,
    pub(super) overlay: Arc<RwLock<Overlay>>,
    pub(super) clock: Clock,
}

/// A value and when it expires (0: never).
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) expiry_ms: u64,
}

/// Many keys at one moment, for reads one by one. Until its drop it keeps the values that were in memory, and a snapshot of
/// the store.
pub(crate) struct Gathered {
    found: VecDeque<Lookup>,
    snapshot: Option<fjall::Snapshot>,
    store: Keyspace,
    now_ms: u64,
    recent_bytes: usize,
}

enum Lookup {
    Recent(Option<Value>),
    /// In the store under this key, or absent.
    Stored(Vec<u8>),
}

/// What [`Gathered::read`] finds.
pub(crate) struct Item {
    pub(crate) value: Option<Stored>,
    /// True: the value was in memory. False: it was copied from the store.
    pub(crate) is_kept: bool,
}

impl Gathered {
    /// The number of keys left to read.
    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// Bytes of values kept in memory.
    pub(crate) fn recent_bytes(&self) -> usize {
        self.recent_bytes
    }

    /// Reads the next key; `None` after the last one. Repeats the key until [`advance`](Self::advance).
    pub(crate) fn read(&self) -> Result<Option<Item>, StoreError> {
        let (value, is_kept) = match self.found.front() {
            None => return Ok(None),
            Some(Lookup::Recent(value)) => (value.clone(), true),
            Some(Lookup::Stored(key)) => {
                let record = match &self.snapshot {
                    Some(snapshot) => snapshot.get(&self.store, key)?,
                    None => None,
                };
                (record.map(|record| Value::of_record(&record)).transpose()?, false)
            }
        };
        Ok(Some(Item { value: value.and_then(|value| live(value, self.now_ms)), is_kept }))
    }

    pub(crate) fn advance(&mut self) {
        self.found.pop_front();
    }
}

/// The hash of the state at one applied index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) applied: u64,
    pub(crate) keys: u64,
    pub(crate) digest: u64,
}

impl View {
    fn overlay(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time in the log.
    pub(crate) fn now_ms(&self) -> u64 {
        self.overlay().meta.clock_ms
    }

    /// The time on this node.
    pub(crate) fn local_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The time with which the leader of `term` stamps commands, once it has applied all entries of earlier leaders.
    pub(crate) fn stamp_ms(&self, term: u64) -> Option<u64> {
        self.clock.stamp_ms(term)
    }

    /// The command that moves the time in the log, if the leader of `term` must: a key is due, or keys expire and the time
    /// is far behind.
    pub(crate) fn tick(&self, term: u64) -> Option<Bytes> {
        let now_ms = self.clock.stamp_ms(term)?;
        let (next_due_ms, clock_ms) = {
            let overlay = self.overlay();
            (overlay.next_due_ms()?, overlay.meta.clock_ms)
        };
        let is_needed = next_due_ms <= now_ms || now_ms.saturating_sub(clock_ms) >= BEHIND_MS_MAX;
        if is_needed { Command::tick(now_ms) } else { None }
    }

    pub(crate) fn one(&self, key: &[u8], now_ms: u64) -> Result<Option<Stored>, StoreError> {
        let overlay = self.overlay();
        let value = match overlay.recent(key) {
            Some(slot) => slot.now.clone(),
            None => {
                let stored = data_key(overlay.meta.generation, key);
                drop(overlay);
                self.store.get(stored)?.map(|record| Value::of_record(&record)).transpose()?
            }
        };
        Ok(value.and_then(|value| live(value, now_ms)))
    }

    /// Bytes of a key's value, expired or not; zero if the key is absent or unreadable.
    pub(crate) fn value_bytes(&self, key: &[u8]) -> usize {
        let overlay = self.overlay();
        match overlay.recent(key) {
            Some(slot) => slot.now.as_ref().map_or(0, |value| value.bytes.len()),
            None if key.len() > KEY_BYTES_MAX => 0,
            None => {
                let stored = data_key(overlay.meta.generation, key);
                drop(overlay);
                self.store.size_of(stored).ok().flatten().map_or(0, |bytes| bytes as usize)
            }
        }
    }

    /// Looks up `keys` at this moment. Values in the store are read later, one by one. Without `with_values` it keeps only
    /// whether a key exists.
    pub(crate) fn gather<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        now_ms: u64,
        with_values: bool,
    ) -> Gathered {
        let overlay = self.overlay();
        let (mut recent_bytes, mut large, mut is_stored) = (0_usize, HashSet::new(), false);
        let found: Vec<_> = keys
            .map(|key| match overlay.recent(key) {
                Some(slot) => {
                    let value = slot.now.as_ref().map(|Value { bytes, expiry_ms }| {
                        let bytes = if with_values { bytes.clone() } else { Bytes::new() };
                        // A key that is named twice pins its value once.
                        if bytes.len() < SHARED_BYTES_MIN || large.insert(bytes.as_ptr()) {
                            recent_bytes += bytes.len();
                        }
                        Value { bytes, expiry_ms: *expiry_ms }
                    });
                    Lookup::Recent(value)
                }
                None => {
                    is_stored = true;
                    Lookup::Stored(data_key(overlay.meta.generation, key))
                }
            })
            .collect();
        // Under the lock: a layer that leaves memory later is in the snapshot.
        let snapshot = is_stored.then(|| self.db.snapshot());
        drop(overlay);
        Gathered { found: found.into(), snapshot, store: self.store.clone(), now_ms, recent_bytes }
    }

    /// The number of keys. Expired ones count until they are removed, as in Redis.
    pub(crate) fn keys(&self) -> u64 {
        self.overlay().meta.keys
    }

    pub(super) fn cut(&self) -> Cut {
        let overlay = self.overlay();
        Cut::new(&overlay, self.db.snapshot(), self.store.clone())
    }

    /// Hashes key, value and expiry of all live keys in order. Equal on every node at the same applied index. Reads the whole
    /// state.
    pub(crate) fn digest(&self) -> Result<Digest, StoreError> {
        let cut = self.cut();
        let meta = cut.meta;
        let (mut hash, mut keys) = (Fnv::new(), 0);
        cut.for_each(|key, expiry_ms, value| {
            if alive(expiry_ms, meta.clock_ms) {
                keys += 1;
                hash.sized(key);
                hash.sized(value);
                hash.bytes(&expiry_ms.to_be_bytes());
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(Digest { applied: meta.index, keys, digest: hash.0 })
    }
}

fn live(value: Value, now_ms: u64) -> Option<Stored> {
    let Value { bytes, expiry_ms } = value;
    alive(expiry_ms, now_ms).then_some(Stored { value: bytes, expiry_ms })
}
