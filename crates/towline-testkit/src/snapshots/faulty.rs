use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    BodyPart, ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError,
    SnapshotWriter, Trailer,
};

use crate::sync::{lock, wait_until, wait_while};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// An operation that is counted, and can be held or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotOp {
    /// [`SnapshotStore::create`].
    Create,
    /// [`SnapshotStore::receive`].
    Receive,
    /// One piece of a partial file that [`SnapshotStore::receive_while`] has read again.
    Reread,
    /// One call of a writer's `write`, `write_part` or `flush`.
    Write,
    /// [`SnapshotWriter::verify`].
    Verify,
    /// [`SnapshotWriter::commit`].
    Commit,
    /// One call of a reader's `next_part`.
    Read,
}

/// A wrapper of any [`SnapshotStore`] that fails or blocks on request. Clones share one plan.
///
/// ```
/// use std::io::Write;
/// use std::sync::Arc;
/// use towline_engine::snapshot_store::SnapshotStore;
/// use towline_testkit::snapshots::{FaultySnapshots, MemSnapshots};
///
/// let store = FaultySnapshots::new(Arc::new(MemSnapshots::new()));
/// store.full_at(Some(3));
/// let head = towline_testkit::suites::snapshot_store::head(7);
/// let mut writer = store.create(&head).unwrap();
/// assert!(writer.write(b"one").is_ok());
/// assert!(writer.write(b"two").is_err());
/// ```
#[derive(Clone)]
pub struct FaultySnapshots {
    inner: Arc<dyn SnapshotStore>,
    plan: Arc<SnapshotPlan>,
}

impl std::fmt::Debug for FaultySnapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultySnapshots").field("plan", &self.plan).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct SnapshotPlan {
    state: Mutex<SnapshotPlanState>,
    gates: Condvar,
}

#[derive(Debug, Default)]
struct SnapshotPlanState {
    done: BTreeMap<SnapshotOp, u64>,
    /// Where the disk is full for each body.
    full_at: Option<u64>,
    /// The byte of a body whose bit is flipped, once.
    flip_at: Option<u64>,
    open_fails: bool,
    slow: BTreeMap<SnapshotOp, Duration>,
    closed: BTreeMap<SnapshotOp, usize>,
    held: BTreeMap<SnapshotOp, usize>,
}

impl FaultySnapshots {
    /// Wraps a store, without faults at first.
    pub fn new(inner: Arc<dyn SnapshotStore>) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// Makes every write beyond byte `offset` of a body find the disk full, which removes the file. `None` clears the
    /// fault.
    pub fn full_at(&self, offset: Option<u64>) {
        self.plan.lock().full_at = offset;
    }

    /// Flips a bit in the next byte that is written at `offset` of a body.
    pub fn flip_at(&self, offset: u64) {
        self.plan.lock().flip_at = Some(offset);
    }

    /// Makes the next [`SnapshotStore::open`] fail with EIO.
    pub fn fail_open(&self) {
        self.plan.lock().open_fails = true;
    }

    /// The number of operations of a kind so far, with failed and held ones.
    pub fn count(&self, op: SnapshotOp) -> u64 {
        self.plan.lock().done.get(&op).copied().unwrap_or(0)
    }

    /// Delays every operation of a kind by `by`, as a slow disk would.
    pub fn slow(&self, op: SnapshotOp, by: Duration) {
        self.plan.lock().slow.insert(op, by);
    }

    /// Holds every operation of a kind at its start while the gate exists.
    pub fn hold(&self, op: SnapshotOp) -> SnapshotGate {
        *self.plan.lock().closed.entry(op).or_default() += 1;
        SnapshotGate { plan: self.plan.clone(), op }
    }
}

/// See [`FaultySnapshots::hold`]. Dropping it resumes the held operations.
#[derive(Debug)]
pub struct SnapshotGate {
    plan: Arc<SnapshotPlan>,
    op: SnapshotOp,
}

impl SnapshotGate {
    /// Waits until an operation is held; `false` if that takes longer than `deadline`.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        let is_held = |state: &SnapshotPlanState| state.held.get(&self.op).is_some_and(|&held| held > 0);
        wait_until(&self.plan.gates, &self.plan.state, deadline, is_held)
    }
}

impl Drop for SnapshotGate {
    fn drop(&mut self) {
        if let Some(closed) = self.plan.lock().closed.get_mut(&self.op) {
            *closed -= 1;
        }
        self.plan.gates.notify_all();
    }
}

impl SnapshotPlan {
    fn lock(&self) -> MutexGuard<'_, SnapshotPlanState> {
        lock(&self.state)
    }

    /// Counts an operation and waits at its gate.
    fn begin(&self, op: SnapshotOp) {
        let mut state = self.lock();
        *state.done.entry(op).or_default() += 1;
        let is_closed =
            |state: &mut SnapshotPlanState| state.closed.get(&op).is_some_and(|&closed| closed > 0);
        if is_closed(&mut state) {
            *state.held.entry(op).or_default() += 1;
            self.gates.notify_all();
            state = wait_while(&self.gates, state, is_closed);
            if let Some(held) = state.held.get_mut(&op) {
                *held -= 1;
            }
        }
        let slow = state.slow.get(&op).copied();
        drop(state);
        if let Some(slow) = slow {
            std::thread::sleep(slow); // not synchronisation: the disk is slow
        }
    }

    /// How many of `bytes` bytes from `at` on are written before a fault.
    fn room(&self, at: u64, bytes: usize) -> usize {
        let state = self.lock();
        let flip_at = state.flip_at.filter(|flip_at| *flip_at >= at);
        let next = state.full_at.into_iter().chain(flip_at).min().unwrap_or(u64::MAX);
        usize::try_from(next.saturating_sub(at)).map_or(bytes, |room| room.min(bytes))
    }

    fn is_full(&self, at: u64) -> bool {
        self.lock().full_at.is_some_and(|full_at| full_at <= at)
    }
}

impl SnapshotStore for FaultySnapshots {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        self.inner.complete(group)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        self.inner.find(group, content)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.plan.begin(SnapshotOp::Create);
        Ok(FaultyWriter::over(self.inner.create(head)?, &self.plan))
    }

    fn check_room(&self, bytes: u64) -> Result<(), SnapshotStoreError> {
        self.inner.check_room(bytes)
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.plan.begin(SnapshotOp::Receive);
        let inner = self.inner.receive_while(meta, &mut |held| {
            self.plan.begin(SnapshotOp::Reread);
            goes_on(held)
        })?;
        Ok(FaultyWriter::over(inner, &self.plan))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        if std::mem::take(&mut self.plan.lock().open_fails) {
            return Err(SnapshotStoreError::Io { during: "open", source: io::Error::from_raw_os_error(EIO) });
        }
        Ok(Box::new(FaultyReader { inner: self.inner.open(meta, offset)?, plan: self.plan.clone() }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        self.inner.retain(group, keep)
    }
}

fn failed_before() -> io::Error {
    io::Error::other("the snapshot file failed before")
}

struct FaultyWriter {
    /// `None` once the disk was full.
    inner: Option<Box<dyn SnapshotWriter>>,
    plan: Arc<SnapshotPlan>,
    /// Bytes of the body so far, with those of an earlier transfer.
    at: u64,
    verified: u64,
}

impl FaultyWriter {
    fn over(inner: Box<dyn SnapshotWriter>, plan: &Arc<SnapshotPlan>) -> Box<dyn SnapshotWriter> {
        let verified = inner.verified();
        Box::new(Self { inner: Some(inner), plan: plan.clone(), at: verified, verified })
    }

    fn inner(&mut self) -> io::Result<&mut dyn SnapshotWriter> {
        match &mut self.inner {
            Some(inner) => Ok(&mut **inner),
            None => Err(failed_before()),
        }
    }

    /// Notes that `bytes` more bytes are written.
    fn advance(&mut self, bytes: usize) -> io::Result<()> {
        self.at += bytes as u64;
        self.verified = self.inner()?.verified();
        Ok(())
    }
}

impl Write for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.plan.begin(SnapshotOp::Write);
        let room = self.plan.room(self.at, bytes.len());
        let taken = match bytes {
            [_, ..] if room == 0 && self.plan.is_full(self.at) => {
                if let Some(inner) = self.inner.take() {
                    inner.discard();
                }
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
            [first, ..] if room == 0 => {
                self.plan.lock().flip_at = None;
                self.inner()?.write(&[first ^ 1])?
            }
            _ => self.inner()?.write(bytes.get(..room).unwrap_or(bytes))?,
        };
        self.advance(taken)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.plan.begin(SnapshotOp::Write);
        self.inner()?.flush()?;
        self.advance(0)
    }
}

impl SnapshotWriter for FaultyWriter {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        if self.plan.room(self.at, bytes.len()) == bytes.len() {
            self.plan.begin(SnapshotOp::Write);
            self.inner()?.write_part(bytes, crc32c)?;
            return self.advance(bytes.len());
        }
        // A fault of the disk comes after the check.
        if crc32c::crc32c(bytes) != crc32c {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
        }
        self.write_all(bytes)
    }

    fn verified(&self) -> u64 {
        self.verified
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        self.plan.begin(SnapshotOp::Verify);
        let during = "verification";
        self.inner().map_err(|source| SnapshotStoreError::Io { during, source })?.verify(expected)
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        self.plan.begin(SnapshotOp::Commit);
        match self.inner.take() {
            Some(inner) => inner.commit(),
            None => Err(SnapshotStoreError::Io { during: "commit", source: failed_before() }),
        }
    }

    fn discard(mut self: Box<Self>) {
        if let Some(inner) = self.inner.take() {
            inner.discard();
        }
    }
}

struct FaultyReader {
    inner: Box<dyn SnapshotReader>,
    plan: Arc<SnapshotPlan>,
}

impl SnapshotReader for FaultyReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        self.plan.begin(SnapshotOp::Read);
        self.inner.next_part(bytes_max)
    }
}
