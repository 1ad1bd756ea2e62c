//! What a node passes to its lanes: settings, transports, counters and the check of a peer's identity.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::policy::{Depth, DropReason};
use crate::config::ValidConfig;
use crate::ids::NodeId;
use crate::message::Lane;
use crate::reporter::Reporter;
use crate::transport::{ConnectError, Hello, Nack, Transport, Welcome};

/// The dependencies of the lanes.
pub(crate) struct LanesDeps {
    /// Gets the reports of lost appends.
    pub(crate) reporter: Arc<dyn Reporter>,
    /// Checks the peer before the first message on every link.
    pub(crate) gate: Arc<dyn PeerGate>,
    /// Makes the counters of each lane.
    pub(crate) counters: Arc<dyn LaneCounters>,
    /// The transports, by the scheme of the addresses that they serve.
    pub(crate) transports: BTreeMap<String, Arc<dyn Transport>>,
    /// The runtime of the workers.
    pub(crate) runtime: Handle,
    /// Makes the hello for a peer.
    pub(crate) hello: Arc<dyn Fn(NodeId) -> Hello + Send + Sync>,
}

/// The bounds and times of the lanes. See [`Config`](crate::config::Config) for each.
#[derive(Debug, Clone)]
pub(crate) struct LaneSettings {
    pub(crate) append_messages_max: usize,
    pub(crate) append_bytes_max: usize,
    pub(crate) reads_max: usize,
    pub(crate) batch_bytes_max: usize,
    pub(crate) dispatch_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    /// A control message that waits longer than this for a link is dropped. One election timeout.
    pub(crate) control_age_max: Duration,
}

impl From<&ValidConfig> for LaneSettings {
    fn from(config: &ValidConfig) -> Self {
        Self {
            append_messages_max: config.lane_append_messages_max,
            append_bytes_max: config.lane_append_bytes_max.as_usize(),
            reads_max: config.lane_reads_max,
            batch_bytes_max: config.lane_batch_bytes_max.as_usize(),
            dispatch_timeout: config.lane_dispatch_timeout,
            connect_timeout: config.lane_connect_timeout,
            backoff_min: config.lane_backoff_min,
            backoff_max: config.lane_backoff_max,
            control_age_max: config.election_timeout_min,
        }
    }
}

/// Checks that the peer that answered is the known one, by its incarnation.
pub(crate) trait PeerGate: Send + Sync + 'static {
    /// Checks a welcome. May block. The lane sends nothing before this returns `Ok`.
    ///
    /// # Errors
    /// The reason of the refusal, for the log. The lane drops the link and reconnects after a backoff.
    fn welcome(&self, welcome: &Welcome) -> Result<(), String>;

    /// An attempt to connect to the peer failed.
    fn connect_failed(&self, peer: NodeId, error: &ConnectError);

    /// The peer refused messages of a group.
    fn nacked(&self, peer: NodeId, nack: Nack);
}

/// The counters of one lane to one peer. Called under a lane's lock: must not block and must not call back.
pub(crate) trait LaneCounter: Send + Sync + 'static {
    /// A link accepted a batch. `bytes` is payload, without framing.
    fn sent(&self, messages: usize, bytes: usize);
    /// Messages were dropped, or probably lost.
    fn dropped(&self, reason: DropReason, messages: usize);
    /// A link was established and its peer accepted.
    fn connected(&self);
    /// An attempt to connect failed.
    fn connect_failed(&self);
    /// An established link ended.
    fn closed(&self);
    /// The peer sent a nack.
    fn nack(&self);
    /// The depth of the queue changed.
    fn depth(&self, depth: Depth);
}

/// Makes the counters of lanes.
pub(crate) trait LaneCounters: Send + Sync + 'static {
    /// Makes the counters of one lane, once, when its peer is set.
    fn lane(&self, peer: NodeId, scheme: &str, lane: Lane) -> Arc<dyn LaneCounter>;
    /// A message without a lane was dropped.
    fn unrouted(&self, peer: NodeId, lane: Lane, reason: DropReason);
}
