//! Writes layers to the store, on a thread for each.
//!
//! A layer becomes one sorted table. fjall ingests it in one atomic step with the applied index: without a journal, without
//! a copy in a memtable, and synced at the end.

use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode};
use towline::LogId;

use super::error::StoreError;
use super::layout::{META_KEY, Meta, data_key, due_key, record};
use super::overlay::{Layer, Overlay, Value};
use super::patience::patiently;
use super::room::StoreRoom;

/// Tables that may wait for compaction. An ingestion does not wait for compaction; a write to fjall waits at 30 tables, for
/// ever if compaction has failed.
pub(crate) const WAITING_TABLES_MAX: usize = 24;
/// Memtables that may wait for a flush. A write to fjall waits at 4, for ever if the flush has failed.
const WAITING_MEMTABLES_MAX: usize = 2;
const WAIT_POLL: Duration = Duration::from_millis(10);
/// Keys of dead generations that each layer's thread removes, and of one batch.
pub(super) const DEAD_KEYS_MAX: usize = 64 << 10;
const DEAD_BATCH_KEYS: usize = 1_024;

/// The writing thread, and the state for the next one.
pub(super) struct WriteBack {
    db: Database,
    store: Keyspace,
    overlay: Arc<RwLock<Overlay>>,
    room: StoreRoom,
    running: Option<JoinHandle<Result<Written, StoreError>>>,
    /// Where the removal of dead generations goes on; `None` once it is done.
    dead_from: Option<Vec<u8>>,
}

struct Written {
    through: LogId,
    dead_from: Option<Vec<u8>>,
}

impl WriteBack {
    pub(super) fn new(db: Database, store: Keyspace, overlay: Arc<RwLock<Overlay>>, room: StoreRoom) -> Self {
        // The last run may have ended during a removal.
        Self { db, store, overlay, room, running: None, dead_from: Some(b"d".to_vec()) }
    }

    /// Starts the removal of a generation that has just died.
    pub(super) fn sweep_dead(&mut self) {
        self.dead_from = Some(b"d".to_vec());
    }

    /// The applied index of the store, if a layer was written since the last call.
    pub(super) fn finished(&mut self) -> Result<Option<LogId>, StoreError> {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) { self.wait() } else { Ok(None) }
    }

    /// Waits for the running thread, then returns as [`finished`](Self::finished).
    pub(super) fn wait(&mut self) -> Result<Option<LogId>, StoreError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        let written = running.join().map_err(|_| StoreError::WriterPanicked)??;
        // If another generation died meanwhile, the removal starts over.
        self.dead_from = self.dead_from.take().or(written.dead_from);
        Ok(Some(written.through))
    }

    /// Seals the newest layer and starts a thread that writes it. No thread may be running.
    pub(super) fn start(&mut self) -> Result<(), StoreError> {
        let (layer, meta) = {
            let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
            (overlay.seal(), overlay.meta)
        };
        let (db, store, overlay) = (self.db.clone(), self.store.clone(), Arc::clone(&self.overlay));
        let (room, dead_from) = (self.room.clone(), self.dead_from.take());
        let write = move || {
            room.wait(layer.bytes() as u64, "layer")?;
            patiently(|| write_layer(&db, &store, &layer, meta))?;
            let written = overlay.write().unwrap_or_else(PoisonError::into_inner).written();
            drop((written, layer));
            let dead_from =
                patiently(|| remove_dead(&db, &store, &room, meta.generation, dead_from.clone()))?;
            Ok(Written { through: meta.applied(), dead_from })
        };
        self.running = Some(
            std::thread::Builder::new()
                .name("kv-writeback".into())
                .spawn(write)
                .map_err(StoreError::NoWriter)?,
        );
        Ok(())
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        // The thread keeps the store locked. After an error the changes are still in the log.
        let _ = self.wait();
    }
}

/// The change of one key in the store.
enum Change<'a> {
    Remove,
    Empty,
    Data(&'a Value),
    Meta,
}

/// Waits until fjall's own threads have caught up. Call it before every write.
///
/// A write of fjall waits for these threads too, but does not notice that they have ended. They end at their first error,
/// such as a full disk or a damaged file.
///
/// # Errors
/// [`StoreError::Stopped`] once the threads have ended.
pub(super) fn wait_for_threads(db: &Database, store: &Keyspace) -> Result<(), StoreError> {
    loop {
        // Writes only the buffer. No other public call of fjall tells whether it has failed.
        match db.persist(PersistMode::Buffer) {
            Ok(()) => {}
            Err(fjall::Error::Poisoned) => return Err(StoreError::Stopped),
            Err(error) => return Err(error.into()),
        }
        if store.l0_table_count() <= WAITING_TABLES_MAX
            && store.sealed_memtable_count() <= WAITING_MEMTABLES_MAX
        {
            return Ok(());
        }
        std::thread::sleep(WAIT_POLL); // fjall offers nothing to wait on
    }
}

/// Commits a batch once the disk has room and fjall's threads have caught up.
pub(super) fn commit(
    db: &Database,
    store: &Keyspace,
    room: &StoreRoom,
    batch: OwnedWriteBatch,
) -> Result<(), StoreError> {
    room.wait(0, "batch")?;
    wait_for_threads(db, store)?;
    batch.commit().map_err(|error| match error {
        fjall::Error::Poisoned => StoreError::Stopped,
        error => error.into(),
    })
}

fn write_layer(db: &Database, store: &Keyspace, layer: &Layer, meta: Meta) -> Result<(), StoreError> {
    let mut changes = Vec::with_capacity(layer.slots.len() + 1);
    changes.push((META_KEY.to_vec(), Change::Meta));
    for (key, slot) in &layer.slots {
        let generation = layer.generation;
        let (below_ms, expiry_ms) = (slot.below.unwrap_or(0), slot.now.as_ref().map_or(0, |v| v.expiry_ms));
        if below_ms != 0 && below_ms != expiry_ms {
            changes.push((due_key(generation, below_ms, key), Change::Remove));
        }
        if expiry_ms != 0 && below_ms != expiry_ms {
            changes.push((due_key(generation, expiry_ms, key), Change::Empty));
        }
        match &slot.now {
            Some(value) => changes.push((data_key(generation, key), Change::Data(value))),
            None if slot.below.is_some() => changes.push((data_key(generation, key), Change::Remove)),
            None => {}
        }
    }
    changes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));

    wait_for_threads(db, store)?;
    let meta = meta.encode()?;
    let mut table = store.start_ingestion()?;
    for (key, change) in changes {
        match change {
            Change::Remove => table.write_tombstone(key)?,
            Change::Empty => table.write(key, &b""[..])?,
            Change::Data(value) => table.write(key, record(value.expiry_ms, &value.bytes))?,
            Change::Meta => table.write(key, &meta[..])?,
        }
    }
    Ok(table.finish()?)
}

/// Removes a bounded number of keys of dead generations. Returns where to go on, if more may be left.
fn remove_dead(
    db: &Database,
    store: &Keyspace,
    room: &StoreRoom,
    live: u32,
    mut from: Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, StoreError> {
    for _ in 0..DEAD_KEYS_MAX / DEAD_BATCH_KEYS {
        let Some(first) = from else { break };
        let is_data = first.starts_with(b"d");
        let end = if is_data { data_key(live, b"") } else { due_key(live, 0, b"") };
        let mut write = db.batch();
        let mut last = None;
        for item in store.range(first..end).take(DEAD_BATCH_KEYS) {
            let key = item.key()?;
            write.remove(store, key.clone());
            last = Some(key);
        }
        from = match last {
            Some(key) if write.len() == DEAD_BATCH_KEYS => Some([&key[..], &[0]].concat()),
            _ if is_data => Some(b"x".to_vec()),
            _ => None,
        };
        commit(db, store, room, write)?;
    }
    Ok(from)
}
