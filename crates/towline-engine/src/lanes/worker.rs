//! The worker of one lane: it keeps a link to the peer and dispatches the lane's queue to it.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::Instrument as _;

use super::deps::{LaneSettings, PeerGate};
use super::policy::{Backoff, DropReason};
use super::queue::LaneQueue;
use crate::cause::chain;
use crate::message::{Batch, Lane};
use crate::reporter::{Scope, UnreachableCause};
use crate::transport::{
    BytesTaken, ConnectError, Hello, Link, LinkClosed, LinkEvents, LinkFeedback, Nack, NackCause, Peer,
    Transport,
};

/// The worker warns after this many failed attempts in a row. A peer that starts together with this node answers earlier.
const MISSES_LOGGED: u32 = 5;

/// A worker that was not started yet.
pub(crate) struct Worker {
    pub(crate) peer: Peer,
    pub(crate) queue: Arc<LaneQueue>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) gate: Arc<dyn PeerGate>,
    pub(crate) hello: Hello,
    pub(crate) settings: LaneSettings,
    pub(crate) runtime: Handle,
}

/// A handle to a running worker. Dropping it does not stop the worker.
pub(crate) struct WorkerHandle {
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl WorkerHandle {
    /// Stops the worker; it abandons a dispatch under way.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Whether the worker has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the worker has ended.
    pub(crate) async fn join(self) {
        // An error means that the worker panicked, so it has ended too.
        let _ = self.task.await;
    }
}

impl Worker {
    /// Starts the worker on its runtime.
    pub(crate) fn spawn(self) -> WorkerHandle {
        let stop = Arc::new(Notify::new());
        let runtime = self.runtime.clone();
        let span = tracing::info_span!("lane", node = %self.hello.from, peer = %self.peer.id, lane = self.queue.lane.as_str());
        let task = runtime.spawn(Arc::new(self).run(Arc::clone(&stop)).instrument(span));
        WorkerHandle { stop, task }
    }

    async fn run(self: Arc<Self>, stop: Arc<Notify>) {
        let mut rng = fastrand::Rng::new();
        let mut backoff = Backoff::new(self.settings.backoff_min, self.settings.backoff_max);
        let misses = Arc::new(AtomicU32::new(0));
        let mut early_retry = None;
        loop {
            // A separate task: a panic in a transport ends only this link.
            let mut session =
                self.runtime.spawn(Arc::clone(&self).session(Arc::clone(&misses)).in_current_span());
            let ended = select! {
                biased;
                () = stop.notified() => {
                    session.abort();
                    let _ = session.await;
                    return;
                }
                ended = &mut session => ended,
            };
            let is_healthy = ended.unwrap_or_else(|error| {
                tracing::error!(peer = %self.peer.id, lane = self.queue.lane.as_str(), %error, "a transport panicked");
                false
            });
            if is_healthy {
                backoff.reset();
            }
            select! {
                biased;
                () = stop.notified() => return,
                () = self.pause(backoff.next(&mut rng), &mut early_retry) => {}
            }
        }
    }

    /// Waits before the next attempt. A connection from the peer ends the wait, because the peer is then reachable. This
    /// happens at most once in `backoff_max`: otherwise two nodes that break each other's links would reconnect without a
    /// pause.
    async fn pause(&self, pause: Duration, early_retry: &mut Option<Instant>) {
        if early_retry.is_some_and(|at| at.elapsed() < self.settings.backoff_max) {
            return sleep(pause).await;
        }
        select! {
            biased;
            () = self.queue.peer_connected() => *early_retry = Some(Instant::now()),
            () = sleep(pause) => {}
        }
    }

    /// Connects, and dispatches until the link ends. Returns whether the link was healthy, which resets the backoff.
    async fn session(self: Arc<Self>, misses: Arc<AtomicU32>) -> bool {
        let (peer, lane) = (self.peer.id, self.queue.lane.as_str());
        let mut attempt = Attempt { queue: &self.queue, up: false };
        let (link, closed) = match self.connect().await {
            Ok(connected) => connected,
            Err(detail) => {
                tracing::debug!(%peer, lane, detail, "no link");
                // Once an incident: an operator must see a wrong address, but a peer that is down must not fill the disk.
                if misses.fetch_add(1, Ordering::Relaxed) + 1 == MISSES_LOGGED {
                    let address = &self.peer.address;
                    tracing::warn!(%peer, %address, lane, detail, "a peer cannot be reached");
                }
                return false;
            }
        };
        attempt.up = true;
        misses.store(0, Ordering::Relaxed);
        self.queue.link_up(self.settings.control_age_max);
        tracing::debug!(%peer, lane, "link made");
        let since = Instant::now();
        let mut pump = Pump { worker: &self, link, closed, accepted: false };
        let end = pump.run().await;
        let accepted = pump.accepted;
        tracing::debug!(%peer, lane, ?end, "link lost");
        // A peer that accepts a link and closes it at once is not healthy. A peer that keeps an idle link is.
        accepted || since.elapsed() >= self.settings.backoff_max
    }

    async fn connect(&self) -> Result<(Box<dyn Link>, Closed), String> {
        let lane = self.queue.lane;
        let (feedback, closed) = feedback(&self.queue, &self.gate);
        let attempt = self.transport.connect(&self.peer, lane, &self.hello, feedback);
        let connected = match timeout(self.settings.connect_timeout, attempt).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                self.gate.connect_failed(self.peer.id, &error);
                return Err(chain(&error));
            }
            Err(_) => return Err("no answer within the connect timeout".into()),
        };
        let welcome = connected.welcome;
        if welcome.node != self.peer.id {
            let error = ConnectError::WrongPeer { detail: format!("node {}", welcome.node) };
            self.gate.connect_failed(self.peer.id, &error);
            return Err(chain(&error));
        }
        // Without a deadline: the call cannot be cancelled, and repeated calls would pile up.
        let gate = Arc::clone(&self.gate);
        match self.runtime.spawn_blocking(move || gate.welcome(&welcome)).await {
            Ok(Ok(())) => Ok((connected.link, closed)),
            Ok(Err(detail)) => Err(detail),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Reports the end of a session to the queue, whether it returned, was aborted or panicked.
struct Attempt<'a> {
    queue: &'a LaneQueue,
    up: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        match self.up {
            true => self.queue.link_down(),
            false => self.queue.connect_failed(),
        }
    }
}

/// Counts a batch as lost unless its dispatch ended.
struct InFlight<'a> {
    queue: &'a LaneQueue,
    messages: usize,
}

impl InFlight<'_> {
    fn accepted(mut self, bytes: usize) {
        self.queue.counter.sent(std::mem::take(&mut self.messages), bytes);
    }

    fn lost(mut self, reason: DropReason) {
        self.queue.counter.dropped(reason, std::mem::take(&mut self.messages));
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.messages > 0 {
            self.queue.counter.dropped(self.queue.loss(), self.messages);
        }
    }
}

/// How often a worker checks a link's progress within its timeout.
const CHECKS: u32 = 10;

/// Waits for a dispatch. Gives up when `taken` has not changed for `patience`.
async fn while_moving<T>(
    patience: Duration,
    taken: &BytesTaken,
    dispatch: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut dispatch = pin!(dispatch);
    let (mut seen, mut since) = (taken.now(), Instant::now());
    loop {
        let until = (Instant::now() + patience / CHECKS).min(since + patience);
        let elapsed = match timeout_at(until, &mut dispatch).await {
            Ok(done) => return Ok(done),
            Err(elapsed) => elapsed,
        };
        let now = taken.now();
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() >= patience {
            return Err(elapsed);
        }
    }
}

/// Why a worker drops a link.
#[derive(Debug)]
#[allow(dead_code)] // read by the log only
enum LinkEnd {
    Closed(Option<LinkClosed>),
    Refused(String),
    TimedOut(Duration),
}

struct Pump<'a> {
    worker: &'a Worker,
    link: Box<dyn Link>,
    closed: Closed,
    accepted: bool,
}

impl Pump<'_> {
    async fn run(&mut self) -> LinkEnd {
        let queue = Arc::clone(&self.worker.queue);
        loop {
            let end = match queue.take(self.worker.settings.batch_bytes_max) {
                Some(batch) => self.dispatch(batch).await,
                None => select! {
                    biased;
                    cause = &mut self.closed => Some(LinkEnd::Closed(cause.ok())),
                    () = queue.filled() => None,
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Passes a batch to the link. Returns the reason to drop the link, if there is one.
    async fn dispatch(&mut self, batch: Batch) -> Option<LinkEnd> {
        let queue = &self.worker.queue;
        let patience = self.worker.settings.dispatch_timeout;
        let taken = self.link.taken();
        let bytes = batch.payload_bytes();
        let in_flight = InFlight { queue, messages: batch.envelopes.len() };
        let dispatched = select! {
            biased;
            cause = &mut self.closed => {
                in_flight.lost(DropReason::LinkDown);
                return Some(LinkEnd::Closed(cause.ok()));
            }
            dispatched = while_moving(patience, &taken, self.link.dispatch(batch)) => dispatched,
        };
        match dispatched {
            Ok(Ok(())) => {
                in_flight.accepted(bytes);
                self.accepted = true;
                None
            }
            Ok(Err(error)) => {
                in_flight.lost(DropReason::DispatchFailed);
                tracing::warn!(peer = %queue.peer, lane = queue.lane.as_str(), %error, "batch not taken");
                Some(LinkEnd::Refused(error.to_string()))
            }
            Err(_) => {
                in_flight.lost(DropReason::DispatchTimeout);
                Some(LinkEnd::TimedOut(patience))
            }
        }
    }
}

/// Completes when the link's transport reports the end of the link.
type Closed = oneshot::Receiver<LinkClosed>;

/// Receives the events of one link. Reports nacks to Raft at once, and the end of the link to the worker.
struct LinkObserver {
    queue: Arc<LaneQueue>,
    gate: Arc<dyn PeerGate>,
    closed: Mutex<Option<oneshot::Sender<LinkClosed>>>,
}

/// Makes the feedback for one attempt to connect.
fn feedback(queue: &Arc<LaneQueue>, gate: &Arc<dyn PeerGate>) -> (LinkFeedback, Closed) {
    let (sender, closed) = oneshot::channel();
    let observer =
        LinkObserver { queue: Arc::clone(queue), gate: Arc::clone(gate), closed: Mutex::new(Some(sender)) };
    (LinkFeedback::new(Arc::new(observer)), closed)
}

impl LinkEvents for LinkObserver {
    fn nack(&self, nack: Nack) {
        let queue = &self.queue;
        queue.counter.nack();
        self.gate.nacked(queue.peer, nack);
        tracing::debug!(peer = %queue.peer, group = %nack.group, cause = ?nack.cause, "messages refused by the peer");
        let cause = match nack.cause {
            // On any lane: a leader that waits for an answer of the peer sends it only heartbeats.
            NackCause::EntriesLost(lost) => UnreachableCause::EntriesLost(lost),
            NackCause::UnknownGroup | NackCause::GroupDown | NackCause::FoundedDifferently => {
                UnreachableCause::Nack(nack.cause)
            }
            _ if queue.lane == Lane::Append => UnreachableCause::Nack(nack.cause),
            _ => return,
        };
        queue.reporter.report_unreachable(queue.peer, Scope::Group(nack.group), cause);
    }

    fn closed(&self, cause: LinkClosed) {
        let sender = self.closed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // Fails if the worker has dropped the link already.
            let _ = sender.send(cause);
        }
    }
}
