//! Writes and restores the whole state as a stream of bytes.
//!
//! Format, all numbers big endian: `TKV1`, clock (8), then for each key in order: 1, length of key (4), key, expiry (8),
//! length of value (4), value; then 0, the count of keys (8), and FNV-1a of everything before it (8).

use std::io::{self, Read, Write};

use fjall::{Database, Keyspace};
use towline::SnapshotSource;

use super::command::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use super::cut::Cut;
use super::error::StoreError;
use super::fnv::Fnv;
use super::layout::{checksum, data_key, due_key, record};
use super::room::StoreRoom;
use super::writeback::commit;

const MAGIC: &[u8; 4] = b"TKV1";

/// Bounds of one batch of a restore. A single larger value makes a batch alone.
const RESTORE_BATCH_KEYS: usize = 1_024;
const RESTORE_BATCH_BYTES: usize = 4 << 20;

pub(super) struct Source(pub(super) Cut);

impl SnapshotSource for Source {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Hashing { inner: io::BufWriter::new(out), hash: Fnv::new() };
        out.put(MAGIC)?;
        out.put(&self.0.meta.clock_ms.to_be_bytes())?;
        let (mut keys, mut found): (u64, u128) = (0, 0);
        let promised = (self.0.meta.keys, self.0.meta.checksum);
        self.0
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
        // Damage of this node must not reach others.
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

/// The totals of a restored state.
pub(super) struct Restored {
    pub(super) clock_ms: u64,
    pub(super) keys: u64,
    pub(super) checksum: u128,
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

/// Writes the state in `body` into `generation`, which no reader sees yet.
pub(super) fn restore(
    db: &Database,
    store: &Keyspace,
    room: &StoreRoom,
    generation: u32,
    body: &mut dyn Read,
) -> Result<Restored, StoreError> {
    remove_from(db, store, room, generation)?;
    let mut body = Hashing { inner: io::BufReader::new(body), hash: Fnv::new() };
    if &body.take::<4>()? != MAGIC {
        return Err(StoreError::Corrupt("start of the snapshot"));
    }
    let mut restored = Restored { clock_ms: u64::from_be_bytes(body.take()?), keys: 0, checksum: 0 };
    while restore_batch(db, store, room, generation, &mut body, &mut restored)? {}
    let promised = u64::from_be_bytes(body.take()?);
    let hash = body.hash.0;
    if promised != restored.keys || u64::from_be_bytes(body.take()?) != hash {
        return Err(StoreError::Corrupt("end of the snapshot"));
    }
    Ok(restored)
}

/// Returns whether more keys follow.
fn restore_batch<R: Read>(
    db: &Database,
    store: &Keyspace,
    room: &StoreRoom,
    generation: u32,
    body: &mut Hashing<R>,
    restored: &mut Restored,
) -> Result<bool, StoreError> {
    let mut write = db.batch();
    let (mut count, mut bytes, mut more) = (0, 0, true);
    while more && count < RESTORE_BATCH_KEYS && bytes < RESTORE_BATCH_BYTES {
        match body.take()? {
            [1] => {}
            [0] => {
                more = false;
                continue;
            }
            _ => return Err(StoreError::Corrupt("snapshot")),
        }
        let key = body.take_sized(KEY_BYTES_MAX)?;
        let expiry_ms = u64::from_be_bytes(body.take()?);
        let value = body.take_sized(VALUE_BYTES_MAX)?;
        if expiry_ms != 0 {
            write.insert(store, due_key(generation, expiry_ms, &key), &b""[..]);
        }
        write.insert(store, data_key(generation, &key), record(expiry_ms, &value));
        restored.keys += 1;
        restored.checksum = restored.checksum.wrapping_add(checksum(&key, expiry_ms, &value));
        count += 1;
        bytes += key.len() + value.len();
    }
    commit(db, store, room, write)?;
    Ok(more)
}

/// Removes the keys of `generation` and all above, which an interrupted restore left. The live generation is below, but not
/// always right below: `FLUSHDB` raises it in memory first, and a crash undoes that.
pub(super) fn remove_from(
    db: &Database,
    store: &Keyspace,
    room: &StoreRoom,
    generation: u32,
) -> Result<(), StoreError> {
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
            commit(db, store, room, write)?;
        }
    }
    Ok(())
}
