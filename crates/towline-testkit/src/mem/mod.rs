//! A transport in memory whose network can be broken on purpose.
//!
//! A [`MemNet`] is the network of one test; nodes reach each other through its [`MemTransport`]s at addresses like
//! `mem://a:1`. A link holds at most [`LINK_BATCHES_MAX`] batches, so flow control is felt as on a real wire. Faults
//! are set for one direction between two nodes and take effect at once, on links that exist as well as on new ones.
//!
//! ```
//! # use towline_engine::ids::NodeId;
//! # use towline_engine::transport::Transport;
//! use towline_testkit::mem::MemNet;
//!
//! let net = MemNet::new();
//! assert_eq!(net.transport().scheme(), "mem");
//! let (a, b) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
//! net.cut(a, b); // nothing gets from a to b
//! net.heal(a, b);
//! ```

mod link;
mod listener;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, Connected, Hello, Inbound, LinkClosed, LinkFeedback, Listener, OfferAnswer, Peer,
    ProgressCell, SnapshotOffer, TransferError, Transport, TransportError,
};

use self::listener::Door;

/// Batches between a dispatch and the receiver; the next one waits.
pub const LINK_BATCHES_MAX: usize = 4;

/// Chunks of a snapshot between a sender and the receiver; the next one waits.
pub const TRANSFER_CHUNKS_MAX: usize = 2;

/// Links and transfers that one listener holds; the next dialler is refused.
pub const LISTENER_LINKS_MAX: usize = 256;

/// What is wrong in one direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Links break and attempts to connect fail at once.
    Cut,
    /// Links take everything and nothing arrives; attempts to connect are never answered. Links that lost something
    /// break when it is over.
    Swallow,
    /// Links take as much as fits in their flow control and then nothing; attempts to connect are never answered.
    Stall,
    /// Every batch arrives this much later, still in order.
    Delay(Duration),
    /// No more than this many bytes of payload arrive in a second, on each link and each transfer for itself.
    Rate(u64),
}

/// The network of one test. Clones are the same network.
#[derive(Debug, Clone)]
pub struct MemNet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Changes with every change of the faults.
    changed: watch::Sender<u64>,
    /// How long a link lives without a sign of its peer; `None`: for ever.
    silence_max: Option<Duration>,
}

#[derive(Debug, Default)]
struct State {
    doors: BTreeMap<String, Arc<Door>>,
    faults: BTreeMap<(NodeId, NodeId), Fault>,
    dead: BTreeSet<NodeId>,
    wires: Vec<Weak<Wire>>,
    ports: u16,
    /// Bytes of payload that have arrived from one node at another.
    carried: BTreeMap<(NodeId, NodeId), u64>,
}

/// What both ends of a link know of it.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// `None` for a snapshot.
    pub(crate) lane: Option<Lane>,
    /// Why the link is over, once it is.
    pub(crate) end: watch::Sender<Option<LinkClosed>>,
}

impl Wire {
    /// Ends the link; the first cause stays.
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
    /// A network without nodes and without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with a keep-alive: a link breaks after `silence_max` in which [`Fault::Swallow`] or [`Fault::Stall`], in
    /// either direction, let no answer through.
    pub fn with_keepalive(silence_max: Duration) -> Self {
        Self::with(Some(silence_max))
    }

    fn with(silence_max: Option<Duration>) -> Self {
        let (state, changed) = (Mutex::default(), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { state, changed, silence_max }) }
    }

    /// A transport on this network.
    pub fn transport(&self) -> Arc<MemTransport> {
        Arc::new(MemTransport { net: self.shared.clone() })
    }

    /// Makes something go wrong from one node to another, instead of whatever went wrong there before.
    pub fn fault(&self, from: NodeId, to: NodeId, fault: Fault) {
        self.shared.change(|state| state.faults.insert((from, to), fault));
        if fault == Fault::Cut {
            self.shared.break_links("cut", |wire| wire.from == from && wire.to == to);
        }
    }

    /// [`Fault::Cut`].
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.fault(from, to, Fault::Cut);
    }

    /// Breaks the links from one node to another once; they may be made again.
    pub fn reset(&self, from: NodeId, to: NodeId) {
        self.shared.break_links("reset", |wire| wire.from == from && wire.to == to);
    }

    /// Ends what is wrong from one node to another.
    pub fn heal(&self, from: NodeId, to: NodeId) {
        self.shared.change(|state| state.faults.remove(&(from, to)));
    }

    /// Ends every fault. Nodes that were killed stay dead.
    pub fn heal_all(&self) {
        self.shared.change(|state| state.faults.clear());
    }

    /// The node is gone, as if its machine had lost power: its links break and it reaches nobody and is reached by
    /// nobody until [`revive`](Self::revive).
    pub fn kill(&self, node: NodeId) {
        self.shared.change(|state| state.dead.insert(node));
        self.shared.break_links("killed", |wire| wire.from == node || wire.to == node);
    }

    /// The node may come back.
    pub fn revive(&self, node: NodeId) {
        self.shared.change(|state| state.dead.remove(&node));
    }

    /// Bytes of payload, of messages and of snapshots, that have arrived from one node at another.
    pub fn carried(&self, from: NodeId, to: NodeId) -> u64 {
        self.shared.lock().carried.get(&(from, to)).copied().unwrap_or_default()
    }

    /// How many links from one node to another are up, without transfers of snapshots.
    pub fn links(&self, from: NodeId, to: NodeId) -> usize {
        let wires = self.shared.lock().wires.clone();
        let live = wires.iter().filter_map(Weak::upgrade);
        live.filter(|w| w.lane.is_some() && w.from == from && w.to == to && w.end.borrow().is_none()).count()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.lock());
        self.changed.send_modify(|number| *number += 1);
    }

    fn break_links(&self, detail: &str, which: impl Fn(&Wire) -> bool) {
        let wires = self.lock().wires.clone();
        for wire in wires.iter().filter_map(Weak::upgrade).filter(|wire| which(wire)) {
            wire.close(LinkClosed::Broken { detail: detail.into() });
        }
    }

    /// What is wrong from one node to another now.
    pub(crate) fn wrong(&self, from: NodeId, to: NodeId) -> Option<Fault> {
        let state = self.lock();
        match state.dead.contains(&from) || state.dead.contains(&to) {
            true => Some(Fault::Cut),
            false => state.faults.get(&(from, to)).copied(),
        }
    }

    /// Counts what has arrived.
    pub(crate) fn carry(&self, wire: &Wire, bytes: usize) {
        *self.lock().carried.entry((wire.from, wire.to)).or_default() += bytes as u64;
    }

    /// Ends once no answer to a keep-alive has come through for too long.
    pub(crate) async fn silence(&self, wire: &Wire) {
        let Some(silence_max) = self.silence_max else { return pending().await };
        let (mut changed, mut since) = (self.watch(), None);
        loop {
            changed.borrow_and_update();
            let faults = [self.wrong(wire.from, wire.to), self.wrong(wire.to, wire.from)];
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

    fn add_wire(&self, wire: &Arc<Wire>) {
        let mut state = self.lock();
        state.wires.retain(|wire| wire.strong_count() > 0);
        state.wires.push(Arc::downgrade(wire));
    }
}

/// A [`Transport`] on a [`MemNet`].
#[derive(Debug)]
pub struct MemTransport {
    net: Arc<Shared>,
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
