//! The thread of an apply worker: runs state machines, and answers whoever waits.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use super::answer::contained;
use super::apply::{ApplyWorker, Work};
use super::mail::{ShardEvent, ShardSender};
use super::target::{Target, Task, fail_tasks, restore};
use super::waiter::ReadWaiter;
use crate::core::Apply;
use crate::ids::GroupId;
use crate::snapshot_store::{SnapshotHead, SnapshotStore};
use crate::snapshots::{Keeper, Making};

/// Starts the thread.
pub(crate) fn start(
    number: usize,
    shard: ShardSender,
    store: Arc<dyn SnapshotStore>,
    keeper: Keeper,
) -> io::Result<(ApplyWorker, JoinHandle<()>)> {
    let (work, queue) = channel();
    let stopping = Arc::new(AtomicBool::new(false));
    let seen = stopping.clone();
    let thread = std::thread::Builder::new().name(format!("towline-apply-{number}")).spawn(move || {
        Worker { shard, store, keeper, targets: BTreeMap::new(), stopping: seen }.run(&queue)
    })?;
    Ok((ApplyWorker { work, stopping }, thread))
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
