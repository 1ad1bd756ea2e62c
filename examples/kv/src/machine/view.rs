//! What readers see.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use fjall::{Database, Keyspace, Readable as _};

use super::StoreError;
use super::clock::Clock;
use super::command::{Command, KEY_BYTES_MAX};
use super::cut::Cut;
use super::layout::{alive, data_key};
use super::overlay::{Overlay, Value};

/// Values from this size on are identified by their address, to count each once.
const SHARED_BYTES_MIN: usize = 1 << 10;

/// A handle on everything applied so far; clones are cheap.
///
/// Whether a key has expired is decided by the time in the log, never by the clock of this node, which may be ahead of
/// another's: a key that one node has shown as gone is gone for every later read on any node.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) db: Database,
    pub(super) store: Keyspace,
    pub(super) overlay: Arc<RwLock<Overlay>>,
    pub(super) clock: Clock,
}

/// While there are keys that expire, the time in the log is at most this far behind.
const BEHIND_MS_MAX: u64 = 1_000;

/// A value and when it expires (0: never).
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) expiry_ms: u64,
}

/// Many keys at one moment, to be read one by one in order. It keeps the values that were in memory then, and those of
/// the store on disk, until it is dropped.
pub(crate) struct Gathered {
    found: VecDeque<Found>,
    snapshot: Option<fjall::Snapshot>,
    store: Keyspace,
    now_ms: u64,
    recent_bytes: usize,
}

enum Found {
    Recent(Option<Value>),
    /// By this key of the store, if at all.
    Stored(Vec<u8>),
}

/// What [`Gathered::read`] finds.
pub(crate) struct Item {
    pub(crate) value: Option<Stored>,
    /// Whether the value was kept already, or read and copied just now.
    pub(crate) is_kept: bool,
}

impl Gathered {
    /// Keys that are left.
    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// Bytes of values that are kept in memory.
    pub(crate) fn recent_bytes(&self) -> usize {
        self.recent_bytes
    }

    /// The next key's value; `None` past the last key. The same again until [`advance`](Self::advance).
    pub(crate) fn read(&self) -> Result<Option<Item>, StoreError> {
        let (value, is_kept) = match self.found.front() {
            None => return Ok(None),
            Some(Found::Recent(value)) => (value.clone(), true),
            Some(Found::Stored(key)) => {
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

/// The state at one applied index, as one number.
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

    /// The command with which the leader of `term` moves the time in the log, if it must move: a key is due, or there are
    /// keys that expire and it is far behind.
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

    /// Bytes of a key's value, expired or not; zero if there is none that can be read.
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

    /// Finds `keys`, all at this moment. Values in the store are read later, one by one. Without `with_values` only
    /// whether a key is there is kept.
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
                    Found::Recent(value)
                }
                None => {
                    is_stored = true;
                    Found::Stored(data_key(overlay.meta.generation, key))
                }
            })
            .collect();
        // Under the same lock: what leaves memory meanwhile is in the snapshot already.
        let snapshot = is_stored.then(|| self.db.snapshot());
        drop(overlay);
        Gathered { found: found.into(), snapshot, store: self.store.clone(), now_ms, recent_bytes }
    }

    /// The maintained count. Expired keys count until they are removed, as in Redis.
    pub(crate) fn keys(&self) -> u64 {
        self.overlay().meta.keys
    }

    pub(super) fn cut(&self) -> Cut {
        let overlay = self.overlay();
        Cut::new(&overlay, self.db.snapshot(), self.store.clone())
    }

    /// Over key, value and expiry of all that has not expired by the machine's clock, in order of keys: equal on every
    /// node that has applied the same index. Reads the whole state.
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

/// FNV-1a, 64 bits: fixed for ever, unlike the hasher of the standard library.
pub(super) struct Fnv(pub(super) u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn sized(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_be_bytes());
        self.bytes(bytes);
    }
}
