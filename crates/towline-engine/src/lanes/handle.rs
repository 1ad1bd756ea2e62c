//! The handle to all lanes of a node: sets peers and queues messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::deps::{LaneSettings, LanesDeps};
use super::policy::DropReason;
use super::queue::{Clock, LaneQueue, PushOutcome};
use super::worker::{Worker, WorkerHandle};
use crate::ids::{GroupId, NodeId};
use crate::message::{Envelope, Lane};
use crate::reporter::{Scope, UnreachableCause};
use crate::transport::Peer;

/// The lanes to all peers. Clones share them.
#[derive(Clone)]
pub(crate) struct Lanes {
    shared: Arc<SharedLanes>,
}

struct SharedLanes {
    settings: LaneSettings,
    deps: LanesDeps,
    clock: Clock,
    /// Read by the sending thread. Replaced as a whole, so that a burst holds no lock.
    routes: RwLock<Arc<Routes>>,
    /// The workers. Its lock serialises changes of peers.
    workers: Mutex<Workers>,
}

#[derive(Default, Clone)]
struct Routes {
    closed: bool,
    peers: BTreeMap<NodeId, PeerLanes>,
}

/// In the order of [`Lane::ALL`].
type PeerLanes = [Arc<LaneQueue>; 2];

#[derive(Default)]
struct Workers {
    closed: bool,
    by_peer: BTreeMap<NodeId, (Peer, Vec<WorkerHandle>)>,
    /// Workers that are stopping.
    stopping: Vec<WorkerHandle>,
}

impl Lanes {
    /// Creates lanes without a peer.
    pub(crate) fn new(settings: LaneSettings, deps: LanesDeps) -> Self {
        let (routes, workers) = (RwLock::default(), Mutex::default());
        Self { shared: Arc::new(SharedLanes { settings, deps, clock: Clock::start(), routes, workers }) }
    }

    /// Adds a peer, or changes its address. The lanes connect, and reconnect until the peer is removed. A new address starts
    /// the lanes anew: messages queued for the old address are dropped and reported.
    pub(crate) fn set_peer(&self, peer: Peer) {
        let mut workers = self.workers();
        if workers.closed || workers.by_peer.get(&peer.id).is_some_and(|(known, _)| *known == peer) {
            return;
        }
        let started = self.shared.start(&peer);
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

    /// The peer has connected to this node and was admitted, so its lanes reconnect without waiting for their backoff.
    pub(crate) fn notify_peer_connected(&self, peer: NodeId) {
        let routes = Arc::clone(&self.shared.routes.read().unwrap_or_else(PoisonError::into_inner));
        routes.peers.get(&peer).into_iter().flatten().for_each(|queue| queue.notify_peer_connected());
    }

    /// Removes a peer. Queued and later messages for it are dropped.
    #[allow(dead_code)] // its caller, a change of membership, comes later; the tests hold it
    pub(crate) fn remove_peer(&self, peer: NodeId) {
        let mut workers = self.workers();
        let old = self.change_routes(|routes| routes.peers.remove(&peer));
        workers.retire(peer, old, DropReason::UnknownPeer);
    }

    /// Queues messages in order, each for its receiver. Never blocks: a message that does not fit is dropped and counted, and
    /// on the append lane reported. Wakes each worker once.
    pub(crate) fn send_many(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let routes = Arc::clone(&self.shared.routes.read().unwrap_or_else(PoisonError::into_inner));
        let mut burst = Burst::new(&self.shared, &routes);
        for envelope in envelopes {
            burst.push(envelope);
        }
        burst.end();
    }

    /// Refuses further messages, drops the queued ones, and returns when every worker has ended.
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
        self.shared.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_routes<T>(&self, change: impl FnOnce(&mut Routes) -> T) -> T {
        let mut routes = self.shared.routes.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut routes))
    }
}

impl Workers {
    fn retire(&mut self, peer: NodeId, lanes: Option<PeerLanes>, reason: DropReason) {
        // The queues first: a batch that a worker abandons is then counted with this reason.
        lanes.into_iter().flatten().for_each(|queue| queue.end(reason));
        self.stopping.retain(|running| !running.is_finished());
        if let Some((_, running)) = self.by_peer.remove(&peer) {
            running.iter().for_each(WorkerHandle::stop);
            self.stopping.extend(running);
        }
    }
}

impl SharedLanes {
    fn start(&self, peer: &Peer) -> Option<(PeerLanes, Vec<WorkerHandle>)> {
        let transport = self.deps.transports.get(peer.address.scheme())?;
        let queues = Lane::ALL.map(|lane| {
            let counter = self.deps.counters.lane(peer.id, peer.address.scheme(), lane);
            let reporter = Arc::clone(&self.deps.reporter);
            Arc::new(LaneQueue::new(peer.id, lane, &self.settings, counter, reporter, self.clock))
        });
        let running = queues.each_ref().map(|queue| {
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
        Some((queues, running.into()))
    }
}

/// One call of the sending thread. Wakes each worker once and merges equal reports.
struct Burst<'a> {
    shared: &'a SharedLanes,
    routes: &'a Routes,
    now_ms: u64,
    /// The lanes with new messages, and whether to wake their workers. At most two for each peer.
    touched: Vec<(&'a LaneQueue, bool)>,
    /// The last report: consecutive drops of one group are reported once.
    reported: Option<(NodeId, GroupId, UnreachableCause)>,
}

impl<'a> Burst<'a> {
    fn new(shared: &'a SharedLanes, routes: &'a Routes) -> Self {
        Self { shared, routes, now_ms: shared.clock.now_ms(), touched: Vec::new(), reported: None }
    }

    fn push(&mut self, envelope: Envelope) {
        let (peer, group) = (envelope.message.to, envelope.group);
        let Some(lane) = envelope.message.kind.lane() else {
            // A snapshot travels with a ticket that reports its outcome. A lane would lose it.
            debug_assert!(false, "a snapshot was sent to a lane");
            return self.shared.deps.counters.unrouted(peer, Lane::Append, DropReason::UnknownPeer);
        };
        let Some([control, append]) = self.routes.peers.get(&peer) else {
            let reason = if self.routes.closed { DropReason::Shutdown } else { DropReason::UnknownPeer };
            self.shared.deps.counters.unrouted(peer, lane, reason);
            if !self.routes.closed {
                self.report(peer, lane, group, UnreachableCause::NoRoute);
            }
            return;
        };
        let queue: &LaneQueue = match lane {
            Lane::Control => control,
            Lane::Append => append,
        };
        match queue.push(envelope, self.now_ms) {
            PushOutcome::Queued { wake } => self.touch(queue, wake),
            PushOutcome::Dropped(cause) => self.report(peer, lane, group, cause),
            PushOutcome::Gone => {}
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
            self.shared.deps.reporter.report_unreachable(peer, Scope::Group(group), cause);
        }
    }

    fn end(self) {
        for (queue, wake) in self.touched {
            queue.settle(wake, self.now_ms);
        }
    }
}
