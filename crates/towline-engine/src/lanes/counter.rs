//! What the lanes count. The node adapts this to the metrics crate.

use std::sync::Arc;

use super::policy::{Depth, DropReason};
use crate::ids::NodeId;
use crate::message::Lane;

/// The counters of one lane to one peer. Called under a lane's lock: must not block and must not call back.
pub(crate) trait LaneCounter: Send + Sync + 'static {
    /// A link took a batch. `bytes` is payload, without framing.
    fn sent(&self, messages: usize, bytes: usize);
    /// Messages were lost, as far as is known here.
    fn dropped(&self, reason: DropReason, messages: usize);
    /// A link was made and its peer let in.
    fn connected(&self);
    /// An attempt to make a link failed.
    fn connect_failed(&self);
    /// A link that was made is gone.
    fn closed(&self);
    /// The peer refused messages of a group.
    fn nack(&self);
    /// What waits now.
    fn depth(&self, depth: Depth);
}

/// Makes the counters.
pub(crate) trait LaneCounters: Send + Sync + 'static {
    /// Those of one lane, made once when its peer is set.
    fn lane(&self, peer: NodeId, scheme: &str, lane: Lane) -> Arc<dyn LaneCounter>;
    /// A message for which there is no lane was dropped.
    fn unrouted(&self, peer: NodeId, lane: Lane, reason: DropReason);
}
