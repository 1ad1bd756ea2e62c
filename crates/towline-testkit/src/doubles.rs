//! Doubles of the engine for the tests of a transport: they record what the transport reports, and give scripted answers.
//!
//! [`RecordingInbound`] listens in place of a node, and [`LinkLog`] stands in for the lane of a dialler. Their futures
//! have no deadline: wrap them in a timeout.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use towline_engine::message::Lane;
//! use towline_engine::transport::{Peer, Transport};
//! use towline_testkit::cluster::{node_id, within};
//! use towline_testkit::doubles::{LinkLog, RecordingInbound, batch, hello};
//! use towline_testkit::mem::MemNet;
//!
//! let transport = MemNet::new().transport();
//! let peer = Peer { id: node_id(2), address: "mem://b:1".parse().unwrap() };
//! let inbound = RecordingInbound::new(peer.id);
//! let listener = transport.listen(&peer.address, inbound.inbound()).await.unwrap();
//! let (log, feedback) = LinkLog::new();
//! let mut connected = transport.connect(&peer, Lane::Append, &hello(1, 2), feedback).await.unwrap();
//! connected.link.dispatch(batch(7, 100)).await.unwrap();
//! assert_eq!(within(inbound.next_batch()).await.batch, batch(7, 100));
//! listener.shutdown().await;
//! within(log.closed()).await;
//! # });
//! ```

mod inbound;
mod link;
mod sink;

pub use inbound::{DECIDING, Delivered, InboundLog, OfferReply, RecordingInbound};
pub use link::LinkLog;
pub use sink::{SinkLog, SinkScript};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;
use towline_engine::ids::{GroupId, Incarnation};
use towline_engine::message::{Batch, Envelope, Message, MessageKind};
use towline_engine::transport::{Hello, PROTOCOL_VERSION};

use crate::cluster::{cluster_id, node_id};

/// Blocks its callers while it is shut. A new gate is open.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Gate {
    /// Blocks callers from now on.
    pub fn shut(&self) {
        self.0.send_replace(false);
    }

    /// Releases all blocked callers.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }

    /// Blocks the thread until the gate is open. Its other tasks move to another thread meanwhile.
    ///
    /// # Panics
    /// On a shut gate outside a multi-threaded runtime of tokio.
    pub fn pass_blocking(&self) {
        let open = *self.0.borrow();
        if !open {
            block_in_place(|| Handle::current().block_on(self.pass()));
        }
    }
}

/// The hello that node `from` sends to node `to`, with an incarnation made of its number.
///
/// # Panics
/// If a number is zero.
pub fn hello(from: u64, to: u64) -> Hello {
    Hello {
        cluster: cluster_id(),
        from: node_id(from),
        to: node_id(to),
        incarnation: incarnation(from),
        protocol: PROTOCOL_VERSION,
    }
}

fn incarnation(node: u64) -> Incarnation {
    const BASE: Incarnation = Incarnation::new(0xABCD_0000).unwrap();
    Incarnation::new(BASE.as_u64() + node).unwrap_or(BASE)
}

/// An append message from node 1 to node 2, identified by its index, with a context of `bytes` bytes.
pub fn append(group: u64, index: u64, bytes: usize) -> Envelope {
    let mut message = Message::new(MessageKind::Append, node_id(1), node_id(2));
    (message.term, message.index, message.context) = (3, index, Bytes::from(vec![index as u8; bytes]));
    Envelope { group: GroupId::new(group), message }
}

/// A batch of one [`append`] message of group 1.
pub fn batch(index: u64, bytes: usize) -> Batch {
    Batch { envelopes: vec![append(1, index, bytes)] }
}
