//! The durable log of all groups of a node.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use raft_engine::{Command, Engine, ReadableSize, RecoveryMode, Version};
use towline_engine::ids::GroupId;
use towline_engine::log_store::{GroupWrite, LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::{Entry, LogId};
use towline_engine::units::ByteSize;

use crate::codec::{self, Stored};
use crate::data_dir::{DirLock, LogConfig};
use crate::disk::Disk;
use crate::format::Damage;
use crate::log_manifest::{LogManifest, sync_dir};
use crate::reader::{Reader, panic_text};
use crate::{log_bridge, record, scan};

type RaftEngine = Engine<Disk>;

/// Smallest unit the log is read in when it is opened.
const RECOVERY_READ_BYTES: u64 = 64 * 1024;
/// One: replaying in one piece needs no merging of partial states.
const RECOVERY_THREADS: usize = 1;
/// The rewrite queue is cleaned once this part of it is garbage.
const REWRITE_GARBAGE_RATIO: f64 = 0.6;

/// A [`LogStore`] on raft-engine: one sequence of files for all groups, one record and one fsync a batch.
///
/// Made by [`DataDir::open`](crate::DataDir::open). Reads and purges run one at a time on a thread of its own.
pub struct RaftLog {
    reader: Reader<RaftEngine>,
    engine: Option<Arc<RaftEngine>>,
    disk: Disk,
    /// Held by whoever writes, so that at most one record is unsynced at any time: see [`scan`].
    writing: Mutex<()>,
    poisoned: Mutex<Option<String>>,
    /// A purge was lost half way: see [`descriptors`](crate::descriptors).
    purge_lost: AtomicBool,
    spans: RwLock<HashMap<GroupId, Span>>,
    /// Dropped last: the directory stays locked while the log is open.
    _lock: Option<Arc<DirLock>>,
}

/// Which entries of a group there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    truncated: LogId,
    last: u64,
}

impl fmt::Debug for RaftLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftLog").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl RaftLog {
    /// Opens the log in an existing directory. `manifest` is the list of its files, outside of it.
    pub(crate) fn open(
        dir: &Path,
        manifest: &Path,
        config: &LogConfig,
        disk: Disk,
        lock: Option<Arc<DirLock>>,
    ) -> Result<Self, LogError> {
        log_bridge::install();
        let listed = LogManifest::load(manifest)?.unwrap_or_default();
        let mut files = scan::verify(dir, &listed)?;
        // A crash interrupted the header of a new file. raft-engine would go on with a header of its oldest version.
        for (queue, number) in files.without_header() {
            disk.replace(&dir.join(queue.file_name(number)), &scan::file_header())
                .map_err(|source| LogError::Io { during: "write of a log file's header", source })?;
            files.insert(queue, number, scan::file_header().len() as u64);
        }
        // A killed process may have left records in the page cache. What is read here counts as durable from now on.
        for (queue, &number, &bytes) in files.iter() {
            if bytes > listed.of(queue).get(&number).copied().unwrap_or_default() {
                disk.sync(&dir.join(queue.file_name(number)))
                    .map_err(|source| LogError::Io { during: "sync of a log file", source })?;
            }
        }
        let options = options(dir, config)?;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            RaftEngine::open_with_file_system(options, Arc::new(disk.clone()))
        }));
        let corrupt = |detail| LogError::Corrupt { place: dir.display().to_string(), detail };
        let engine = match opened {
            Ok(Ok(engine)) => Arc::new(engine),
            Ok(Err(raft_engine::Error::Io(source))) => {
                let source = disk.take_failure().map_or(source, |f| f.source);
                return Err(LogError::Io { during: "open", source });
            }
            Ok(Err(e)) => return Err(corrupt(e.to_string())),
            Err(panic) => return Err(corrupt(panic_text(&*panic))),
        };
        // raft-engine does not sync the directory after it made the first file.
        sync_dir(dir).map_err(|source| LogError::Io { during: "sync of the log directory", source })?;
        disk.keep_manifest(LogManifest::new(manifest, listed, files)).map_err(|source| {
            let source = disk.take_failure().map_or(source, |f| f.source);
            LogError::Io { during: "write of the list of log files", source }
        })?;
        disk.hold_descriptors(dir);
        let reader = Reader::start(engine.clone())
            .map_err(|source| LogError::Io { during: "start of the reading thread", source })?;
        let log = Self {
            reader,
            engine: Some(engine),
            disk,
            writing: Mutex::new(()),
            poisoned: Mutex::new(None),
            purge_lost: AtomicBool::new(false),
            spans: RwLock::default(),
            _lock: lock,
        };
        log.recover_spans()?;
        Ok(log)
    }

    /// How often this log found no file descriptor and waited 20 ms for one. It waits without an end, as for a slow disk;
    /// the counter rises as long as it does.
    pub fn descriptor_waits(&self) -> u64 {
        self.disk.descriptor_waits()
    }

    /// Truncations are repeated first: when raft-engine moves old entries to another file and purges the one with the
    /// truncation, a restart finds those entries again. Our own record of the truncation point does not get lost.
    fn recover_spans(&self) -> Result<(), LogError> {
        let engine = self.engine()?;
        let mut spans = HashMap::new();
        let mut again = Vec::new();
        for raw in engine.raft_groups() {
            let truncated =
                self.stored(raw, record::TRUNCATED_KEY, record::decode_truncated)?.unwrap_or_default();
            if engine.first_index(raw).is_some_and(|first| first <= truncated.index) {
                again.push((raw, truncated.index.saturating_add(1)));
            }
            spans.insert(GroupId::new(raw), Span { truncated, last: truncated.index });
        }
        let _writing = lock(&self.writing);
        self.commit("truncation at open", |out| {
            again.iter().for_each(|&(raw, index)| out.add_command(raw, Command::Compact { index }));
            Ok(())
        })?;
        for (group, span) in &mut spans {
            let raw = group.as_u64();
            let Some(first) = engine.first_index(raw) else { continue };
            if first != span.truncated.index + 1 {
                return Err(LogError::Corrupt {
                    place: format!("group {group}, index {}", span.truncated.index + 1),
                    detail: format!("the log goes on at {first}"),
                });
            }
            span.last = engine.last_index(raw).unwrap_or(span.truncated.index);
        }
        *write(&self.spans) = spans;
        Ok(())
    }

    fn engine(&self) -> Result<&RaftEngine, LogError> {
        // Present until drop.
        self.engine.as_deref().ok_or_else(|| LogError::Poisoned { cause: "the log is closed".into() })
    }

    fn span(&self, group: GroupId) -> Option<Span> {
        self.spans.read().unwrap_or_else(PoisonError::into_inner).get(&group).copied()
    }

    fn stored<T>(
        &self,
        raw: u64,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, Damage>,
    ) -> Result<Option<T>, LogError> {
        let Some(bytes) = self.engine()?.get(raw, key) else { return Ok(None) };
        decode(&bytes).map(Some).map_err(|damage| LogError::Corrupt {
            place: format!("group {raw}, record `{}`", String::from_utf8_lossy(key)),
            detail: damage.to_string(),
        })
    }

    fn healthy(&self) -> Result<(), LogError> {
        match &*lock(&self.poisoned) {
            None => Ok(()),
            Some(cause) => Err(LogError::Poisoned { cause: cause.clone() }),
        }
    }

    /// Makes a batch durable; the caller holds `writing`. `fill` is called again where the write must be repeated: see
    /// [`descriptors`](crate::descriptors).
    fn commit(
        &self,
        during: &'static str,
        mut fill: impl FnMut(&mut raft_engine::LogBatch) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let engine = self.engine()?;
        loop {
            let mut batch = raft_engine::LogBatch::default();
            fill(&mut batch)?;
            let outcome = catch_unwind(AssertUnwindSafe(|| engine.write(&mut batch, true)));
            match outcome.map_err(|p| panic_text(&*p)) {
                Err(panic) if self.disk.lost_descriptors(&panic) => {}
                outcome => return self.judge(outcome, during).map(drop),
            }
        }
    }

    /// An operation counts only if no part of it, nor of any before it, failed on the disk.
    fn judge<T>(
        &self,
        outcome: Result<raft_engine::Result<T>, String>,
        during: &'static str,
    ) -> Result<T, LogError> {
        if !self.disk.failed()
            && let Ok(Ok(done)) = outcome
        {
            return Ok(done);
        }
        let mut poisoned = lock(&self.poisoned);
        if let Some(cause) = &*poisoned {
            return Err(LogError::Poisoned { cause: cause.clone() });
        }
        let (during, source) = match (self.disk.take_failure(), outcome) {
            (Some(failure), _) => (failure.during, failure.source),
            (None, Ok(Err(raft_engine::Error::Io(source)))) => (during, source),
            (None, Ok(Err(other))) => (during, io::Error::other(other)),
            (None, Err(panic)) => (during, io::Error::other(panic)),
            (None, Ok(Ok(_))) => (during, io::Error::other("an earlier disk operation failed")),
        };
        *poisoned = Some(format!("{during}: {source}"));
        tracing::error!(during, %source, "the log failed and takes no further write");
        Err(LogError::Io { during, source })
    }

    /// Adds a group's part to the batch and says where its log stands afterwards.
    fn encode(&self, part: &GroupWrite, out: &mut raft_engine::LogBatch) -> Result<Span, LogError> {
        let raw = part.group.as_u64();
        let invalid = |detail: String| LogError::Invalid { group: part.group, detail };
        let mut span = self.span(part.group).unwrap_or_default();
        if let Some(install) = &part.install {
            span = Span { truncated: install.at, last: install.at.index };
        }
        check_entries(&part.entries, span).map_err(invalid)?;

        let mut puts: Vec<(&[u8], Vec<u8>)> = Vec::with_capacity(4);
        if let Some(install) = &part.install {
            self.forget(part.group, install.at, out)?;
        }
        let installing = part.install.as_ref().filter(|_| !part.installed).map(|install| install.installing);
        if part.install.is_some() || part.installed {
            puts.push((record::INSTALLING_KEY, record::encode_installing(installing)));
        }
        if let Some(state) = &part.hard_state {
            puts.push((record::HARD_STATE_KEY, record::encode_hard_state(state)));
        }
        if let Some(conf) = &part.conf {
            let bytes = record::encode_conf(conf).map_err(|d| invalid(format!("membership: {d}")))?;
            puts.push((record::CONF_KEY, bytes));
        }
        for (key, value) in puts {
            out.put(raw, key.to_vec(), value).map_err(|e| invalid(e.to_string()))?;
        }
        let entries: Vec<_> = part.entries.iter().map(codec::to_stored).collect();
        // Fails only if the batch gets too large for a record.
        out.add_entries::<Stored>(raw, &entries).map_err(|e| invalid(e.to_string()))?;
        if let Some(last) = part.entries.last() {
            span.last = last.index;
        }
        Ok(span)
    }

    /// Forgets all entries of a group; its records stay.
    ///
    /// By `Clean`, for two reasons. Without one raft-engine finds a hole before what follows. And only `Clean` is still
    /// known after a purge: without one, entries that were overwritten before the log became empty come back from the
    /// file they were moved to. It takes the records too, so they are written again.
    fn forget(&self, group: GroupId, at: LogId, out: &mut raft_engine::LogBatch) -> Result<(), LogError> {
        let (raw, engine) = (group.as_u64(), self.engine()?);
        let put = |out: &mut raft_engine::LogBatch, key: &[u8], value| {
            out.put(raw, key.to_vec(), value).map_err(|e| LogError::Invalid { group, detail: e.to_string() })
        };
        out.add_command(raw, Command::Clean);
        for key in [record::HARD_STATE_KEY, record::CONF_KEY, record::INSTALLING_KEY] {
            if let Some(kept) = engine.get(raw, key) {
                put(out, key, kept)?;
            }
        }
        put(out, record::TRUNCATED_KEY, record::encode_truncated(at))
    }

    fn read<T: Send + 'static>(
        &self,
        group: GroupId,
        job: impl FnOnce(&RaftEngine) -> raft_engine::Result<T> + Send + 'static,
    ) -> Result<T, ReadFailure> {
        match self.reader.run(job) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(raft_engine::Error::EntryCompacted | raft_engine::Error::EntryNotFound)) => {
                Err(ReadFailure::Moved)
            }
            Ok(Err(raft_engine::Error::Io(source))) => Err(ReadFailure::Broken(LogReadError::Io {
                detail: format!("group {group}: {source}"),
                source: Some(source),
            })),
            Ok(Err(other)) => Err(ReadFailure::Broken(unreadable(group, &other.to_string()))),
            Err(panic) => Err(ReadFailure::Broken(unreadable(group, &panic))),
        }
    }

    /// Reads entries of a range that was there a moment ago.
    fn read_entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadFailure> {
        self.read(group, move |engine| {
            let (mut read, mut bytes, mut next) = (Vec::new(), 0_usize, range.start);
            let mut stored = Vec::new();
            while next < range.end {
                // raft-engine counts encoded bytes, a few more than the payload: ask again for what is left. It gives
                // one entry at least.
                let room = bytes_max.saturating_sub(bytes);
                engine.fetch_entries_to::<Stored>(
                    group.as_u64(),
                    next,
                    range.end,
                    Some(room),
                    &mut stored,
                )?;
                for entry in stored.drain(..).map(codec::from_stored) {
                    bytes = bytes.saturating_add(entry.payload_bytes());
                    if bytes > bytes_max && !read.is_empty() {
                        return Ok(read);
                    }
                    next = entry.index + 1;
                    read.push(entry);
                }
            }
            Ok(read)
        })
    }
}

enum ReadFailure {
    /// The log was truncated or replaced meanwhile.
    Moved,
    Broken(LogReadError),
}

impl LogStore for RaftLog {
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        // Not between the parts of a write.
        let _writing = lock(&self.writing);
        let Some(span) = self.span(group) else { return Ok(Recovered::default()) };
        let raw = group.as_u64();
        Ok(Recovered {
            hard_state: self.stored(raw, record::HARD_STATE_KEY, record::decode_hard_state)?,
            conf: self.stored(raw, record::CONF_KEY, record::decode_conf)?,
            truncated: span.truncated,
            last_index: span.last,
            installing: self.stored(raw, record::INSTALLING_KEY, record::decode_installing)?.flatten(),
        })
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        let _writing = lock(&self.writing);
        self.healthy()?;
        let mut seen = HashSet::with_capacity(batch.writes.len());
        for part in &batch.writes {
            if !seen.insert(part.group) {
                let detail = "the batch has two writes of this group".into();
                return Err(LogError::Invalid { group: part.group, detail });
            }
        }
        let mut moved = Vec::with_capacity(batch.writes.len());
        self.commit("append", |out| {
            moved.clear();
            for part in batch.writes.iter().filter(|part| !part.is_empty()) {
                moved.push((part.group, self.encode(part, out)?));
            }
            Ok(())
        })?;
        write(&self.spans).extend(moved);
        batch.writes.clear();
        Ok(())
    }

    fn entries(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        if range.is_empty() {
            return Ok(());
        }
        check_range(self.span(group), range.start, range.end - 1)?;
        match self.read_entries(group, range.clone(), bytes_max) {
            Ok(mut read) => {
                out.append(&mut read);
                Ok(())
            }
            Err(ReadFailure::Broken(e)) => Err(e),
            Err(ReadFailure::Moved) => {
                // The write that moved it holds the lock until the span says so too.
                drop(lock(&self.writing));
                check_range(self.span(group), range.start, range.end - 1)?;
                Err(unreadable(group, "entries are missing"))
            }
        }
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        let span = self.span(group).unwrap_or_default();
        if index == span.truncated.index {
            return Ok(span.truncated.term);
        }
        let mut one = Vec::with_capacity(1);
        self.entries(group, index..index.saturating_add(1), usize::MAX, &mut one)?;
        one.first().map(|e| e.term).ok_or(LogReadError::Beyond { index, last: span.last })
    }

    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError> {
        let _writing = lock(&self.writing);
        self.healthy()?;
        // Nothing is stored of the group: it must not come into being by this.
        let Some(span) = self.span(group) else { return Ok(()) };
        if through <= span.truncated.index {
            return Ok(());
        }
        let next = through
            .checked_add(1)
            .ok_or_else(|| LogError::Invalid { group, detail: "no entry could follow".into() })?;
        // Past the end nobody told the term; that of the last entry is the best there is.
        let known = through.min(span.last);
        let term = self.term(group, known).map_err(|e| LogError::Corrupt {
            place: format!("group {group}, index {known}"),
            detail: e.to_string(),
        })?;
        let truncated = LogId { index: through, term };
        // Synced although it need not be: a second unsynced record would spoil what `scan` relies on.
        self.commit("compaction", |out| {
            if through >= span.last {
                return self.forget(group, truncated, out);
            }
            out.add_command(group.as_u64(), Command::Compact { index: next });
            out.put(group.as_u64(), record::TRUNCATED_KEY.to_vec(), record::encode_truncated(truncated))
                .map_err(|e| LogError::Invalid { group, detail: e.to_string() })
        })?;
        write(&self.spans).insert(group, Span { truncated, last: span.last.max(through) });
        Ok(())
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.healthy()?;
        if self.purge_lost.load(Ordering::Relaxed) {
            tracing::error!(
                "no log file is removed for want of a file descriptor earlier; restart this node"
            );
            return Ok(Vec::new());
        }
        let outcome = self.reader.run(RaftEngine::purge_expired_files);
        // It may have begun a file and written nothing to it.
        self.disk.purged();
        if let Err(panic) = &outcome
            && self.disk.lost_descriptors(panic)
        {
            self.purge_lost.store(true, Ordering::Relaxed);
            return Ok(Vec::new());
        }
        let groups = self.judge(outcome, "purge")?;
        {
            // No write is under way: what was written is synced.
            let _writing = lock(&self.writing);
            self.judge(Ok(self.disk.checkpoint().map_err(raft_engine::Error::Io)), "checkpoint")?;
        }
        Ok(groups.into_iter().map(GroupId::new).collect())
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        let mut groups: Vec<_> =
            self.spans.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        groups.sort_unstable();
        Ok(groups)
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        let _writing = lock(&self.writing);
        self.healthy()?;
        if self.span(group).is_none() {
            return Ok(());
        }
        self.commit("removal", |out| {
            out.add_command(group.as_u64(), Command::Clean);
            Ok(())
        })?;
        write(&self.spans).remove(&group);
        Ok(())
    }
}

impl Drop for RaftLog {
    fn drop(&mut self) {
        self.reader.stop();
        if !self.disk.failed()
            && let Err(error) = self.disk.checkpoint()
        {
            tracing::error!(%error, "the list of log files could not be written");
        }
        let engine = self.engine.take();
        if catch_unwind(AssertUnwindSafe(|| drop(engine))).is_err() {
            tracing::error!("closing the log panicked");
        }
    }
}

/// Every option is said; none is left to the library.
fn options(dir: &Path, config: &LogConfig) -> Result<raft_engine::Config, LogError> {
    let invalid = |what: &str| LogError::Io {
        during: "open",
        source: io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()),
    };
    if config.file_bytes == ByteSize::bytes(0) || config.purge_bytes < config.file_bytes {
        return Err(invalid("purge_bytes is below file_bytes, or file_bytes is zero"));
    }
    Ok(raft_engine::Config {
        dir: dir.to_str().ok_or_else(|| invalid("the path is not UTF-8"))?.to_owned(),
        spill_dir: None,
        // What is torn was judged before: see `scan`.
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_read_block_size: ReadableSize(RECOVERY_READ_BYTES),
        recovery_threads: RECOVERY_THREADS,
        // Commands are often compressed already, and an append should take the same time whatever they hold.
        batch_compression_threshold: ReadableSize(0),
        compression_level: None,
        bytes_per_sync: None,
        format_version: Version::V2,
        target_file_size: ReadableSize(config.file_bytes.as_u64()),
        purge_threshold: ReadableSize(config.purge_bytes.as_u64()),
        purge_rewrite_threshold: Some(ReadableSize(
            (config.purge_bytes.as_u64() / 10).max(config.file_bytes.as_u64()),
        )),
        purge_rewrite_garbage_ratio: REWRITE_GARBAGE_RATIO,
        memory_limit: None,
        // Recycled files keep old numbers after a crash and would look like a log with missing files.
        enable_log_recycle: false,
        prefill_for_recycle: false,
        prefill_limit: None,
    })
}

fn check_entries(entries: &[Entry], span: Span) -> Result<(), String> {
    let Some(first) = entries.first() else { return Ok(()) };
    if first.index <= span.truncated.index {
        return Err(format!(
            "entry {} is not above the truncation point {}",
            first.index, span.truncated.index
        ));
    }
    if first.index > span.last.saturating_add(1) {
        return Err(format!("entry {} leaves a gap after {}", first.index, span.last));
    }
    for (entry, expected) in entries.iter().zip(first.index..) {
        if entry.index != expected {
            return Err(format!("entry {} stands where {expected} belongs", entry.index));
        }
    }
    Ok(())
}

fn check_range(span: Option<Span>, first: u64, last: u64) -> Result<(), LogReadError> {
    let span = span.unwrap_or_default();
    if first <= span.truncated.index {
        return Err(LogReadError::Compacted { index: first, first: span.truncated.index.saturating_add(1) });
    }
    if last > span.last {
        return Err(LogReadError::Beyond { index: last, last: span.last });
    }
    Ok(())
}

fn unreadable(group: GroupId, detail: &str) -> LogReadError {
    LogReadError::Io { detail: format!("group {group}: {detail}"), source: None }
}

// No state here can be left half changed by a panic: what is written under a lock is written at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
