//! Apply workers: threads that run state machines and answer the callers whose commands they applied.

mod call_size;
mod call_watch;
mod machine;
mod thread;

pub(crate) use self::machine::{
    AnyMachine, ApplyTask, MachineFailure, TypedMachine, caught, fail_tasks, restore,
};
pub(super) use self::thread::{ApplyDeps, THREAD_NAME, start};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use self::call_watch::{Call, CallWatch};
use self::thread::{ApplyRequest, Job};
use super::waiter::answer;
use crate::ids::GroupId;
use crate::message::LogId;

/// A handle to one apply worker. `unapplied_bytes_max` bounds the queue of each group.
#[derive(Clone)]
pub(crate) struct ApplyWorker {
    requests: Sender<ApplyRequest>,
    /// Once set, the worker fails queued entries instead of applying them.
    stopping: Arc<AtomicBool>,
    watch: Arc<CallWatch>,
}

impl ApplyWorker {
    /// Gives the worker the state machine of a group.
    pub(crate) fn start_group(&self, group: GroupId, generation: u64, machine: Box<dyn AnyMachine>) {
        self.send(group, Job::Start { generation, machine });
    }

    pub(crate) fn apply(&self, group: GroupId, generation: u64, tasks: Vec<ApplyTask>) {
        for task in tasks {
            self.send(group, Job::Call { generation, call: task.into() });
        }
    }

    /// Flushes the group's state machine after the jobs that are queued now.
    pub(crate) fn flush(&self, group: GroupId) -> oneshot::Receiver<Result<LogId, Arc<str>>> {
        let (done, flushed) = answer();
        self.send(group, Job::Flush { done });
        flushed
    }

    /// Drops the group's state machine.
    pub(crate) fn remove_group(&self, group: GroupId, generation: u64) {
        self.send(group, Job::Remove { generation });
    }

    /// The state machine call that the worker is in.
    pub(crate) fn call(&self) -> Option<Call> {
        self.watch.now()
    }

    /// Makes the worker fail queued entries, so that it soon reaches the jobs behind them.
    pub(crate) fn give_up(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Ends the thread after its present call.
    pub(crate) fn stop(&self) {
        self.give_up();
        let _ = self.requests.send(ApplyRequest::Stop);
    }

    fn send(&self, group: GroupId, job: Job) {
        if let Err(lost) = self.requests.send(ApplyRequest::Run { group, job })
            && let ApplyRequest::Run { job, .. } = lost.0
        {
            job.fail(&"the apply worker has stopped".into());
        }
    }
}
