//! The worker of one lane: keeps a link, and dispatches to it what waits.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::Instrument as _;

use super::link::{Closed, Either, PeerGate, feedback, race};
use super::policy::{Backoff, DropReason};
use super::queue::LaneQueue;
use super::settings::LaneSettings;
use crate::cause::chain;
use crate::message::Batch;
use crate::transport::{BytesTaken, Hello, Link, LinkClosed, Peer, Transport};

/// Attempts to connect that fail in a row before somebody is told: by then a peer that starts beside this node is there.
const MISSES_TOLD: u32 = 5;

/// Everything a worker needs.
pub(crate) struct Worker {
    pub(crate) peer: Peer,
    pub(crate) queue: Arc<LaneQueue>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) gate: Arc<dyn PeerGate>,
    pub(crate) hello: Hello,
    pub(crate) settings: LaneSettings,
    pub(crate) runtime: Handle,
}

/// A worker that runs. Dropping it does not stop it.
pub(crate) struct Running {
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Running {
    /// Lets the worker end; what it is about to dispatch is given up.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Whether it has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end.
    pub(crate) async fn join(self) {
        // A worker that panicked has ended too.
        let _ = self.task.await;
    }
}

/// How a session, from the attempt to connect to the end of the link, ended.
#[derive(Debug)]
enum Ended {
    /// There never was a link.
    NotConnected,
    /// There was one; with how well it did.
    Lost { healthy: bool },
}

impl Worker {
    /// Starts it.
    pub(crate) fn spawn(self) -> Running {
        let stop = Arc::new(Notify::new());
        let runtime = self.runtime.clone();
        let span = tracing::info_span!("lane", node = %self.hello.from, peer = %self.peer.id, lane = self.queue.lane.as_str());
        let task = runtime.spawn(Arc::new(self).run(Arc::clone(&stop)).instrument(span));
        Running { stop, task }
    }

    async fn run(self: Arc<Self>, stop: Arc<Notify>) {
        let mut rng = fastrand::Rng::new();
        let mut backoff = Backoff::new(self.settings.backoff_min, self.settings.backoff_max);
        let misses = Arc::new(AtomicU32::new(0));
        let mut heeded = None;
        loop {
            // A task of its own, so that a panic in a transport ends this link and nothing else.
            let mut session =
                self.runtime.spawn(Arc::clone(&self).session(Arc::clone(&misses)).in_current_span());
            let ended = match race(stop.notified(), &mut session).await {
                Either::First(()) => {
                    session.abort();
                    let _ = session.await;
                    return;
                }
                Either::Second(ended) => ended,
            };
            if let Ended::Lost { healthy: true } = self.settle(ended) {
                backoff.reset();
            }
            if let Either::First(()) =
                race(stop.notified(), self.pause(backoff.next(&mut rng), &mut heeded)).await
            {
                return;
            }
        }
    }

    /// Waits before the next attempt. A call of the peer says that it is there, and ends the wait: at most once in
    /// `backoff_max`, so that two nodes that break each other's links do not call each other without a pause.
    async fn pause(&self, pause: Duration, heeded: &mut Option<Instant>) {
        if heeded.is_some_and(|at| at.elapsed() < self.settings.backoff_max) {
            return sleep(pause).await;
        }
        if let Either::First(()) = race(self.queue.called(), sleep(pause)).await {
            *heeded = Some(Instant::now());
        }
    }

    fn settle(&self, ended: Result<Ended, tokio::task::JoinError>) -> Ended {
        ended.unwrap_or_else(|error| {
            tracing::error!(peer = %self.peer.id, lane = self.queue.lane.as_str(), %error, "a transport panicked");
            Ended::NotConnected
        })
    }

    async fn session(self: Arc<Self>, misses: Arc<AtomicU32>) -> Ended {
        let (peer, lane) = (self.peer.id, self.queue.lane.as_str());
        let mut attempt = Attempt { queue: &self.queue, up: false };
        let (link, closed) = match self.connect().await {
            Ok(connected) => connected,
            Err(detail) => {
                tracing::debug!(%peer, lane, detail, "no link");
                // Once an incident: who named a wrong address must see it, and a peer that is down must not fill a disk.
                if misses.fetch_add(1, Ordering::Relaxed) + 1 == MISSES_TOLD {
                    let address = &self.peer.address;
                    tracing::warn!(%peer, %address, lane, detail, "a peer cannot be reached");
                }
                return Ended::NotConnected;
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
        // A peer that lets us in only to close is not healthy; one that keeps an idle link is.
        Ended::Lost { healthy: accepted || since.elapsed() >= self.settings.backoff_max }
    }

    async fn connect(&self) -> Result<(Box<dyn Link>, Closed), String> {
        let lane = self.queue.lane;
        let (feedback, closed) = feedback(&self.queue);
        let attempt = self.transport.connect(&self.peer, lane, &self.hello, feedback);
        let connected = match timeout(self.settings.connect_timeout, attempt).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(chain(&error)),
            Err(_) => return Err("no answer within the connect timeout".into()),
        };
        let welcome = connected.welcome;
        if welcome.node != self.peer.id {
            return Err(format!("node {} answered instead", welcome.node));
        }
        // No deadline: it cannot be cancelled, and starting it again beside itself would only pile up.
        let gate = Arc::clone(&self.gate);
        match self.runtime.spawn_blocking(move || gate.welcome(&welcome)).await {
            Ok(Ok(())) => Ok((connected.link, closed)),
            Ok(Err(detail)) => Err(detail),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells the queue how a session ended on every way out of it: returned, aborted, panicked.
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

/// Counts a batch as lost unless its dispatch came to an end.
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

/// How often a worker looks whether a link moves, within its timeout: a link that is stuck is found at most a tenth late.
const LOOKS: u32 = 10;

/// Waits for a dispatch, until `taken` stood still for `patience`.
async fn while_moving<T>(
    patience: Duration,
    taken: &BytesTaken,
    dispatch: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut dispatch = pin!(dispatch);
    let (mut seen, mut since) = (taken.now(), Instant::now());
    loop {
        let until = (Instant::now() + patience / LOOKS).min(since + patience);
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

/// Why a link is given up.
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
                None => match race(&mut self.closed, queue.filled()).await {
                    Either::First(cause) => Some(LinkEnd::Closed(cause.ok())),
                    Either::Second(()) => None,
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Hands a batch over; says why the link is to be dropped, if it is.
    async fn dispatch(&mut self, batch: Batch) -> Option<LinkEnd> {
        let queue = &self.worker.queue;
        let patience = self.worker.settings.dispatch_timeout;
        let taken = self.link.taken();
        let bytes = batch.payload_bytes();
        let in_flight = InFlight { queue, messages: batch.envelopes.len() };
        match race(&mut self.closed, while_moving(patience, &taken, self.link.dispatch(batch))).await {
            Either::Second(Ok(Ok(()))) => {
                in_flight.accepted(bytes);
                self.accepted = true;
                None
            }
            Either::Second(Ok(Err(error))) => {
                in_flight.lost(DropReason::DispatchFailed);
                tracing::warn!(peer = %queue.peer, lane = queue.lane.as_str(), %error, "batch not taken");
                Some(LinkEnd::Refused(error.to_string()))
            }
            Either::Second(Err(_)) => {
                in_flight.lost(DropReason::DispatchTimeout);
                Some(LinkEnd::TimedOut(patience))
            }
            Either::First(cause) => {
                in_flight.lost(DropReason::LinkDown);
                Some(LinkEnd::Closed(cause.ok()))
            }
        }
    }
}
