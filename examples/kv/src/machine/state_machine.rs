//! The state machine of the example.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use fjall::{Database, Keyspace, PersistMode};
use towline::{ApplyBatch, Fatal, LogId, Replies, SnapshotMeta, SnapshotSource, StateMachine, codec};

use super::clock::Clock;
use super::command::{self, ANSWERS_BYTES_MAX, Answer, Command};
use super::config::StoreConfig;
use super::error::StoreError;
use super::layout::{META_KEY, Meta};
use super::opened::{self, Opened};
use super::overlay::Overlay;
use super::room::{Closer, StoreRoom};
use super::snapshot::{self, Restored};
use super::view::View;
use super::writeback::{WriteBack, commit};

/// About the most bytes of commands that a restart applies again.
const REPLAY_BYTES_MAX: usize = 256 << 20;

pub(crate) struct KvMachine {
    /// The first field: its drop ends the waits of the others.
    _closer: Closer,
    room: StoreRoom,
    db: Database,
    store: Keyspace,
    overlay: Arc<RwLock<Overlay>>,
    clock: Clock,
    write_back: WriteBack,
    durable: LogId,
    layer_bytes_max: usize,
    /// Bytes of applied commands that exist only in memory.
    replay_bytes: usize,
}

impl KvMachine {
    /// Opens or makes the store at `path`. Moves a damaged store aside and makes an empty one: the engine then restores the
    /// state from a snapshot and the log, or refuses to start the group.
    pub(crate) fn open(path: &Path, config: &StoreConfig, room: &StoreRoom) -> Result<Self, StoreError> {
        Self::open_with_clock(path, config, room, Clock::monotonic())
    }

    fn open_with_clock(
        path: &Path,
        config: &StoreConfig,
        room: &StoreRoom,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let Opened { closer, room, db, store, meta } =
            opened::open(path, config, room).inspect_err(|error| room.note(error))?;
        clock.observe(meta.clock_ms, meta.term);
        clock.applied(meta.term);
        let overlay = Arc::new(RwLock::new(Overlay::new(store.clone(), meta)));
        Ok(Self {
            _closer: closer,
            write_back: WriteBack::new(db.clone(), store.clone(), Arc::clone(&overlay), room.clone()),
            room,
            db,
            store,
            overlay,
            clock,
            durable: meta.applied(),
            layer_bytes_max: config.memtable_bytes.as_usize(),
            replay_bytes: 0,
        })
    }

    /// Ignores poison: after a panic during a change the group is out of service, so no caller reads the result.
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
                // Not `proposal_bytes_max`: another node, or an earlier start, may have had a higher one.
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
            // There are at most two layers, so here a slow store delays the log.
            self.settle()?;
            self.write_back.start()?;
            self.replay_bytes = 0;
        }
        Ok(())
    }

    /// Notes an error that ends the store.
    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, Fatal> {
        Ok(done.inspect_err(|error| self.room.note(error))?)
    }

    fn flush_all(&mut self) -> Result<LogId, StoreError> {
        self.settle()?;
        if self.durable != self.meta().applied() {
            self.write_back.start()?;
            self.replay_bytes = 0;
            self.settle()?;
        }
        Ok(self.durable)
    }

    /// Waits until the running write is done.
    fn settle(&mut self) -> Result<(), StoreError> {
        let written = self.write_back.wait()?;
        self.durable = written.unwrap_or(self.durable);
        Ok(())
    }

    /// Writes `body` into the next generation, then makes that the live one in one batch with the index. A crash before the
    /// last batch leaves the old state, and keys that the next start removes.
    fn restore_from(&mut self, applied: LogId, body: &mut dyn io::Read) -> Result<(), StoreError> {
        // A running write would come after the restore and change the new state.
        self.settle()?;
        let old = self.meta();
        let generation = old.generation.checked_add(1).ok_or(StoreError::Corrupt("generation"))?;
        let Restored { clock_ms, keys, checksum } =
            snapshot::restore(&self.db, &self.store, &self.room, generation, body)?;
        let (index, term, clock_ms) = (applied.index, applied.term, clock_ms.max(old.clock_ms));
        let meta = Meta { index, term, clock_ms, generation, keys, checksum };
        let mut write = self.db.batch().durability(Some(PersistMode::SyncAll));
        write.insert(&self.store, META_KEY, &meta.encode()?[..]);
        commit(&self.db, &self.store, &self.room, write)?;
        self.clock.observe(meta.clock_ms, meta.term);
        self.clock.applied(meta.term);
        *self.overlay() = Overlay::new(self.store.clone(), meta);
        self.durable = applied;
        self.replay_bytes = 0;
        self.write_back.sweep_dead();
        Ok(())
    }
}

impl StateMachine for KvMachine {
    /// One answer for each command of an entry.
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
        let applied = self.apply_all(batch, replies);
        self.noted(applied)
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        let flushed = self.flush_all();
        self.noted(flushed)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(snapshot::Source(self.view().cut())))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let restored = self.restore_from(meta.head.at, body);
        self.noted(restored)
    }
}
