//! A state machine whose calls wait at a gate that the test controls.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // helpers of tests; each file uses its part

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use towline_engine::message::LogId;
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

use super::DEADLINE;

/// Holds a machine's calls and records them. Open at first.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// The number of calls that may pass; `None` for all.
    permits: Option<usize>,
    /// Whether a call waits.
    held: bool,
    calls: Vec<GatedCall>,
    flushes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GatedCall {
    pub(crate) commands: usize,
    pub(crate) bytes: usize,
    pub(crate) through: u64,
}

impl Gate {
    /// Lets this number of further calls pass.
    pub(crate) fn permit(&self, calls: usize) {
        self.state.lock().unwrap().permits = Some(calls);
        self.changed.notify_all();
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().permits = None;
        self.changed.notify_all();
    }

    /// Waits until a call is held.
    pub(crate) fn wait_held(&self) {
        let state = self.state.lock().unwrap();
        let held = |state: &mut GateState| !(state.held && state.permits == Some(0));
        let (_state, late) = self.changed.wait_timeout_while(state, DEADLINE, held).unwrap();
        assert!(!late.timed_out(), "no call is held");
    }

    /// The calls that have ended.
    pub(crate) fn calls(&self) -> Vec<GatedCall> {
        self.state.lock().unwrap().calls.clone()
    }

    pub(crate) fn flushes(&self) -> usize {
        self.state.lock().unwrap().flushes
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.held = true;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.permits == Some(0)).unwrap();
        state.held = false;
        state.permits = state.permits.map(|permits| permits - 1);
    }
}

/// Opens the gate on every exit of a test, so that the machine's thread ends.
pub(crate) struct OpenOnDrop(pub(crate) Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Replies with the index of the command.
#[derive(Default)]
pub(crate) struct Gated {
    pub(crate) gate: Arc<Gate>,
    /// The time that each command takes.
    pub(crate) cost: Duration,
    pub(crate) applied: LogId,
}

impl Gated {
    pub(crate) fn new(gate: &Arc<Gate>) -> Self {
        Self { gate: gate.clone(), ..Self::default() }
    }
}

impl StateMachine for Gated {
    type Response = u64;
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        if !batch.is_empty() {
            self.gate.pass();
        }
        for command in batch.commands() {
            std::thread::sleep(self.cost); // not synchronisation: the time of the command
            replies.push(command.index);
        }
        self.applied = batch.through();
        let bytes = batch.commands().map(|command| command.data.len()).sum();
        let call = GatedCall { commands: batch.len(), bytes, through: self.applied.index };
        self.gate.state.lock().unwrap().calls.push(call);
        Ok(())
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        self.gate.state.lock().unwrap().flushes += 1;
        Ok(self.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Err(Fatal::new("no snapshots"))
    }

    fn restore(&mut self, _: &SnapshotMeta, _: &mut dyn io::Read) -> Result<(), Fatal> {
        Err(Fatal::new("no snapshots"))
    }
}
