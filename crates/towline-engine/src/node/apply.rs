//! The way to an apply worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use super::call_watch::{Call, CallWatch};
use super::target::{Target, Task, fail_tasks};
use super::waiter::{Answer, answer};
use crate::ids::GroupId;
use crate::message::LogId;

pub(super) enum Work {
    Start { group: GroupId, generation: u64, target: Box<dyn Target> },
    Apply { group: GroupId, generation: u64, tasks: Vec<Task> },
    Flush { group: GroupId, done: Answer<Result<LogId, Arc<str>>> },
    Remove { group: GroupId, generation: u64 },
    Stop,
}

/// The way to one worker. What queues is bounded by `unapplied_bytes_max` of each group.
#[derive(Clone)]
pub(crate) struct ApplyWorker {
    pub(super) work: Sender<Work>,
    /// Set once: what is still queued is given up, however long it would take.
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) watch: Arc<CallWatch>,
}

impl ApplyWorker {
    /// From now on the group's work goes to `target`.
    pub(crate) fn start_group(&self, group: GroupId, generation: u64, target: Box<dyn Target>) {
        let _ = self.work.send(Work::Start { group, generation, target });
    }

    pub(crate) fn apply(&self, group: GroupId, generation: u64, tasks: Vec<Task>) {
        if let Err(lost) = self.work.send(Work::Apply { group, generation, tasks })
            && let Work::Apply { tasks, .. } = lost.0
        {
            fail_tasks(tasks, &"the apply worker has stopped".into());
        }
    }

    /// Makes durable what is applied by the time the worker has done, or [given up](Self::give_up), what was queued
    /// before.
    pub(crate) fn flush(&self, group: GroupId) -> oneshot::Receiver<Result<LogId, Arc<str>>> {
        let (done, flushed) = answer();
        let _ = self.work.send(Work::Flush { group, done });
        flushed
    }

    /// Lets go of the group's state machine.
    pub(crate) fn remove_group(&self, group: GroupId, generation: u64) {
        let _ = self.work.send(Work::Remove { group, generation });
    }

    /// The call of a state machine that the worker is in.
    pub(crate) fn call(&self) -> Option<Call> {
        self.watch.now()
    }

    /// From now on entries are not applied: their callers are answered, and the worker reaches what was queued
    /// behind them.
    pub(crate) fn give_up(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Ends the thread after the call it is in.
    pub(crate) fn stop(&self) {
        self.give_up();
        let _ = self.work.send(Work::Stop);
    }
}
