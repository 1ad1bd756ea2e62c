//! The file system under the log: the real one, with six additions.
//!
//! * The first failed write or sync is the last operation that reaches the disk. The disk keeps it as the cause and refuses
//!   every later operation. The disk retries nothing: a retried fsync can report success for pages that the kernel dropped.
//!   raft-engine alone would retry on a full disk, and would panic on a failed sync, even in its drop.
//! * A `.rewrite` file is synced after each write. raft-engine alone would sync it once per purge. A crash could then lose
//!   a record and keep a later one, and the next start would take that for damage.
//! * The [list of log files](crate::log_manifest) learns which bytes are synced and which files are deleted.
//! * Calls that open a file use [reserved descriptors](crate::descriptors), and wait instead of failing without one.
//! * A write or a new file that finds the disk full fails nothing. See below.
//! * Tests can watch each operation and make it fail.
//!
//! # A full disk
//! A write or a creation without room has changed nothing that counts, so it can be repeated. A sync without room cannot: it
//! leaves unknown what is durable, and fails the disk.
//!
//! * In the append queue, raft-engine learns that there is no room. It cuts the file back to its last record, and keeps its
//!   memory as it was. The log repeats the whole write. Meanwhile it holds no lock, so purges can make room.
//! * In the rewrite queue, raft-engine must not learn it: a purge that fails midway loses the deletions that it has taken out
//!   of memory. The operation is repeated until there is room. Meanwhile its thread [serves reads](crate::reader::pause).
//! * The list of log files stays behind, and the next purge writes it. It then names shorter files than there are, so the log
//!   can be opened.
//! * While the log opens, a full disk is an error. An existing log opens without writing anything.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

use crate::descriptors::{Reserve, is_shortage, is_shortage_panic};
use crate::log_manifest::{LogManifest, Queue};
use crate::reader;
use crate::replace::sync_dir;
use crate::scan::FILE_HEADER_BYTES;
use crate::sync::lock;

/// The pause between two tries on a full disk.
const RETRY: Duration = Duration::from_millis(20);
/// Pauses after which an append is tried again, whatever the file system says about its free space.
const PAUSES_MAX: u32 = 25;

type RealHandle = <DefaultFileSystem as FileSystem>::Handle;
type RealReader = <DefaultFileSystem as FileSystem>::Reader;
type RealWriter = <DefaultFileSystem as FileSystem>::Writer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Delete,
    Rename,
    Truncate,
    Write,
    Sync,
}

impl Op {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Rename => "rename",
            Self::Truncate => "truncate",
            Self::Write => "write",
            Self::Sync => "sync",
        }
    }
}

/// Sees every operation before it happens, and can make it fail.
pub(crate) trait Hook: Send + Sync {
    fn before(&self, op: Op, path: &Path) -> io::Result<()>;

    fn after(&self, _: Op, _: &Path) {}

    /// How many bytes of a write fit on the disk.
    fn room(&self, _: &Path, bytes: usize) -> usize {
        bytes
    }

    /// Free bytes to report instead of those of the file system.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) during: &'static str,
    pub(crate) source: io::Error,
}

#[derive(Default)]
struct DiskState {
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
    /// Set once the log is open.
    manifest: OnceLock<LogManifest>,
    hook: Option<Arc<dyn Hook>>,
    reserve: Reserve,
    /// Set once the log is open: only then an operation may wait for room.
    opened: AtomicBool,
    /// Pauses for room so far, and operations that wait for it now.
    space_waits: AtomicU64,
    waiting: AtomicUsize,
    purge_waits: AtomicBool,
}

impl DiskState {
    fn run<T>(&self, op: Op, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = self.attempt(op, path, act);
        self.note(op, done)
    }

    /// Runs an operation whose failure does not yet fail the disk.
    fn attempt<T>(&self, op: Op, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier disk operation failed"));
        }
        match &self.hook {
            None => act(),
            Some(hook) => hook.before(op, path).and_then(|()| act()).inspect(|_| hook.after(op, path)),
        }
    }

    /// Fails the disk if `result` is an error, and keeps the first one.
    fn note<T>(&self, op: Op, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|source| {
            // Without the original text: raft-engine would recognize a full disk and continue in another file.
            let shown = io::Error::from(source.kind());
            let mut first = lock(&self.failure);
            if !self.failed.swap(true, Ordering::AcqRel) {
                *first = Some(Failure { during: op.as_str(), source });
            }
            shown
        })
    }

    /// Runs a write or a creation of a log file. See [a full disk](self#a-full-disk).
    fn run_with_room<T>(&self, op: Op, path: &Path, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut wait = None;
        let done = loop {
            let done = self.attempt(op, path, &mut act);
            let full = done.as_ref().err().filter(|error| is_full(error)).map(io::Error::kind);
            let Some(kind) = full.filter(|_| self.opened.load(Ordering::Acquire)) else { break done };
            if Queue::of(path).is_none_or(|(queue, _)| queue != Queue::Rewrite) {
                // Without the original text, as in `note`.
                return Err(kind.into());
            }
            wait.get_or_insert_with(|| RoomWait::begin(self, path));
            self.purge_waits.store(true, Ordering::Release);
            if !self.pause() {
                break done;
            }
        };
        if wait.is_some() {
            self.purge_waits.store(false, Ordering::Release);
        }
        self.note(op, done)
    }

    /// Pauses before the next try on a full disk. `false`: the log closes.
    fn pause(&self) -> bool {
        self.space_waits.fetch_add(1, Ordering::Relaxed);
        reader::pause(RETRY)
    }

    /// Brings the list of log files up to date, unless the disk is full.
    fn store_manifest(&self, manifest: &LogManifest) -> io::Result<()> {
        match self.try_store_manifest(manifest) {
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the list of log files is not brought up to date: the disk is full");
                Ok(())
            }
            stored => self.note(Op::Rename, stored),
        }
    }

    fn try_store_manifest(&self, manifest: &LogManifest) -> io::Result<()> {
        let store = || self.reserve.run(manifest.path(), || manifest.store());
        self.attempt(Op::Rename, manifest.path(), store)
    }

    /// Hides a failure that raft-engine would retry, or answer with a panic. The log checks [`Disk::failed`] before it
    /// acknowledges a write.
    fn run_quietly(&self, op: Op, path: &Path, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.run(op, path, act).is_err() {
            tracing::error!(op = op.as_str(), file = %path.display(), "log disk operation failed or refused");
        }
        Ok(())
    }
}

/// Whether an operation failed because the disk, or the quota of its owner, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The free bytes of the file system of `dir`.
pub(crate) fn free_bytes(hook: Option<&dyn Hook>, dir: &Path) -> io::Result<u64> {
    hook.and_then(Hook::free_bytes).map_or_else(|| fs4::available_space(dir), Ok)
}

/// An operation that waits for room. The first one is logged when it begins, the last one when it ends.
struct RoomWait<'a> {
    disk: &'a DiskState,
}

impl<'a> RoomWait<'a> {
    fn begin(disk: &'a DiskState, path: &Path) -> Self {
        if disk.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            tracing::error!(path = %path.display(), "the log waits for room on its disk");
        }
        Self { disk }
    }
}

impl Drop for RoomWait<'_> {
    fn drop(&mut self) {
        if self.disk.waiting.fetch_sub(1, Ordering::AcqRel) == 1 && !self.disk.failed.load(Ordering::Acquire)
        {
            tracing::info!("the log has room on its disk again");
        }
    }
}

/// The file system of one log: see the [module](self).
#[derive(Clone)]
pub(crate) struct Disk {
    real: Arc<DefaultFileSystem>,
    shared: Arc<DiskState>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("failed", &self.failed()).finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::with_hook(None)
    }

    pub(crate) fn with_hook(hook: Option<Arc<dyn Hook>>) -> Self {
        Self {
            real: Arc::new(DefaultFileSystem),
            shared: Arc::new(DiskState { hook, ..DiskState::default() }),
        }
    }

    /// Whether a write, a sync or a change of a directory has failed.
    pub(crate) fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Returns the first failure, once.
    pub(crate) fn take_failure(&self) -> Option<Failure> {
        lock(&self.shared.failure).take()
    }

    /// The log in `dir` is open. From now on it holds file descriptors, and operations wait for descriptors and for room.
    pub(crate) fn opened(&self, dir: &Path) {
        self.shared.reserve.fill(dir);
        self.shared.opened.store(true, Ordering::Release);
    }

    /// The free bytes of the file system of `dir`.
    pub(crate) fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        free_bytes(self.shared.hook.as_deref(), dir)
    }

    pub(crate) fn space_waits(&self) -> u64 {
        self.shared.space_waits.load(Ordering::Relaxed)
    }

    /// Repeats `write` of about `bytes` to the log in `dir` until it returns `true`: `false` means that there was no room.
    pub(crate) fn until_room<E>(
        &self,
        dir: &Path,
        bytes: u64,
        mut write: impl FnMut() -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut wait = None;
        // Repeating a large write costs more than asking the file system. It knows nothing of a quota.
        let mut asks = true;
        while !write()? {
            wait.get_or_insert_with(|| RoomWait::begin(&self.shared, dir));
            for _ in 0..PAUSES_MAX {
                self.shared.pause();
                if asks && self.free_bytes(dir).is_ok_and(|free| free > bytes) {
                    asks = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The number of files of the append queue, and their durable bytes.
    pub(crate) fn append_queue(&self) -> (u64, u64) {
        self.shared.manifest.get().map_or((0, 0), |manifest| manifest.sum(Queue::Append))
    }

    /// Whether a purge waits for room.
    pub(crate) fn purge_waits(&self) -> bool {
        self.shared.purge_waits.load(Ordering::Acquire)
    }

    pub(crate) fn descriptor_waits(&self) -> u64 {
        self.shared.reserve.waits()
    }

    /// Whether raft-engine panicked because it could not open the directory of a new log file, and nothing else failed. If
    /// so, pauses before a retry.
    pub(crate) fn lost_descriptors(&self, panic: &str) -> bool {
        let lost = !self.failed() && is_shortage_panic(panic);
        if lost {
            self.shared.reserve.lost();
        }
        lost
    }

    pub(crate) fn purged(&self) {
        self.shared.reserve.take_back();
    }

    pub(crate) fn sync(&self, path: &Path) -> io::Result<()> {
        let synced = self.shared.run(Op::Sync, path, || File::open(path)?.sync_all());
        synced.map_err(|shown| self.take_failure().map_or(shown, |failure| failure.source))
    }

    /// Removes a file while the log opens.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.shared.run(Op::Delete, path, || std::fs::remove_file(path));
        removed.map_err(|shown| self.take_failure().map_or(shown, |failure| failure.source))
    }

    /// Starts to keep the list of log files, and writes it if it is behind.
    pub(crate) fn keep_manifest(&self, manifest: LogManifest) -> io::Result<()> {
        let _ = self.shared.manifest.get_or_init(|| manifest);
        self.checkpoint()
    }

    /// Writes the current file lengths into the list of log files. Call it without an unsynced write under way.
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        match self.shared.manifest.get().filter(|manifest| manifest.is_behind()) {
            Some(manifest) => self.shared.store_manifest(manifest),
            None => Ok(()),
        }
    }

    /// Creates a file. raft-engine drops the system's error number, so opening the directory shows whether descriptors ran out.
    fn create_file(&self, path: &Path) -> io::Result<RealHandle> {
        self.real.create(path).or_else(|error| match path.parent().map(File::open) {
            Some(Err(shortage)) if is_shortage(&shortage) => Err(shortage),
            // A descriptor may be free now.
            Some(Ok(_)) => self.real.create(path),
            _ => Err(error),
        })
    }

    fn file(&self, real: RealHandle, path: &Path) -> DiskFile {
        DiskFile {
            real: Arc::new(real),
            path: path.into(),
            written: AtomicU64::new(0),
            gave_up: AtomicBool::new(false),
            shared: self.shared.clone(),
        }
    }
}

impl FileSystem for Disk {
    type Handle = DiskFile;
    type Reader = RealReader;
    type Writer = DiskWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<DiskFile> {
        let path = path.as_ref();
        let create = || self.shared.reserve.run(path, || self.create_file(path));
        let real = self.shared.run_with_room(Op::Create, path, create)?;
        Ok(self.file(real, path))
    }

    fn open<P: AsRef<Path>>(&self, path: P, perm: Permission) -> io::Result<DiskFile> {
        let path = path.as_ref();
        let real = self.real.open(path, perm)?;
        Ok(self.file(real, path))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let path = path.as_ref();
        if let Some(manifest) = self.shared.manifest.get()
            && manifest.forget(path)
        {
            match self.shared.try_store_manifest(manifest) {
                // The deletion makes room, so it must not need any. Until the next checkpoint there is no list, as in
                // directories of the first releases.
                Err(error) if is_full(&error) => {
                    self.shared.run(Op::Delete, manifest.path(), || manifest.remove())?;
                }
                stored => self.shared.note(Op::Rename, stored)?,
            }
        }
        self.shared.run(Op::Delete, path, || self.real.delete(path))
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        self.shared.run(Op::Rename, to, || self.real.rename(from, to))
    }

    fn new_reader(&self, handle: Arc<DiskFile>) -> io::Result<RealReader> {
        self.real.new_reader(handle.real.clone())
    }

    fn new_writer(&self, handle: Arc<DiskFile>) -> io::Result<DiskWriter> {
        let sync_each = handle.path.extension().is_some_and(|e| e == "rewrite");
        Ok(DiskWriter { real: self.real.new_writer(handle.real.clone())?, file: handle, at: 0, sync_each })
    }
}

pub(crate) struct DiskFile {
    real: Arc<RealHandle>,
    path: PathBuf,
    /// The end of the last write.
    written: AtomicU64,
    /// Whether this new file has freed the reserved descriptors: a write that waits for room syncs it again and again.
    gave_up: AtomicBool,
    shared: Arc<DiskState>,
}

impl Handle for DiskFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.shared.run(Op::Truncate, &self.path, || Handle::truncate(&*self.real, offset))
    }

    fn file_size(&self) -> io::Result<usize> {
        self.real.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        let written = self.written.load(Ordering::Acquire);
        self.shared.run_quietly(Op::Sync, &self.path, || self.real.sync())?;
        let Some(manifest) = self.shared.manifest.get() else { return Ok(()) };
        if written == 0 || self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        if manifest.synced(&self.path, written) {
            // Failures are kept for the next write. The new name must be durable before the list has it.
            let sync_name = || self.path.parent().map_or(Ok(()), sync_dir);
            let named = self.shared.note(Op::Sync, self.shared.reserve.run(&self.path, sync_name));
            let _ = named.and_then(|()| self.shared.store_manifest(manifest));
        }
        if written == FILE_HEADER_BYTES as u64 && !self.gave_up.swap(true, Ordering::AcqRel) {
            // raft-engine opens the directory of a new file next, and panics if it cannot.
            self.shared.reserve.give_up(&self.path);
        }
        Ok(())
    }
}

pub(crate) struct DiskWriter {
    real: RealWriter,
    file: Arc<DiskFile>,
    at: u64,
    sync_each: bool,
}

impl Write for DiskWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (real, file) = (&mut self.real, &self.file);
        file.shared.reserve.refill(&file.path);
        let mut written = 0;
        // Whole, also after a pause: the list of log files must never name a part of a record.
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            written += file.shared.run_with_room(Op::Write, &file.path, || {
                let room =
                    file.shared.hook.as_ref().map_or(rest.len(), |hook| hook.room(&file.path, rest.len()));
                match rest.get(..room) {
                    Some([]) => Err(io::ErrorKind::StorageFull.into()),
                    part => match real.write(part.unwrap_or(rest))? {
                        0 => Err(io::ErrorKind::WriteZero.into()),
                        count => Ok(count),
                    },
                }
            })?;
        }
        self.at = self.at.saturating_add(written as u64);
        file.written.store(self.at, Ordering::Release);
        if self.sync_each {
            file.sync()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.real.flush()
    }
}

impl Read for DiskWriter {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.real.read(out)
    }
}

impl Seek for DiskWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.real.seek(to)?;
        Ok(self.at)
    }
}

impl WriteExt for DiskWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        let (real, file) = (&mut self.real, &self.file);
        file.shared.run_quietly(Op::Truncate, &file.path, || real.truncate(offset))
    }

    // Only a hint: on a full disk the next write finds no room.
    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        if self.file.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.real.allocate(offset, size).or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) })
    }
}
