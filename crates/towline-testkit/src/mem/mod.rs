//! A transport in memory whose network fails on request.
//!
//! A [`MemNet`] is the network of one test. Addresses look like `mem://a:1`. A link holds at most [`LINK_BATCHES_MAX`]
//! batches; then flow control blocks the sender. A fault concerns one direction between two nodes, and takes effect at
//! once, also on open links.
//!
//! ```
//! # use towline_engine::ids::NodeId;
//! # use towline_engine::transport::Transport;
//! use towline_testkit::mem::MemNet;
//!
//! let net = MemNet::new();
//! assert_eq!(net.transport().scheme(), "mem");
//! let (a, b) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
//! net.cut(a, b); // no message passes from a to b
//! net.heal(a, b);
//! ```

mod link;
mod listener;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, Connected, Hello, Inbound, LinkClosed, LinkFeedback, Listener, OfferAnswer, Peer,
    ProgressCell, SnapshotOffer, TransferError, Transport, TransportError,
};

use self::listener::MemEndpoint;
use crate::sync::lock;

/// Batches that a link holds; the next dispatch waits.
pub const LINK_BATCHES_MAX: usize = 4;

/// Chunks that a snapshot transfer holds; the next send waits.
pub const TRANSFER_CHUNKS_MAX: usize = 2;

/// Links and transfers of one listener; the next dialler is refused.
pub const LISTENER_LINKS_MAX: usize = 256;

/// A fault in one direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Links break and attempts to connect fail at once.
    Cut,
    /// Links take everything and deliver nothing; attempts to connect get no answer. Links that lost messages break when
    /// the fault ends.
    Swallow,
    /// Links take what flow control allows and deliver nothing; attempts to connect get no answer.
    Stall,
    /// Every batch arrives later by this time, in order.
    Delay(Duration),
    /// The most payload bytes per second, for each link and transfer.
    Rate(u64),
}

/// The network of one test. Clones share it.
#[derive(Debug, Clone)]
pub struct MemNet {
    shared: Arc<MemNetShared>,
}

#[derive(Debug)]
pub(crate) struct MemNetShared {
    state: Mutex<MemNetState>,
    /// Changes with every change of the faults.
    changed: watch::Sender<u64>,
    /// When keep-alive breaks a silent link.
    silence_max: Option<Duration>,
}

#[derive(Debug, Default)]
struct MemNetState {
    endpoints: BTreeMap<String, Arc<MemEndpoint>>,
    faults: BTreeMap<(NodeId, NodeId), Fault>,
    dead: BTreeSet<NodeId>,
    wires: Vec<Weak<Wire>>,
    ports: u16,
    /// Payload bytes that arrived, by sender and receiver.
    carried: BTreeMap<(NodeId, NodeId), u64>,
}

/// The state that both ends of a link share.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// `None` for a snapshot.
    pub(crate) lane: Option<Lane>,
    /// Why the link ended.
    pub(crate) end: watch::Sender<Option<LinkClosed>>,
}

impl Wire {
    /// Ends the link, unless it has ended.
    pub(crate) fn close(&self, cause: LinkClosed) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(cause);
            first
        });
    }
}

impl Default for MemNet {
    fn default() -> Self {
        Self::with(None)
    }
}

impl MemNet {
    /// A network without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A network whose links break after [`Fault::Swallow`] or [`Fault::Stall`] lasted `silence_max` in either direction.
    pub fn with_keepalive(silence_max: Duration) -> Self {
        Self::with(Some(silence_max))
    }

    fn with(silence_max: Option<Duration>) -> Self {
        let (state, changed) = (Mutex::default(), watch::Sender::new(0));
        Self { shared: Arc::new(MemNetShared { state, changed, silence_max }) }
    }

    /// A transport on this network.
    pub fn transport(&self) -> Arc<MemTransport> {
        Arc::new(MemTransport { net: self.shared.clone() })
    }

    /// Sets the fault from one node to another.
    pub fn fault(&self, from: NodeId, to: NodeId, fault: Fault) {
        self.shared.change(|state| state.faults.insert((from, to), fault));
        if fault == Fault::Cut {
            self.shared.break_links("cut", |wire| wire.from == from && wire.to == to);
        }
    }

    /// Sets [`Fault::Cut`].
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.fault(from, to, Fault::Cut);
    }

    /// Breaks the links from one node to another once.
    pub fn reset(&self, from: NodeId, to: NodeId) {
        self.shared.break_links("reset", |wire| wire.from == from && wire.to == to);
    }

    /// Clears the fault from one node to another.
    pub fn heal(&self, from: NodeId, to: NodeId) {
        self.shared.change(|state| state.faults.remove(&(from, to)));
    }

    /// Clears all faults. Killed nodes stay killed.
    pub fn heal_all(&self) {
        self.shared.change(|state| state.faults.clear());
    }

    /// Breaks all links of a node and refuses new ones until [`revive`](Self::revive), as after a power loss.
    pub fn kill(&self, node: NodeId) {
        self.shared.change(|state| state.dead.insert(node));
        self.shared.break_links("killed", |wire| wire.from == node || wire.to == node);
    }

    /// Reverts [`kill`](Self::kill).
    pub fn revive(&self, node: NodeId) {
        self.shared.change(|state| state.dead.remove(&node));
    }

    /// Payload bytes of messages and snapshots that arrived from one node at another.
    pub fn carried(&self, from: NodeId, to: NodeId) -> u64 {
        self.shared.lock().carried.get(&(from, to)).copied().unwrap_or_default()
    }

    /// The number of open links from one node to another, without snapshot transfers.
    pub fn links(&self, from: NodeId, to: NodeId) -> usize {
        let wires = self.shared.lock().wires.clone();
        let live = wires.iter().filter_map(Weak::upgrade);
        live.filter(|w| w.lane.is_some() && w.from == from && w.to == to && w.end.borrow().is_none()).count()
    }
}

impl MemNetShared {
    fn lock(&self) -> MutexGuard<'_, MemNetState> {
        lock(&self.state)
    }

    fn change<T>(&self, change: impl FnOnce(&mut MemNetState) -> T) {
        change(&mut self.lock());
        self.changed.send_modify(|number| *number += 1);
    }

    fn break_links(&self, detail: &str, which: impl Fn(&Wire) -> bool) {
        let wires = self.lock().wires.clone();
        for wire in wires.iter().filter_map(Weak::upgrade).filter(|wire| which(wire)) {
            wire.close(LinkClosed::Broken { detail: detail.into() });
        }
    }

    /// The fault from one node to another.
    pub(crate) fn fault(&self, from: NodeId, to: NodeId) -> Option<Fault> {
        let state = self.lock();
        match state.dead.contains(&from) || state.dead.contains(&to) {
            true => Some(Fault::Cut),
            false => state.faults.get(&(from, to)).copied(),
        }
    }

    /// Returns when keep-alive has to break a link.
    pub(crate) async fn silence(&self, wire: &Wire) {
        let Some(silence_max) = self.silence_max else { return pending().await };
        let (mut changed, mut since) = (self.watch(), None);
        loop {
            changed.borrow_and_update();
            let faults = [self.fault(wire.from, wire.to), self.fault(wire.to, wire.from)];
            let is_silent = faults.iter().any(|fault| matches!(fault, Some(Fault::Swallow | Fault::Stall)));
            since = is_silent.then(|| since.unwrap_or_else(Instant::now));
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(since.unwrap_or_else(Instant::now) + silence_max), if is_silent => return,
            }
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes the next item from the queue of a wire, subject to the fault of its direction. `None`: the sender is gone.
    ///
    /// # Errors
    /// The cause, if the fault breaks the wire.
    pub(crate) async fn next<T>(
        &self,
        wire: &Wire,
        queue: &mut mpsc::Receiver<T>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Option<T>, &'static str> {
        let mut changed = self.watch();
        let mut swallowed = false;
        loop {
            changed.borrow_and_update();
            let fault = self.fault(wire.from, wire.to);
            match fault {
                // A stream has no gaps.
                None | Some(Fault::Delay(_) | Fault::Rate(_)) if swallowed => {
                    return Err("lost in a black hole");
                }
                Some(Fault::Cut) => return Err("cut"),
                Some(Fault::Stall) => {
                    let _ = changed.changed().await;
                    continue;
                }
                _ => {}
            }
            let item = tokio::select! {
                biased;
                _ = changed.changed() => continue,
                item = queue.recv() => item,
            };
            let Some(item) = item else { return Ok(None) };
            if fault == Some(Fault::Swallow) {
                swallowed = true;
                continue;
            }
            let bytes = bytes(&item);
            match fault {
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::Rate(rate)) => {
                    sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)).await
                }
                _ => {}
            }
            *self.lock().carried.entry((wire.from, wire.to)).or_default() += bytes as u64;
            return Ok(Some(item));
        }
    }

    fn add_wire(&self, wire: &Arc<Wire>) {
        let mut state = self.lock();
        state.wires.retain(|wire| wire.strong_count() > 0);
        state.wires.push(Arc::downgrade(wire));
    }
}

/// A [`Transport`] on a [`MemNet`].
#[derive(Debug)]
pub struct MemTransport {
    net: Arc<MemNetShared>,
}

#[async_trait]
impl Transport for MemTransport {
    fn scheme(&self) -> &'static str {
        "mem"
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        listener::listen(&self.net, at, inbound)
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        link::connect(&self.net, to, lane, hello, feedback).await
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        transfer::offer(&self.net, to, hello, offer, deciding).await
    }
}

#[cfg(test)]
mod tests;
