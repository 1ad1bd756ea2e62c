//! A state machine for tests: it remembers every command in order, and misbehaves when told to.

mod disk;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

pub use disk::{ListDisk, Replacing, RestoreCut};

/// How a [`ListMachine`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It panics.
    Panic,
    /// It returns [`Fatal`].
    Fatal,
    /// It forgets a reply.
    FewReplies,
}

/// The commands in the order in which they were applied; the answer to a command is how many there are with it.
#[derive(Debug)]
pub struct ListMachine {
    list: List,
    durable: LogId,
    trouble: Option<(Bytes, Trouble)>,
    time: Duration,
    disk: Option<ListDisk>,
}

/// A [`ListMachine`] as readers and tests see it. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct List {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
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
    /// An empty one that does everything right.
    pub fn new() -> Self {
        let (list, durable) = (List::default(), LogId::NONE);
        Self { list, durable, trouble: None, time: Duration::ZERO, disk: None }
    }

    /// Fails in this way when it is to apply this command.
    #[must_use]
    pub fn failing(mut self, command: impl Into<Bytes>, trouble: Trouble) -> Self {
        self.trouble = Some((command.into(), trouble));
        self
    }

    /// Takes this long for each batch.
    #[must_use]
    pub fn slow(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Claims to have stored everything up to this place, until it restores a snapshot.
    #[must_use]
    pub fn durable_at(mut self, durable: LogId) -> Self {
        self.durable = durable;
        self
    }

    /// Opened on what the disk holds, and storing there whatever it applies and restores.
    #[must_use]
    pub fn stored_in(mut self, disk: &ListDisk) -> Self {
        let (commands, at) = disk.open();
        let mut state = self.list.lock();
        (state.commands, state.applied) = (commands, at);
        drop(state);
        self.disk = Some(disk.clone());
        self
    }

    /// Its list.
    pub fn list(&self) -> List {
        self.list.clone()
    }
}

impl List {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The commands so far.
    pub fn commands(&self) -> Vec<Bytes> {
        self.lock().commands.clone()
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.lock().commands.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place in the log it has reached.
    pub fn applied(&self) -> LogId {
        self.lock().applied
    }

    /// How often it was flushed.
    pub fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// Blocks the machine before its next batch for as long as the hold exists.
    pub fn hold(&self) -> Hold {
        self.lock().holds += 1;
        Hold { list: self.clone() }
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.held = state.holds > 0;
        self.shared.changed.notify_all();
        while state.holds > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held = false;
    }
}

/// See [`List::hold`].
#[derive(Debug)]
pub struct Hold {
    list: List,
}

impl Hold {
    /// Waits until the machine is blocked; `false` if it was not before the deadline.
    pub fn wait_held(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.list.lock();
        while !state.held {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            let changed = self.list.shared.changed.wait_timeout(state, left);
            state = changed.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
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

    #[allow(clippy::panic)] // a panic is what it was told to make
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
        Ok(Box::new(Body(self.list.commands())))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        let mut rest = Bytes::from(bytes);
        let mut commands = Vec::new();
        while let Some(head) = rest.first_chunk::<4>() {
            let end = (u32::from_be_bytes(*head) as usize).saturating_add(4);
            if end > rest.len() {
                return Err(Fatal::new("the body is cut off"));
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

/// Length, then bytes, of each command.
struct Body(Vec<Bytes>);

impl SnapshotSource for Body {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        for command in self.0 {
            out.write_all(&(command.len() as u32).to_be_bytes())?;
            out.write_all(&command)?;
        }
        Ok(())
    }
}
