use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use towline_engine::ids::GroupId;
use towline_engine::log_store::{DiskSpace, LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::Entry;

use super::image::LogImage;
use crate::sync::{lock, wait_until, wait_while};

/// What a failing append leaves on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFault {
    /// Nothing.
    BeforeDurable,
    /// The whole write, although the answer is an error.
    AfterDurable,
}

/// A [`LogStore`] in memory. Clones share one log.
///
/// An append is visible to reads at once, and durable when it returns. [`crash`](Self::crash) gives what a power loss
/// leaves. A removal is durable at once, a compaction with the next append.
#[derive(Debug, Clone, Default)]
pub struct MemLog {
    shared: Arc<LogShared>,
}

#[derive(Debug, Default)]
struct LogShared {
    state: Mutex<LogState>,
    gate: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    live: LogImage,
    durable: LogImage,
    appends: u64,
    faults: BTreeMap<u64, AppendFault>,
    poisoned: Option<String>,
    gates: usize,
    held: usize,
    space: Option<DiskSpace>,
    bad_entry: Option<u64>,
    failed_reads: u64,
}

impl MemLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A second log with what a power loss would leave now. It is not poisoned and has no faults.
    pub fn crash(&self) -> Self {
        let durable = self.lock().durable.clone();
        let state = LogState { live: durable.clone(), durable, ..LogState::default() };
        Self { shared: Arc::new(LogShared { state: Mutex::new(state), ..LogShared::default() }) }
    }

    /// Loses the last `count` entries of a group, although they are durable, as a disk does that loses synced bytes. The
    /// stored commit index goes back to the end of the log: the lost records held the later ones.
    pub fn lose_last(&self, group: GroupId, count: u64) {
        let mut state = self.lock();
        state.durable.lose_last(group, count);
        state.live = state.durable.clone();
    }

    /// Makes append number `number`, counted from 1, fail with EIO and poison the log.
    pub fn fail_append(&self, number: u64, fault: AppendFault) {
        self.lock().faults.insert(number, fault);
    }

    /// Sets the answer of [`LogStore::space`]. Appends do not change it.
    pub fn set_space(&self, space: Option<DiskSpace>) {
        self.lock().space = space;
    }

    /// Makes every read of the entry at this index fail.
    pub fn spoil_entry(&self, index: Option<u64>) {
        self.lock().bad_entry = index;
    }

    /// The number of reads that failed.
    pub fn failed_reads(&self) -> u64 {
        self.lock().failed_reads
    }

    /// The number of appends so far, with failed and held ones.
    pub fn appends(&self) -> u64 {
        self.lock().appends
    }

    /// Holds every append between its write and its fsync while the gate exists.
    pub fn hold_syncs(&self) -> SyncGate {
        self.lock().gates += 1;
        SyncGate { shared: self.shared.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        lock(&self.shared.state)
    }
}

/// See [`MemLog::hold_syncs`]. Dropping it resumes the held append.
#[derive(Debug)]
pub struct SyncGate {
    shared: Arc<LogShared>,
}

impl SyncGate {
    /// Waits until an append is held: visible to reads, not durable. `false` if that takes longer than `deadline`.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        wait_until(&self.shared.gate, &self.shared.state, deadline, |state| state.held > 0)
    }
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        lock(&self.shared.state).gates -= 1;
        self.shared.gate.notify_all();
    }
}

impl LogState {
    fn healthy(&self) -> Result<(), LogError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(LogError::Poisoned { cause: cause.clone() }),
        }
    }
}

impl LogStore for MemLog {
    fn recover(&self, group: GroupId) -> Result<Recovered, LogError> {
        Ok(self.lock().live.recover(group))
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), LogError> {
        let mut state = self.lock();
        state.healthy()?;
        state.live.check(batch)?;
        state.appends += 1;
        let number = state.appends;
        let fault = state.faults.remove(&number);
        if fault != Some(AppendFault::BeforeDurable) {
            state.live.apply(batch);
            state.held += 1;
            self.shared.gate.notify_all();
            state = wait_while(&self.shared.gate, state, |state| state.gates > 0);
            state.held -= 1;
            state.durable = state.live.clone();
        }
        if fault.is_some() {
            const EIO: i32 = 5;
            let source = io::Error::from_raw_os_error(EIO);
            state.poisoned = Some(source.to_string());
            return Err(LogError::Io { during: "append", source });
        }
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
        let mut state = self.lock();
        if state.bad_entry.is_some_and(|bad| range.contains(&bad)) {
            state.failed_reads += 1;
            return Err(LogReadError::Io { detail: "a bad block".into(), source: None });
        }
        state.live.entries(group, range, bytes_max, out)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogReadError> {
        self.lock().live.term(group, index)
    }

    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError> {
        let mut state = self.lock();
        state.healthy()?;
        state.live.compact(group, through);
        Ok(())
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.lock().healthy()?;
        Ok(Vec::new())
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.lock().live.groups())
    }

    fn remove(&self, group: GroupId) -> Result<(), LogError> {
        let mut state = self.lock();
        state.healthy()?;
        state.live.remove(group);
        state.durable.remove(group);
        Ok(())
    }

    fn space(&self) -> io::Result<Option<DiskSpace>> {
        Ok(self.lock().space)
    }
}

#[cfg(test)]
mod tests;
