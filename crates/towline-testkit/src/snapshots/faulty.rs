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

/// An operation that can fail or be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotOp {
    /// [`SnapshotStore::complete`], [`SnapshotStore::latest`] and [`SnapshotStore::find`].
    Look,
    /// [`SnapshotStore::create`].
    Create,
    /// [`SnapshotStore::receive`].
    Receive,
    /// One piece of a partial file that [`SnapshotStore::receive_while`] has read again. It cannot fail.
    Reread,
    /// One call of a writer's `write`, `write_part` or `flush`.
    Write,
    /// [`SnapshotWriter::verify`].
    Verify,
    /// [`SnapshotWriter::commit`].
    Commit,
    /// [`SnapshotStore::open`].
    Open,
    /// One call of a reader's `next_part`.
    Read,
    /// [`SnapshotStore::retain`].
    Retain,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// The disk is full: the operation does nothing, and the writer's file is removed.
    DiskFull,
    /// EIO: the operation does nothing, and the writer's file is removed.
    Eio,
    /// Corruption: a write flips one bit, a read fails with [`io::ErrorKind::InvalidData`], any other operation with
    /// [`SnapshotStoreError::Corrupt`].
    Corrupt,
    /// The operation panics.
    Panic,
    /// The operation succeeds and returns EIO, like a commit whose sync of the directory failed.
    AnswerLost,
}

/// A wrapper of any [`SnapshotStore`] that fails, panics or blocks on request. Clones share one plan.
///
/// ```
/// use std::io::Write;
/// use std::sync::Arc;
/// use towline_engine::snapshot_store::SnapshotStore;
/// use towline_testkit::snapshots::{FaultySnapshots, MemSnapshots, SnapshotFault, SnapshotOp};
///
/// let store = FaultySnapshots::new(Arc::new(MemSnapshots::new()));
/// store.fail(SnapshotOp::Write, 2, SnapshotFault::DiskFull);
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
    faults: BTreeMap<(SnapshotOp, u64), SnapshotFault>,
    /// By the byte of a body at which the fault happens, once.
    at_byte: BTreeMap<(SnapshotOp, u64), SnapshotFault>,
    /// Where the disk is full for each body.
    full_at: Option<u64>,
    slow: BTreeMap<SnapshotOp, Duration>,
    closed: BTreeMap<SnapshotOp, usize>,
    held: BTreeMap<SnapshotOp, usize>,
}

impl FaultySnapshots {
    /// Wraps a store, without faults at first.
    pub fn new(inner: Arc<dyn SnapshotStore>) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// Makes operation `number` of a kind fail, counted from 1 since the creation of the wrapper.
    pub fn fail(&self, op: SnapshotOp, number: u64, fault: SnapshotFault) {
        self.plan.lock().faults.insert((op, number), fault);
    }

    /// Makes the next operation of a kind fail.
    pub fn fail_next(&self, op: SnapshotOp, fault: SnapshotFault) {
        let mut plan = self.plan.lock();
        let number = plan.done.get(&op).map_or(1, |done| done + 1);
        plan.faults.insert((op, number), fault);
    }

    /// Makes the next write that reaches byte `offset` of a body fail. It takes the bytes before.
    pub fn fail_write_at(&self, offset: u64, fault: SnapshotFault) {
        self.plan.lock().at_byte.insert((SnapshotOp::Write, offset), fault);
    }

    /// Makes every write beyond byte `offset` of a body find the disk full. `None` clears the fault.
    pub fn full_at(&self, offset: Option<u64>) {
        self.plan.lock().full_at = offset;
    }

    /// Makes the next read that reaches byte `offset` of a body fail. It gives the bytes before.
    pub fn fail_read_at(&self, offset: u64, fault: SnapshotFault) {
        self.plan.lock().at_byte.insert((SnapshotOp::Read, offset), fault);
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

    /// Counts an operation, waits at its gate and returns its fault.
    fn begin(&self, op: SnapshotOp) -> Option<SnapshotFault> {
        let mut state = self.lock();
        let done = state.done.entry(op).or_default();
        *done += 1;
        let number = *done;
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
        let fault = state.faults.remove(&(op, number));
        let slow = state.slow.get(&op).copied();
        drop(state);
        if let Some(slow) = slow {
            std::thread::sleep(slow); // not synchronisation: the disk is slow
        }
        assert!(fault != Some(SnapshotFault::Panic), "{op:?} {number} panics on request");
        fault
    }

    /// How many of `bytes` bytes from `at` on pass, and the fault behind them.
    fn reach(&self, op: SnapshotOp, at: u64, bytes: usize) -> (usize, Option<SnapshotFault>) {
        let mut state = self.lock();
        let end = at.saturating_add(bytes as u64);
        if let Some(full_at) = state.full_at.filter(|&full_at| op == SnapshotOp::Write && full_at < end) {
            return match usize::try_from(full_at.saturating_sub(at)) {
                Ok(room) if room > 0 => (room, None),
                _ => (bytes, Some(SnapshotFault::DiskFull)),
            };
        }
        let next =
            state.at_byte.range((op, at)..(op, end)).next().map(|(&(_, offset), &fault)| (offset, fault));
        let Some((offset, fault)) = next else { return (bytes, None) };
        if offset > at {
            return (usize::try_from(offset - at).unwrap_or(bytes), None);
        }
        state.at_byte.remove(&(op, offset));
        drop(state);
        assert!(fault != SnapshotFault::Panic, "{op:?} at byte {offset} panics on request");
        (bytes, Some(fault))
    }
}

fn io_error(fault: SnapshotFault) -> io::Error {
    match fault {
        SnapshotFault::DiskFull => io::Error::from_raw_os_error(ENOSPC),
        SnapshotFault::Corrupt => io::Error::new(io::ErrorKind::InvalidData, "corrupt on request"),
        _ => io::Error::from_raw_os_error(EIO),
    }
}

fn store_error(fault: SnapshotFault, during: &'static str, content: ContentId) -> SnapshotStoreError {
    match fault {
        SnapshotFault::Corrupt => {
            SnapshotStoreError::Corrupt { content, detail: "corrupt on request".into() }
        }
        fault => SnapshotStoreError::Io { during, source: io_error(fault) },
    }
}

/// Runs `act` as the plan says.
fn run<T>(
    plan: &SnapshotPlan,
    op: SnapshotOp,
    during: &'static str,
    content: ContentId,
    act: impl FnOnce() -> Result<T, SnapshotStoreError>,
) -> Result<T, SnapshotStoreError> {
    match plan.begin(op) {
        None => act(),
        Some(SnapshotFault::AnswerLost) => {
            act()?;
            Err(store_error(SnapshotFault::AnswerLost, during, content))
        }
        Some(fault) => Err(store_error(fault, during, content)),
    }
}

/// For operations that concern no snapshot.
const NO_CONTENT: ContentId = ContentId([0; 16]);

impl SnapshotStore for FaultySnapshots {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        run(&self.plan, SnapshotOp::Look, "complete", NO_CONTENT, || self.inner.complete(group))
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        run(&self.plan, SnapshotOp::Look, "find", content, || self.inner.find(group, content))
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let inner = run(&self.plan, SnapshotOp::Create, "create", NO_CONTENT, || self.inner.create(head))?;
        Ok(Box::new(FaultyWriter::new(inner, self.plan.clone(), NO_CONTENT)))
    }

    fn check_room(&self, bytes: u64) -> Result<(), SnapshotStoreError> {
        self.inner.check_room(bytes)
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let content = meta.content;
        let mut reread = |held| {
            self.plan.begin(SnapshotOp::Reread);
            goes_on(held)
        };
        let inner = run(&self.plan, SnapshotOp::Receive, "receive", content, || {
            self.inner.receive_while(meta, &mut reread)
        })?;
        Ok(Box::new(FaultyWriter::new(inner, self.plan.clone(), content)))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let inner =
            run(&self.plan, SnapshotOp::Open, "open", meta.content, || self.inner.open(meta, offset))?;
        Ok(Box::new(FaultyReader { inner, plan: self.plan.clone(), at: offset, broken: false }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        run(&self.plan, SnapshotOp::Retain, "retain", NO_CONTENT, || self.inner.retain(group, keep))
    }
}

struct FaultyWriter {
    /// `None` once the disk failed.
    inner: Option<Box<dyn SnapshotWriter>>,
    plan: Arc<SnapshotPlan>,
    content: ContentId,
    /// Bytes of the body so far, with those of an earlier transfer.
    at: u64,
    verified: u64,
}

impl FaultyWriter {
    fn new(inner: Box<dyn SnapshotWriter>, plan: Arc<SnapshotPlan>, content: ContentId) -> Self {
        let verified = inner.verified();
        Self { inner: Some(inner), plan, content, at: verified, verified }
    }

    /// Removes the file, as a failing disk does.
    fn broken(&mut self, fault: SnapshotFault) -> io::Error {
        if let Some(inner) = self.inner.take() {
            inner.discard();
        }
        io_error(fault)
    }

    fn inner(&mut self) -> io::Result<&mut dyn SnapshotWriter> {
        match &mut self.inner {
            Some(inner) => Ok(&mut **inner),
            None => Err(io::Error::other("the snapshot file failed before")),
        }
    }

    /// How many of these bytes pass, and the fault.
    fn fate(&self, bytes: &[u8]) -> (usize, Option<SnapshotFault>) {
        let by_number = self.plan.begin(SnapshotOp::Write);
        let (room, by_byte) = self.plan.reach(SnapshotOp::Write, self.at, bytes.len());
        (room, by_number.or(by_byte))
    }

    fn write_as(&mut self, (room, fault): (usize, Option<SnapshotFault>), bytes: &[u8]) -> io::Result<usize> {
        let room = bytes.get(..room).unwrap_or(bytes);
        let taken = match fault {
            None => self.inner()?.write(room)?,
            Some(SnapshotFault::Corrupt) => {
                let mut flipped = room.to_vec();
                if let Some(byte) = flipped.first_mut() {
                    *byte ^= 1;
                }
                self.inner()?.write(&flipped)?
            }
            Some(fault) => return Err(self.broken(fault)),
        };
        self.at += taken as u64;
        self.verified = self.inner()?.verified();
        Ok(taken)
    }
}

impl Write for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_as(self.fate(bytes), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(fault) = self.plan.begin(SnapshotOp::Write) {
            return Err(self.broken(fault));
        }
        self.inner()?.flush()?;
        self.verified = self.inner()?.verified();
        Ok(())
    }
}

impl SnapshotWriter for FaultyWriter {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        let fate = self.fate(bytes);
        if fate == (bytes.len(), None) {
            self.inner()?.write_part(bytes, crc32c)?;
            self.at += bytes.len() as u64;
            self.verified = self.inner()?.verified();
            return Ok(());
        }
        // A fault of the disk comes after the check.
        if crc32c::crc32c(bytes) != crc32c {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
        }
        let taken = self.write_as(fate, bytes)?;
        self.write_all(bytes.get(taken..).unwrap_or_default())
    }

    fn verified(&self) -> u64 {
        self.verified
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        let during = "verification";
        if let Some(fault) = self.plan.begin(SnapshotOp::Verify) {
            self.broken(fault);
            return Err(store_error(fault, during, self.content));
        }
        let inner = self.inner().map_err(|source| SnapshotStoreError::Io { during, source })?;
        inner.verify(expected)
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        let during = "commit";
        let fault = self.plan.begin(SnapshotOp::Commit);
        if let Some(fault) = fault.filter(|&fault| fault != SnapshotFault::AnswerLost) {
            self.broken(fault);
            return Err(store_error(fault, during, self.content));
        }
        let Some(inner) = self.inner.take() else {
            let source = io::Error::other("the snapshot file failed before");
            return Err(SnapshotStoreError::Io { during, source });
        };
        let meta = inner.commit()?;
        match fault {
            None => Ok(meta),
            Some(fault) => Err(store_error(fault, during, meta.content)),
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
    at: u64,
    broken: bool,
}

impl SnapshotReader for FaultyReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        let by_number = self.plan.begin(SnapshotOp::Read);
        let (room, by_byte) = self.plan.reach(SnapshotOp::Read, self.at, bytes_max.max(1));
        if let Some(fault) = by_number.or(by_byte) {
            self.broken = true;
            return Err(io_error(fault));
        }
        if self.broken {
            return Err(io::Error::other("an earlier read failed"));
        }
        let part = self.inner.next_part(room)?;
        self.at += part.as_ref().map_or(0, |part| part.bytes.len() as u64);
        Ok(part)
    }
}
