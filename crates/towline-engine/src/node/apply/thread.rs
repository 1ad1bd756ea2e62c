//! The thread of an apply worker.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::ApplyWorker;
use super::call_size::CallSize;
use super::call_watch::CallWatch;
use super::machine::{AnyMachine, ApplyTask, MachineFailure, fail_all, restore};
use crate::cause::chain;
use crate::core::Apply;
use crate::ids::GroupId;
use crate::log_store::ConfRecord;
use crate::message::{Entry, LogId};
use crate::node::inbox::{ShardEvent, ShardSender};
use crate::node::waiter::{Answer, Waiter, contained};
use crate::snapshot_store::{SnapshotHead, SnapshotMeta, SnapshotStore};
use crate::snapshots::{Made, Making, SnapshotWorker, check_room};
use crate::state_machine::is_command;

/// What an apply worker needs from the node.
pub(crate) struct ApplyDeps {
    pub(crate) shard: ShardSender,
    pub(crate) store: Arc<dyn SnapshotStore>,
    pub(crate) worker: SnapshotWorker,
    /// The most payload bytes in one call, unless a single entry is larger.
    pub(crate) call_bytes_max: u64,
}

/// The prefix of the threads' names; the number of the worker follows.
pub(crate) const THREAD_NAME: &str = "towline-apply-";

/// Starts the thread.
pub(crate) fn start(number: usize, deps: ApplyDeps) -> io::Result<(ApplyWorker, JoinHandle<()>)> {
    let (requests, queue) = channel();
    let (stopping, watch) = (Arc::new(AtomicBool::new(false)), Arc::new(CallWatch::default()));
    let worker = ApplyWorker { requests, stopping: stopping.clone(), watch: watch.clone() };
    let thread = ApplyThread { deps, groups: BTreeMap::new(), ready: VecDeque::new(), stopping, watch };
    let named = std::thread::Builder::new().name(format!("{THREAD_NAME}{number}"));
    Ok((worker, named.spawn(move || thread.run(&queue))?))
}

/// What the handle sends to the thread.
pub(super) enum ApplyRequest {
    Run { group: GroupId, job: Job },
    Stop,
}

pub(super) enum Job {
    Start { generation: u64, machine: Box<dyn AnyMachine> },
    Call { generation: u64, call: MachineCall },
    Flush { done: Answer<Result<LogId, Arc<str>>> },
    Remove { generation: u64 },
}

pub(super) enum MachineCall {
    Entries(PendingEntries),
    Restore(SnapshotMeta),
    Snapshot { conf: ConfRecord, at: LogId, bytes_expected: u64 },
}

/// Committed entries in a group's queue. Adjacent jobs are merged, because a state machine pays for each call.
pub(super) struct PendingEntries {
    entries: VecDeque<Entry>,
    /// One element for each command.
    waiters: VecDeque<Option<Waiter>>,
    through: LogId,
}

struct ApplyThread {
    deps: ApplyDeps,
    groups: BTreeMap<GroupId, GroupQueue>,
    /// The groups with a non-empty queue, each once.
    ready: VecDeque<GroupId>,
    stopping: Arc<AtomicBool>,
    watch: Arc<CallWatch>,
}

/// A group on its worker.
#[derive(Default)]
struct GroupQueue {
    running: Option<RunningMachine>,
    jobs: VecDeque<Job>,
}

struct RunningMachine {
    generation: u64,
    machine: Box<dyn AnyMachine>,
    size: CallSize,
}

impl ApplyThread {
    /// Makes one call for one group, then turns to the next: a slow state machine delays others by one call.
    fn run(mut self, queue: &Receiver<ApplyRequest>) {
        loop {
            let waited = if self.ready.is_empty() { queue.recv().map(Some) } else { Ok(None) };
            let Ok(waited) = waited else { break };
            let mut stop = false;
            for request in waited.into_iter().chain(queue.try_iter()) {
                match request {
                    ApplyRequest::Run { group, job } => self.queue(group, job),
                    ApplyRequest::Stop => stop = true,
                }
            }
            if stop {
                break;
            }
            if let Some(group) = self.ready.pop_front() {
                self.turn(group);
            }
        }
        let cause = "the node was shut down".into();
        for group in std::mem::take(&mut self.groups).into_values() {
            group.jobs.into_iter().for_each(|job| job.fail(&cause));
            release(group.running);
        }
    }

    fn queue(&mut self, group: GroupId, job: Job) {
        let jobs = &mut self.groups.entry(group).or_default().jobs;
        match (jobs.back_mut(), job) {
            (
                Some(Job::Call { generation: of, call: MachineCall::Entries(last) }),
                Job::Call { generation, call: MachineCall::Entries(entries) },
            ) if *of == generation => {
                last.entries.extend(entries.entries);
                last.waiters.extend(entries.waiters);
                last.through = entries.through;
            }
            (last, job) => {
                if last.is_none() {
                    self.ready.push_back(group);
                }
                jobs.push_back(job);
            }
        }
    }

    /// Does the group's oldest job, or one call's worth of it.
    fn turn(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(job) = group.jobs.pop_front() {
            Turn { deps: &self.deps, watch: &self.watch, stopping: &self.stopping, id }.run(job, group);
        }
        if !group.jobs.is_empty() {
            self.ready.push_back(id);
        } else if group.running.is_none() {
            self.groups.remove(&id);
        }
    }
}

/// The turn of one group.
struct Turn<'a> {
    deps: &'a ApplyDeps,
    watch: &'a CallWatch,
    stopping: &'a AtomicBool,
    id: GroupId,
}

impl Turn<'_> {
    fn run(self, job: Job, group: &mut GroupQueue) {
        let running = &mut group.running;
        match job {
            Job::Start { generation, machine } => {
                release(running.replace(RunningMachine { generation, machine, size: CallSize::new() }));
            }
            Job::Remove { generation } => {
                release(running.take_if(|running| running.generation == generation));
            }
            Job::Flush { done } => done.send(match running {
                Some(running) => {
                    let flushed = self.watch.run(self.id, "flush", || running.machine.flush());
                    flushed.map_err(|cause| chain(&*cause).into())
                }
                None => Err(not_running()),
            }),
            job if self.stopping.load(Ordering::Acquire) => job.fail(&"the node was shut down".into()),
            Job::Call { generation, call } => match running {
                Some(running) if running.generation == generation => {
                    let result = self.call(running, call, &mut group.jobs);
                    self.settle(generation, result, group);
                }
                _ => call.fail(&not_running()),
            },
        }
    }

    /// Makes one call. Returns the new applied index, if it changed.
    fn call(
        &self,
        running: &mut RunningMachine,
        call: MachineCall,
        jobs: &mut VecDeque<Job>,
    ) -> Result<Option<u64>, MachineFailure> {
        let (deps, group, machine) = (self.deps, self.id, &mut running.machine);
        match call {
            MachineCall::Entries(mut pending) => {
                let (entries, waiters, through) =
                    pending.take(running.size.entries_max(), deps.call_bytes_max);
                if !pending.entries.is_empty() {
                    let call = MachineCall::Entries(pending);
                    jobs.push_front(Job::Call { generation: running.generation, call });
                }
                let started = Instant::now();
                self.watch.run(group, "apply", || machine.apply(&entries, waiters, through))?;
                running.size.called(entries.len(), started.elapsed());
                Ok(Some(through.index))
            }
            MachineCall::Restore(meta) => {
                self.watch.run(group, "restore", || restore(&*deps.store, machine.as_mut(), &meta))?;
                Ok(Some(meta.head.at.index))
            }
            MachineCall::Snapshot { conf, at, bytes_expected } => {
                let generation = running.generation;
                // The state machine flushes for a snapshot, which takes room too.
                if let Err(none) = check_room(&*deps.store, group, at.index, bytes_expected) {
                    deps.shard.post(ShardEvent::SnapshotMade(Made { group, generation, result: Err(none) }));
                    return Ok(None);
                }
                let (durable, source) = self.watch.run(group, "snapshot", || machine.snapshot())?;
                let head = SnapshotHead {
                    founding: conf.founding,
                    group,
                    at,
                    conf_state: conf.conf_state,
                    members: conf.members,
                };
                deps.worker.make(Making { generation, head, durable, source, bytes_expected });
                Ok(None)
            }
        }
    }

    /// Reports the call's result to the shard. A failure ends the generation and its queued jobs.
    fn settle(&self, generation: u64, result: Result<Option<u64>, MachineFailure>, queue: &mut GroupQueue) {
        let group = self.id;
        match result {
            Ok(Some(index)) => self.deps.shard.post(ShardEvent::Applied { group, generation, index }),
            Ok(None) => {}
            Err(cause) => {
                let cause: Arc<str> = chain(&*cause).into();
                release(queue.running.take());
                self.deps.shard.post(ShardEvent::ApplyFailed { group, generation, cause: cause.clone() });
                for job in std::mem::take(&mut queue.jobs) {
                    match job {
                        Job::Call { generation: of, call } if of == generation => call.fail(&cause),
                        job => queue.jobs.push_back(job),
                    }
                }
            }
        }
    }
}

impl Job {
    pub(super) fn fail(self, cause: &Arc<str>) {
        match self {
            Self::Call { call, .. } => call.fail(cause),
            Self::Flush { done } => done.send(Err(cause.clone())),
            Self::Remove { .. } => {}
            Self::Start { machine, .. } => contained(|| drop(machine)),
        }
    }
}

impl From<ApplyTask> for MachineCall {
    fn from(task: ApplyTask) -> Self {
        match task {
            Apply::Entries { entries, waiters, through } => {
                Self::Entries(PendingEntries { entries: entries.into(), waiters: waiters.into(), through })
            }
            Apply::Restore(meta) => Self::Restore(meta),
            Apply::Snapshot { conf, at, bytes_expected } => Self::Snapshot { conf, at, bytes_expected },
        }
    }
}

impl MachineCall {
    fn fail(self, cause: &Arc<str>) {
        if let Self::Entries(entries) = self {
            fail_all(entries.waiters, cause);
        }
    }
}

impl PendingEntries {
    /// Takes the next call: at least one entry, and no more than the bounds allow.
    #[allow(clippy::type_complexity)] // the arguments of a call
    fn take(&mut self, entries_max: usize, bytes_max: u64) -> (Vec<Entry>, Vec<Option<Waiter>>, LogId) {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            // An empty entry counts as one byte, so that only one entry is the first.
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

fn not_running() -> Arc<str> {
    "the group is not running".into()
}

/// Drops a state machine. Its drop may panic, and the worker runs others.
fn release(running: Option<RunningMachine>) {
    contained(|| drop(running));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towline_metrics::NodeMetrics;

    use super::*;
    use crate::node::apply::TypedMachine;
    use crate::node::inbox::ShardInbox;
    use crate::node::tests::common::{DEADLINE, EmptyMachine};
    use crate::snapshot_store::SnapshotStoreError;
    use crate::snapshots::NotMade;
    use crate::snapshots::fixture::TestStore;

    /// The state machine flushed onto a full disk before the room was checked. Its failure then ended the group.
    #[test]
    fn a_snapshot_without_room_does_not_reach_the_state_machine() {
        let no_room =
            |wanted_bytes| Err(SnapshotStoreError::NoRoom { wanted_bytes, free_bytes: 0, reserve_bytes: 0 });
        let store = Arc::new(TestStore { check_room: Box::new(no_room), ..TestStore::default() });
        let inbox = ShardInbox::new();
        let (worker, snapshots) = SnapshotWorker::start(store.clone(), |_| {}).unwrap();
        let shard = inbox.sender.clone();
        let (apply, thread) =
            start(0, ApplyDeps { shard, store, worker: worker.clone(), call_bytes_max: 1 }).unwrap();
        // Its `snapshot` fails.
        let machine = EmptyMachine::default();
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        apply.start_group(GroupId::DEFAULT, 1, Box::new(TypedMachine { machine, metrics }));
        let (conf, at) = (ConfRecord::default(), LogId { index: 7, term: 1 });
        apply.apply(GroupId::DEFAULT, 1, vec![Apply::Snapshot { conf, at, bytes_expected: 9 }]);
        let (end, mut events) = (Instant::now() + DEADLINE, Vec::new());
        while events.is_empty() {
            assert!(Instant::now() < end, "no event");
            inbox.sender.take(&mut events);
            std::thread::sleep(Duration::from_millis(1)); // not synchronisation: poll interval under a deadline
        }
        let is_no_room = |event: &ShardEvent| matches!(event, ShardEvent::SnapshotMade(made) if made.generation == 1 && made.result == Err(NotMade::NoRoom));
        assert!(events.iter().all(is_no_room));
        apply.stop();
        thread.join().unwrap();
        worker.stop();
        snapshots.join().unwrap();
    }
}
