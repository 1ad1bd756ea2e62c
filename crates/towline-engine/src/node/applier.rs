//! The thread of an apply worker: runs state machines, and answers whoever waits.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::apply::{ApplyWorker, Work};
use super::call_size::CallSize;
use super::call_watch::CallWatch;
use super::inbox::{ShardEvent, ShardSender};
use super::target::{Cause, Target, Task, fail_all, restore};
use super::waiter::{Answer, Waiter, contained};
use crate::cause::chain;
use crate::core::Apply;
use crate::ids::GroupId;
use crate::message::{Entry, LogId};
use crate::snapshot_store::{SnapshotHead, SnapshotStore};
use crate::snapshots::{Making, SnapshotWorker};
use crate::state_machine::is_command;

/// What a worker works with.
pub(crate) struct ApplierDeps {
    pub(crate) shard: ShardSender,
    pub(crate) store: Arc<dyn SnapshotStore>,
    pub(crate) worker: SnapshotWorker,
    /// Payload bytes of one call, unless a single entry is larger.
    pub(crate) call_bytes_max: u64,
}

/// How the threads are called, each with its number.
pub(super) const THREAD_NAME: &str = "towline-apply-";

/// Starts the thread.
pub(crate) fn start(number: usize, deps: ApplierDeps) -> io::Result<(ApplyWorker, JoinHandle<()>)> {
    let (work, queue) = channel();
    let (stopping, watch) = (Arc::new(AtomicBool::new(false)), Arc::new(CallWatch::default()));
    let worker = Worker {
        deps,
        groups: BTreeMap::new(),
        ready: VecDeque::new(),
        stopping: stopping.clone(),
        watch: watch.clone(),
    };
    let thread = std::thread::Builder::new()
        .name(format!("{THREAD_NAME}{number}"))
        .spawn(move || worker.run(&queue))?;
    Ok((ApplyWorker { work, stopping, watch }, thread))
}

struct Worker {
    deps: ApplierDeps,
    groups: BTreeMap<GroupId, Served>,
    /// Groups with something in their queue, each once.
    ready: VecDeque<GroupId>,
    stopping: Arc<AtomicBool>,
    watch: Arc<CallWatch>,
}

/// A group on its worker.
#[derive(Default)]
struct Served {
    running: Option<Running>,
    queue: VecDeque<Job>,
}

struct Running {
    generation: u64,
    target: Box<dyn Target>,
    size: CallSize,
}

enum Job {
    Start { generation: u64, target: Box<dyn Target> },
    Entries { generation: u64, entries: Entries },
    Other { generation: u64, task: Task },
    Flush { done: Answer<Result<LogId, Arc<str>>> },
    Remove { generation: u64 },
}

/// Committed entries that wait: neighbours are one, because a state machine pays for each call.
struct Entries {
    entries: VecDeque<Entry>,
    /// One place a command.
    waiters: VecDeque<Option<Waiter>>,
    through: LogId,
}

impl Worker {
    /// One call of one group, then the next group's turn: a slow state machine delays others by one call.
    fn run(mut self, queue: &Receiver<Work>) {
        loop {
            let waited = if self.ready.is_empty() { queue.recv().map(Some) } else { Ok(None) };
            let Ok(waited) = waited else { break };
            let mut stop = false;
            for work in waited.into_iter().chain(queue.try_iter()) {
                stop |= self.take(work);
            }
            if stop {
                break;
            }
            if let Some(group) = self.ready.pop_front() {
                self.turn(group);
            }
        }
        let cause = stopped();
        for served in std::mem::take(&mut self.groups).into_values() {
            served.queue.into_iter().for_each(|job| job.fail(&cause));
            let_go(served.running);
        }
    }

    /// Queues work; says whether the thread is to end.
    fn take(&mut self, work: Work) -> bool {
        match work {
            Work::Start { group, generation, target } => self.queue(group, Job::Start { generation, target }),
            Work::Apply { group, generation, tasks } => {
                for task in tasks {
                    match task {
                        Apply::Entries { entries, waiters, through } => {
                            self.queue_entries(group, generation, entries, waiters, through);
                        }
                        task => self.queue(group, Job::Other { generation, task }),
                    }
                }
            }
            Work::Flush { group, done } => self.queue(group, Job::Flush { done }),
            Work::Remove { group, generation } => self.queue(group, Job::Remove { generation }),
            Work::Stop => return true,
        }
        false
    }

    fn queue(&mut self, group: GroupId, job: Job) {
        let served = self.groups.entry(group).or_default();
        if served.queue.is_empty() {
            self.ready.push_back(group);
        }
        served.queue.push_back(job);
    }

    fn queue_entries(
        &mut self,
        group: GroupId,
        generation: u64,
        entries: Vec<Entry>,
        waiters: Vec<Option<Waiter>>,
        through: LogId,
    ) {
        let last = self.groups.get_mut(&group).and_then(|served| served.queue.back_mut());
        match last {
            Some(Job::Entries { generation: of, entries: waiting }) if *of == generation => {
                waiting.entries.extend(entries);
                waiting.waiters.extend(waiters);
                waiting.through = through;
            }
            _ => {
                let entries = Entries { entries: entries.into(), waiters: waiters.into(), through };
                self.queue(group, Job::Entries { generation, entries });
            }
        }
    }

    /// Does the oldest job of a group, or one call's worth of it.
    fn turn(&mut self, group: GroupId) {
        let Some(served) = self.groups.get_mut(&group) else { return };
        if let Some(job) = served.queue.pop_front() {
            Turn { deps: &self.deps, watch: &self.watch, stopping: &self.stopping, group }.run(job, served);
        }
        if !served.queue.is_empty() {
            self.ready.push_back(group);
        } else if served.running.is_none() {
            self.groups.remove(&group);
        }
    }
}

/// The turn of one group.
struct Turn<'a> {
    deps: &'a ApplierDeps,
    watch: &'a CallWatch,
    stopping: &'a AtomicBool,
    group: GroupId,
}

impl Turn<'_> {
    fn run(self, job: Job, served: &mut Served) {
        let Served { running, queue } = served;
        let group = self.group;
        match job {
            Job::Start { generation, target } => {
                let_go(running.replace(Running { generation, target, size: CallSize::new() }));
            }
            Job::Remove { generation } => {
                if running.as_ref().is_some_and(|running| running.generation == generation) {
                    let_go(running.take());
                }
            }
            Job::Flush { done } => done.send(match running {
                Some(running) => {
                    let flushed = self.watch.run(group, "flush", || running.target.flush());
                    flushed.map_err(|cause| chain(&*cause).into())
                }
                None => Err(not_running()),
            }),
            job if self.stopping.load(Ordering::Acquire) => job.fail(&stopped()),
            Job::Entries { generation, mut entries } => {
                let Some(running) = running.as_mut().filter(|running| running.generation == generation)
                else {
                    return Job::Entries { generation, entries }.fail(&not_running());
                };
                let result = self.apply(running, &mut entries);
                if !entries.entries.is_empty() {
                    queue.push_front(Job::Entries { generation, entries });
                }
                self.settle(generation, result, served);
            }
            Job::Other { generation, task } => {
                let Some(running) = running.as_mut().filter(|running| running.generation == generation)
                else {
                    return Job::Other { generation, task }.fail(&not_running());
                };
                let result = self.other(running, task);
                self.settle(generation, result, served);
            }
        }
    }

    /// One call of the state machine.
    fn apply(&self, running: &mut Running, waiting: &mut Entries) -> Result<Option<u64>, Cause> {
        let (entries, waiters, through) = waiting.take(running.size.entries_max(), self.deps.call_bytes_max);
        let started = Instant::now();
        let target = &mut running.target;
        self.watch.run(self.group, "apply", || target.apply(&entries, waiters, through))?;
        running.size.called(entries.len(), started.elapsed());
        Ok(Some(through.index))
    }

    fn other(&self, running: &mut Running, task: Task) -> Result<Option<u64>, Cause> {
        let (target, group) = (running.target.as_mut(), self.group);
        match task {
            Apply::Entries { .. } => Ok(None), // queued in a job of their own
            Apply::Restore(meta) => {
                self.watch.run(group, "restore", || restore(&*self.deps.store, target, &meta))?;
                Ok(Some(meta.head.at.index))
            }
            Apply::Snapshot { conf, at } => {
                let (durable, source) = self.watch.run(group, "snapshot", || target.snapshot())?;
                let head = SnapshotHead { group, at, conf_state: conf.conf_state, members: conf.members };
                self.deps.worker.make(Making { generation: running.generation, head, durable, source });
                Ok(None)
            }
        }
    }

    /// Tells the shard of each call that it is done: what waits for the applied index goes on.
    fn settle(&self, generation: u64, result: Result<Option<u64>, Cause>, served: &mut Served) {
        let group = self.group;
        match result {
            Ok(Some(index)) => self.deps.shard.post(ShardEvent::Applied { group, generation, index }),
            Ok(None) => {}
            Err(cause) => {
                let cause: Arc<str> = chain(&*cause).into();
                let_go(served.running.take());
                self.deps.shard.post(ShardEvent::ApplyFailed { group, generation, cause: cause.clone() });
                let of_generation = |job: &Job| job.generation() == Some(generation);
                let (failed, rest) = std::mem::take(&mut served.queue).into_iter().partition(of_generation);
                served.queue = rest;
                let failed: VecDeque<Job> = failed;
                failed.into_iter().for_each(|job| job.fail(&cause));
            }
        }
    }
}

impl Job {
    /// Whose work it is, of work that a failure of the state machine ends.
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Entries { generation, .. } | Self::Other { generation, .. } => Some(*generation),
            Self::Start { .. } | Self::Flush { .. } | Self::Remove { .. } => None,
        }
    }

    fn fail(self, cause: &Arc<str>) {
        match self {
            Self::Entries { entries, .. } => fail_all(entries.waiters, cause),
            Self::Flush { done } => done.send(Err(cause.clone())),
            // No caller waits for these.
            Self::Other { .. } | Self::Remove { .. } => {}
            Self::Start { target, .. } => contained(|| drop(target)),
        }
    }
}

impl Entries {
    /// The next call: at least one entry, and no more than the bounds allow.
    #[allow(clippy::type_complexity)] // the arguments of a call
    fn take(&mut self, entries_max: usize, bytes_max: u64) -> (Vec<Entry>, Vec<Option<Waiter>>, LogId) {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            // An empty entry counts too, or the first would never be over.
            bytes += (entry.payload_bytes() as u64).max(1);
            first || bytes <= bytes_max
        };
        let count = self.entries.iter().take(entries_max).take_while(fits).count();
        if count == self.entries.len() {
            let (entries, waiters) = (std::mem::take(&mut self.entries), std::mem::take(&mut self.waiters));
            return (entries.into(), waiters.into(), self.through);
        }
        let entries: Vec<Entry> = self.entries.drain(..count).collect();
        let commands = entries.iter().filter(|entry| is_command(entry)).count();
        let waiters = self.waiters.drain(..commands.min(self.waiters.len())).collect();
        let through =
            entries.last().map_or(self.through, |last| LogId { index: last.index, term: last.term });
        (entries, waiters, through)
    }
}

fn stopped() -> Arc<str> {
    "the node was shut down".into()
}

fn not_running() -> Arc<str> {
    "the group is not running".into()
}

/// A state machine's own drop may panic; the worker has others.
fn let_go(running: Option<Running>) {
    contained(|| drop(running));
}
