//! What a node is given to keep things in.

use std::sync::Arc;

use crate::identity::IdentityStore;
use crate::log_store::LogStore;
use crate::snapshot_store::SnapshotStore;

/// Where a node keeps what must survive.
#[derive(Clone)]
pub struct Storage {
    /// The logs of all groups.
    pub log: Arc<dyn LogStore>,
    /// Snapshot files.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Who the node is, and whom it has met.
    pub identity: Arc<dyn IdentityStore>,
}
