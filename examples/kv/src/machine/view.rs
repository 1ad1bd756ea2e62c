//! What readers see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fjall::{Database, Keyspace, Readable as _};

use super::StoreError;
use super::layout::{META_KEY, Meta, alive, data_key, key_of_data, split};

/// A handle on everything applied so far; clones are cheap.
///
/// Whether a key has expired is decided here by the local clock, which a read may use since it changes nothing, but
/// never by less than the machine's clock: what a write once treated as expired is never seen again.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) db: Database,
    pub(super) store: Keyspace,
    pub(super) shared: Arc<Shared>,
}

/// What single-key reads need of [`Meta`], published after each batch.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) generation: AtomicU32,
    pub(super) clock_ms: AtomicU64,
}

/// A value and when it expires (0: never).
pub(crate) struct Stored {
    pub(crate) record: fjall::UserValue,
    pub(crate) expiry_ms: u64,
}

impl Stored {
    pub(crate) fn value(&self) -> &[u8] {
        split(&self.record).map(|(_, value)| value).unwrap_or_default()
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.value())
    }
}

/// The state at one applied index, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) applied: u64,
    pub(crate) keys: u64,
    pub(crate) digest: u64,
}

pub(crate) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl View {
    pub(crate) fn now_ms(&self) -> u64 {
        wall_clock_ms().max(self.shared.clock_ms.load(Ordering::Acquire))
    }

    pub(crate) fn one(&self, key: &[u8], now_ms: u64) -> Result<Option<Stored>, StoreError> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        live(self.store.get(data_key(generation, key))?, now_ms)
    }

    /// Each key's value, all at the same moment.
    pub(crate) fn many<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        now_ms: u64,
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        let snapshot = self.db.snapshot();
        let generation = meta(&snapshot, &self.store)?.generation;
        keys.map(|key| live(snapshot.get(&self.store, data_key(generation, key))?, now_ms)).collect()
    }

    /// The maintained count. Expired keys count until they are removed, as in Redis.
    pub(crate) fn keys(&self) -> Result<u64, StoreError> {
        Ok(meta(&self.db.snapshot(), &self.store)?.keys)
    }

    /// Over key, value and expiry of all that has not expired by the machine's clock, in order of keys: equal on every
    /// node that has applied the same index. Reads the whole state.
    pub(crate) fn digest(&self) -> Result<Digest, StoreError> {
        let snapshot = self.db.snapshot();
        let meta = meta(&snapshot, &self.store)?;
        let (mut hash, mut keys) = (Fnv::new(), 0);
        for item in snapshot.prefix(&self.store, data_key(meta.generation, b"")) {
            let (key, record) = item.into_inner()?;
            let (expiry_ms, value) = split(&record)?;
            if alive(expiry_ms, meta.clock_ms) {
                keys += 1;
                hash.sized(key_of_data(&key));
                hash.sized(value);
                hash.bytes(&expiry_ms.to_be_bytes());
            }
        }
        Ok(Digest { applied: meta.index, keys, digest: hash.0 })
    }
}

fn live(record: Option<fjall::UserValue>, now_ms: u64) -> Result<Option<Stored>, StoreError> {
    let Some(record) = record else { return Ok(None) };
    let (expiry_ms, _) = split(&record)?;
    Ok(alive(expiry_ms, now_ms).then_some(Stored { record, expiry_ms }))
}

pub(super) fn meta(snapshot: &fjall::Snapshot, store: &Keyspace) -> Result<Meta, StoreError> {
    snapshot.get(store, META_KEY)?.map_or(Ok(Meta::default()), |bytes| Meta::decode(&bytes))
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
