//! Apply workers: threads that run state machines, and answer whoever waits.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use towline_metrics::GroupMetrics;

use super::answer::{Answer, answer, contained, panic_text};
use super::shard::{ShardEvent, ShardSender};
use super::waiter::{ProposalWaiter, ReadWaiter, Waiter};
use crate::core::Apply;
use crate::errors::{ProposeError, ReadError, UncertainCause};
use crate::ids::GroupId;
use crate::message::Entry;
use crate::snapshot_store::{SnapshotHead, SnapshotMeta, SnapshotStore};
use crate::snapshots::{Keeper, Making};
use crate::state_machine::{Applied, ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

pub(crate) type Task = Apply<Box<dyn Waiter>, ReadWaiter>;

/// A state machine whose types are hidden.
pub(crate) trait Target: Send {
    fn durable(&self) -> Applied;
    /// # Errors
    /// Why the group cannot go on; every waiter is answered either way.
    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: Vec<Option<Box<dyn Waiter>>>,
        through: Applied,
    ) -> Result<(), Arc<str>>;
    /// # Errors
    /// As for `apply`.
    fn flush(&mut self) -> Result<Applied, Arc<str>>;
    /// Makes durable what is applied, and gives how far that is with a view of the state.
    ///
    /// # Errors
    /// As for `apply`.
    fn snapshot(&mut self) -> Result<(Applied, Box<dyn SnapshotSource>), Arc<str>>;
    /// # Errors
    /// As for `apply`.
    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Arc<str>>;
}

/// The [`Target`] around a user's machine.
pub(crate) struct Machine<S> {
    pub(crate) machine: S,
    pub(crate) metrics: Arc<GroupMetrics>,
}

impl<S: StateMachine> Target for Machine<S> {
    fn durable(&self) -> Applied {
        self.machine.durable()
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: Vec<Option<Box<dyn Waiter>>>,
        through: Applied,
    ) -> Result<(), Arc<str>> {
        let started = Instant::now();
        let batch = ApplyBatch::new(entries, through);
        let commands = batch.len();
        let mut replies = Replies::with_capacity(commands);
        let result = caught(|| self.machine.apply(batch, &mut replies)).and_then(|()| match replies.len() {
            given if given == commands => Ok(()),
            given => Err(format!("state machine gave {given} replies to {commands} commands").into()),
        });
        self.metrics.apply(started.elapsed(), commands as u64);
        match &result {
            Ok(()) => {
                let mut waiters = waiters.into_iter();
                for reply in replies.into_vec() {
                    // The waiter was made by the handle of this group, so it has this group's type.
                    let waiter = waiters.next().flatten();
                    match waiter.and_then(|w| w.into_any().downcast::<ProposalWaiter<S::Response>>().ok()) {
                        Some(waiter) => waiter.answer(reply),
                        None => contained(|| drop(reply)),
                    }
                }
            }
            Err(cause) => {
                fail_all(waiters, cause);
                replies.into_vec().into_iter().for_each(|reply| contained(|| drop(reply)));
            }
        }
        result
    }

    fn flush(&mut self) -> Result<Applied, Arc<str>> {
        caught(|| self.machine.flush())
    }

    fn snapshot(&mut self) -> Result<(Applied, Box<dyn SnapshotSource>), Arc<str>> {
        caught(|| Ok((self.machine.flush()?, self.machine.snapshot()?)))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Arc<str>> {
        caught(|| self.machine.restore(meta, body))?;
        let durable = self.machine.durable();
        if durable != Applied::NONE && durable != meta.head.at {
            return Err(
                format!("state machine was restored to {:?} but is at {durable:?}", meta.head.at).into()
            );
        }
        Ok(())
    }
}

fn caught<T>(run: impl FnOnce() -> Result<T, Fatal>) -> Result<T, Arc<str>> {
    match catch_unwind(AssertUnwindSafe(|| run().map_err(|fatal| fatal.to_string().into()))) {
        Ok(result) => result,
        Err(panic) => {
            let cause = format!("state machine panicked: {}", panic_text(panic.as_ref())).into();
            std::mem::forget(panic); // its drop may panic again
            Err(cause)
        }
    }
}

fn fail_all(waiters: Vec<Option<Box<dyn Waiter>>>, cause: &Arc<str>) {
    for waiter in waiters.into_iter().flatten() {
        waiter.fail(ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
    }
}

enum Work {
    Start { group: GroupId, life: u64, target: Box<dyn Target> },
    Apply { group: GroupId, life: u64, tasks: Vec<Task> },
    Flush { group: GroupId, done: Answer<Result<Applied, Arc<str>>> },
    Remove { group: GroupId, life: u64 },
    Stop,
}

/// The way to one worker. What queues is bounded by `unapplied_bytes_max` and `read_queue_max` of each group.
#[derive(Clone)]
pub(crate) struct ApplyWorker {
    work: Sender<Work>,
    /// Set once: what is still queued is given up, however long it would take.
    stopping: Arc<AtomicBool>,
}

impl ApplyWorker {
    /// Starts the thread.
    pub(crate) fn start(
        number: usize,
        shard: ShardSender,
        store: Arc<dyn SnapshotStore>,
        keeper: Keeper,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (work, queue) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let seen = stopping.clone();
        let thread =
            std::thread::Builder::new().name(format!("towline-apply-{number}")).spawn(move || {
                Worker { shard, store, keeper, targets: BTreeMap::new(), stopping: seen }.run(&queue)
            })?;
        Ok((Self { work, stopping }, thread))
    }

    /// From now on the group's work goes to `target`.
    pub(crate) fn start_group(&self, group: GroupId, life: u64, target: Box<dyn Target>) {
        let _ = self.work.send(Work::Start { group, life, target });
    }

    pub(crate) fn apply(&self, group: GroupId, life: u64, tasks: Vec<Task>) {
        if let Err(lost) = self.work.send(Work::Apply { group, life, tasks })
            && let Work::Apply { tasks, .. } = lost.0
        {
            fail_tasks(tasks, &"the apply worker has stopped".into());
        }
    }

    /// Makes what is applied durable.
    pub(crate) async fn flush(&self, group: GroupId) -> Result<Applied, Arc<str>> {
        let (done, waiting) = answer();
        let _ = self.work.send(Work::Flush { group, done });
        waiting.await.unwrap_or_else(|_| Err("the apply worker has stopped".into()))
    }

    /// Lets go of the group's state machine.
    pub(crate) fn remove_group(&self, group: GroupId, life: u64) {
        let _ = self.work.send(Work::Remove { group, life });
    }

    /// Ends the thread after the batch it is at.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.work.send(Work::Stop);
    }
}

struct Worker {
    shard: ShardSender,
    store: Arc<dyn SnapshotStore>,
    keeper: Keeper,
    targets: BTreeMap<GroupId, (u64, Box<dyn Target>)>,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Work>) {
        let mut next = None;
        while let Some(work) = next.take().or_else(|| queue.recv().ok()) {
            match work {
                Work::Start { group, life, target } => {
                    let_go(self.targets.insert(group, (life, target)));
                }
                Work::Apply { group, life, mut tasks } => {
                    next = more_of(queue, group, life, &mut tasks);
                    self.apply(group, life, merged(tasks));
                }
                Work::Flush { group, done } => {
                    let result = match self.targets.get_mut(&group) {
                        Some((_, target)) => target.flush(),
                        None => Err("the group is not running".into()),
                    };
                    done.send(result);
                }
                Work::Remove { group, life } => {
                    if self.targets.get(&group).is_some_and(|(running, _)| *running == life) {
                        let_go(self.targets.remove(&group));
                    }
                }
                Work::Stop => break,
            }
        }
        std::mem::take(&mut self.targets).into_values().for_each(|target| let_go(Some(target)));
    }

    fn apply(&mut self, group: GroupId, life: u64, tasks: Vec<Task>) {
        let Some((_, target)) = self.targets.get_mut(&group).filter(|(running, _)| *running == life) else {
            return fail_tasks(tasks, &"the group is not running".into());
        };
        let (mut applied, mut failed) = (None, None);
        let mut tasks = tasks.into_iter();
        for task in tasks.by_ref() {
            match task {
                task if self.stopping.load(Ordering::Acquire) => {
                    fail_tasks(vec![task], &"the node was shut down".into());
                }
                Apply::Entries { entries, waiters, through } => {
                    match target.apply(&entries, waiters, through) {
                        Ok(()) => applied = Some(through.index),
                        Err(cause) => {
                            failed = Some(cause);
                            break;
                        }
                    }
                }
                Apply::Reads(readers) => readers.into_iter().for_each(ReadWaiter::answer),
                Apply::Restore(meta) => match restore(&*self.store, target.as_mut(), &meta) {
                    Ok(()) => applied = Some(meta.head.at.index),
                    Err(cause) => {
                        failed = Some(cause);
                        break;
                    }
                },
                Apply::Snapshot { conf, at } => match target.snapshot() {
                    Ok((durable, source)) => {
                        let head =
                            SnapshotHead { group, at, conf_state: conf.conf_state, members: conf.members };
                        self.keeper.make(Making { life, head, durable, source });
                    }
                    Err(cause) => {
                        failed = Some(cause);
                        break;
                    }
                },
            }
        }
        if let Some(index) = applied {
            self.shard.post(ShardEvent::Applied { group, life, index });
        }
        if let Some(cause) = failed {
            fail_tasks(tasks.collect(), &cause);
            let_go(self.targets.remove(&group));
            self.shard.post(ShardEvent::ApplyFailed { group, life, cause });
        }
    }
}

/// A state machine's own drop may panic; the worker has others.
fn let_go(target: Option<(u64, Box<dyn Target>)>) {
    contained(|| drop(target));
}

/// Replaces the state by a snapshot that is on disk.
///
/// # Errors
/// Why the group cannot go on.
pub(crate) fn restore(
    store: &dyn SnapshotStore,
    target: &mut dyn Target,
    meta: &SnapshotMeta,
) -> Result<(), Arc<str>> {
    let started = Instant::now();
    let unread =
        |error: &dyn std::fmt::Display| -> Arc<str> { format!("snapshot to restore: {error}").into() };
    let mut body =
        io::BufReader::with_capacity(READ_BUFFER_BYTES, store.open(meta, 0).map_err(|error| unread(&error))?);
    target.restore(meta, &mut body)?;
    // A body that the machine did not read to its end may be another's.
    let rest = io::copy(&mut body, &mut io::sink()).map_err(|error| unread(&error))?;
    if rest > 0 {
        return Err(format!("state machine left {rest} of {} bytes of the snapshot", meta.length).into());
    }
    let (group, index) = (meta.head.group, meta.head.at.index);
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(%group, index, bytes = meta.length, seconds, "state restored from a snapshot");
    Ok(())
}

/// Bytes read from a snapshot file at once.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Entries that are applied in one call at most, unless they came together.
const MERGE_ENTRIES_MAX: usize = 4_096;

/// Takes what has queued for the same group meanwhile; gives back the first work that is something else.
fn more_of(queue: &Receiver<Work>, of: GroupId, of_life: u64, tasks: &mut Vec<Task>) -> Option<Work> {
    while tasks.len() < MERGE_ENTRIES_MAX {
        match queue.try_recv().ok()? {
            Work::Apply { group, life, tasks: more } if group == of && life == of_life => tasks.extend(more),
            other => return Some(other),
        }
    }
    None
}

/// Makes one batch of neighbours: a state machine pays for each batch, and a slow one catches up by larger ones.
fn merged(tasks: Vec<Task>) -> Vec<Task> {
    let mut out: Vec<Task> = Vec::with_capacity(tasks.len());
    for task in tasks {
        match (out.last_mut(), task) {
            (
                Some(Apply::Entries { entries, waiters, through }),
                Apply::Entries { entries: more, waiters: more_waiters, through: further },
            ) if entries.len() + more.len() <= MERGE_ENTRIES_MAX => {
                entries.extend(more);
                waiters.extend(more_waiters);
                *through = further;
            }
            (_, task) => out.push(task),
        }
    }
    out
}

/// Answers everybody in tasks that will not be done.
pub(crate) fn fail_tasks(tasks: Vec<Task>, cause: &Arc<str>) {
    for task in tasks {
        match task {
            Apply::Entries { waiters, .. } => fail_all(waiters, cause),
            Apply::Reads(readers) => {
                readers.into_iter().for_each(|r| r.fail(ReadError::Stopped { cause: cause.clone() }));
            }
            // Nobody waits for these.
            Apply::Restore(_) | Apply::Snapshot { .. } => {}
        }
    }
}
