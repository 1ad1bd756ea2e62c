//! The durable log of all groups of a node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use raft_engine::{Command, Engine, ReadableSize, RecoveryMode, Version};
use towline_engine::ids::GroupId;
use towline_engine::log_store::{
    DiskSpace, GroupWrite, LogBatch, LogError, LogReadError, LogStore, Recovered,
};
use towline_engine::message::{Entry, LogId};
use towline_engine::units::ByteSize;

use crate::codec::{self, Stored};
use crate::config::LogConfig;
use crate::dir_lock::DirLock;
use crate::disk::{Disk, is_full};
use crate::format::Damage;
use crate::log_manifest::LogManifest;
use crate::purges::NamedGroups;
use crate::reader::{JobOutcome, Reader, panic_text};
use crate::replace::sync_dir;
use crate::sync::lock;
use crate::{log_bridge, record, scan};

mod cleaning;

use self::cleaning::Purged;

type RaftEngine = Engine<Disk>;

/// The smallest unit of reads while the log opens.
const RECOVERY_READ_BYTES: u64 = 64 * 1024;
/// One thread: several would have to merge partial states.
const RECOVERY_THREADS: usize = 1;
/// A purge cleans the rewrite queue above this share of garbage.
const REWRITE_GARBAGE_RATIO: f64 = 0.6;

/// A [`LogStore`] on raft-engine: one sequence of files for all groups, one record and one fsync for each batch.
///
/// Made by [`DataDir::open`](crate::DataDir::open). Its own thread runs reads and purges, one at a time.
///
/// # A full disk
/// A write that finds the disk or a quota full poisons nothing. It waits and is repeated until there is room, and
/// [`space_waits`](Self::space_waits) counts. Meanwhile reads, compactions and purges return as usual: a compaction is put
/// off until the next purge, and a purge that itself needs room goes on in the background. A sync that finds the disk full
/// poisons the log, because it leaves unknown what is durable. An existing log opens on a disk without a free byte.
///
/// [`space`](LogStore::space) keeps a reserve of `2 * file_bytes + max(purge_bytes / 10, file_bytes)`, 231 MiB by default:
///
/// | part | for |
/// | --- | --- |
/// | `file_bytes` | hard states, entries without payload, truncations; files are allocated ahead by up to 2 MiB |
/// | `file_bytes` | a purge of appended records: the few that it moves before it removes their files |
/// | `max(purge_bytes / 10, file_bytes)` | a purge of moved records: it writes the live ones again before it removes their files |
///
/// The reserve is an estimate. A purge moves up to 32 entries of each group, of any size. Of the moved records it writes the
/// live ones again, and these have no bound.
///
/// A group that cannot compact is the larger case. After nine purges that named it, the next purge moves its entries, up to
/// 70% of the appended bytes, before it removes a file. The log does not begin that purge with less free than these bytes and
/// the reserve, until the group has removed the oldest 70% of its entries. It begins the purge if the file system does not
/// report its free space.
pub struct RaftLog {
    reader: Reader<RaftEngine>,
    engine: Option<Arc<RaftEngine>>,
    disk: Disk,
    /// Locked by each write, so that at most one record is unsynced at any time: see [`scan`].
    writing: Mutex<()>,
    poisoned: Mutex<Option<String>>,
    /// Whether a purge panicked midway: see [`descriptors`](crate::descriptors).
    purge_lost: AtomicBool,
    /// The purge that waited for room when [`purge`](LogStore::purge) returned.
    purging: Mutex<Option<JobOutcome<Purged>>>,
    /// Truncations that the next write repeats: group and index of the first entry to keep. See
    /// [`recover_spans`](Self::recover_spans).
    truncate_again: Mutex<Vec<(u64, u64)>>,
    /// Compactions for which there was no room.
    put_off: Mutex<BTreeMap<GroupId, u64>>,
    /// The groups that the last purges named.
    named: Mutex<NamedGroups>,
    config: LogConfig,
    dir: PathBuf,
    reserve_bytes: u64,
    spans: RwLock<HashMap<GroupId, Span>>,
    /// Dropped last: the directory stays locked while the log is open.
    _lock: Option<Arc<DirLock>>,
}

/// The range of a group's entries.
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
    /// Opens the log in an existing directory. `manifest` is the path of the list of its files, outside the directory.
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
        // A crash interrupted the header of a new file. raft-engine would write a header of its oldest version. The file holds
        // nothing, and removing it needs no room.
        for (queue, number) in files.take_without_header() {
            disk.remove(&dir.join(queue.file_name(number)))
                .map_err(|source| LogError::Io { during: "removal of a log file without header", source })?;
        }
        // A killed process may have left records in the page cache. From here on all records count as durable.
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
        // raft-engine does not sync the directory after the first file.
        sync_dir(dir).map_err(|source| LogError::Io { during: "sync of the log directory", source })?;
        disk.keep_manifest(LogManifest::new(manifest, listed, files)).map_err(|source| {
            let source = disk.take_failure().map_or(source, |f| f.source);
            LogError::Io { during: "write of the list of log files", source }
        })?;
        disk.opened(dir);
        let reader = Reader::start(engine.clone())
            .map_err(|source| LogError::Io { during: "start of the reading thread", source })?;
        let log = Self {
            reader,
            engine: Some(engine),
            disk,
            writing: Mutex::new(()),
            poisoned: Mutex::new(None),
            purge_lost: AtomicBool::new(false),
            purging: Mutex::new(None),
            truncate_again: Mutex::default(),
            put_off: Mutex::default(),
            named: Mutex::default(),
            config: config.clone(),
            dir: dir.into(),
            reserve_bytes: reserve_bytes(config),
            spans: RwLock::default(),
            _lock: lock,
        };
        log.recover_spans()?;
        Ok(log)
    }

    /// How often this log waited 20 ms for a free file descriptor. The wait has no limit, as for a slow disk, and the counter
    /// rises meanwhile.
    pub fn descriptor_waits(&self) -> u64 {
        self.disk.descriptor_waits()
    }

    /// How often this log waited 20 ms for room on its disk. The wait has no limit, as for a slow disk, and the counter rises
    /// meanwhile.
    pub fn space_waits(&self) -> u64 {
        self.disk.space_waits()
    }

    /// Reads the span of each group, and finds truncations to repeat: raft-engine can move old entries to another file, purge
    /// the file with the truncation, and find the entries again at a restart. The record of the truncation point stays. The
    /// next write repeats them, because the disk may be full now.
    fn recover_spans(&self) -> Result<(), LogError> {
        let engine = self.engine()?;
        let mut spans = HashMap::new();
        let mut again = Vec::new();
        for raw in engine.raft_groups() {
            let truncated =
                self.stored(raw, record::TRUNCATED_KEY, record::decode_truncated)?.unwrap_or_default();
            let first = engine.first_index(raw).unwrap_or(truncated.index.saturating_add(1));
            if first <= truncated.index {
                again.push((raw, truncated.index.saturating_add(1)));
            } else if first != truncated.index.saturating_add(1) {
                return Err(LogError::Corrupt {
                    place: format!("group {raw}, index {}", truncated.index.saturating_add(1)),
                    detail: format!("the next entry is {first}"),
                });
            }
            let last = engine.last_index(raw).unwrap_or_default().max(truncated.index);
            spans.insert(GroupId::new(raw), Span { truncated, last });
        }
        *lock(&self.truncate_again) = again;
        *write(&self.spans) = spans;
        Ok(())
    }

    fn engine(&self) -> Result<&RaftEngine, LogError> {
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

    /// Makes a batch durable. The caller holds `writing`. A repeated write calls `fill` again: see
    /// [`descriptors`](crate::descriptors). `false`: the disk is full, and nothing has changed.
    fn commit(
        &self,
        during: &'static str,
        mut fill: impl FnMut(&mut raft_engine::LogBatch) -> Result<(), LogError>,
    ) -> Result<bool, LogError> {
        let engine = self.engine()?;
        let mut again = lock(&self.truncate_again);
        loop {
            let mut batch = raft_engine::LogBatch::default();
            again.iter().for_each(|&(raw, index)| batch.add_command(raw, Command::Compact { index }));
            fill(&mut batch)?;
            let outcome = catch_unwind(AssertUnwindSafe(|| engine.write(&mut batch, true)));
            match outcome.map_err(|p| panic_text(&*p)) {
                Err(panic) if self.disk.lost_descriptors(&panic) => {}
                Ok(Err(raft_engine::Error::Io(full))) if is_full(&full) && !self.disk.failed() => {
                    return Ok(false);
                }
                outcome => {
                    self.judge(outcome, during)?;
                    again.clear();
                    return Ok(true);
                }
            }
        }
    }

    /// Repeats a write until the disk has room for it.
    fn until_room(
        &self,
        bytes: usize,
        write: impl FnMut() -> Result<bool, LogError>,
    ) -> Result<(), LogError> {
        self.disk.until_room(&self.dir, bytes as u64, write)
    }

    /// Tries an append. `false`: the disk is full, and nothing has changed.
    fn try_append(&self, batch: &LogBatch) -> Result<bool, LogError> {
        let _writing = lock(&self.writing);
        self.healthy()?;
        let mut moved = Vec::with_capacity(batch.writes.len());
        let written = self.commit("append", |out| {
            moved.clear();
            for part in batch.writes.iter().filter(|part| !part.is_empty()) {
                moved.push((part.group, self.encode(part, out)?));
            }
            Ok(())
        })?;
        if written {
            write(&self.spans).extend(moved);
        }
        Ok(written)
    }

    /// Returns an operation's result if the disk has not failed. Otherwise poisons the log.
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

    /// Adds a group's part to the batch. Returns the group's span after the write.
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
        // Fails only if the batch is too large for a record.
        out.add_entries::<Stored>(raw, &entries).map_err(|e| invalid(e.to_string()))?;
        if let Some(last) = part.entries.last() {
            span.last = last.index;
        }
        Ok(span)
    }

    /// Removes all entries of a group and keeps its records.
    ///
    /// Uses `Clean`, for two reasons. Without it raft-engine finds a hole before the next entries. And only `Clean` survives
    /// a purge: otherwise overwritten entries come back from the file that they were moved to. `Clean` removes the records
    /// too, so they are written again.
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

    /// The term of an entry that the span promises. Unlike [`term`](LogStore::term) it can be called under `writing`.
    fn stored_term(&self, group: GroupId, index: u64) -> Result<u64, LogError> {
        let detail = match self.read_entries(group, index..index.saturating_add(1), usize::MAX) {
            Ok(read) => match read.first() {
                Some(entry) => return Ok(entry.term),
                None => MISSING.into(),
            },
            Err(ReadFailure::Moved) => MISSING.into(),
            Err(ReadFailure::Broken(error)) => error.to_string(),
        };
        Err(LogError::Corrupt { place: format!("group {group}, index {index}"), detail })
    }

    /// Reads entries of a range that existed a moment ago.
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
                // raft-engine counts encoded bytes, slightly more than the payload, so one call may return too few. It
                // returns at least one entry, or none for a group that was removed meanwhile.
                let room = Some(bytes_max.saturating_sub(bytes));
                let (raw, end) = (group.as_u64(), range.end);
                if engine.fetch_entries_to::<Stored>(raw, next, end, room, &mut stored)? == 0 {
                    return Err(raft_engine::Error::EntryNotFound);
                }
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

/// The detail of an error about entries that the span promises.
const MISSING: &str = "entries are missing";

enum ReadFailure {
    /// The entries are gone: the log was truncated, replaced or removed meanwhile.
    Moved,
    Broken(LogReadError),
}

impl LogStore for RaftLog {
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        // Locked, so that it reads no half of a write.
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
        let mut seen = HashSet::with_capacity(batch.writes.len());
        for part in &batch.writes {
            if !seen.insert(part.group) {
                let detail = "the batch has two writes of this group".into();
                return Err(LogError::Invalid { group: part.group, detail });
            }
        }
        self.until_room(batch.payload_bytes(), || self.try_append(batch))?;
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
                // The write that removed them holds the lock until it has updated the span.
                drop(lock(&self.writing));
                check_range(self.span(group), range.start, range.end - 1)?;
                Err(unreadable(group, MISSING))
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
        self.compact_locked(group, through)
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.purge_files()
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        let mut groups: Vec<_> =
            self.spans.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        groups.sort_unstable();
        Ok(groups)
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        self.until_room(0, || {
            let _writing = lock(&self.writing);
            self.healthy()?;
            if self.span(group).is_none() {
                return Ok(true);
            }
            let written = self.commit("removal", |out| {
                out.add_command(group.as_u64(), Command::Clean);
                Ok(())
            })?;
            if written {
                write(&self.spans).remove(&group);
                lock(&self.put_off).remove(&group);
            }
            Ok(written)
        })
    }

    fn space(&self) -> io::Result<Option<DiskSpace>> {
        let free = self.disk.free_bytes(&self.dir)?;
        Ok(Some(DiskSpace { free, reserve: self.reserve_bytes }))
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

/// The bytes of moved records above which a purge may write the live ones again. At that size at most 40% of them are live,
/// see [`REWRITE_GARBAGE_RATIO`]. The live part itself has no bound: each group keeps its last entries there.
fn rewrite_bytes(config: &LogConfig) -> u64 {
    (config.purge_bytes.as_u64() / 10).max(config.file_bytes.as_u64())
}

/// See [`RaftLog`].
fn reserve_bytes(config: &LogConfig) -> u64 {
    config.file_bytes.as_u64().saturating_mul(2).saturating_add(rewrite_bytes(config))
}

/// Sets every option, so that no default of the library applies.
fn options(dir: &Path, config: &LogConfig) -> Result<raft_engine::Config, LogError> {
    let invalid = |what: &str| LogError::Io {
        during: "open",
        source: io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()),
    };
    if config.file_bytes == ByteSize::bytes(0) || config.purge_bytes < config.file_bytes {
        return Err(invalid("invalid `LogConfig`: file_bytes is zero, or purge_bytes is below file_bytes"));
    }
    Ok(raft_engine::Config {
        dir: dir.to_str().ok_or_else(|| invalid("the path is not UTF-8"))?.to_owned(),
        spill_dir: None,
        // `scan` has checked torn records before.
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_read_block_size: ReadableSize(RECOVERY_READ_BYTES),
        recovery_threads: RECOVERY_THREADS,
        // Commands are often compressed already, and the time of an append must not depend on their content.
        batch_compression_threshold: ReadableSize(0),
        compression_level: None,
        bytes_per_sync: None,
        format_version: Version::V2,
        target_file_size: ReadableSize(config.file_bytes.as_u64()),
        purge_threshold: ReadableSize(config.purge_bytes.as_u64()),
        purge_rewrite_threshold: Some(ReadableSize(rewrite_bytes(config))),
        purge_rewrite_garbage_ratio: REWRITE_GARBAGE_RATIO,
        memory_limit: None,
        // After a crash, recycled files keep old numbers, which looks like missing files.
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
            return Err(format!("entry {} where entry {expected} was expected", entry.index));
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

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
