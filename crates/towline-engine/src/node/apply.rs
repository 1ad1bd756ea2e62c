//! The way to an apply worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use super::answer::{Answer, answer};
use super::target::{Target, Task, fail_tasks};
use crate::ids::GroupId;
use crate::state_machine::Applied;

pub(super) enum Work {
    Start { group: GroupId, life: u64, target: Box<dyn Target> },
    Apply { group: GroupId, life: u64, tasks: Vec<Task> },
    Flush { group: GroupId, done: Answer<Result<Applied, Arc<str>>> },
    Remove { group: GroupId, life: u64 },
    Stop,
}

/// The way to one worker. What queues is bounded by `unapplied_bytes_max` and `read_queue_max` of each group.
#[derive(Clone)]
pub(crate) struct ApplyWorker {
    pub(super) work: Sender<Work>,
    /// Set once: what is still queued is given up, however long it would take.
    pub(super) stopping: Arc<AtomicBool>,
}

impl ApplyWorker {
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
