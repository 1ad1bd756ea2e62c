//! What readers see.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use fjall::{Database, Keyspace, Readable as _};

use super::StoreError;
use super::clock::Clock;
use super::command::Command;
use super::cut::Cut;
use super::layout::{alive, data_key};
use super::overlay::{Overlay, Value};

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

    /// The time on this node, with which a leader stamps commands.
    pub(crate) fn local_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The command that moves the time in the log, if it must move: a key is due, or there are keys that expire and it is
    /// far behind.
    pub(crate) fn tick(&self) -> Option<Bytes> {
        let now_ms = self.clock.now_ms();
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

    /// Each key's value, all at the same moment.
    pub(crate) fn many<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        now_ms: u64,
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        let mut missing = Vec::new();
        let overlay = self.overlay();
        let mut found: Vec<_> = keys
            .enumerate()
            .map(|(at, key)| match overlay.recent(key) {
                Some(slot) => slot.now.clone(),
                None => {
                    missing.push((at, data_key(overlay.meta.generation, key)));
                    None
                }
            })
            .collect();
        // Under the same lock: what leaves memory meanwhile is in the snapshot already.
        let snapshot = (!missing.is_empty()).then(|| self.db.snapshot());
        drop(overlay);
        if let Some(snapshot) = snapshot {
            for (at, key) in missing {
                if let (Some(slot), Some(record)) = (found.get_mut(at), snapshot.get(&self.store, key)?) {
                    *slot = Some(Value::of_record(&record)?);
                }
            }
        }
        Ok(found.into_iter().map(|value| value.and_then(|value| live(value, now_ms))).collect())
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
