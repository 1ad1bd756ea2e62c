use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use towline_engine::ids::GroupId;
use towline_engine::log_store::{LogBatch, LogError, LogReadError, LogStore, Recovered};
use towline_engine::message::Entry;

use super::image::Image;

/// What an append that is to fail leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFault {
    /// Nothing: a crash finds the log as it was before.
    BeforeDurable,
    /// All of it: the write was durable, only the answer is an error.
    AfterDurable,
}

/// A [`LogStore`] in memory. Clones share one log.
///
/// Reads see the live image. An append becomes part of the durable image just before it returns, and
/// [`crash`](Self::crash) gives the log a power loss would leave. Removals and failures are as the contract says; a
/// compaction is durable with the next append.
#[derive(Debug, Clone, Default)]
pub struct MemLog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something about the gate changed.
    gate: Condvar,
}

#[derive(Debug, Default)]
struct State {
    live: Image,
    durable: Image,
    /// Counted from 1, also those that fail.
    appends: u64,
    faults: BTreeMap<u64, AppendFault>,
    poisoned: Option<String>,
    gates: usize,
    held: usize,
}

impl MemLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a power loss would leave now, as a log of its own that is not poisoned and fails nothing. This one goes
    /// on, so that a writer that is held in it disturbs nobody.
    pub fn crash(&self) -> Self {
        let durable = self.lock().durable.clone();
        let state = State { live: durable.clone(), durable, ..State::default() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), ..Shared::default() }) }
    }

    /// Makes the `number`-th append fail with EIO, counted from 1 over the life of the log. The log is poisoned then.
    pub fn fail_append(&self, number: u64, fault: AppendFault) {
        self.lock().faults.insert(number, fault);
    }

    /// How many appends have begun, also those that failed or are held.
    pub fn appends(&self) -> u64 {
        self.lock().appends
    }

    /// Holds every append between its write and its fsync for as long as the gate exists.
    pub fn hold_syncs(&self) -> SyncGate {
        self.lock().gates += 1;
        SyncGate { shared: self.shared.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

/// See [`MemLog::hold_syncs`]. Dropping it lets the held append go on.
#[derive(Debug)]
pub struct SyncGate {
    shared: Arc<Shared>,
}

impl SyncGate {
    /// Waits until an append is held: written, visible to readers, not durable. `false` if none was before the
    /// deadline.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut state = lock(&self.shared);
        while state.held == 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.gate.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        lock(&self.shared).gates -= 1;
        self.shared.gate.notify_all();
    }
}

impl State {
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
        let fault = state.appends;
        let fault = state.faults.remove(&fault);
        if fault != Some(AppendFault::BeforeDurable) {
            state.live.apply(batch);
            state.held += 1;
            self.shared.gate.notify_all();
            while state.gates > 0 {
                state = self.shared.gate.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
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
        self.lock().live.entries(group, range, bytes_max, out)
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
}

// A test that panicked with the lock held must not hide its own message behind a second panic.
fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
