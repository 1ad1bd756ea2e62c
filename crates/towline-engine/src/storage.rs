//! The stores that a node is started with.

use std::sync::Arc;

use crate::identity::IdentityStore;
use crate::log_store::LogStore;
use crate::snapshot_store::SnapshotStore;

/// The durable stores of a node.
#[derive(Clone)]
pub struct Storage {
    /// The logs of all groups.
    pub log: Arc<dyn LogStore>,
    /// Snapshot files.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// The node's identity and the incarnations of its peers.
    pub identity: Arc<dyn IdentityStore>,
}
