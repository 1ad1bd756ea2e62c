//! The whole state as a stream of bytes, and back.
//!
//! Format, all numbers big endian: `TKV1`, clock (8), then for each key in order: 1, length of key (4), key, expiry (8),
//! length of value (4), value; then 0, the count of keys (8), and FNV-1a of everything before it (8).

use std::io::{self, Read, Write};

use fjall::{Database, Keyspace, PersistMode};
use towline::{LogId, SnapshotSource};

use super::command::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use super::cut::Cut;
use super::layout::{META_KEY, Meta, checksum, data_key, due_key, record};
use super::overlay::Overlay;
use super::view::Fnv;
use super::writeback::commit;
use super::{KvMachine, StoreError};

const MAGIC: &[u8; 4] = b"TKV1";

/// Keys that one batch of a restore writes.
const RESTORE_BATCH_KEYS: usize = 1_024;
/// Bytes that one batch of a restore writes, unless a single value is larger.
const RESTORE_BATCH_BYTES: usize = 4 << 20;

pub(super) struct Source {
    pub(super) cut: Cut,
}

impl SnapshotSource for Source {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Hashing { inner: io::BufWriter::new(out), hash: Fnv::new() };
        out.put(MAGIC)?;
        out.put(&self.cut.meta.clock_ms.to_be_bytes())?;
        let (mut keys, mut found): (u64, u128) = (0, 0);
        let promised = (self.cut.meta.keys, self.cut.meta.checksum);
        self.cut
            .for_each(|key, expiry_ms, value| {
                out.put(&[1])?;
                out.put_sized(key)?;
                out.put(&expiry_ms.to_be_bytes())?;
                out.put_sized(value)?;
                keys += 1;
                found = found.wrapping_add(checksum(key, expiry_ms, value));
                Ok::<_, StoreError>(())
            })
            .map_err(io::Error::other)?;
        // What was damaged here must not reach others.
        if (keys, found) != promised {
            return Err(io::Error::other(StoreError::Corrupt("state")));
        }
        out.put(&[0])?;
        out.put(&keys.to_be_bytes())?;
        let hash = out.hash.0;
        out.put(&hash.to_be_bytes())?;
        out.inner.flush()
    }
}

/// What has been written of a snapshot.
#[derive(Default)]
struct Restored {
    keys: u64,
    checksum: u128,
}

struct Hashing<W> {
    inner: W,
    hash: Fnv,
}

impl<W: Write> Hashing<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.bytes(bytes);
        self.inner.write_all(bytes)
    }

    fn put_sized(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.put(&length.to_be_bytes())?;
        self.put(bytes)
    }
}

impl<R: Read> Hashing<R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.hash.bytes(&bytes);
        Ok(bytes)
    }

    fn take_sized(&mut self, bytes_max: usize) -> Result<Vec<u8>, StoreError> {
        let length = u32::from_be_bytes(self.take()?) as usize;
        if length > bytes_max {
            return Err(StoreError::Corrupt("snapshot"));
        }
        let mut bytes = vec![0; length];
        self.inner.read_exact(&mut bytes)?;
        self.hash.bytes(&bytes);
        Ok(bytes)
    }
}

impl KvMachine {
    /// Writes `body` into the next generation, which nobody reads yet, and makes that the live one in one last batch
    /// together with the index. A crash before it leaves the old state, and garbage that is removed when the store is
    /// opened.
    pub(super) fn restore_from(&mut self, applied: LogId, body: &mut dyn Read) -> Result<(), StoreError> {
        // Whatever is under way there must not be written over the new state.
        self.settle()?;
        let old = self.meta();
        let generation = old.generation.checked_add(1).ok_or(StoreError::Corrupt("generation"))?;
        remove_from(&self.db, &self.store, generation)?;
        let mut body = Hashing { inner: io::BufReader::new(body), hash: Fnv::new() };
        if &body.take::<4>()? != MAGIC {
            return Err(StoreError::Corrupt("start of the snapshot"));
        }
        let clock_ms = u64::from_be_bytes(body.take()?);
        let mut restored = Restored::default();
        while self.restore_batch(&mut body, generation, &mut restored)? {}
        let promised = u64::from_be_bytes(body.take()?);
        let hash = body.hash.0;
        if promised != restored.keys || u64::from_be_bytes(body.take()?) != hash {
            return Err(StoreError::Corrupt("end of the snapshot"));
        }
        let meta = Meta {
            index: applied.index,
            term: applied.term,
            clock_ms: clock_ms.max(old.clock_ms),
            generation,
            keys: restored.keys,
            checksum: restored.checksum,
        };
        let mut write = self.db.batch().durability(Some(PersistMode::SyncAll));
        write.insert(&self.store, META_KEY, &meta.encode()?[..]);
        commit(&self.db, &self.store, write)?;
        self.clock.observe(meta.clock_ms, meta.term);
        self.clock.applied(meta.term);
        *self.overlay() = Overlay::new(self.store.clone(), meta);
        self.durable = applied;
        self.replay_bytes = 0;
        self.write_back.sweep_dead();
        Ok(())
    }

    /// Whether there is more.
    fn restore_batch<R: Read>(
        &mut self,
        body: &mut Hashing<R>,
        generation: u32,
        restored: &mut Restored,
    ) -> Result<bool, StoreError> {
        let mut write = self.db.batch();
        let (mut count, mut bytes) = (0, 0);
        let mut more = true;
        while count < RESTORE_BATCH_KEYS && bytes < RESTORE_BATCH_BYTES {
            match body.take()? {
                [1] => {}
                [0] => {
                    more = false;
                    break;
                }
                _ => return Err(StoreError::Corrupt("snapshot")),
            }
            let key = body.take_sized(KEY_BYTES_MAX)?;
            let expiry_ms = u64::from_be_bytes(body.take()?);
            let value = body.take_sized(VALUE_BYTES_MAX)?;
            if expiry_ms != 0 {
                write.insert(&self.store, due_key(generation, expiry_ms, &key), &b""[..]);
            }
            write.insert(&self.store, data_key(generation, &key), record(expiry_ms, &value));
            restored.keys += 1;
            restored.checksum = restored.checksum.wrapping_add(checksum(&key, expiry_ms, &value));
            count += 1;
            bytes += key.len() + value.len();
        }
        commit(&self.db, &self.store, write)?;
        Ok(more)
    }
}

/// Removes what a restore that did not come to its end left: keys of this generation and all above. The live one is below
/// them, but not always right below: `FLUSHDB` raises it in memory first, and a crash takes that back.
pub(super) fn remove_from(db: &Database, store: &Keyspace, generation: u32) -> Result<(), StoreError> {
    for (first, end) in
        [(data_key(generation, b""), b"e".to_vec()), (due_key(generation, 0, b""), b"y".to_vec())]
    {
        loop {
            let mut write = db.batch();
            for item in store.range(first.clone()..end.clone()).take(RESTORE_BATCH_KEYS) {
                write.remove(store, item.key()?);
            }
            if write.is_empty() {
                break;
            }
            commit(db, store, write)?;
        }
    }
    Ok(())
}
