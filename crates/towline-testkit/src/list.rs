//! A state machine that keeps every command in order, and fails on request.

mod disk;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

pub use disk::{ListDisk, Replacing, RestoreCut};

use crate::sync::{lock, wait_until, wait_while};

/// How a [`ListMachine`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Its `apply` panics.
    Panic,
    /// Its `apply` returns [`Fatal`].
    Fatal,
    /// Its `apply` omits a reply.
    FewReplies,
}

/// A list of all applied commands. The reply to a command is the length of the list with it.
#[derive(Debug)]
pub struct ListMachine {
    list: List,
    durable: LogId,
    trouble: Option<(Bytes, Trouble)>,
    time: Duration,
    disk: Option<ListDisk>,
}

/// The view of a [`ListMachine`]. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct List {
    shared: Arc<ListShared>,
}

#[derive(Debug, Default)]
struct ListShared {
    state: Mutex<ListState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ListState {
    commands: Vec<Bytes>,
    applied: LogId,
    holds: usize,
    held: bool,
    flushes: usize,
}

impl Default for ListMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl ListMachine {
    /// An empty machine that never fails.
    pub fn new() -> Self {
        let (list, durable) = (List::default(), LogId::NONE);
        Self { list, durable, trouble: None, time: Duration::ZERO, disk: None }
    }

    /// Fails in this way when it applies this command.
    #[must_use]
    pub fn failing(mut self, command: impl Into<Bytes>, trouble: Trouble) -> Self {
        self.trouble = Some((command.into(), trouble));
        self
    }

    /// Takes this time for each batch.
    #[must_use]
    pub fn slow(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Reports this log position as durable, until it restores a snapshot.
    #[must_use]
    pub fn durable_at(mut self, durable: LogId) -> Self {
        self.durable = durable;
        self
    }

    /// Starts with the state of `disk`, and stores there what it applies and restores.
    #[must_use]
    pub fn stored_in(mut self, disk: &ListDisk) -> Self {
        let (commands, at) = disk.open();
        let mut state = self.list.lock();
        (state.commands, state.applied) = (commands, at);
        drop(state);
        self.disk = Some(disk.clone());
        self
    }

    /// The view.
    pub fn list(&self) -> List {
        self.list.clone()
    }
}

impl List {
    fn lock(&self) -> MutexGuard<'_, ListState> {
        lock(&self.shared.state)
    }

    /// The commands so far.
    pub fn commands(&self) -> Vec<Bytes> {
        self.lock().commands.clone()
    }

    /// The number of commands.
    pub fn len(&self) -> usize {
        self.lock().commands.len()
    }

    /// Whether no command was applied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The log position that was applied last.
    pub fn applied(&self) -> LogId {
        self.lock().applied
    }

    /// The number of flushes.
    pub fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// Blocks the machine before its next batch while the hold exists.
    pub fn hold(&self) -> Hold {
        self.lock().holds += 1;
        Hold { list: self.clone() }
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.held = state.holds > 0;
        self.shared.changed.notify_all();
        wait_while(&self.shared.changed, state, |state| state.holds > 0).held = false;
    }
}

/// See [`List::hold`].
#[derive(Debug)]
pub struct Hold {
    list: List,
}

impl Hold {
    /// Waits until the machine is blocked; `false` if that takes longer than `deadline`.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        let shared = &self.list.shared;
        wait_until(&shared.changed, &shared.state, deadline, |state| state.held)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.list.lock().holds -= 1;
        self.list.shared.changed.notify_all();
    }
}

impl StateMachine for ListMachine {
    type Response = u64;
    type View = List;

    fn view(&self) -> List {
        self.list()
    }

    fn durable(&self) -> LogId {
        self.disk.as_ref().map_or(self.durable, ListDisk::at)
    }

    #[allow(clippy::panic)] // on request
    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        self.list.pass();
        if !self.time.is_zero() {
            std::thread::sleep(self.time);
        }
        for command in batch.commands() {
            let trouble = self.trouble.as_ref().filter(|(on, _)| on == command.data).map(|(_, how)| *how);
            match trouble {
                Some(Trouble::Panic) => panic!("told to panic"),
                Some(Trouble::Fatal) => return Err(Fatal::new("told to fail")),
                Some(Trouble::FewReplies) => continue,
                None => {}
            }
            let mut state = self.list.lock();
            state.commands.push(command.data.clone());
            replies.push(state.commands.len() as u64);
        }
        let mut state = self.list.lock();
        state.applied = batch.through();
        if let Some(disk) = &self.disk {
            disk.append(batch.commands().map(|command| command.data.clone()), batch.through());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        self.list.lock().flushes += 1;
        Ok(self.durable())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(ListBody(self.list.commands())))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        let mut rest = Bytes::from(bytes);
        let mut commands = Vec::new();
        while let Some(head) = rest.first_chunk::<4>() {
            let end = (u32::from_be_bytes(*head) as usize).saturating_add(4);
            if end > rest.len() {
                return Err(Fatal::new("the body ends inside a command"));
            }
            commands.push(rest.split_to(end).slice(4..));
        }
        if let Some(disk) = &self.disk {
            disk.replace(&commands, meta.head.at)?;
        } else if self.durable != LogId::NONE {
            self.durable = meta.head.at;
        }
        let mut state = self.list.lock();
        state.commands = commands;
        state.applied = meta.head.at;
        Ok(())
    }
}

/// Length and bytes of each command.
struct ListBody(Vec<Bytes>);

impl SnapshotSource for ListBody {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        for command in self.0 {
            out.write_all(&(command.len() as u32).to_be_bytes())?;
            out.write_all(&command)?;
        }
        Ok(())
    }
}
