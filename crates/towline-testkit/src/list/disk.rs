//! What a state machine for tests keeps across restarts, and ways to cut it off while it replaces its state.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::message::LogId;
use towline_engine::state_machine::Fatal;

/// How many steps the commands of a restored state are stored in.
const PIECES: usize = 4;

/// How a machine replaces what it has stored by a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replacing {
    /// The new state is stored beside the old one, which it replaces in one step: the contract of `restore`.
    #[default]
    Aside,
    /// The place it has reached is forgotten, the old state removed, the new one stored, and its place last. Cut off
    /// midway it has lost its state, and knows it.
    InPlace,
}

/// How a restore is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreCut {
    /// It fails.
    Fatal,
    /// It panics.
    Panic,
    /// It waits for [`ListDisk::release`]: [`ListDisk::crash`] gives what a power loss would leave meanwhile.
    Hold,
}

/// Where a [`ListMachine`](super::ListMachine) stores its state. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct ListDisk {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    replacing: Replacing,
    commands: Vec<Bytes>,
    /// `NONE`: nothing is known of the commands.
    at: LogId,
    cut: Option<(u64, RestoreCut)>,
    cuts: u64,
    held: bool,
    steps: u64,
    restores: u64,
}

impl ListDisk {
    /// An empty one.
    pub fn new(replacing: Replacing) -> Self {
        let disk = Self::default();
        disk.lock().replacing = replacing;
        disk
    }

    /// What a power loss would leave now, as a disk of its own on which nothing is cut off.
    #[must_use]
    pub fn crash(&self) -> Self {
        let disk = Self::new(self.lock().replacing);
        let (mut after, before) = (disk.lock(), self.lock());
        (after.commands, after.at) = (before.commands.clone(), before.at);
        drop((after, before));
        disk
    }

    /// Cuts off the next restore that gets as far, before its `step`-th step, counted from 1. The one after the last
    /// step stands for the way back to the caller.
    pub fn cut_restore(&self, step: u64, cut: RestoreCut) {
        self.lock().cut = Some((step, cut));
    }

    /// How many restores were cut off, also those that are held.
    pub fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    /// The steps of the last restore that was not cut off, with the way back.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// How many restores were not cut off.
    pub fn restores(&self) -> u64 {
        self.lock().restores
    }

    /// The place in the log that the stored state has; none if it was lost.
    pub fn at(&self) -> LogId {
        self.lock().at
    }

    /// Waits until a restore is held; `false` if none was before the deadline.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.lock();
        while !state.held {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets a restore that is held go on.
    pub fn release(&self) {
        self.lock().held = false;
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine that is opened finds. A state without its place is of no use.
    pub(super) fn open(&self) -> (Vec<Bytes>, LogId) {
        let mut state = self.lock();
        if state.at == LogId::NONE {
            state.commands.clear();
        }
        (state.commands.clone(), state.at)
    }

    /// All of it, or nothing.
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

    /// Before each step: whether it comes to it.
    #[allow(clippy::panic)] // a panic is what it was told to make
    fn step(&self, step: &mut u64) -> Result<MutexGuard<'_, State>, Fatal> {
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
                while state.held {
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Ok(state)
            }
        }
    }
}
