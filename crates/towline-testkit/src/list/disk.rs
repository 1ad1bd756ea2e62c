//! The disk of a [`ListMachine`](super::ListMachine), which can interrupt a restore.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use towline_engine::message::LogId;
use towline_engine::state_machine::Fatal;

use crate::sync::{lock, wait_until, wait_while};

/// Steps in which a restore stores the commands.
const PIECES: usize = 4;

/// How a restore replaces the stored state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replacing {
    /// It stores the new state beside the old one and replaces it in one step, as the contract of `restore` asks.
    #[default]
    Aside,
    /// It removes log position and state, then stores the new state, then its log position. An interrupted restore
    /// leaves no log position.
    InPlace,
}

/// How a restore is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreCut {
    /// It fails.
    Fatal,
    /// It panics.
    Panic,
    /// It waits for [`ListDisk::release`].
    Hold,
}

/// The disk of a [`ListMachine`](super::ListMachine). Clones share one disk.
#[derive(Debug, Clone, Default)]
pub struct ListDisk {
    shared: Arc<ListDiskShared>,
}

#[derive(Debug, Default)]
struct ListDiskShared {
    state: Mutex<ListDiskState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ListDiskState {
    replacing: Replacing,
    commands: Vec<Bytes>,
    /// `NONE` if a restore was interrupted.
    at: LogId,
    cut: Option<(u64, RestoreCut)>,
    cuts: u64,
    held: bool,
    steps: u64,
    restores: u64,
}

impl ListDisk {
    /// An empty disk.
    pub fn new(replacing: Replacing) -> Self {
        let disk = Self::default();
        disk.lock().replacing = replacing;
        disk
    }

    /// A second disk with what a power loss would leave now, without a planned cut.
    #[must_use]
    pub fn crash(&self) -> Self {
        let disk = Self::new(self.lock().replacing);
        let (mut after, before) = (disk.lock(), self.lock());
        (after.commands, after.at) = (before.commands.clone(), before.at);
        drop((after, before));
        disk
    }

    /// Interrupts the next restore that reaches step `step`, counted from 1. The last step is the return to the caller.
    pub fn cut_restore(&self, step: u64, cut: RestoreCut) {
        self.lock().cut = Some((step, cut));
    }

    /// The number of interrupted restores.
    pub fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    /// The number of steps of the last complete restore.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// The number of complete restores.
    pub fn restores(&self) -> u64 {
        self.lock().restores
    }

    /// The log position of the stored state.
    pub fn at(&self) -> LogId {
        self.lock().at
    }

    /// Waits until a restore is held; `false` if that takes longer than `deadline`.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        wait_until(&self.shared.changed, &self.shared.state, deadline, |state| state.held)
    }

    /// Resumes the held restore.
    pub fn release(&self) {
        self.lock().held = false;
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ListDiskState> {
        lock(&self.shared.state)
    }

    /// The state for a machine that opens. Commands without a log position are dropped.
    pub(super) fn open(&self) -> (Vec<Bytes>, LogId) {
        let mut state = self.lock();
        if state.at == LogId::NONE {
            state.commands.clear();
        }
        (state.commands.clone(), state.at)
    }

    pub(super) fn append(&self, commands: impl Iterator<Item = Bytes>, through: LogId) {
        let mut state = self.lock();
        state.commands.extend(commands);
        state.at = through;
    }

    /// Replaces the state, step by step.
    pub(super) fn replace(&self, commands: &[Bytes], at: LogId) -> Result<(), Fatal> {
        let mut step = 0;
        let pieces = || commands.chunks(commands.len().div_ceil(PIECES).max(1));
        let replacing = self.lock().replacing;
        match replacing {
            Replacing::Aside => {
                let mut aside = Vec::new();
                for piece in pieces() {
                    drop(self.step(&mut step)?);
                    aside.extend_from_slice(piece);
                }
                let mut state = self.step(&mut step)?;
                (state.commands, state.at) = (aside, at);
            }
            Replacing::InPlace => {
                self.step(&mut step)?.at = LogId::NONE;
                self.step(&mut step)?.commands.clear();
                for piece in pieces() {
                    self.step(&mut step)?.commands.extend_from_slice(piece);
                }
                self.step(&mut step)?.at = at;
            }
        }
        let mut state = self.step(&mut step)?;
        state.steps = step;
        state.restores += 1;
        Ok(())
    }

    /// Begins a step, or interrupts the restore there.
    #[allow(clippy::panic)] // on request
    fn step(&self, step: &mut u64) -> Result<MutexGuard<'_, ListDiskState>, Fatal> {
        *step += 1;
        let mut state = self.lock();
        let Some((_, cut)) = state.cut.take_if(|(at, _)| at == step) else { return Ok(state) };
        state.cuts += 1;
        match cut {
            RestoreCut::Fatal => Err(Fatal::new(format!("told to fail at step {step}"))),
            RestoreCut::Panic => {
                drop(state);
                panic!("told to panic at step {step}")
            }
            RestoreCut::Hold => {
                state.held = true;
                self.shared.changed.notify_all();
                Ok(wait_while(&self.shared.changed, state, |state| state.held))
            }
        }
    }
}
