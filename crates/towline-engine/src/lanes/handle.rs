//! The lanes of a node: which peers there are, and the way in for messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::runtime::Handle;

use super::counter::LaneCounters;
use super::link::PeerGate;
use super::policy::DropReason;
use super::queue::{Clock, LaneQueue, Sent};
use super::settings::LaneSettings;
use super::worker::{Running, Worker};
use crate::ids::{GroupId, NodeId};
use crate::message::{Envelope, Lane};
use crate::reporter::{Reporter, Scope, UnreachableCause};
use crate::transport::{Hello, Peer, Transport};

/// What the lanes work with.
pub(crate) struct LanesDeps {
    /// Hears of lost appends.
    pub(crate) reporter: Arc<dyn Reporter>,
    /// Asked before the first message on every link.
    pub(crate) gate: Arc<dyn PeerGate>,
    /// Makes the counters of each lane.
    pub(crate) counters: Arc<dyn LaneCounters>,
    /// By the scheme of the addresses they serve.
    pub(crate) transports: BTreeMap<String, Arc<dyn Transport>>,
    /// Where the workers run.
    pub(crate) runtime: Handle,
    /// What to say to a peer first.
    pub(crate) hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync>,
}

/// The lanes to all peers. Clones are the same lanes.
#[derive(Clone)]
pub(crate) struct Lanes {
    inner: Arc<Inner>,
}

struct Inner {
    settings: LaneSettings,
    deps: LanesDeps,
    clock: Clock,
    /// What the sending thread reads: replaced as a whole, so that a burst holds no lock.
    routes: RwLock<Arc<Routes>>,
    /// Serialises changes, and keeps the workers.
    workers: Mutex<Workers>,
}

#[derive(Default, Clone)]
struct Routes {
    closed: bool,
    peers: BTreeMap<NodeId, PeerLanes>,
}

#[derive(Clone)]
struct PeerLanes {
    control: Arc<LaneQueue>,
    append: Arc<LaneQueue>,
}

#[derive(Default)]
struct Workers {
    closed: bool,
    by_peer: BTreeMap<NodeId, (Peer, Vec<Running>)>,
    /// Told to stop, perhaps not done with it.
    stopping: Vec<Running>,
}

impl Lanes {
    /// Lanes to nobody yet.
    pub(crate) fn new(settings: LaneSettings, deps: LanesDeps) -> Self {
        let (routes, workers) = (RwLock::default(), Mutex::default());
        Self { inner: Arc::new(Inner { settings, deps, clock: Clock::start(), routes, workers }) }
    }

    /// Connects to a peer, and keeps trying. With another address than before the lanes start anew; what waited for the
    /// old address is dropped and reported. The same address again changes nothing.
    pub(crate) fn set_peer(&self, peer: Peer) {
        let mut workers = self.workers();
        if workers.closed || workers.by_peer.get(&peer.id).is_some_and(|(known, _)| *known == peer) {
            return;
        }
        let started = self.inner.start(&peer);
        if started.is_none() {
            tracing::warn!(peer = %peer.id, address = %peer.address, "no transport is registered for this address");
        }
        let (lanes, running) = started.unzip();
        let old = self.change_routes(|routes| match lanes {
            Some(lanes) => routes.peers.insert(peer.id, lanes),
            None => routes.peers.remove(&peer.id),
        });
        workers.retire(peer.id, old, DropReason::LinkDown);
        workers.by_peer.insert(peer.id, (peer, running.unwrap_or_default()));
    }

    /// The peer has just called this node and was let in: its lanes need not wait for their next attempt to connect.
    pub(crate) fn peer_called(&self, peer: NodeId) {
        let routes = Arc::clone(&self.inner.routes.read().unwrap_or_else(PoisonError::into_inner));
        if let Some(lanes) = routes.peers.get(&peer) {
            lanes.control.peer_called();
            lanes.append.peer_called();
        }
    }

    /// Lets go of a peer: what waits for it is dropped, and so is what comes for it later.
    #[allow(dead_code)] // its caller, a change of membership, comes later; the tests hold it
    pub(crate) fn remove_peer(&self, peer: NodeId) {
        let mut workers = self.workers();
        let old = self.change_routes(|routes| routes.peers.remove(&peer));
        workers.retire(peer, old, DropReason::UnknownPeer);
    }

    /// Queues one message for the node it is to.
    #[cfg(test)]
    pub(crate) fn send(&self, envelope: Envelope) {
        self.send_many([envelope]);
    }

    /// Queues messages, each for the node it is to, in order. Never blocks; what does not fit is dropped, counted and,
    /// on the append lane, reported. Each worker is woken once.
    pub(crate) fn send_many(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let routes = Arc::clone(&self.inner.routes.read().unwrap_or_else(PoisonError::into_inner));
        let mut burst = Burst::new(&self.inner, &routes);
        for envelope in envelopes {
            burst.push(envelope);
        }
        burst.end();
    }

    /// Stops taking messages, drops what waits, and returns when every worker has ended.
    pub(crate) async fn shutdown(&self) {
        self.close();
        let ending = std::mem::take(&mut self.workers().stopping);
        for running in ending {
            running.join().await;
        }
    }

    /// As [`shutdown`](Self::shutdown), without waiting for the workers.
    pub(crate) fn close(&self) {
        let mut workers = self.workers();
        workers.closed = true;
        let old = self.change_routes(|routes| {
            routes.closed = true;
            std::mem::take(&mut routes.peers)
        });
        for (peer, lanes) in old {
            workers.retire(peer, Some(lanes), DropReason::Shutdown);
        }
        workers.by_peer.clear();
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_routes<T>(&self, change: impl FnOnce(&mut Routes) -> T) -> T {
        let mut routes = self.inner.routes.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut routes))
    }
}

impl Workers {
    fn retire(&mut self, peer: NodeId, lanes: Option<PeerLanes>, reason: DropReason) {
        // First the queues, so that a batch which the worker gives up is counted with the reason.
        if let Some(lanes) = lanes {
            lanes.control.end(reason);
            lanes.append.end(reason);
        }
        self.stopping.retain(|running| !running.is_finished());
        if let Some((_, running)) = self.by_peer.remove(&peer) {
            running.iter().for_each(Running::stop);
            self.stopping.extend(running);
        }
    }
}

impl Inner {
    fn start(&self, peer: &Peer) -> Option<(PeerLanes, Vec<Running>)> {
        let transport = self.deps.transports.get(peer.address.scheme())?;
        let [control, append] = [Lane::Control, Lane::Append].map(|lane| {
            let counter = self.deps.counters.lane(peer.id, peer.address.scheme(), lane);
            let reporter = Arc::clone(&self.deps.reporter);
            Arc::new(LaneQueue::new(peer.id, lane, &self.settings, counter, reporter, self.clock))
        });
        let running = [&control, &append].map(|queue| {
            let worker = Worker {
                peer: peer.clone(),
                queue: Arc::clone(queue),
                transport: Arc::clone(transport),
                gate: Arc::clone(&self.deps.gate),
                hello: (self.deps.hello)(peer.id),
                settings: self.settings.clone(),
                runtime: self.deps.runtime.clone(),
            };
            worker.spawn()
        });
        Some((PeerLanes { control, append }, running.into()))
    }
}

/// One call of the sending thread: wakes and reports once for what belongs together.
struct Burst<'a> {
    inner: &'a Inner,
    routes: &'a Routes,
    now_ms: u64,
    /// The lanes it touched, and whether their worker is to be woken: at most two a peer.
    touched: Vec<(&'a LaneQueue, bool)>,
    /// The last report: a run of drops of one group is reported once.
    reported: Option<(NodeId, GroupId, UnreachableCause)>,
}

impl<'a> Burst<'a> {
    fn new(inner: &'a Inner, routes: &'a Routes) -> Self {
        Self { inner, routes, now_ms: inner.clock.now_ms(), touched: Vec::new(), reported: None }
    }

    fn push(&mut self, envelope: Envelope) {
        let (peer, group) = (envelope.message.to, envelope.group);
        let Some(lane) = envelope.message.kind.lane() else {
            // A snapshot has a ticket, which reports; here it could only be lost.
            debug_assert!(false, "a snapshot was sent to a lane");
            return self.inner.deps.counters.unrouted(peer, Lane::Append, DropReason::UnknownPeer);
        };
        let Some(lanes) = self.routes.peers.get(&peer) else {
            let reason = if self.routes.closed { DropReason::Shutdown } else { DropReason::UnknownPeer };
            self.inner.deps.counters.unrouted(peer, lane, reason);
            if !self.routes.closed {
                self.report(peer, lane, group, UnreachableCause::NoRoute);
            }
            return;
        };
        let queue: &LaneQueue = match lane {
            Lane::Control => &lanes.control,
            Lane::Append => &lanes.append,
        };
        match queue.push(envelope, self.now_ms) {
            Sent::Queued { wake } => self.touch(queue, wake),
            Sent::Dropped(cause) => self.report(peer, lane, group, cause),
            Sent::Gone => {}
        }
    }

    fn touch(&mut self, queue: &'a LaneQueue, wake: bool) {
        match self.touched.iter_mut().find(|(known, _)| std::ptr::eq(*known, queue)) {
            Some((_, woken)) => *woken |= wake,
            None => self.touched.push((queue, wake)),
        }
    }

    fn report(&mut self, peer: NodeId, lane: Lane, group: GroupId, cause: UnreachableCause) {
        if lane == Lane::Append && self.reported.replace((peer, group, cause)) != Some((peer, group, cause)) {
            self.inner.deps.reporter.report_unreachable(peer, Scope::Group(group), cause);
        }
    }

    fn end(self) {
        for (queue, wake) in self.touched {
            queue.settle(wake, self.now_ms);
        }
    }
}
