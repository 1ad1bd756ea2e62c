//! The replicated state: keys, values and expiries, in memory first and then in fjall.
//!
//! The Raft log is the write-ahead log, so applying changes memory only, and what lies in the store may lag behind: what
//! a crash takes from memory is applied again from the log. Data and applied index reach the store as one atom, synced;
//! `durable` says how far that is.

mod clock;
mod command;
mod cut;
mod layout;
mod opened;
mod overlay;
mod patience;
mod snapshot;
mod view;
mod writeback;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use fjall::{Database, Keyspace};
use serde::{Deserialize, Serialize};
use towline::{
    ApplyBatch, ByteSize, Fatal, LogId, Replies, SnapshotMeta, SnapshotSource, StateMachine, codec,
};

pub(crate) use command::{
    Answer, Blob, Command, Condition, Expiry, KEY_BYTES_MAX, Op, PACK_BYTES, VALUE_BYTES_MAX, pack,
};
pub(crate) use overlay::parse_integer;
pub(crate) use patience::descriptor_waits;
pub(crate) use view::{Gathered, Stored, View};
pub(crate) use writeback::WAITING_TABLES_MAX;

use clock::Clock;
use command::ANSWERS_BYTES_MAX;
use layout::Meta;
use opened::Opened;
use overlay::Overlay;
use writeback::WriteBack;

/// Bytes of commands that are applied again after a restart, at most; about.
const REPLAY_BYTES_MAX: usize = 256 << 20;

/// Memory of the store. Small by default: this is an example, and three of them share a laptop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// Bytes of cached blocks. Default 16 MiB.
    pub(crate) cache_bytes: ByteSize,
    /// Bytes of changes that gather in memory before they become a file. Default 32 MiB; while one such lot is written
    /// the next one gathers.
    pub(crate) memtable_bytes: ByteSize,
    /// Bytes of all journals before memtables are forced out. Default 64 MiB, which is also the least.
    pub(crate) journal_bytes_max: ByteSize,
    /// Threads that flush and compact. Default 1.
    pub(crate) worker_threads: usize,
    /// Table files that are kept open. Default 256; fewer if the limit of file descriptors is too low.
    pub(crate) files_max: usize,
}

/// The least that fjall accepts for its open files.
const FILES_MIN: usize = 10;
/// The least that fjall accepts for its journals.
pub(crate) const JOURNAL_BYTES_MIN: ByteSize = ByteSize::mib(64);

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cache_bytes: ByteSize::mib(16),
            memtable_bytes: ByteSize::mib(32),
            journal_bytes_max: JOURNAL_BYTES_MIN,
            worker_threads: 1,
            files_max: 256,
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
    #[error("the directory of the key-value store could not be read or changed")]
    OpenFailed(#[source] io::Error),
    #[error(
        "the key-value store at {} cannot be opened ({cause}), and no new one can take its place because its directory is \
         a mount point; mount the volume at the data directory above it",
        path.display()
    )]
    MountPoint { path: PathBuf, cause: String },
    #[error("the snapshot could not be read")]
    Snapshot(#[from] io::Error),
    #[error("the thread that writes to the key-value store could not be started")]
    NoWriter(#[source] io::Error),
    #[error("the thread that writes to the key-value store panicked")]
    WriterPanicked,
    #[error(
        "the key-value store has stopped after a flush or compaction failed: its disk is full or one of its files is \
         damaged (the log has a line of fjall that says which); make room or replace the disk, then restart the node"
    )]
    Stopped,
}

impl From<StoreError> for Fatal {
    fn from(error: StoreError) -> Self {
        Self::new(error)
    }
}

/// The state machine.
pub(crate) struct KvMachine {
    db: Database,
    store: Keyspace,
    overlay: Arc<RwLock<Overlay>>,
    clock: Clock,
    write_back: WriteBack,
    durable: LogId,
    layer_bytes_max: usize,
    /// Bytes of the commands that are in memory only.
    replay_bytes: usize,
}

impl KvMachine {
    /// Opens the store at `path`, or makes it. A store that is damaged is moved aside, and an empty one takes its place: the
    /// engine then restores the state from a snapshot and the log, or refuses to start the group.
    pub(crate) fn open(path: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        Self::open_with_clock(path, config, Clock::monotonic())
    }

    fn open_with_clock(path: &Path, config: &StoreConfig, clock: Clock) -> Result<Self, StoreError> {
        let Opened { db, store, meta } = opened::open(path, config)?;
        clock.observe(meta.clock_ms, meta.term);
        clock.applied(meta.term);
        let overlay = Arc::new(RwLock::new(Overlay::new(store.clone(), meta)));
        Ok(Self {
            write_back: WriteBack::new(db.clone(), store.clone(), Arc::clone(&overlay)),
            db,
            store,
            overlay,
            clock,
            durable: meta.applied(),
            layer_bytes_max: config.memtable_bytes.as_usize(),
            replay_bytes: 0,
        })
    }

    /// A panic half-way through a change takes the group out of service: nobody reads what it left.
    fn overlay(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn meta(&self) -> Meta {
        self.overlay().meta
    }

    fn apply_all(
        &mut self,
        batch: ApplyBatch<'_>,
        replies: &mut Replies<Vec<Answer>>,
    ) -> Result<(), StoreError> {
        let written = self.write_back.finished()?;
        self.durable = written.unwrap_or(self.durable);
        let mut replay_bytes = self.replay_bytes;
        let mut overlay = self.overlay();
        let generation = overlay.meta.generation;
        let (mut answers_bytes, mut is_stamped) = (0_usize, false);
        for entry in batch.commands() {
            let mut answers = Vec::new();
            for command in command::unpack(entry.data) {
                // Not the limit of proposals: that may have been higher when this was proposed, or on another node.
                let command: Command<'_> = codec::decode(command?, codec::BYTES_MAX)?;
                let mut answer = overlay.apply(&command)?;
                if let Answer::Value(Some(old)) = &answer {
                    answers_bytes = answers_bytes.saturating_add(old.len());
                    if answers_bytes > ANSWERS_BYTES_MAX {
                        answer = Answer::Omitted;
                    }
                }
                answers.push(answer);
            }
            is_stamped = true;
            replies.push(answers);
            replay_bytes = replay_bytes.saturating_add(entry.data.len());
        }
        overlay.sweep()?;
        (overlay.meta.index, overlay.meta.term) = (batch.through().index, batch.through().term);
        if is_stamped {
            self.clock.observe(overlay.meta.clock_ms, overlay.meta.term);
        }
        self.clock.applied(overlay.meta.term);
        let (flushed, bytes) = (overlay.meta.generation != generation, overlay.bytes());
        drop(overlay);

        self.replay_bytes = replay_bytes;
        if flushed {
            self.write_back.sweep_dead();
        }
        if bytes >= self.layer_bytes_max || replay_bytes >= REPLAY_BYTES_MAX {
            // Two layers are all there may be: a store that is slower than the log holds it up here.
            self.settle()?;
            self.write_back.start()?;
            self.replay_bytes = 0;
        }
        Ok(())
    }

    /// Waits until nothing is being written.
    fn settle(&mut self) -> Result<(), StoreError> {
        let written = self.write_back.wait()?;
        self.durable = written.unwrap_or(self.durable);
        Ok(())
    }
}

impl StateMachine for KvMachine {
    /// One for each command of an entry.
    type Response = Vec<Answer>;
    type View = View;

    fn view(&self) -> View {
        View {
            db: self.db.clone(),
            store: self.store.clone(),
            overlay: Arc::clone(&self.overlay),
            clock: self.clock.clone(),
        }
    }

    fn durable(&self) -> LogId {
        self.durable
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Vec<Answer>>) -> Result<(), Fatal> {
        Ok(self.apply_all(batch, replies)?)
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        self.settle()?;
        if self.durable != self.meta().applied() {
            self.write_back.start()?;
            self.replay_bytes = 0;
            self.settle()?;
        }
        Ok(self.durable)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(snapshot::Source { cut: self.view().cut() }))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        Ok(self.restore_from(meta.head.at, body)?)
    }
}
