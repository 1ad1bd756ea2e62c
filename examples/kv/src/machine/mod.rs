//! The replicated state: keys, values and expiries in fjall.
//!
//! The Raft log is the write-ahead log, so a batch is written without an fsync: data and applied index are one atom in
//! one keyspace, and whatever a power loss takes is applied again from the log. What `durable` reports is what the last
//! fsync covered; opening makes one, since a killed process leaves its last batches in the page cache only.

mod command;
mod layout;
mod overlay;
mod snapshot;
mod view;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use serde::{Deserialize, Serialize};
use towline::{Applied, ApplyBatch, Fatal, Replies, SnapshotMeta, SnapshotSource, StateMachine, codec};

pub(crate) use command::{Answer, Blob, Command, Condition, Expiry, KEY_BYTES_MAX, Op};
pub(crate) use overlay::parse_integer;
pub(crate) use view::{Stored, View, wall_clock_ms};

use layout::{META_KEY, Meta, data_key, due_key, expiry_of_due, key_of_due};
use overlay::Overlay;
use view::Shared;

/// Expired keys, and keys of dead generations, that one batch removes at most.
const SWEEP_KEYS_MAX: usize = 512;

/// Memory of the store. Small by default: this is an example, and three of them share a laptop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// Bytes of cached blocks. Default 16 MiB.
    pub(crate) cache_bytes: u64,
    /// Bytes of a memtable before it becomes a file. Default 8 MiB.
    pub(crate) memtable_bytes: u64,
    /// Bytes of all journals before memtables are forced out. Default 64 MiB, which is also the least.
    pub(crate) journal_bytes_max: u64,
    /// Threads that flush and compact. Default 1.
    pub(crate) worker_threads: usize,
}

/// The least that fjall accepts for its journals.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 64 << 20;

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            memtable_bytes: 8 << 20,
            journal_bytes_max: JOURNAL_BYTES_MIN,
            worker_threads: 1,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the key-value store failed")]
    Fjall(#[from] fjall::Error),
    #[error("a record of the key-value store is not readable")]
    Codec(#[from] codec::CodecError),
    #[error("the {0} in the key-value store is corrupt")]
    Corrupt(&'static str),
    #[error("the snapshot could not be read")]
    Snapshot(#[from] io::Error),
}

/// The state machine.
pub(crate) struct KvMachine {
    db: Database,
    store: Keyspace,
    meta: Meta,
    durable: Applied,
    shared: Arc<Shared>,
    /// Bytes a command may have; larger ones were never proposed.
    command_bytes_max: usize,
    /// Where the sweep of dead generations goes on; `None` once nothing of them is left.
    sweep_from: Option<Vec<u8>>,
    /// Nothing in the store is due before: spares a batch the look for what is. Zero: not known.
    next_due_ms: u64,
}

impl KvMachine {
    /// Opens the store at `path`, or makes it.
    pub(crate) fn open(
        path: &Path,
        config: &StoreConfig,
        command_bytes_max: usize,
    ) -> Result<Self, StoreError> {
        let db = Database::builder(path)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes_max.max(JOURNAL_BYTES_MIN))
            .worker_threads(config.worker_threads.max(1))
            .open()?;
        let memtable_bytes = config.memtable_bytes;
        let store =
            db.keyspace("kv", || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes))?;
        let meta = store.get(META_KEY)?.map_or(Ok(Meta::default()), |bytes| Meta::decode(&bytes))?;
        db.persist(PersistMode::SyncAll)?;
        let machine = Self {
            db,
            store,
            meta,
            durable: meta.applied(),
            shared: Arc::default(),
            command_bytes_max,
            // A sweep may have been under way.
            sweep_from: Some(b"d".to_vec()),
            next_due_ms: 0,
        };
        machine.publish();
        Ok(machine)
    }

    fn publish(&self) {
        self.shared.clock_ms.store(self.meta.clock_ms, Ordering::Release);
        self.shared.generation.store(self.meta.generation, Ordering::Release);
    }

    fn apply_all(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Answer>) -> Result<(), StoreError> {
        let store = self.store.clone();
        let mut overlay = Overlay::new(&store, self.meta);
        for entry in batch.commands() {
            let command: Command<'_> = codec::decode(entry.data, self.command_bytes_max)?;
            replies.push(overlay.apply(&command)?);
        }
        let flushed = overlay.meta.generation != self.meta.generation;
        self.commit(overlay, batch.through())?;
        if flushed {
            self.sweep_from = Some(b"d".to_vec());
            self.next_due_ms = 0;
        }
        Ok(())
    }

    /// One atom: the changes, what is swept, and the index reached.
    fn commit(&mut self, overlay: Overlay<'_>, through: Applied) -> Result<(), StoreError> {
        let mut write = self.db.batch();
        let due = overlay.meta.clock_ms >= self.next_due_ms;
        let removed = if due { self.sweep_due(&mut write, &overlay)? } else { 0 };
        self.next_due_ms = self.next_due_ms.min(overlay.earliest_expiry());
        let mut meta = overlay.write(&mut write);
        meta.keys = meta.keys.saturating_sub(removed);
        self.sweep_dead(&mut write, meta.generation)?;
        (meta.index, meta.term) = (through.index, through.term);
        write.insert(&self.store, META_KEY, &meta.encode()?[..]);
        write.commit()?;
        self.meta = meta;
        self.publish();
        Ok(())
    }

    /// Removes keys whose time has come, unless this batch changed them. How many depends on how entries are batched,
    /// which differs between nodes: nothing a client or the digest sees may depend on it.
    fn sweep_due(&mut self, write: &mut OwnedWriteBatch, overlay: &Overlay<'_>) -> Result<u64, StoreError> {
        let meta = overlay.meta;
        let first = due_key(meta.generation, 0, b"");
        let end = due_key(meta.generation, meta.clock_ms.saturating_add(1), b"");
        let (mut removed, mut seen) = (0, 0);
        for item in self.store.range(first..end.clone()).take(SWEEP_KEYS_MAX) {
            let due = item.key()?;
            seen += 1;
            let key = key_of_due(&due);
            if !overlay.has_changed(key) {
                write.remove(&self.store, data_key(meta.generation, key));
                write.remove(&self.store, due.clone());
                removed += 1;
            }
        }
        self.next_due_ms = if seen == SWEEP_KEYS_MAX {
            0
        } else {
            let last = due_key(meta.generation, u64::MAX, b"");
            match self.store.range(end..last).next() {
                Some(item) => expiry_of_due(&item.key()?),
                None => u64::MAX,
            }
        };
        Ok(removed)
    }

    fn sweep_dead(&mut self, write: &mut OwnedWriteBatch, generation: u32) -> Result<(), StoreError> {
        let Some(from) = self.sweep_from.take() else { return Ok(()) };
        let live = match from.first() {
            Some(b'd') => data_key(generation, b""),
            _ => due_key(generation, 0, b""),
        };
        let mut last = None;
        let mut seen = 0;
        for item in self.store.range(from.clone()..live).take(SWEEP_KEYS_MAX) {
            let key = item.key()?;
            write.remove(&self.store, key.clone());
            seen += 1;
            last = Some(key);
        }
        self.sweep_from = match (last, from.first()) {
            (Some(key), _) if seen == SWEEP_KEYS_MAX => Some([&key[..], &[0]].concat()),
            (_, Some(b'd')) => Some(b"x".to_vec()),
            _ => None,
        };
        Ok(())
    }
}

impl StateMachine for KvMachine {
    type Response = Answer;
    type View = View;

    fn view(&self) -> View {
        View { db: self.db.clone(), store: self.store.clone(), shared: Arc::clone(&self.shared) }
    }

    fn durable(&self) -> Applied {
        self.durable
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Answer>) -> Result<(), Fatal> {
        Ok(self.apply_all(batch, replies)?)
    }

    fn flush(&mut self) -> Result<Applied, Fatal> {
        self.db.persist(PersistMode::SyncAll)?;
        self.durable = self.meta.applied();
        Ok(self.durable)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(snapshot::Source {
            snapshot: self.db.snapshot(),
            store: self.store.clone(),
            meta: self.meta,
        }))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        Ok(self.restore_from(meta.head.at, body)?)
    }
}
