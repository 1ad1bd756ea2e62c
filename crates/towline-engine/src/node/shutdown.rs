//! Stops a node in time, even if a call of a state machine, a store or a transport does not return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::time::timeout_at;

use super::apply::ApplyWorker;
use super::inbox::{Control, ShardEvent};
use super::runtimes::Runtimes;
use super::waiter::answer;
use super::{Node, NodeInner};
use crate::cause::chain;
use crate::ids::{GroupId, NodeId};
use crate::status::{GroupState, Role};
use crate::sync::lock;
use crate::transport::Listener;

/// How long after its deadline a shutdown may return: the time to close and join everything.
pub const SHUTDOWN_MARGIN: Duration = Duration::from_secs(2);

/// The longest deadline, because the clock cannot add every duration. A longer one counts as this.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long the drop of a node waits for its threads and tasks.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// Listeners, lanes and the last write get one part in this many of the margin.
const CLOSE_SHARE: u32 = 4;

const JOIN_POLL: Duration = Duration::from_millis(1);

/// What a shutdown could not end in time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Groups whose state machine was not flushed, and why. Nothing acknowledged is lost: the next start applies more entries
    /// again. Empty after a deadline of zero, which flushes nothing.
    pub unflushed: Vec<(GroupId, Arc<str>)>,
    /// Threads and runtimes that still run, with their present call if it is known. They hold the node's storage until the
    /// call returns: a data directory stays locked, and no second node can open it.
    pub left: Vec<String>,
}

impl ShutdownReport {
    /// Whether nothing is left running or unflushed.
    pub fn is_complete(&self) -> bool {
        self.unflushed.is_empty() && self.left.is_empty()
    }
}

type States = BTreeMap<GroupId, watch::Receiver<GroupState>>;

impl Node {
    /// Ends the node in order. Returns at most [`SHUTDOWN_MARGIN`] after `deadline`, even if a call of a state machine, a
    /// store or a transport hangs.
    ///
    /// All groups share the deadline. In its first half, leaders transfer leadership. Then the state machines apply what is
    /// committed and are flushed; in the last quarter they are flushed without applying more. At the end, pending callers
    /// get an answer, the last commit index is written, and listeners and threads end. A thread whose call does not return
    /// is left running; the report and the log name it.
    ///
    /// A deadline of zero skips transfers and flushes, as in a crash. Acknowledged commands are durable either way.
    pub async fn shutdown(mut self, deadline: Duration) -> ShutdownReport {
        let (began, deadline) = (Instant::now(), deadline.min(DEADLINE_MAX));
        let until = began + deadline;
        let states = lock(&self.inner.states).clone();
        let mut report = ShutdownReport::default();
        if !deadline.is_zero() {
            self.inner.hand_over(&states, began + deadline / 2).await;
            report.unflushed = self.inner.flush(&states, until - deadline / 4, until).await;
        }
        let closed = until.max(Instant::now()) + SHUTDOWN_MARGIN / CLOSE_SHARE;
        self.inner.close_groups(&states, !deadline.is_zero(), closed).await;
        let listeners = std::mem::take(&mut *lock(&self.listeners));
        report.left.extend(self.inner.close_listeners(listeners, closed).await);
        if timeout_at(closed.into(), self.inner.lanes.shutdown()).await.is_err() {
            tracing::warn!("lanes to peers were not closed in time");
        }
        let ending = self.begin_end();
        let (done, ended) = oneshot::channel();
        // On a new thread: joining would block the caller's runtime, and a runtime must not be dropped inside another.
        let end = until.max(began) + SHUTDOWN_MARGIN;
        std::thread::spawn(move || {
            let _ = done.send(ending.wait(end));
        });
        report.left.extend(ended.await.unwrap_or_default());
        report
    }

    /// Tells every thread and task to stop. Returns what the caller must wait for.
    fn begin_end(&mut self) -> Ending {
        lock(&self.listeners).clear();
        self.inner.lanes.close();
        self.inner.peers.close();
        self.inner.sends.close();
        self.inner.shard.post(ShardEvent::Control(Control::Stop));
        self.inner.writer.stop();
        self.inner.reader.stop();
        self.inner.disk.stop();
        self.inner.worker.stop();
        self.inner.apply_workers.iter().for_each(ApplyWorker::stop);
        let threads = std::mem::take(&mut *lock(&self.threads));
        let apply_workers = self.inner.apply_workers.clone();
        Ending { node: self.inner.id, threads, apply_workers, runtimes: std::mem::take(&mut self.runtimes) }
    }
}

impl NodeInner {
    /// Asks every leader to transfer leadership, and waits until each has done so or raft has given up.
    async fn hand_over(&self, states: &States, until: Instant) {
        let leaders = states.iter().filter(|(_, state)| state.borrow().role == Role::Leader);
        let ask = |(group, _): (&GroupId, &watch::Receiver<GroupState>)| {
            let (answer, answered) = answer();
            let control = Control::Transfer { group: *group, target: None, answer, room: None };
            self.shard.post(ShardEvent::Control(control));
            (*group, answered)
        };
        let asked: Vec<_> = leaders.map(ask).collect();
        for (group, answered) in asked {
            if let Ok(Ok(Err(error))) = timeout_at(until.into(), answered).await {
                tracing::debug!(%group, %error, "leadership is not handed over");
            }
        }
    }

    /// Flushes all state machines, in parallel on the apply workers. From `hurry` on, queued entries are no longer applied.
    async fn flush(&self, states: &States, hurry: Instant, until: Instant) -> Vec<(GroupId, Arc<str>)> {
        let running = states.iter().filter(|(_, state)| state.borrow().role != Role::Down);
        let flushing: Vec<_> =
            running.map(|(group, _)| (*group, self.apply_worker(*group).flush(*group))).collect();
        let mut unflushed = Vec::new();
        for (group, mut flushed) in flushing {
            let mut result = timeout_at(hurry.into(), &mut flushed).await;
            if result.is_err() {
                self.apply_workers.iter().for_each(ApplyWorker::give_up);
                result = timeout_at(until.into(), &mut flushed).await;
            }
            let cause: Arc<str> = match result {
                Ok(Ok(Ok(_))) => continue,
                Ok(Ok(Err(error))) => {
                    tracing::warn!(%group, %error, "the state machine was not flushed");
                    error
                }
                Ok(Err(_)) => "the apply worker has stopped".into(),
                Err(_) => {
                    let call = self.apply_worker(group).call().map(|call| call.to_string());
                    let cause = call.unwrap_or_else(|| "other groups were flushed first".into());
                    tracing::warn!(%group, cause, "the state machine was not flushed in time");
                    cause.into()
                }
            };
            unflushed.push((group, cause));
        }
        unflushed
    }

    /// Takes all groups out of service, and writes their last commit indexes.
    async fn close_groups(&self, states: &States, write: bool, until: Instant) {
        let cause: Arc<str> = "the node was shut down".into();
        let close = |group: &GroupId| {
            let (answer, answered) = answer();
            let cause = cause.clone();
            let control = Control::Close { group: *group, generation: None, cause, write, answer };
            self.shard.post(ShardEvent::Control(control));
            (*group, answered)
        };
        let closing: Vec<_> = states.keys().map(close).collect();
        let mut writing: Vec<(GroupId, _)> = Vec::new();
        for (group, answered) in closing {
            if let Ok(Ok(Some(written))) = timeout_at(until.into(), answered).await {
                writing.push((group, written));
            }
        }
        for (group, written) in writing {
            let error: Arc<str> = match timeout_at(until.into(), written).await {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => chain(&*error).into(),
                Ok(Err(_)) => "the log writer has stopped".into(),
                Err(_) => "the log writer did not answer in time".into(),
            };
            tracing::warn!(%group, %error, "the last commit index was not written");
        }
    }

    /// Closes listeners in separate tasks, so that a hang or panic of a transport does not stop the shutdown.
    async fn close_listeners(&self, listeners: Vec<Box<dyn Listener>>, until: Instant) -> Vec<String> {
        let close = |listener: Box<dyn Listener>| {
            let address = listener.local_addr();
            (address, self.runtime.spawn(async move { listener.shutdown().await }))
        };
        let closing: Vec<_> = listeners.into_iter().map(close).collect();
        let mut left = Vec::new();
        for (address, mut closed) in closing {
            let cause = match timeout_at(until.into(), &mut closed).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    closed.abort();
                    "it did not close in time".to_owned()
                }
            };
            tracing::warn!(%address, cause, "a listener was not closed");
            left.push(format!("listener at {address}: {cause}"));
        }
        left
    }
}

/// The threads and runtimes of a node that is stopping.
struct Ending {
    node: NodeId,
    threads: Vec<JoinHandle<()>>,
    apply_workers: Vec<ApplyWorker>,
    runtimes: Runtimes,
}

impl Ending {
    fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.runtimes.is_empty()
    }

    /// Blocks until threads and tasks have ended, or `until`. Returns the names of those that still run. Panics inside a
    /// runtime.
    fn wait(mut self, until: Instant) -> Vec<String> {
        // Reserves time for the runtimes, because their tasks hold the data directory too.
        let share = until.saturating_duration_since(Instant::now()) / CLOSE_SHARE;
        self.join(until - share);
        let mut left = self.runtimes.wait(until);
        self.join(Instant::now());
        left.extend(self.threads.iter().map(|thread| self.name(thread)));
        for thread in &left {
            tracing::error!(node = %self.node, thread, "a thread of the node is left: its call does not return");
        }
        left
    }

    /// Joins the threads that end before `until`.
    fn join(&mut self, until: Instant) {
        loop {
            let threads = std::mem::take(&mut self.threads).into_iter();
            let (ended, running): (Vec<_>, _) = threads.partition(JoinHandle::is_finished);
            self.threads = running;
            for thread in ended {
                if thread.join().is_err() {
                    tracing::error!(node = %self.node, "a thread of the node had panicked");
                }
            }
            if self.threads.is_empty() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(JOIN_POLL);
        }
    }

    fn name(&self, thread: &JoinHandle<()>) -> String {
        let name = thread.thread().name().unwrap_or("a thread");
        let number = name.strip_prefix(super::apply::THREAD_NAME).and_then(|number| number.parse().ok());
        let call =
            number.and_then(|number: usize| self.apply_workers.get(number)).and_then(ApplyWorker::call);
        call.map_or_else(|| name.to_owned(), |call| format!("{name}: {call}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ending = self.begin_end();
        if !ending.is_empty() {
            // On a new thread, because this may be inside a runtime.
            let until = Instant::now() + DROP_TIMEOUT;
            let _ = std::thread::spawn(move || ending.wait(until)).join();
        }
    }
}
